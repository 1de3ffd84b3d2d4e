"""Values beside the text of a turn: what no tokenizer takes, no JSON has, or of another type."""

import json
from pathlib import Path
from typing import Any

import pytest
from row_shapes import ASSISTANT, FIELD, PAIR, TOOLS, USER, N, P, dataset_of, rows_of

from rlhf_api.errors import DataError
from rlhf_api.v1alpha1 import Dataset
from rlhf_trainer.data.parse.formats import preference_rows, prompt_rows, sft_rows
from rlhf_trainer.data.read.rows import read_rows

HALF = "a\ud800"
CUT = "half a character at 1"
NAN = float("nan")
NO_NUMBER = "is no number that JSON has"


def _call(**function: Any) -> dict[str, Any]:
    return {"tool_calls": [{"function": {"name": "add", **function}}]}


@pytest.mark.parametrize(
    ("beside", "field", "told"),
    [
        ({"reasoning_content": HALF}, "reasoning_content", CUT),
        ({"thinking": HALF}, "thinking", CUT),
        ({"name": HALF}, "name", CUT),
        ({"tool_call_id": HALF}, "tool_call_id", CUT),
        (_call(name=HALF), "tool_calls[0].function.name", CUT),
        (_call(arguments={"a": [HALF]}), "tool_calls[0].function.arguments.a[0]", CUT),
        (_call(arguments={HALF: 1}), "tool_calls[0].function.arguments", CUT),
        (_call(arguments=json.dumps({"a": HALF})), "tool_calls[0].function.arguments.a", CUT),
        ({"tool_calls": [{"id": HALF, "function": {"name": "add"}}]}, "tool_calls[0].id", CUT),
        ({"function_call": {"name": "add", "x": HALF}}, "function_call.x", CUT),
        ({HALF: 1}, "a\\ud800", "is not read"),
        (_call(arguments={"a": NAN}), "tool_calls[0].function.arguments.a", NO_NUMBER),
        (_call(arguments='{"a": NaN}'), "tool_calls[0].function.arguments.a", NO_NUMBER),
        (_call(arguments='{"a": 1e999}'), "tool_calls[0].function.arguments.a", NO_NUMBER),
        (_call(arguments=[1]), "tool_calls[0].function.arguments", "must be an object, or the"),
        (
            _call(arguments='{"a": 1, "a": 2}'),
            "tool_calls[0].function.arguments",
            'the key "a" stands twice in one object',
        ),
        (_call(name=["add"]), "tool_calls[0].function.name", "must be text, but is a list"),
        ({"tool_calls": [{"arguments": {}}]}, "tool_calls[0].name", "must be text, but is null"),
        ({"reasoning_content": ["x"]}, "reasoning_content", "must be text, but is a list"),
        ({"reasoning": {"text": "x"}}, "reasoning", "must be text, but is an object"),
        ({"name": ["x"]}, "name", "must be text, but is a list"),
        ({"tool_call_id": {"a": 1}}, "tool_call_id", "must be text, but is an object"),
    ],
)
def test_a_wrong_value_of_a_turn_is_named(beside: dict[str, Any], field: str, told: str) -> None:
    row = {"messages": [USER, {**ASSISTANT, **beside}]}

    with pytest.raises(DataError) as caught:
        sft_rows(rows_of(row), dataset_of(), FIELD)

    assert str(caught.value).startswith(f"data.jsonl: line 1: messages[1].{field}: ")
    assert told in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("tools", "told"),
    [
        ([{"name": HALF}], r"tools\[0\]\.name: .*half a character"),
        (json.dumps([{"name": HALF}]), r"tools\[0\]\.name: .*half a character"),
        ([{"minimum": NAN}], r"tools\[0\]\.minimum: NaN: is no number"),
        ('[{"name": "a", "name": "b"}]', r"tools: .*the key \\?\"name\\?\" stands twice"),
        ("[" * 100_000, r"tools: .*not JSON"),
    ],
)
def test_a_wrong_value_of_tools_is_named(tools: object, told: str) -> None:
    with pytest.raises(DataError, match=told):
        prompt_rows(rows_of({"prompt": "p", "tools": tools}), dataset_of(), FIELD)


def test_half_a_character_of_a_passage_s_title_is_named() -> None:
    row = {"query": "q", "positive_passages": [{**P, "title": HALF}], "negative_passages": [N]}

    with pytest.raises(DataError, match=r"positive_passages\[0\]\.title: .*half a character"):
        preference_rows(rows_of(row), dataset_of(title_prefix=True), FIELD, seed=1)
    preference_rows(rows_of(row), dataset_of(), FIELD, seed=1)


def test_right_values_stay_as_they_are() -> None:
    calling = {**ASSISTANT, **_call(arguments='{"a": 1}'), "thinking": "\n"}
    result = {"role": "tool", "content": "2", "tool_call_id": 3, "name": "add"}
    row = {"messages": [USER, calling, result, ASSISTANT], "tools": TOOLS, "embedding": [NAN]}

    (found,) = sft_rows(rows_of(row), dataset_of(), FIELD)

    written = {"tool_calls": calling["tool_calls"], "thinking": "\n"}
    assert [turn.written for turn in found.prompt if not isinstance(turn, str)] == [{}, written, {}]


@pytest.mark.parametrize(
    ("name", "raw", "place"),
    [
        ("a.jsonl", '{}\n{"prompt": "p", "prompt": "q"}\n', "line 2"),
        ("a.json", '[{"m": {"prompt": 1, "prompt": 1}}]', "line 1"),
    ],
)
def test_a_key_that_stands_twice_is_named(tmp_path: Path, name: str, raw: str, place: str) -> None:
    (tmp_path / name).write_text(raw)

    with pytest.raises(DataError) as caught:
        list(read_rows(Dataset(uri=f"file://{tmp_path / name}"), claims={}, field=FIELD))

    for word in [f"{name}: {place}: the key", '"prompt" stands twice in one object', "remove the"]:
        assert word in str(caught.value)


def test_a_pair_s_answer_is_checked_too() -> None:
    chosen = [USER, {**ASSISTANT, "thinking": HALF}]

    with pytest.raises(DataError, match=r"chosen\[1\]\.thinking: .*half a character"):
        preference_rows(rows_of({**PAIR, "chosen": chosen}), dataset_of(), FIELD, seed=1)
