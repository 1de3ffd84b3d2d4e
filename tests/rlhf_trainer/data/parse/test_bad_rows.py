"""A table of every mistake in a row."""

from typing import Any

import pytest
from row_shapes import (
    ASSISTANT,
    CALL,
    FIELD,
    PAIR,
    TOOLS,
    USER,
    N,
    P,
    dataset_of,
    rows_of,
    turns_of,
)

from rlhf_api.errors import DataError
from rlhf_api.v1alpha1 import Dataset
from rlhf_trainer.data.parse.formats import preference_rows, prompt_rows, sft_rows
from rlhf_trainer.data.read.rows import Row

ADD = "add it, or name it in spec.stages.sft.dataset.columns."
BEFORE = '"assistant": put a turn of user or system before it'
ASKED = {"prompt": "p", "response": "r"}
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
    (
        "sft",
        {"messages": turns_of("user", "bot")},
        {},
        "messages[1].role",
        ['"bot": must be one of'],
    ),
    (
        "sft",
        {"messages": [USER, {**ASSISTANT, "content": ""}]},
        {},
        "messages[1].content",
        ["is empty"],
    ),
    (
        "sft",
        {"messages": turns_of("user")},
        {},
        "messages[0].role",
        ['"user"', "end with a turn of"],
    ),
    ("sft", {"messages": turns_of("assistant")}, {}, "messages[0].role", [BEFORE]),
    (
        "sft",
        {"messages": turns_of("assistant", "user", "assistant")},
        {},
        "messages[0].role",
        [BEFORE],
    ),
    ("prompt", {"prompt": turns_of("assistant", "user")}, {}, "prompt[0].role", [BEFORE]),
    (
        "pref",
        {**PAIR, "chosen": turns_of("assistant", "assistant")},
        {},
        "chosen[0].role",
        [BEFORE],
    ),
    (
        "sft",
        {"prompt": turns_of("assistant"), "response": "r"},
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
        {**PAIR, "chosen": turns_of("user")},
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
    (
        "prompt",
        {"prompt": "p", "tools": TOOLS, "functions": [{"name": "add"}]},
        {},
        "functions",
        ["the row has tools too", "keep one"],
    ),
    ("prompt", {"prompt": "p", "functions": "add"}, {}, "functions", ['"add": not JSON']),
    ("sft", {**ASKED, "system": "s"}, {}, "system", ['"s": would not be learned', "messages"]),
    ("pref", {**PAIR, "system": "s"}, {}, "system", ["would not be learned"]),
    (
        "sft",
        {"messages": [USER, ASSISTANT], "system": "s"},
        {},
        "system",
        ["would not be learned"],
    ),
    ("prompt", {"prompt": "p", "documents": [{"text": "t"}]}, {}, "documents", ["remove the col"]),
    ("sft", {**ASKED, "chat_template_kwargs": {"a": 1}}, {}, "chat_template_kwargs", ['{"a": 1}']),
    ("sft", {**ASKED, "chat_template": "t"}, {}, "chat_template", ["set a chatTemplate of the"]),
    *(
        ("sft", {**ASKED, name: value}, {}, name, ["would not be learned", "into the prompt"])
        for name, value in [
            ("tool_calls", CALL),
            ("function_call", {"name": "add"}),
            ("history", [["q", "a"]]),
            ("context", "not in the question"),
            ("videos", ["v.mp4"]),
            ("audios", ["a.wav"]),
            ("loss_mask", [0, 1]),
        ]
    ),
    (
        "sft",
        {"instruction": "add", "input": "1 and 2", "output": "3"},
        {"prompt": "instruction", "response": "output"},
        "input",
        ['"1 and 2": would not be learned', "write it into the prompt"],
    ),
    ("sft", {**ASKED, "loss": 2.5}, {}, "loss", ["2.5: must be 0 or 1", "remove the column"]),
    ("sft", {**ASKED, "weight": 0.5}, {}, "weight", ["0.5: must be 0 or 1", "a row is learned"]),
    ("sft", {**ASKED, "train": "no"}, {}, "train", ['"no": must be 0 or 1']),
    *(
        ("sft", {"messages": [USER, {**ASSISTANT, key: value}]}, {}, f"messages[1].{key}", [said])
        for key, value, said in [
            ("prefix", True, "true: an answer is learned as a whole"),
            ("end_turn", False, "false: every turn is written with its end"),
            ("end_turn", 0, "0: every turn is written with its end"),
            ("end_turn", "no", '"no": must be true or false'),
        ]
    ),
    (
        "pref",
        {**PAIR, "chosen": [USER, {**ASSISTANT, "partial": True}]},
        {},
        "chosen[1].partial",
        ["remove it"],
    ),
    *(
        (
            "sft",
            {"messages": [{**USER, **asked}, {**ASSISTANT, **answered}]},
            {},
            f"messages[{index}].{name}",
            ["is not read, so that it would not be learned", "write it into content"],
        )
        for index, name, asked, answered in [
            (1, "tool_plan", {}, {"tool_plan": "add"}),
            (0, "tools", {"tools": TOOLS}, {}),
            (0, "images", {"images": ["a.png"]}, {}),
            (1, "refusal", {}, {"refusal": "no"}),
            (1, "eos", {}, {"eos": False}),
        ]
    ),
    *(
        ("sft", {"messages": [USER, {**ASSISTANT, **call}]}, {}, f"messages[1].{place}", words)
        for call, place, words in [
            ({"tool_calls": "[]"}, "tool_calls", ["must be a list of calls"]),
            ({"tool_calls": ["add"]}, "tool_calls", ["must be a list of calls"]),
            ({"function_call": "add"}, "function_call", ["must be a call with name"]),
            (
                {"tool_calls": [{"function": {"name": "add", "arguments": "a=1"}}]},
                "tool_calls[0].function.arguments",
                ['"a=1": must be an object, or the JSON text of one'],
            ),
            (
                {"function_call": {"name": "add", "arguments": "[1]"}},
                "function_call.arguments",
                ['"[1]": must be an object'],
            ),
        ]
    ),
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
        _validate(kind, rows_of(values), dataset_of(columns))

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
        _validate(kind, rows_of(first, second), dataset_of())


def test_a_title_that_is_missing_is_named_where_it_is_wanted() -> None:
    row = {"query": "q", "positive_passages": [{"text": "x"}], "negative_passages": [N]}

    with pytest.raises(DataError, match=r"positive_passages\[0\]\.title: null: .*titlePrefix off"):
        preference_rows(rows_of(row), dataset_of(title_prefix=True), FIELD, seed=1)


@pytest.mark.parametrize("kind", ["sft", "pref", "prompt"])
def test_a_dataset_without_rows_is_an_error(kind: str) -> None:
    told = r"dataset\.uri: file:///data\.jsonl: "
    with pytest.raises(DataError, match=told + "is empty: there is no row in it; name a"):
        _validate(kind, [], dataset_of())
    unlearned = rows_of({"prompt": "p", "weight": 0})
    with pytest.raises(DataError, match=told + "holds no rows that are learned; name a"):
        _validate(kind, unlearned, dataset_of())


@pytest.mark.parametrize("kind", ["sft", "pref", "prompt"])
@pytest.mark.parametrize("column", ["conversations", "dialog"])
def test_sharegpt_s_turns_are_told_the_form_that_is_wanted(kind: str, column: str) -> None:
    turns = [{"from": "human", "value": "p"}, {"from": "gpt", "value": "r"}]
    wanted = r"write each turn as \{role, content\}"
    with pytest.raises(DataError, match=rf"^data\.jsonl: line 1: .*{wanted}.*'human' is user"):
        _validate(kind, rows_of({column: turns}), dataset_of())
    # A name for the column alone is no remedy.
    with pytest.raises(DataError, match=rf"{column}\[0\]: .*{wanted}"):
        _validate("sft", rows_of({column: turns}), dataset_of(columns={"messages": column}))


def test_another_column_of_turns_is_named_as_messages() -> None:
    turns = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]
    with pytest.raises(DataError, match=r"set spec\..*dataset\.columns\.messages to dialog"):
        _validate("sft", rows_of({"dialog": turns}), dataset_of())


def test_a_lacking_answer_is_no_matter_of_messages() -> None:
    told = r"rejected: is missing; .* add it, or name it in .*columns\.rejected$"
    with pytest.raises(DataError, match=told):
        _validate("pref", rows_of({"chosen": turns_of("user", "assistant")}), dataset_of())


def test_parts_of_text_are_one_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "image_url": None}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "r"}]
    (row,) = sft_rows(rows_of({"messages": turns}), dataset_of(), FIELD)
    assert row.prompt[0].content == "ab"


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, r"\[1\]\.type: \"image_url\": .*text"),
        ({"type": "text", "text": 7}, r"\[1\]\.text: 7: must be text, but is a number"),
        ("b", r"\[1\]\.type: null: only parts of type text"),
    ],
)
def test_other_parts_are_refused_by_their_type(part: object, told: str) -> None:
    turns = [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]
    with pytest.raises(DataError, match=r"messages\[0\]\.content" + told):
        _validate("prompt", rows_of({"messages": turns}), dataset_of())
