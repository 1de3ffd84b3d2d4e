"""What rows are known by: the data, and whatever else decides about their tokens."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import tiny
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from rlhf_api.v1alpha1 import Dataset
from rlhf_trainer.run.identity import identity_of, pinned, token_key


def key(folder: Path, name: str = "rows.jsonl", **changed: Any) -> str:
    """The key of the rows in `folder`; the changes are of the dataset, tokenizer and settings."""
    words = changed.pop("tokenizer", None) or tiny.tokenizer()
    settings = {"max_length": 8} | changed.pop("settings", {})
    loader = changed.pop("loader", "load_sft")
    dataset = Dataset(uri=f"file://{folder / name}", **changed)
    identity = identity_of(dataset, {}, "dataset")
    assert identity is not None
    return token_key(loader, dataset, identity, words, settings)


def with_other_pad() -> Any:
    words = tiny.tokenizer()
    words.pad_token = "a"
    return words


def splitting_special_tokens() -> Any:
    words = tiny.tokenizer()
    words.split_special_tokens = True
    return words


def with_special_letter() -> Any:
    """Its tokenizer.json is the same: the letter is a special token for transformers alone."""
    words = tiny.tokenizer()
    words.extra_special_tokens = ["a"]
    return words


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return tiny.write_rows(tmp_path / "rows.jsonl", tiny.sft_rows()).parent


@pytest.mark.parametrize(
    "changed",
    [
        {"tokenizer": tiny.tokenizer("abcd")},
        {"tokenizer": tiny.templated("{{ messages[0].content }}")},
        {"tokenizer": with_other_pad()},
        {"tokenizer": splitting_special_tokens()},
        {"tokenizer": with_special_letter()},
        {"settings": {"max_length": 9}},
        {"settings": {"limits": "maxLength"}},
        {"loader": "load_prompts"},
        {"over_long": "Truncate"},
        {"max_rows": 3},
        {"allow_loss": True},
        {"columns": {"prompt": "response"}},
    ],
)
def test_whatever_decides_about_tokens_changes_their_key(
    rows: Path, changed: dict[str, Any]
) -> None:
    assert key(rows, **changed) != key(rows)
    assert key(rows, **changed) == key(rows, **changed)


def test_the_key_is_of_what_files_hold_and_not_of_where_they_lie(rows: Path) -> None:
    before = key(rows)
    other = rows / "deep"
    other.mkdir()
    shutil.copy(rows / "rows.jsonl", other / "renamed.jsonl")
    assert key(other, "renamed.jsonl") == before
    content = (rows / "rows.jsonl").read_text()
    (rows / "rows.jsonl").write_text(content.replace("a", "b", 1))
    assert key(rows) != before


def test_a_folder_is_all_of_its_files(rows: Path) -> None:
    before = key(rows, "")
    shutil.copy(rows / "rows.jsonl", rows / "more.jsonl")
    both = key(rows, "")
    (rows / "NOTES.md").write_text("no rows")
    assert key(rows, "") == both != before
    (rows / "more.jsonl").rename(rows / "zzz.jsonl")
    assert key(rows, "") != both


def test_a_template_that_writes_the_date_is_never_found_again(rows: Path) -> None:
    words = tiny.templated("{{ strftime_now('%d') }}")
    assert key(rows, tokenizer=words) != key(rows, tokenizer=words)


def test_a_tokenizer_in_python_counts_by_what_it_saves(rows: Path) -> None:
    one, other = ByT5Tokenizer(extra_ids=3), ByT5Tokenizer(extra_ids=4)
    assert getattr(one, "backend_tokenizer", None) is None
    assert key(rows, tokenizer=one) == key(rows, tokenizer=ByT5Tokenizer(extra_ids=3))
    assert key(rows, tokenizer=one) != key(rows, tokenizer=other)


class Shouting(PreTrainedTokenizerFast):  # type: ignore[misc]
    """Changes the text before its backend sees it, by a setting of its own."""

    def __init__(self, *args: Any, mark: str = "a", **settings: Any) -> None:
        super().__init__(*args, mark=mark, **settings)
        self.mark = mark

    def __call__(self, text: Any, *args: Any, **settings: Any) -> Any:
        return super().__call__(self.mark + text, *args, **settings)


def test_what_a_class_does_before_its_backend_counts_too(rows: Path) -> None:
    def marking(mark: str) -> Shouting:
        words = tiny.tokenizer()
        return Shouting(
            tokenizer_object=words.backend_tokenizer,
            mark=mark,
            eos_token=words.eos_token,
            pad_token=words.pad_token,
        )

    one = marking("a")
    assert one("b", add_special_tokens=False).input_ids != tiny.tokenizer()("b").input_ids
    assert key(rows, tokenizer=one) == key(rows, tokenizer=marking("a"))
    assert key(rows, tokenizer=one) != key(rows, tokenizer=marking("b"))


# A hub


def test_a_hub_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "datasets--org--rows"
    for name, commit in (("main", "a" * 40), ("v2", "b" * 40)):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = {
        uri: identity_of(Dataset(uri=uri), {}, "dataset")
        for uri in ("hf://org/rows", "hf://org/rows@v2", "hf://org/rows@v3", "hf://org/none")
    }
    assert list(found.values()) == [[("org/rows", "a" * 40)], [("org/rows", "b" * 40)], None, None]
    dataset = Dataset(uri="hf://org/rows@v2")
    assert pinned(dataset, found["hf://org/rows@v2"]).uri == f"hf://org/rows@{'b' * 40}"
    assert pinned(dataset, None) == dataset
