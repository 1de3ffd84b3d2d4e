"""A table of every shape, and of every mistake in it."""

import json
from typing import Any

import pytest
from row_shapes import (
    ASSISTANT,
    CALL,
    FIELD,
    PAIR,
    SYSTEM,
    TOOLS,
    TURNS,
    USER,
    N,
    P,
    dataset_of,
    rows_of,
)

from rlhf_api.errors import DataError
from rlhf_trainer.data.parse.columns import Message
from rlhf_trainer.data.parse.formats import preference_rows, prompt_rows, sft_rows
from rlhf_trainer.data.read.rows import Source

PAIRS = pytest.param(5, 5, marks=pytest.mark.field("Dataset.pairs_per_query"))


@pytest.mark.parametrize(
    ("values", "columns", "expected"),
    [
        ({"prompt": "p", "response": "r"}, {}, ("p", "r")),
        ({"query": "q", "response": "r"}, {}, ("q", "r")),
        ({"prompt": "p ", "query": "p", "response": "r"}, {}, ("p ", "r")),
        pytest.param(
            {"q": "p", "a": "r"},
            {"prompt": "q", "response": "a"},
            ("p", "r"),
            marks=pytest.mark.field("Dataset.columns", "Columns.prompt", "Columns.response"),
        ),
        ({"prompt": [USER], "response": "r"}, {}, (TURNS, "r")),
        ({"messages": [USER, ASSISTANT]}, {}, (TURNS, "a")),
        ({"messages": [USER, ASSISTANT], "prompt": "u"}, {}, (TURNS, "a")),
        ({"messages": [USER, ASSISTANT], "prompt": "u", "response": "a"}, {}, ("u", "a")),
        (
            {"messages": [USER, ASSISTANT], "prompt": "p", "response": "r"},
            {"messages": "messages"},
            (TURNS, "a"),
        ),
        pytest.param(
            {"talk": [USER, ASSISTANT]},
            {"messages": "talk"},
            (TURNS, "a"),
            marks=pytest.mark.field("Dataset.columns", "Columns.messages"),
        ),
        ({"prompt": "好\u2028", "response": " \n好"}, {}, ("好\u2028", " \n好")),
    ],
)
def test_supervised_shapes(
    values: dict[str, Any], columns: dict[str, str], expected: tuple[Any, str]
) -> None:
    (row,) = sft_rows(rows_of(values), dataset_of(columns), FIELD)

    assert (row.prompt, row.response) == expected
    assert row.source == Source("data.jsonl", 1)


def test_a_conversation_keeps_itsturns_of() -> None:
    (row,) = sft_rows(
        rows_of({"messages": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT]}), dataset_of(), FIELD
    )

    assert [turn.role for turn in row.prompt if isinstance(turn, Message)] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert row.response == "a"


def test_what_an_assistant_wrote_beside_the_content_is_kept() -> None:
    calling = {"role": "assistant", "content": None, "tool_calls": CALL, "weight": None, "id": 3}
    result = {"role": "tool", "content": "2", "name": "add", "tool_call_id": "x"}
    values = {"messages": [USER, calling, result, {**ASSISTANT, "thinking": "t"}], "tools": TOOLS}

    (row,) = sft_rows(rows_of(values), dataset_of(), FIELD)

    assert row.prompt == (
        *TURNS,
        Message("assistant", "", {"tool_calls": CALL}),
        Message("tool", "2", names={"name": "add", "tool_call_id": "x"}),
    )
    assert row.response == Message("assistant", "a", {"thinking": "t"})
    assert row.tools == tuple(TOOLS)


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
def test_every_kind_of_row_may_have_tools(tools: object) -> None:
    (pair,), _ = preference_rows(rows_of({**PAIR, "tools": tools}), dataset_of(), FIELD, seed=1)
    (prompt,) = prompt_rows(rows_of({"prompt": "p", "tools": tools}), dataset_of(), FIELD)
    (plain,) = sft_rows(
        rows_of({"prompt": "p", "response": "r", "tools": tools}), dataset_of(), FIELD
    )

    assert pair.tools == prompt.tools == plain.tools == tuple(TOOLS)


@pytest.mark.parametrize("tools", [None, [], "", "[]"])
def test_no_tools_are_none(tools: object) -> None:
    (row,) = prompt_rows(rows_of({"prompt": "p", "tools": tools}), dataset_of(), FIELD)

    assert row.tools == ()


@pytest.mark.parametrize("functions", [[{"name": "add"}], '[{"name": "add"}]'])
def test_functions_are_tools(functions: object) -> None:
    (row,) = prompt_rows(rows_of({"prompt": "p", "functions": functions}), dataset_of(), FIELD)

    assert row.tools == tuple(TOOLS)


@pytest.mark.parametrize(
    ("key", "call"),
    [
        ("tool_calls", CALL),
        ("tool_calls", [{"name": "add", "arguments": '{"a": 1}'}]),
        ("function_call", {"name": "add", "arguments": ""}),
    ],
)
def test_a_call_needs_no_content(key: str, call: object) -> None:
    values = {"messages": [USER, {"role": "assistant", key: call}]}
    (row,) = sft_rows(rows_of(values), dataset_of(), FIELD)

    assert row.response == Message("assistant", "", {key: call})


def test_keys_of_a_turn_that_only_tell_of_it_are_passed_over() -> None:
    """As WildChat's turns have them, and OpenAI's answers what is empty."""
    beside = {"id": 7, "timestamp": "t", "toxic": False, "hashed_ip": "x", "language": "English"}
    empty = {"refusal": None, "annotations": [], "audio": None, "images": [], "tool_plan": ""}
    values = {"messages": [{**USER, **beside}, {**ASSISTANT, **empty}]}

    (row,) = sft_rows(rows_of(values), dataset_of(), FIELD)

    assert (row.prompt, row.response) == (TURNS, "a")


@pytest.mark.parametrize(
    "left_out", [{"weight": 0}, {"train": False}, {"weight": 0.0, "train": 1}, {"loss": False}]
)
def test_a_row_may_be_left_out_of_what_is_learned(left_out: dict[str, Any]) -> None:
    """Its shape is asked of no other row."""
    first, second = {"messages": [USER, ASSISTANT], **left_out}, {**PAIR, "response": "r"}
    rows = rows_of(first, {**second, "weight": 1}, {**second, "weight": None})

    assert [row.source.line for row in sft_rows(rows, dataset_of(), FIELD)] == [2, 3]
    assert len(preference_rows(rows, dataset_of(), FIELD, seed=1)[0]) == 2
    assert len(prompt_rows(rows, dataset_of(), FIELD)) == 2


@pytest.mark.parametrize(
    "beside",
    [
        {"system": ""},
        {"system": None, "documents": [], "images": None, "chat_template_kwargs": {}},
        {"system": "s", "messages": [SYSTEM, USER]},
        {"tokens": 3, "id": "x"},
        {"input": "", "history": [], "loss_mask": None},
        {"input": "the text", "messages": [{**USER, "content": "of the text: what?"}]},
    ],
)
def test_what_says_nothing_of_its_own_may_stand_beside(beside: dict[str, Any]) -> None:
    assert prompt_rows(rows_of({"messages": [USER], **beside}), dataset_of(), FIELD)


def test_what_the_prompt_says_already_may_stand_beside_it() -> None:
    columns = {"prompt": "question", "response": "answer"}
    values = {"question": "1 and 2: add", "answer": "3", "input": "1 and 2", "source": "x"}

    (row,) = sft_rows(rows_of(values), dataset_of(columns), FIELD)

    assert row.prompt == "1 and 2: add"


def test_a_column_that_the_spec_names_is_read_as_it_says() -> None:
    columns = {"prompt": "documents", "margin": "weight"}
    values = {"documents": "p", "chosen": "c", "rejected": "r", "weight": 0}
    (row,), _ = preference_rows(rows_of(values), dataset_of(columns), FIELD, seed=1)

    assert (row.prompt, row.margin) == ("p", 0.0)


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
@pytest.mark.parametrize("value", [0, 0.0, False])
def test_a_turn_may_be_left_out_of_what_is_learned(key: str, value: object) -> None:
    values = {"messages": [USER, {**ASSISTANT, key: value}, USER, {**ASSISTANT, key: 1}]}
    (row,) = sft_rows(rows_of(values), dataset_of(), FIELD)

    assert [turn.is_learned for turn in row.prompt if isinstance(turn, Message)] == [
        True,
        False,
        True,
    ]
    assert row.is_learned

    values["messages"] = [USER, {**ASSISTANT, key: 1}, USER, {**ASSISTANT, key: value}]
    (row,) = sft_rows(rows_of(values), dataset_of(), FIELD)
    assert not row.is_learned


@pytest.mark.parametrize(
    ("values", "columns", "expected"),
    [
        (PAIR, {}, ("p", "c", "r", None)),
        ({"query": "q", "chosen": "c", "rejected": "r"}, {}, ("q", "c", "r", None)),
        ({**PAIR, "positive_passages": [{**P, "text": "c "}]}, {}, ("p", "c", "r", None)),
        pytest.param(
            {**PAIR, "m": 2},
            {"margin": "m"},
            ("p", "c", "r", 2.0),
            marks=pytest.mark.field("Dataset.columns", "Columns.margin"),
        ),
        pytest.param(
            {"q": "p", "yes": "c", "no": "r"},
            {"prompt": "q", "chosen": "yes", "rejected": "no"},
            ("p", "c", "r", None),
            marks=pytest.mark.field(
                "Dataset.columns", "Columns.prompt", "Columns.chosen", "Columns.rejected"
            ),
        ),
        ({**PAIR, "chosen": [ASSISTANT], "rejected": "r"}, {}, ("p", "a", "r", None)),
        (
            {"chosen": [USER, ASSISTANT], "rejected": [USER, {**ASSISTANT, "content": "b"}]},
            {},
            (TURNS, "a", "b", None),
        ),
        (
            {"query": "q", "positive_passages": [P], "negative_passages": [N]},
            {},
            ("q", "good", "bad", None),
        ),
        pytest.param(
            {"query": "q", "+": [P], "-": [N]},
            {"positive_passages": "+", "negative_passages": "-"},
            ("q", "good", "bad", None),
            marks=pytest.mark.field(
                "Dataset.columns", "Columns.positive_passages", "Columns.negative_passages"
            ),
        ),
    ],
)
def test_preference_shapes(
    values: dict[str, Any], columns: dict[str, str], expected: tuple[Any, ...]
) -> None:
    (row,), dropped = preference_rows(rows_of(values), dataset_of(columns), FIELD, seed=1)

    assert (row.prompt, row.chosen, row.rejected, row.margin) == expected
    assert dropped == 0


@pytest.mark.parametrize(
    ("values", "columns", "expected"),
    [
        ({"prompt": "p"}, {}, "p"),
        ({"query": "q"}, {}, "q"),
        ({"text": "t"}, {"prompt": "text"}, "t"),
        ({"messages": [USER]}, {}, TURNS),
        ({"prompt": [USER]}, {}, TURNS),
        ({"prompt": "u ", "messages": [USER]}, {}, "u "),
        ({"prompt": "p", "messages": [USER]}, {"messages": "messages"}, TURNS),
    ],
)
def test_prompt_shapes(values: dict[str, Any], columns: dict[str, str], expected: Any) -> None:
    (row,) = prompt_rows(rows_of(values), dataset_of(columns), FIELD)

    assert row.prompt == expected


class TestPassages:
    def _row(self, good: int, bad: int) -> dict[str, Any]:
        return {
            "query": "q",
            "positive_passages": [{**P, "text": f"good {i}"} for i in range(good)],
            "negative_passages": [{**N, "text": f"bad {i}"} for i in range(bad)],
        }

    @pytest.mark.parametrize(("wanted", "found"), [(1, 1), PAIRS, (6, 6), (7, 6), (1000, 6)])
    def test_pairs_are_distinct_and_at_most_all(self, wanted: int, found: int) -> None:
        dataset = dataset_of(pairs_per_query=wanted)

        pairs, _ = preference_rows(rows_of(self._row(2, 3)), dataset, FIELD, seed=1)

        assert len({(pair.chosen, pair.rejected) for pair in pairs}) == len(pairs) == found
        assert all(pair.chosen[:4] == "good" and pair.rejected[:3] == "bad" for pair in pairs)

    def test_the_seed_decides_and_no_other_row_does(self) -> None:
        dataset = dataset_of(pairs_per_query=2)
        rows = [self._row(10, 10) for _ in range(5)]

        def sample(values: list[dict[str, Any]], seed: int) -> list[tuple[str, str]]:
            found, _ = preference_rows(rows_of(*values), dataset, FIELD, seed)
            return [(pair.chosen, pair.rejected) for pair in found]

        assert sample(rows, 1) == sample(rows, 1)
        assert sample(rows, 1) != sample(rows, 2)
        changed = [rows[0], self._row(3, 3), *rows[2:]]
        assert sample(changed, 1)[4:] == sample(rows, 1)[4:]
        assert len(set(sample(rows, 1))) > 2

    def test_every_passage_has_its_chance(self) -> None:
        rows = [self._row(2, 2)] * 200

        pairs, _ = preference_rows(rows_of(*rows), dataset_of(), FIELD, seed=3)

        counts = {(pair.chosen, pair.rejected): 0 for pair in pairs}
        for pair in pairs:
            counts[pair.chosen, pair.rejected] += 1
        assert len(counts) == 4
        assert min(counts.values()) > 25

    def test_rows_with_an_empty_list_are_dropped_and_counted(self) -> None:
        rows = [self._row(0, 2), self._row(1, 1), self._row(2, 0), self._row(0, 0)]

        pairs, dropped = preference_rows(rows_of(*rows), dataset_of(), FIELD, seed=1)

        assert (len(pairs), dropped) == (1, 3)
        assert pairs[0].source.line == 2

    def test_nothing_left_is_an_error(self) -> None:
        with pytest.raises(DataError) as caught:
            preference_rows(rows_of(self._row(0, 2), self._row(1, 0)), dataset_of(), FIELD, seed=1)

        for word in ["file:///data.jsonl", "positive_passages or negative_passages", "2 rows"]:
            assert word in str(caught.value)

    @pytest.mark.parametrize(("title", "expected"), [("T", "T\ngood"), ("", "good"), (" ", "good")])
    @pytest.mark.field("Dataset.title_prefix")
    def test_the_title_stands_before_the_text_on_wish(self, title: str, expected: str) -> None:
        row = {"query": "q", "positive_passages": [{**P, "title": title}], "negative_passages": [N]}

        (pair,), _ = preference_rows(rows_of(row), dataset_of(title_prefix=True), FIELD, seed=1)

        assert (pair.chosen, pair.rejected) == (expected, "T\nbad")
