"""Folders of which a part is missing, or in another format."""

from pathlib import Path

import pytest

from rlhf_api.errors import InputError
from rlhf_api.v1alpha1 import Dataset
from rlhf_trainer.data.read.rows import data_files

FIELD = "spec.stages.sft.dataset"
HASH = "-0123456789abcdef"


def _files(folder: Path, names: list[str]) -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    dataset = Dataset(uri=f"file://{folder}")
    return [path.name for path in data_files(folder, dataset, FIELD)]


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
        ["train.jsonl", "test.csv", ".hidden.csv", "notes.txt"],
        ["train-0-of-1.jsonl", "test-0-of-2.jsonl"],
    ],
)
def test_a_whole_folder_is_read(tmp_path: Path, names: list[str]) -> None:
    found = _files(tmp_path, names)

    assert found == sorted(n for n in names if n.endswith(".jsonl") and not n.startswith("test"))
