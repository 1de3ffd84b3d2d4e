"""Folders of which a part is missing, or in another format."""

from pathlib import Path

import pytest

from rlhf_api.errors import InputError
from rlhf_api.names import FileName, StageName, WorkdirFile
from rlhf_api.v1alpha1 import Dataset, JobReference
from rlhf_trainer.data.read.rows import data_files
from rlhf_trainer.data.read.shards import require_whole_repository

FIELD = "spec.stages.sft.dataset"
HASH = "-0123456789abcdef"


def _files(folder: Path, names: list[str], split: str = "train") -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    dataset = Dataset(uri=f"file://{folder}", split=split)
    return [str(path.relative_to(folder)) for path in data_files(folder, dataset, FIELD)]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["train-00000-of-00002.jsonl"], "lacks train-00001-of-00002.jsonl and holds 1 of 2"),
        (["a-1-of-3.parquet", "a-3-of-3.parquet"], "lacks a-2-of-3.parquet and holds 2 of 3"),
        (["train/x_of_y.jsonl", "train/0-1-of-2.jsonl"], "lacks 0-0-of-2.jsonl and holds 1 of 2"),
        (
            [f"train-00000-of-00002{HASH}.jsonl", "test-00001-of-00002.jsonl"],
            "lacks train-00001-of-00002.jsonl",
        ),
        (["00000-of-00002.jsonl"], "lacks 00001-of-00002.jsonl and holds 1 of 2"),
        (["train.jsonl", "train2.jsonl.gz"], "train2.jsonl.gz is in a format that is not read"),
        (["a.jsonl", "b.csv"], "b.csv is in a format that is not read"),
        *(
            (["a.jsonl", name], f"{name} is in a format that is not read")
            for name in [
                "b.ndjson",
                "b.txt",
                "b.parquet.gz",
                "b.jsonl.lz4",
                "b.jsonl.zip",
                "b.JSON.GZ",
                "b.whatever",
                "b.db",
                "b.ini",
                "b.log.gz",
                "_committed",
                "b",
                "README.jsonl.gz",
                "more/en/b.csv",
            ]
        ),
        (["a.jsonl", "more/b.jsonl"], "more/b.jsonl lies in a subfolder that is not looked into"),
        (["train/b.jsonl", "train/en/a.jsonl"], "train/en/a.jsonl lies in a subfolder"),
        (["train/b.jsonl", "train/test/a.jsonl"], "train/test/a.jsonl lies in a subfolder"),
        (["a.jsonl", "sft/attempt-1/b.jsonl"], "sft/attempt-1/b.jsonl lies in a subfolder"),
        (["a.jsonl", "en/attempt-1/events.jsonl"], "en/attempt-1/events.jsonl lies in a subfolder"),
        (["a.jsonl", "sft/en/events.jsonl"], "sft/en/events.jsonl lies in a subfolder"),
        (["a.jsonl", "runs/job/summary.json"], "runs/job/summary.json lies in a subfolder"),
        (["a.jsonl", "runs/lock"], "runs/lock is in a format that is not read"),
        (["README.jsonl", "data/train-0.jsonl"], "data/train-0.jsonl lies in a subfolder"),
        (["rows.jsonl", "heldout.jsonl"], "rows.jsonl, which names none"),
        (["rows.jsonl", "sft-held-out.jsonl"], "rows.jsonl, which names none"),
        (["rows.jsonl", "holdout/a.jsonl"], "rows.jsonl, which names none"),
    ],
)
def test_a_folder_that_holds_more_than_is_read_is_refused(
    tmp_path: Path, names: list[str], told: str
) -> None:
    with pytest.raises(InputError) as caught:
        _files(tmp_path, names)

    for words in [f"{FIELD}.uri: {tmp_path}", told, "name "]:
        assert words in str(caught.value)


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "blobs" / "1")

    with pytest.raises(InputError, match=r"b\.jsonl is a link to .*blobs/1, which is not there"):
        _files(tmp_path, ["a.jsonl"])


@pytest.mark.parametrize(
    "names",
    [
        ["a-00000-of-00002.jsonl", "a-00001-of-00002.jsonl"],
        ["a-1-of-2.jsonl", "a-2-of-2.jsonl"],
        [f"train-00000-of-00002{HASH}.jsonl", "train-00001-of-00002-fedcba9876543210.jsonl"],
        ["train.jsonl", "test.csv", ".hidden.csv"],
        ["train.jsonl", "test/en/a.jsonl", "en/test.jsonl", "data.test.csv"],
        ["train.jsonl", "held_out.jsonl", "held out/a.jsonl"],
        ["a.jsonl", "README.md", ".gitattributes", "dataset_infos.json", ".cache/b.jsonl"],
        ["a.jsonl", "LICENSE", "README_zh.txt", "img/a.png", "_SUCCESS", "load.py", "config.json"],
        ["part-0.jsonl", "_SUCCESS", "_committed_12", "_started_12", "_committed_vacuum34"],
        ["a.jsonl", "convert.log", "card.html", "page.htm", "Thumbs.db", "desktop.ini"],
        ["train-0-of-1.jsonl", "test-0-of-2.jsonl"],
    ],
)
def test_a_whole_folder_is_read(tmp_path: Path, names: list[str]) -> None:
    found = _files(tmp_path, names)

    rest = ("test", "held", ".", "en/")
    assert found == sorted(n for n in names if n.endswith(".jsonl") and not n.startswith(rest))


@pytest.mark.parametrize(
    ("split", "files"),
    [
        ("heldout", ["sft-heldout.jsonl"]),
        ("test", ["sft-heldout.jsonl"]),
        ("train", ["train.JSONL"]),
    ],
)
def test_rows_kept_out_of_training_are_a_split(
    tmp_path: Path, split: str, files: list[str]
) -> None:
    assert _files(tmp_path, ["train.JSONL", "sft-heldout.jsonl"], split) == files


def test_other_folders_than_the_one_of_a_split_s_own_name_are_other_splits(tmp_path: Path) -> None:
    names = ["train_prefs/a.jsonl", "train_sft/a.jsonl", "more/a.csv"]

    assert _files(tmp_path, names, "train_prefs") == ["train_prefs/a.jsonl"]
    with pytest.raises(InputError, match=r"train_prefs/en/b\.csv is in a format"):
        _files(tmp_path, ["train_prefs/en/b.csv"], "train_prefs")


@pytest.mark.parametrize("stage", StageName)
@pytest.mark.parametrize(
    "begun",
    [
        FileName.EVENTS,
        f"{FileName.ARTIFACT}/model.safetensors",
        f"{FileName.CHECKPOINTS}/step-1/rank-0.pt",
    ],
)
def test_what_jobs_leave_below_the_rows_is_none_of_them(
    tmp_path: Path, stage: str, begun: str
) -> None:
    run = tmp_path / "runs" / "a"
    attempt = run / JobReference(name="a", uid="0123456789").folder / stage / "attempt-12"
    left = [attempt / begun, attempt / "tokenizer.json"]
    left += [run / WorkdirFile.STATUS, run / WorkdirFile.LOCK, run / WorkdirFile.SUMMARY]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    assert _files(tmp_path, ["train.jsonl"]) == ["train.jsonl"]


def test_links_are_followed_and_their_loops_are_not(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    _files(outside, ["b.jsonl"])
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "train").symlink_to(outside)
    (folder / "raw").symlink_to(outside)
    (folder / "loop").symlink_to(folder)

    assert _files(folder, []) == ["train/b.jsonl"]

    (folder / "train").unlink()
    with pytest.raises(InputError, match=r"raw/b\.jsonl lies in a subfolder"):
        _files(folder, ["a.jsonl"])


@pytest.mark.parametrize("split", ["train", "train[:10%]", "dev + train[5:]"])
def test_files_of_other_splits_may_be_left_unread(split: str) -> None:
    names = ["train.jsonl", "dev.jsonl", "test.csv", "README.md", ".cache/a.csv", "config.json"]

    require_whole_repository("hf://a/b", names, names[:2], split, FIELD)
    for asked in ("test", f"{split}+test"):
        with pytest.raises(InputError, match=rf"^{FIELD}\.uri: hf://a/b: test\.csv is not read"):
            require_whole_repository("hf://a/b", names, names[:2], asked, FIELD)
