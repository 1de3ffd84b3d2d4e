"""Folders as people have them, and the files that a split means in each."""

from pathlib import Path

import pytest

from rlhf_api.errors import InputError
from rlhf_trainer.data.read.splits import files_of_split

FIELD = "spec.stages.sft.dataset"


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
