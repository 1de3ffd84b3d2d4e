"""From a file to tokens, as the stages call it."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_api.errors import DataError
from rlhf_api.v1alpha1 import Dataset
from rlhf_trainer.data.loading import load_preferences, load_prompts, load_sft
from rlhf_trainer.data.tokenize.tokenized import Counts

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]
COMMON: dict[str, Any] = {"max_length": 8, "claims": {}, "field": "spec.stages.sft.dataset"}


def _dataset(folder: Path, *rows: dict[str, Any], **spec: Any) -> Dataset:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Dataset(uri=f"file://{path}", **spec)


def test_supervised_rows(
    tmp_path: Path, make_tokenizer: MakeTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": "b" * 9}]
    dataset = _dataset(tmp_path, *rows)

    with caplog.at_level(logging.INFO):
        examples, counts = load_sft(dataset, make_tokenizer(), **COMMON)

    assert len(examples) == 1
    assert counts == Counts(kept=1, dropped_over_long=1)
    assert [record.getMessage() for record in caplog.records] == [f"{dataset.uri}: {counts}"]


def test_preferences_count_both_kinds_of_dropped_rows(
    tmp_path: Path, make_tokenizer: MakeTokenizer
) -> None:
    def row(good: list[str], bad: list[str]) -> dict[str, Any]:
        return {
            "query": "q",
            "positive_passages": [{"docid": "1", "title": "t", "text": text} for text in good],
            "negative_passages": [{"docid": "2", "title": "t", "text": text} for text in bad],
        }

    dataset = _dataset(tmp_path, row(["a"], ["b"]), row([], ["b"]), row(["a" * 9], ["b"]))

    pairs, counts = load_preferences(dataset, make_tokenizer(), seed=1, **COMMON)

    assert len(pairs) == 1
    assert counts == Counts(kept=1, dropped_over_long=1, dropped_empty_list=1)


def test_prompts(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    dataset = _dataset(tmp_path, {"query": "ab"}, {"query": "c" * 9}, over_long="Truncate")

    found, counts = load_prompts(dataset, make_tokenizer(), **COMMON)

    assert [len(prompt.tokens) for prompt in found] == [2, 8]
    assert counts == Counts(kept=2, truncated=1)


def test_two_loads_agree(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    passages = [{"docid": "1", "title": "t", "text": text} for text in "abcdef"]
    row = {"query": "q", "positive_passages": passages, "negative_passages": passages}
    dataset = _dataset(tmp_path, row, row, pairs_per_query=3)

    first, second = (
        [
            (pair.chosen.tolist(), pair.rejected.tolist())
            for pair in load_preferences(dataset, make_tokenizer(), seed=5, **COMMON)[0]
        ]
        for _ in range(2)
    )

    assert first == second


def test_a_bad_row_anywhere_is_found_before_training(
    tmp_path: Path, make_tokenizer: MakeTokenizer
) -> None:
    rows = [{"prompt": "a", "response": "b"}] * 5 + [{"prompt": "a", "response": ""}]

    with pytest.raises(DataError, match=r"rows\.jsonl: line 6: response: \"\": is empty"):
        load_sft(_dataset(tmp_path, *rows), make_tokenizer(), **COMMON)
