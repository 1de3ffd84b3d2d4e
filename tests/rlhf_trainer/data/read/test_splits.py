"""Folders as people have them, and the files that a split means in each."""

from pathlib import Path

import pytest

from rlhf_api.errors import InputError
from rlhf_trainer.data.read.splits import files_of_split

FIELD = "spec.stages.sft.dataset"
ULTRA = [
    "train_prefs-00000-of-00002.jsonl",
    "train_prefs-00001-of-00002.jsonl",
    "train_sft-00000-of-00001.jsonl",
    "test_prefs.jsonl",
    "test_sft.jsonl",
]
"""As UltraFeedback has them."""


def _folder(root: Path, names: list[str]) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return root


def _is_data(path: Path) -> bool:
    return path.suffix == ".jsonl" and path.is_file()


def _files(folder: Path, split: str) -> list[str]:
    found = files_of_split(folder, _is_data, split, FIELD)
    return [str(path.relative_to(folder)) for path in found]


@pytest.mark.parametrize(
    ("names", "split", "files"),
    [
        ([], "train", []),
        (["b.jsonl", "a.jsonl", "README.md"], "train", ["a.jsonl", "b.jsonl"]),
        (["train.jsonl", "test.jsonl"], "train", ["train.jsonl"]),
        (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (["train.jsonl", "test.jsonl"], "eval", ["test.jsonl"]),
        (["Train.jsonl", "dev.jsonl"], "train", ["Train.jsonl"]),
        (["dev.jsonl", "train.jsonl"], "validation", ["dev.jsonl"]),
        (
            ["train-00001-of-00002.jsonl", "train-00000-of-00002.jsonl", "test-0.jsonl"],
            "train",
            ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"],
        ),
        (["zh_train.jsonl", "zh_test.jsonl"], "test", ["zh_test.jsonl"]),
        (["train1.jsonl", "test1.jsonl"], "train", ["train1.jsonl"]),
        (["train1.jsonl", "train2.jsonl", "x.md"], "train", ["train1.jsonl", "train2.jsonl"]),
        (["train2023.jsonl", "test2023.jsonl"], "test", ["test2023.jsonl"]),
        (["train2023.jsonl", "train2024.jsonl"], "train2024", ["train2024.jsonl"]),
        (["zh_1train2.jsonl", "zh_1dev2.jsonl"], "dev", ["zh_1dev2.jsonl"]),
        (["trainset.jsonl", "testset.jsonl"], "train", ["trainset.jsonl"]),
        (["train1/a.jsonl", "test1/a.jsonl"], "train", ["train1/a.jsonl"]),
        (["contest.jsonl", "latest.jsonl"], "train", ["contest.jsonl", "latest.jsonl"]),
        (
            ["train/b.jsonl", "train/a.jsonl", "test/a.jsonl"],
            "train",
            ["train/a.jsonl", "train/b.jsonl"],
        ),
        (["train/test.jsonl", "test/a.jsonl"], "train", ["train/test.jsonl"]),
        (["a.jsonl", "raw/b.jsonl"], "train", ["a.jsonl"]),
        (["easy.jsonl", "hard.jsonl", "test.jsonl"], "train", None),
        (["rows-hard.jsonl", "test.jsonl"], "hard", ["rows-hard.jsonl"]),
        (["a.jsonl", "b.jsonl"], "test", None),
        (["test.jsonl", "dev.jsonl"], "train", None),
        (["train.jsonl", "more.jsonl"], "train", None),
        (["a.jsonl", "test/a.jsonl"], "train", None),
        (ULTRA, "test_prefs", ["test_prefs.jsonl"]),
        (
            ULTRA,
            "train_prefs",
            ["train_prefs-00000-of-00002.jsonl", "train_prefs-00001-of-00002.jsonl"],
        ),
        (ULTRA, "train", None),
        (ULTRA, "prefs", None),
        ([*ULTRA, "train.jsonl"], "train", ["train.jsonl"]),
        (["zh_train.jsonl", "en_train.jsonl"], "train", None),
        (["zh_train.jsonl", "en_train.jsonl"], "zh_train", ["zh_train.jsonl"]),
        (["val.jsonl", "dev.jsonl"], "validation", None),
        (["val.jsonl", "dev.jsonl"], "dev", ["dev.jsonl"]),
        (["eval.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (["easy.jsonl", "hard.jsonl"], "hard", ["hard.jsonl"]),
        (["rows-2023.jsonl", "rows-2024.jsonl"], "rows-2024", ["rows-2024.jsonl"]),
        (["train_sft/a.jsonl", "train_prefs/a.jsonl"], "train_prefs", ["train_prefs/a.jsonl"]),
        (
            ["train-00000-of-00001-0123456789abcdef.jsonl", "test-0.jsonl"],
            "train",
            ["train-00000-of-00001-0123456789abcdef.jsonl"],
        ),
    ],
)
def test_files_of_a_split(
    tmp_path: Path, names: list[str], split: str, files: list[str] | None
) -> None:
    folder = _folder(tmp_path, names)

    if files is not None:
        assert _files(folder, split) == files
        return
    with pytest.raises(InputError) as caught:
        _files(folder, split)
    assert str(caught.value).startswith(f"{FIELD}.")
    assert "name " in str(caught.value)


def test_what_cannot_be_told_is_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path, ["train.jsonl", "more.jsonl"])

    with pytest.raises(InputError) as caught:
        _files(folder, "train")

    for word in [f"{FIELD}.uri: {folder}", "the splits train and more.jsonl", "move it away"]:
        assert word in str(caught.value)


def test_a_split_that_no_file_names_is_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path, ["a.jsonl"])

    with pytest.raises(InputError) as caught:
        _files(folder, "test")

    for word in [f"{FIELD}.split: test", "no split by name", "the file itself in uri"]:
        assert word in str(caught.value)


def test_several_names_of_one_split_are_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path, ULTRA)

    with pytest.raises(InputError) as caught:
        _files(folder, "train")

    for word in [f"{FIELD}.split: train: {folder}", "holds train_prefs and train_sft,", "in split"]:
        assert word in str(caught.value)
