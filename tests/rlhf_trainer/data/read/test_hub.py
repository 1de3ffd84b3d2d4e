"""Repositories of the hub: read from the cache, of their revision, and whole or not at all."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import datasets  # type: ignore[import-untyped]
import huggingface_hub
import pytest

from rlhf_api.errors import InputError
from rlhf_trainer.data.read.hub import hub_rows
from rlhf_trainer.data.read.uris import Hub

FIELD = "spec.stages.sft.dataset"

# HF_HOME and HF_HUB_OFFLINE are read when the libraries are imported, hence a process of its own.
READ_HUB = textwrap.dedent("""
    import json, sys
    from rlhf_api.errors import RLHFError
    from rlhf_api.v1alpha1 import Dataset
    from rlhf_trainer.data.read.rows import read_rows
    for spec in json.loads(sys.argv[1]):
        try:
            rows = read_rows(Dataset(**spec), claims={}, field="spec.stages.sft.dataset")
            print("ROWS", json.dumps([[str(row.source), dict(row.values)] for row in rows]))
        except RLHFError as error:
            print(type(error).__name__, error)
""")


def _read_offline(home: Path, *specs: dict[str, str]) -> list[str]:
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", READ_HUB, json.dumps(specs)],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return done.stdout.splitlines()


COMMIT = "a" * 40


def _downloaded(folder: Path, name: str) -> Path:
    """Where the files of a dataset lie that the hub's library has fetched."""
    repository = folder / "hub" / f"datasets--acme--{name}"
    files = repository / "snapshots" / COMMIT
    files.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return files


def test_a_downloaded_repository_is_read_offline(tmp_path: Path) -> None:
    files = _downloaded(tmp_path, "reviews")
    (files / "train.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
    (files / "test.jsonl").write_text('{"a": 3}\n')
    uri = "hf://acme/reviews"

    lines = _read_offline(
        tmp_path,
        {"uri": uri},
        {"uri": f"{uri}@{COMMIT}", "split": "test"},
        {"uri": f"{uri}@v9"},
        {"uri": uri, "split": "dev"},
        {"uri": uri, "subset": "zh"},
        {"uri": "hf://acme/other"},
    )

    assert lines[0] == f'ROWS [["{uri}: row 1", {{"a": 1}}], ["{uri}: row 2", {{"a": 2}}]]'
    assert lines[1] == f'ROWS [["{uri}@{COMMIT}: row 1", {{"a": 3}}]]'
    for line, words in zip(
        lines[2:],
        [["reviews@v9"], ["split dev", "'train'"], ["subset zh"], ["acme/other"]],
        strict=True,
    ):
        assert line.startswith(f"InputError {FIELD}.uri: hf://acme/")
        for word in [*words, "fill the cache"]:
            assert word in line


def test_tables_in_the_cache_are_read_offline_of_their_revision_only(tmp_path: Path) -> None:
    source = tmp_path / "source" / "reviews" / "train.jsonl"
    source.parent.mkdir(parents=True)
    source.write_text('{"a": 1}\n')
    tables = tmp_path / "datasets"
    datasets.load_dataset(str(source.parent), cache_dir=str(tables))
    (made,) = tables.glob("reviews/default/0.0.0/*/")
    kept = tables / "acme___reviews" / "default" / "0.0.0"
    kept.mkdir(parents=True)
    made.rename(kept / COMMIT)
    uri = "hf://acme/reviews"

    plain, same, other = _read_offline(
        tmp_path, {"uri": uri}, {"uri": f"{uri}@{COMMIT}"}, {"uri": f"{uri}@{'b' * 40}"}
    )

    assert plain == f'ROWS [["{uri}: row 1", {{"a": 1}}]]'
    assert same.startswith("ROWS ")
    assert other.startswith(f"InputError {FIELD}.uri: {uri}@bbbb")
    assert f"newest tables are of revision {COMMIT}" in other


def test_a_broken_file_of_a_repository_is_a_data_error(tmp_path: Path) -> None:
    files = _downloaded(tmp_path, "broken")
    (files / "train.jsonl").write_text("not json\n")

    (line,) = _read_offline(tmp_path, {"uri": "hf://acme/broken"})

    assert line.startswith("DataError hf://acme/broken: a file of it cannot be read")


@pytest.mark.parametrize(
    ("names", "unread"),
    [
        (["train.jsonl", "extra.jsonl"], "extra.jsonl"),
        (["a.jsonl", "b.jsonl", "c.csv"], "c.csv"),
        (["dev/b.jsonl", "train.jsonl"], "train.jsonl"),
        (["a.jsonl", "b.whatever"], "b.whatever"),
        (["a.jsonl", "__more/b.jsonl"], "__more/b.jsonl"),
    ],
)
def test_a_repository_of_which_files_would_be_passed_over_is_refused(
    tmp_path: Path, names: list[str], unread: str
) -> None:
    files = _downloaded(tmp_path, "more")
    for name in names:
        (files / name).parent.mkdir(exist_ok=True)
        (files / name).write_text('{"a": 1}\n')

    (line,) = _read_offline(tmp_path, {"uri": "hf://acme/more"})

    assert line.startswith(f"InputError {FIELD}.uri: hf://acme/more: {unread} is not read")
    assert "by file://" in line


def test_a_whole_repository_is_read(tmp_path: Path) -> None:
    files = _downloaded(tmp_path, "whole")
    beside = ["README.md", "LICENSE", ".gitattributes", "dataset_infos.json", "a.png"]
    for name in ["train.jsonl", "dev.jsonl", *beside]:
        (files / name).write_text("{}" if name.endswith(".json") else '{"a": 1}\n')

    uri = "hf://acme/whole"
    lines = _read_offline(tmp_path, {"uri": uri}, {"uri": uri, "split": "train[:1]"})

    assert lines == ['ROWS [["hf://acme/whole: row 1", {"a": 1}]]'] * 2


def test_a_repository_that_names_its_files_is_read_by_them(tmp_path: Path) -> None:
    files = _downloaded(tmp_path, "named")
    (files / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: a.jsonl\n---\n"
    )
    for name in ["a.jsonl", "b.jsonl"]:
        (files / name).write_text('{"a": 1}\n')

    (line,) = _read_offline(tmp_path, {"uri": "hf://acme/named"})

    assert line.startswith("ROWS ")


def test_a_repository_of_words_alone_holds_no_rows(tmp_path: Path) -> None:
    (_downloaded(tmp_path, "words") / "README.md").write_text("# Words")

    (line,) = _read_offline(tmp_path, {"uri": "hf://acme/words"})

    assert line.startswith(f"InputError {FIELD}.uri: hf://acme/words ")


class _Builder:
    """A repository as `datasets` sees it before anything is downloaded."""

    config = SimpleNamespace(data_files={"train": [f"hf://datasets/acme/live@{COMMIT}/a.jsonl"]})

    def download_and_prepare(self) -> None:
        """Nothing is left to do."""

    def as_dataset(self, split: str) -> datasets.Dataset:
        """Its only row."""
        return datasets.Dataset.from_list([{"a": split}])


@pytest.mark.parametrize(
    ("more", "card", "is_read"),
    [
        ([], None, True),
        (["b.csv"], None, False),
        (["b.csv"], {"configs": [{"config_name": "default"}]}, True),
    ],
)
def test_files_of_the_hub_are_looked_at_before_they_are_downloaded(
    monkeypatch: pytest.MonkeyPatch, more: list[str], card: dict[str, object] | None, is_read: bool
) -> None:
    files = [SimpleNamespace(rfilename=name) for name in ["README.md", "a.jsonl", *more]]
    told = SimpleNamespace(sha=COMMIT, siblings=files, card_data=card)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "dataset_info", lambda *_, **__: told)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: _Builder())

    if is_read:
        rows = hub_rows(Hub("acme/live"), None, "train", FIELD)
        assert [dict(row) for row in rows] == [{"a": "train"}]
    else:
        with pytest.raises(InputError, match=r"hf://acme/live: b\.csv is not read"):
            hub_rows(Hub("acme/live"), None, "train", FIELD)
