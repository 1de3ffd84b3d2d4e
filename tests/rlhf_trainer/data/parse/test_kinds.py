"""Prompts that hold more than plain turns, refused where two models would read them otherwise."""

from typing import Any

import pytest
from row_shapes import ASSISTANT, CALL, FIELD, SYSTEM, TALK, TOOLS, USER, dataset_of, rows_of

from rlhf_api.errors import ConfigError
from rlhf_trainer.data.parse.formats import prompt_rows
from rlhf_trainer.data.parse.kinds import (
    WITH_CALLS,
    WITH_THOUGHTS,
    WITH_TOOLS,
    WITH_TOOLS_AND_CALLS,
    refuse_kinds,
)

CALLED = {"messages": [USER, {**ASSISTANT, "tool_calls": CALL}, USER]}
OLDER = {"messages": [USER, {**ASSISTANT, "function_call": {"name": "add"}}, USER]}
RESULT = {"messages": [USER, {"role": "tool", "content": "4"}]}
KINDS = (WITH_TOOLS, WITH_TOOLS_AND_CALLS, WITH_CALLS, WITH_THOUGHTS)


def refuse(row: dict[str, Any], *kinds: str) -> None:
    """Read it behind a plain row, where prompts of these kinds cannot be used."""
    plain = {"messages": [SYSTEM, *TALK, USER], "prompt": None}
    rows = prompt_rows(rows_of(plain, row), dataset_of({"messages": "messages"}), FIELD)
    refuse_kinds(rows, {kind: f"field: no prompt {kind}; use other models" for kind in kinds})


@pytest.mark.parametrize(
    ("row", "own"),
    [
        pytest.param({"messages": [USER]}, set(), id="plain"),
        pytest.param({"messages": [USER], "tools": []}, set(), id="no tools"),
        pytest.param({"messages": [USER], "tools": TOOLS}, {WITH_TOOLS}, id="tools"),
        pytest.param(CALLED, {WITH_CALLS}, id="call"),
        pytest.param(OLDER, {WITH_CALLS}, id="call of the older form"),
        pytest.param(RESULT, {WITH_CALLS}, id="a tool's turn"),
        pytest.param(
            CALLED | {"tools": TOOLS}, {WITH_TOOLS, WITH_TOOLS_AND_CALLS}, id="tools and call"
        ),
        *(
            pytest.param(
                {"messages": [USER, {**ASSISTANT, name: "x"}, USER]}, {WITH_THOUGHTS}, id=name
            )
            for name in ("reasoning_content", "reasoning", "thinking")
        ),
    ],
)
def test_a_row_is_refused_for_its_own_kinds_alone(row: dict[str, Any], own: set[str]) -> None:
    refuse(row, *(kind for kind in KINDS if kind not in own))

    for kind in own:
        with pytest.raises(ConfigError) as caught:
            refuse(row, kind)
        assert str(caught.value) == (
            f"field: no prompt {kind}; use other models, or remove the rows {kind}, of which "
            "data.jsonl: line 2 is the first"
        )
