"""From a file to tokens, as the stages call it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_api.errors import ConfigError, DataError
from rlhf_api.v1alpha1 import Dataset
from rlhf_trainer.data.loading import load_preferences, load_prompts, load_sft
from rlhf_trainer.data.tokenize.tokenized import Counts

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]
COMMON: dict[str, Any] = {"max_length": 8, "claims": {}, "field": "spec.stages.sft.dataset"}


def _dataset(folder: Path, *rows: dict[str, Any], **spec: Any) -> Dataset:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Dataset(uri=f"file://{path}", **spec)


def test_supervised_rows(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": "b" * 9}]
    dataset = _dataset(tmp_path, *rows)

    examples, counts = load_sft(dataset, make_tokenizer(), **COMMON)

    assert len(examples) == 1
    assert counts == Counts(kept=1, dropped_over_long=1)


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


def test_prompts_of_a_refused_kind(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    words = {"with tools": "spec.stages.ppo.rewardModel.chatTemplate: differs"}
    plain, tools = {"prompt": "a"}, {"prompt": "a", "tools": [{"name": "f"}]}

    load_prompts(_dataset(tmp_path, plain), make_tokenizer(), refused=words, **COMMON)
    with pytest.raises(
        ConfigError,
        match=r"differs, or remove the rows with tools, of which .*rows.jsonl: line 2 is",
    ):
        load_prompts(_dataset(tmp_path, plain, tools), make_tokenizer(), refused=words, **COMMON)


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


def _pairs(*responses: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"prompt": "p", "chosen": good, "rejected": bad} for good, bad in responses]


SAME_BEHIND_THE_LIMIT = ("abcdefgh", "abcdefxy")


@pytest.mark.parametrize(
    ("responses", "over_long", "counts"),
    [
        ([("a", "a"), ("a", "b")], "Drop", Counts(1, dropped_identical=1)),
        ([("a", "a</s>"), ("a", "b")], "Drop", Counts(1, dropped_identical=1)),
        ([("a" * 9, "a" * 9), ("a", "b")], "Drop", Counts(1, dropped_identical=1)),
        pytest.param(
            [SAME_BEHIND_THE_LIMIT, ("bcdefghi", "abcdefgh")],
            "Truncate",
            Counts(1, truncated=1, dropped_identical=1),
            marks=pytest.mark.field("Dataset.over_long"),
        ),
        ([SAME_BEHIND_THE_LIMIT, ("a", "b")], "Drop", Counts(1, dropped_over_long=1)),
    ],
)
def test_pairs_that_say_the_same_twice_are_left_out(
    tmp_path: Path,
    make_tokenizer: MakeTokenizer,
    responses: list[tuple[str, str]],
    over_long: str,
    counts: Counts,
) -> None:
    dataset = _dataset(tmp_path, *_pairs(*responses), over_long=over_long)

    pairs, found = load_preferences(dataset, make_tokenizer(), seed=1, **COMMON)

    assert found == counts
    assert all(pair.chosen.tolist() != pair.rejected.tolist() for pair in pairs)


def test_where_all_pairs_say_the_same_twice_nothing_is_left(
    tmp_path: Path, make_tokenizer: MakeTokenizer
) -> None:
    dataset = _dataset(tmp_path, *_pairs(("a", "a"), ("c" * 9, "b")), allow_loss=True)

    with pytest.raises(DataError) as caught:
        load_preferences(dataset, make_tokenizer(), seed=1, **COMMON)

    for word in [
        "none of 2 pairs can be used: 1 have the same tokens as chosen and rejected",
        "1 do not fit in 8 tokens: they have 11",
        "set overLong to Truncate, or raise spec.stages.sft.maxLength",
    ]:
        assert word in str(caught.value)


LONG, SHORT = {"prompt": "a", "response": "b" * 9}, {"prompt": "a", "response": "b"}


@pytest.mark.parametrize(("lost", "kept"), [(1, 1), (5, 5), (1, 99)])
def test_half_of_the_rows_may_be_lost(
    tmp_path: Path, make_tokenizer: MakeTokenizer, lost: int, kept: int
) -> None:
    dataset = _dataset(tmp_path, *[LONG] * lost, *[SHORT] * kept)

    assert load_sft(dataset, make_tokenizer(), **COMMON)[1] == Counts(kept, dropped_over_long=lost)


@pytest.mark.parametrize(("lost", "kept"), [(2, 1), (99, 1)])
@pytest.mark.field("Dataset.allow_loss")
def test_more_than_half_is_lost_only_with_consent(
    tmp_path: Path, make_tokenizer: MakeTokenizer, lost: int, kept: int
) -> None:
    rows = [LONG] * lost + [SHORT] * kept

    with pytest.raises(DataError) as caught:
        load_sft(_dataset(tmp_path, *rows), make_tokenizer(), **COMMON)

    for word in [
        f"spec.stages.sft.dataset.allowLoss: false, but {lost} of {lost + kept} rows of file://",
        f"{lost} left out as too long",
        "raise spec.stages.sft.maxLength from 8 (too long are those of 11",
        "tokens) or set spec.stages.sft.dataset.overLong to Truncate",
        "or set allowLoss to true",
    ]:
        assert word in str(caught.value)
    agreed = _dataset(tmp_path, *rows, allow_loss=True)
    found = load_sft(agreed, make_tokenizer(), **COMMON)[1]
    assert found == Counts(kept, dropped_over_long=lost)


def test_the_lengths_of_what_is_lost_are_told(
    tmp_path: Path, make_tokenizer: MakeTokenizer
) -> None:
    longer = {"prompt": "a", "response": "b" * 30}
    for rows, told in [
        ([LONG, longer, LONG], "none of 3 rows fits in 8 tokens: they have 11 to 32; raise"),
        ([LONG, longer, SHORT], "from 8 (too long are those of 11 to 32 tokens) or set"),
    ]:
        with pytest.raises(DataError) as caught:
            load_sft(_dataset(tmp_path, *rows), make_tokenizer(), **COMMON)
        assert told in str(caught.value)


def test_every_way_to_lose_a_row_counts(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    rows = _pairs(("a", "a"), ("a" * 9, "b"), ("a", "b"))
    with pytest.raises(DataError, match=r"allowLoss: false, but 2 of 3 rows .*correct the pairs"):
        load_preferences(_dataset(tmp_path, *rows), make_tokenizer(), seed=1, **COMMON)
    prompts = [{"prompt": "a" * 9}, {"prompt": "a" * 9}, {"prompt": "a"}]
    with pytest.raises(DataError, match=r"allowLoss: false.*maxPromptLength"):
        load_prompts(_dataset(tmp_path, *prompts), make_tokenizer(), **COMMON)


def test_rows_without_passages_are_no_loss(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    passages = [[{"docid": "1", "title": "t", "text": text}] for text in "ab"]
    full = {"query": "q", "positive_passages": passages[0], "negative_passages": passages[1]}
    dataset = _dataset(tmp_path, full, *[full | {"positive_passages": []}] * 9)

    _, counts = load_preferences(dataset, make_tokenizer(), seed=1, **COMMON)

    assert counts == Counts(1, dropped_empty_list=9)
    assert (counts.row_counts.lost, counts.row_counts.left_out) == (0, 9)


def test_rows_that_say_not_to_be_learned_are_counted_and_no_loss(
    tmp_path: Path, make_tokenizer: MakeTokenizer
) -> None:
    rows = [{"prompt": "a", "response": "b", "chosen": "b", "rejected": "c"}]
    rows_out = [rows[0] | out for out in [{"weight": 0}] * 7 + [{"train": False}] * 2]
    dataset = _dataset(tmp_path, *rows_out, *rows)

    found = [
        load_sft(dataset, make_tokenizer(), **COMMON)[1],
        load_preferences(dataset, make_tokenizer(), seed=1, **COMMON)[1],
        load_prompts(dataset, make_tokenizer(), **COMMON)[1],
    ]

    assert found == [Counts(1, not_learned=9)] * 3
    assert (found[0].row_counts.lost, found[0].row_counts.left_out) == (0, 9)
    assert found[0].row_counts.text == "1 rows used, 9 left out by their weight"
