"""A table of every shape, and of every mistake in it."""

import json
from typing import Any

import pytest

from rlhf_api.errors import DataError
from rlhf_api.v1alpha1 import Columns, Dataset
from rlhf_trainer.data.parse.columns import Message
from rlhf_trainer.data.parse.formats import preference_rows, prompt_rows, sft_rows
from rlhf_trainer.data.read.rows import Row, Source

FIELD = "spec.stages.sft.dataset"
USER = {"role": "user", "content": "u"}
ASSISTANT = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
TURNS = (Message("user", "u"),)
P = {"docid": "1#0", "title": "T", "text": "good"}
N = {"docid": "2#0", "title": "T", "text": "bad"}


def _rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(Source("data.jsonl", line), value) for line, value in enumerate(values, 1)]


def _dataset(columns: dict[str, str] | None = None, **spec: Any) -> Dataset:
    return Dataset(uri="file:///data.jsonl", columns=Columns(**(columns or {})), **spec)


@pytest.mark.parametrize(
    ("values", "columns", "expected"),
    [
        ({"prompt": "p", "response": "r"}, {}, ("p", "r")),
        ({"query": "q", "response": "r"}, {}, ("q", "r")),
        ({"prompt": "p", "query": "q", "response": "r"}, {}, ("p", "r")),
        ({"q": "p", "a": "r"}, {"prompt": "q", "response": "a"}, ("p", "r")),
        ({"prompt": [USER], "response": "r"}, {}, (TURNS, "r")),
        ({"messages": [USER, ASSISTANT]}, {}, (TURNS, "a")),
        ({"messages": [USER, ASSISTANT], "prompt": "p"}, {}, (TURNS, "a")),
        ({"messages": [USER, ASSISTANT], "prompt": "p", "response": "r"}, {}, ("p", "r")),
        (
            {"messages": [USER, ASSISTANT], "prompt": "p", "response": "r"},
            {"messages": "messages"},
            (TURNS, "a"),
        ),
        ({"talk": [USER, ASSISTANT]}, {"messages": "talk"}, (TURNS, "a")),
        ({"prompt": "好\u2028", "response": " \n好"}, {}, ("好\u2028", " \n好")),
    ],
)
def test_supervised_shapes(
    values: dict[str, Any], columns: dict[str, str], expected: tuple[Any, str]
) -> None:
    (row,) = sft_rows(_rows(values), _dataset(columns), FIELD)

    assert (row.prompt, row.response) == expected
    assert row.source == Source("data.jsonl", 1)


def test_a_conversation_keeps_its_turns() -> None:
    (row,) = sft_rows(
        _rows({"messages": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT]}), _dataset(), FIELD
    )

    assert [turn.role for turn in row.prompt if isinstance(turn, Message)] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert row.response == "a"


CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
TOOLS = [{"type": "function", "function": {"name": "add"}}]


def test_what_an_assistant_wrote_beside_the_content_is_kept() -> None:
    calling = {"role": "assistant", "content": None, "tool_calls": CALL, "weight": None, "id": 3}
    result = {"role": "tool", "content": "2", "name": "add", "tool_call_id": "x"}
    values = {"messages": [USER, calling, result, {**ASSISTANT, "thinking": "t"}], "tools": TOOLS}

    (row,) = sft_rows(_rows(values), _dataset(), FIELD)

    assert row.prompt == (
        *TURNS,
        Message("assistant", "", {"tool_calls": CALL}),
        Message("tool", "2", names={"name": "add", "tool_call_id": "x"}),
    )
    assert row.response == Message("assistant", "a", {"thinking": "t"})
    assert row.tools == tuple(TOOLS)


@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
def test_every_kind_of_row_may_have_tools(tools: object) -> None:
    (pair,), _ = preference_rows(_rows({**PAIR, "tools": tools}), _dataset(), FIELD, seed=1)
    (prompt,) = prompt_rows(_rows({"prompt": "p", "tools": tools}), _dataset(), FIELD)
    (plain,) = sft_rows(_rows({"prompt": "p", "response": "r", "tools": tools}), _dataset(), FIELD)

    assert pair.tools == prompt.tools == plain.tools == tuple(TOOLS)


@pytest.mark.parametrize("tools", [None, [], "", "[]"])
def test_no_tools_are_none(tools: object) -> None:
    (row,) = prompt_rows(_rows({"prompt": "p", "tools": tools}), _dataset(), FIELD)

    assert row.tools == ()


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
@pytest.mark.parametrize("value", [0, 0.0, False])
def test_a_turn_may_be_left_out_of_what_is_learned(key: str, value: object) -> None:
    values = {"messages": [USER, {**ASSISTANT, key: value}, USER, {**ASSISTANT, key: 1}]}
    (row,) = sft_rows(_rows(values), _dataset(), FIELD)

    assert [turn.is_learned for turn in row.prompt if isinstance(turn, Message)] == [
        True,
        False,
        True,
    ]
    assert row.is_learned

    values["messages"] = [USER, {**ASSISTANT, key: 1}, USER, {**ASSISTANT, key: value}]
    (row,) = sft_rows(_rows(values), _dataset(), FIELD)
    assert not row.is_learned


PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}


@pytest.mark.parametrize(
    ("values", "columns", "expected"),
    [
        (PAIR, {}, ("p", "c", "r", None)),
        ({"query": "q", "chosen": "c", "rejected": "r"}, {}, ("q", "c", "r", None)),
        ({**PAIR, "positive_passages": [P]}, {}, ("p", "c", "r", None)),
        ({**PAIR, "margin": 2}, {}, ("p", "c", "r", None)),
        ({**PAIR, "m": 2}, {"margin": "m"}, ("p", "c", "r", 2.0)),
        (
            {"q": "p", "yes": "c", "no": "r"},
            {"prompt": "q", "chosen": "yes", "rejected": "no"},
            ("p", "c", "r", None),
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
        (
            {"query": "q", "+": [P], "-": [N]},
            {"positive_passages": "+", "negative_passages": "-"},
            ("q", "good", "bad", None),
        ),
    ],
)
def test_preference_shapes(
    values: dict[str, Any], columns: dict[str, str], expected: tuple[Any, ...]
) -> None:
    (row,), dropped = preference_rows(_rows(values), _dataset(columns), FIELD, seed=1)

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
        ({"prompt": "p", "messages": [USER]}, {}, "p"),
        ({"prompt": "p", "messages": [USER]}, {"messages": "messages"}, TURNS),
    ],
)
def test_prompt_shapes(values: dict[str, Any], columns: dict[str, str], expected: Any) -> None:
    (row,) = prompt_rows(_rows(values), _dataset(columns), FIELD)

    assert row.prompt == expected


class TestPassages:
    def _row(self, good: int, bad: int) -> dict[str, Any]:
        return {
            "query": "q",
            "positive_passages": [{**P, "text": f"good {i}"} for i in range(good)],
            "negative_passages": [{**N, "text": f"bad {i}"} for i in range(bad)],
        }

    @pytest.mark.parametrize(("wanted", "found"), [(1, 1), (5, 5), (6, 6), (7, 6), (1000, 6)])
    def test_pairs_are_distinct_and_at_most_all(self, wanted: int, found: int) -> None:
        dataset = _dataset(pairs_per_query=wanted)

        pairs, _ = preference_rows(_rows(self._row(2, 3)), dataset, FIELD, seed=1)

        assert len({(pair.chosen, pair.rejected) for pair in pairs}) == len(pairs) == found
        assert all(pair.chosen[:4] == "good" and pair.rejected[:3] == "bad" for pair in pairs)

    def test_the_seed_decides_and_no_other_row_does(self) -> None:
        dataset = _dataset(pairs_per_query=2)
        rows = [self._row(10, 10) for _ in range(5)]

        def sample(values: list[dict[str, Any]], seed: int) -> list[tuple[str, str]]:
            found, _ = preference_rows(_rows(*values), dataset, FIELD, seed)
            return [(pair.chosen, pair.rejected) for pair in found]

        assert sample(rows, 1) == sample(rows, 1)
        assert sample(rows, 1) != sample(rows, 2)
        changed = [rows[0], self._row(3, 3), *rows[2:]]
        assert sample(changed, 1)[4:] == sample(rows, 1)[4:]
        assert len(set(sample(rows, 1))) > 2

    def test_every_passage_has_its_chance(self) -> None:
        rows = [self._row(2, 2)] * 200

        pairs, _ = preference_rows(_rows(*rows), _dataset(), FIELD, seed=3)

        counts = {(pair.chosen, pair.rejected): 0 for pair in pairs}
        for pair in pairs:
            counts[pair.chosen, pair.rejected] += 1
        assert len(counts) == 4
        assert min(counts.values()) > 25

    def test_rows_with_an_empty_list_are_dropped_and_counted(self) -> None:
        rows = [self._row(0, 2), self._row(1, 1), self._row(2, 0), self._row(0, 0)]

        pairs, dropped = preference_rows(_rows(*rows), _dataset(), FIELD, seed=1)

        assert (len(pairs), dropped) == (1, 3)
        assert pairs[0].source.line == 2

    def test_nothing_left_is_an_error(self) -> None:
        with pytest.raises(DataError) as caught:
            preference_rows(_rows(self._row(0, 2), self._row(1, 0)), _dataset(), FIELD, seed=1)

        for word in ["file:///data.jsonl", "positive_passages or negative_passages", "2 rows"]:
            assert word in str(caught.value)

    @pytest.mark.parametrize(("title", "expected"), [("T", "T\ngood"), ("", "good"), (" ", "good")])
    def test_the_title_stands_before_the_text_on_wish(self, title: str, expected: str) -> None:
        row = {"query": "q", "positive_passages": [{**P, "title": title}], "negative_passages": [N]}

        (pair,), _ = preference_rows(_rows(row), _dataset(title_prefix=True), FIELD, seed=1)

        assert (pair.chosen, pair.rejected) == (expected, "T\nbad")


def _turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": "x"} for role in roles]


ADD = "add it, or name it in spec.stages.sft.dataset.columns."
BEFORE = '"assistant": put a turn of user or system before it'
BAD_ROWS = [
    ("sft", {"prompt": "p"}, {}, "response", ['has "prompt"', ADD + "response"]),
    ("sft", {"response": "r"}, {}, "prompt", ['has "response"', ADD + "prompt"]),
    ("sft", {"x": 1}, {}, "prompt", ['has "x"', ADD + "prompt"]),
    ("sft", {}, {}, "prompt", ["no columns"]),
    (
        "sft",
        {"prompt": "p"},
        {"prompt": "q"},
        "q",
        ["correct spec.stages.sft.dataset.columns.prompt"],
    ),
    ("sft", {"prompt": 3, "response": "r"}, {}, "prompt", ["3: must be text", "a number"]),
    ("sft", {"prompt": None, "response": "r"}, {}, "prompt", ["null: must be text", "is null"]),
    ("sft", {"prompt": True, "response": "r"}, {}, "prompt", ["true: must be text", "a boolean"]),
    (
        "sft",
        {"prompt": {"a": 1}, "response": "r"},
        {},
        "prompt",
        ['{"a": 1}: must be', "an object"],
    ),
    ("sft", {"prompt": "p", "response": ["r"]}, {}, "response", ['["r"]: must be text', "a list"]),
    ("sft", {"prompt": "p", "response": ""}, {}, "response", ['"": is empty', "fill it in"]),
    ("sft", {"prompt": "p", "response": " \n"}, {}, "response", ['" \\n": is empty', "remove"]),
    (
        "sft",
        {"prompt": "a\ud800", "response": "r"},
        {},
        "prompt",
        ["half a character at 1", "ud800"],
    ),
    ("sft", {"messages": []}, {}, "messages", ["[]: must be a list of messages"]),
    ("sft", {"messages": "hi"}, {}, "messages", ['"hi": must be a list of messages']),
    ("sft", {"messages": ["hi"]}, {}, "messages[0]", ['"hi": must be an object']),
    ("sft", {"messages": [{"role": "user"}]}, {}, "messages[0].content", ["is missing", "add it"]),
    ("sft", {"messages": [{"content": "x"}]}, {}, "messages[0].role", ["is missing"]),
    ("sft", {"messages": _turns("user", "bot")}, {}, "messages[1].role", ['"bot": must be one of']),
    (
        "sft",
        {"messages": [USER, {**ASSISTANT, "content": ""}]},
        {},
        "messages[1].content",
        ["is empty"],
    ),
    ("sft", {"messages": _turns("user")}, {}, "messages[0].role", ['"user"', "end with a turn of"]),
    ("sft", {"messages": _turns("assistant")}, {}, "messages[0].role", [BEFORE]),
    (
        "sft",
        {"messages": _turns("assistant", "user", "assistant")},
        {},
        "messages[0].role",
        [BEFORE],
    ),
    ("prompt", {"prompt": _turns("assistant", "user")}, {}, "prompt[0].role", [BEFORE]),
    ("pref", {**PAIR, "chosen": _turns("assistant", "assistant")}, {}, "chosen[0].role", [BEFORE]),
    (
        "sft",
        {"prompt": _turns("assistant"), "response": "r"},
        {},
        "prompt[0].role",
        ["remove this"],
    ),
    ("pref", {"prompt": "p", "chosen": "c"}, {}, "rejected", [ADD + "rejected"]),
    ("pref", {"prompt": "p", "rejected": "c"}, {}, "chosen", [ADD + "chosen"]),
    ("pref", {"chosen": "c", "rejected": "r"}, {}, "prompt", [ADD + "prompt"]),
    ("pref", {**PAIR, "chosen": 1.5}, {}, "chosen", ["1.5: must be text"]),
    (
        "pref",
        {**PAIR, "chosen": _turns("user")},
        {},
        "chosen[0].role",
        ["end with a turn of assistant"],
    ),
    (
        "pref",
        {**PAIR, "chosen": [USER, ASSISTANT]},
        {},
        "rejected",
        ["differ from those of chosen"],
    ),
    ("pref", {**PAIR, "m": "2"}, {"margin": "m"}, "m", ['"2": must be a number of at least 0']),
    ("pref", {**PAIR, "m": -1}, {"margin": "m"}, "m", ["-1: must be a number"]),
    ("pref", {**PAIR, "m": float("nan")}, {"margin": "m"}, "m", ["NaN: must be a number"]),
    ("pref", {**PAIR, "m": True}, {"margin": "m"}, "m", ["true: must be a number"]),
    ("pref", PAIR, {"margin": "m"}, "m", ["correct spec.stages.sft.dataset.columns.margin"]),
    ("pref", {"query": "q", "positive_passages": [P]}, {}, "negative_passages", ["is missing"]),
    (
        "pref",
        {"query": "q", "positive_passages": {}, "negative_passages": [N]},
        {},
        "positive_passages",
        ["{}: must be a list of passages"],
    ),
    (
        "pref",
        {"query": "q", "positive_passages": ["x"], "negative_passages": [N]},
        {},
        "positive_passages[0]",
        ['"x": must be an object'],
    ),
    (
        "pref",
        {"query": "q", "positive_passages": [P], "negative_passages": [N, {"docid": "3"}]},
        {},
        "negative_passages[1].text",
        ["null: must be text"],
    ),
    (
        "sft",
        {"messages": [USER, {**ASSISTANT, "content": None}]},
        {},
        "messages[1].content",
        ["null: must be text"],
    ),
    (
        "sft",
        {"messages": [{**USER, "tool_calls": CALL}, ASSISTANT]},
        {},
        "messages[0].tool_calls",
        ["is the assistant's, but the role is user"],
    ),
    (
        "sft",
        {"messages": [USER, {**ASSISTANT, "weight": 0.5}]},
        {},
        "messages[1].weight",
        ["0.5: must be 0 or 1"],
    ),
    (
        "sft",
        {"messages": [USER, {**ASSISTANT, "train": "no"}]},
        {},
        "messages[1].train",
        ['"no": must be 0 or 1'],
    ),
    (
        "sft",
        {"messages": [USER, {**ASSISTANT, "weight": 0}]},
        {},
        "messages",
        ["no turn of it is learned"],
    ),
    (
        "pref",
        {**PAIR, "chosen": [USER, {**ASSISTANT, "weight": 0}], "rejected": [USER, ASSISTANT]},
        {},
        "chosen",
        ["both responses are compared"],
    ),
    ("prompt", {"prompt": "p", "tools": ["add"]}, {}, "tools", ['["add"]: must be a list of func']),
    ("prompt", {"prompt": "p", "tools": "add"}, {}, "tools", ['"add": not JSON']),
    ("prompt", {"text": "t"}, {}, "prompt", ['has "text"', ADD + "prompt"]),
    ("prompt", {"prompt": ""}, {}, "prompt", ["is empty"]),
    ("prompt", {"messages": [USER, ASSISTANT]}, {}, "messages[1].role", ['"assistant"', "remove"]),
]


def _validate(kind: str, rows: list[Row], dataset: Dataset) -> object:
    if kind == "sft":
        return sft_rows(rows, dataset, FIELD)
    if kind == "pref":
        return preference_rows(rows, dataset, FIELD, seed=1)
    return prompt_rows(rows, dataset, FIELD)


@pytest.mark.parametrize(("kind", "values", "columns", "field", "words"), BAD_ROWS)
def test_a_bad_row_is_named_with_file_line_field_value_and_remedy(
    kind: str, values: dict[str, Any], columns: dict[str, str], field: str, words: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        _validate(kind, _rows(values), _dataset(columns))

    assert str(caught.value).startswith(f"data.jsonl: line 1: {field}: ")
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 500
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("kind", "first", "second", "field"),
    [
        ("sft", {"prompt": "p", "response": "r"}, {"messages": [USER, ASSISTANT]}, "prompt"),
        ("sft", {"prompt": "p", "response": "r"}, {"query": "p", "response": "r"}, "prompt"),
        ("sft", {"messages": [USER, ASSISTANT]}, {"prompt": "p", "response": "r"}, "messages"),
        (
            "pref",
            PAIR,
            {"query": "q", "positive_passages": [P], "negative_passages": [N]},
            "chosen",
        ),
        ("prompt", {"query": "q"}, {"prompt": "p"}, "query"),
    ],
)
def test_the_first_row_s_shape_is_asked_of_all(
    kind: str, first: dict[str, Any], second: dict[str, Any], field: str
) -> None:
    with pytest.raises(DataError, match=rf"^data\.jsonl: line 2: {field}: is missing; "):
        _validate(kind, _rows(first, second), _dataset())


def test_a_title_that_is_missing_is_named_where_it_is_wanted() -> None:
    row = {"query": "q", "positive_passages": [{"text": "x"}], "negative_passages": [N]}

    with pytest.raises(DataError, match=r"positive_passages\[0\]\.title: null: .*titlePrefix off"):
        preference_rows(_rows(row), _dataset(title_prefix=True), FIELD, seed=1)


@pytest.mark.parametrize("kind", ["sft", "pref", "prompt"])
def test_a_dataset_without_rows_is_an_error(kind: str) -> None:
    with pytest.raises(
        DataError, match=r"dataset\.uri: file:///data\.jsonl: holds no rows; name a dataset"
    ):
        _validate(kind, [], _dataset())
