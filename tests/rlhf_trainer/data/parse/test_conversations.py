"""A column of ShareGPT's turns beside what is read."""

from typing import Any

import pytest
from row_shapes import (
    ASKED,
    ASSISTANT,
    CHOSEN,
    MIRACL,
    OTHER_GPT,
    OTHER_TALK,
    PAIR,
    SHAREGPT,
    SYSTEM,
    TALK,
    USER,
    parse,
)

from rlhf_api.errors import DataError
from rlhf_api.names import ExitCode


@pytest.mark.parametrize(
    ("kind", "row", "columns"),
    [
        pytest.param("sft", {**ASKED, "conversations": SHAREGPT}, {}, id="pair"),
        pytest.param("sft", {"messages": TALK, "conversations": SHAREGPT}, {}, id="messages"),
        pytest.param("sft", {"messages": TALK, "conversations": None}, {}, id="none"),
        pytest.param("sft", {**ASKED, "messages": TALK, "conversations": TALK}, {}, id="all"),
        pytest.param(
            "sft", {"messages": TALK, "conversations": OTHER_GPT}, {"messages": "messages"}, id="m"
        ),
        pytest.param(
            "sft", {"messages": OTHER_TALK, "conversations": TALK}, {"messages": "conversations"},
            id="conversations are meant",
        ),
        pytest.param("pref", {**CHOSEN, "conversations": SHAREGPT}, {}, id="chosen"),
        pytest.param("pref", {**CHOSEN, "conversations": OTHER_GPT}, {}, id="rejected"),
        pytest.param("pref", {**MIRACL, "conversations": None}, {}, id="passages"),
        pytest.param("prompt", {"prompt": "u", "conversations": OTHER_GPT}, {}, id="answered"),
        pytest.param("prompt", {"messages": [USER], "conversations": OTHER_GPT}, {}, id="turns"),
        pytest.param("prompt", {"prompt": [USER], "conversations": SHAREGPT[:1]}, {}, id="asked"),
        *(
            pytest.param(
                "prompt", {read: [SYSTEM, *asked], column: [*asked[:-1], *turns]}, {},
                id=f"{read}: system turn and {len(asked)}, {column}",
            )
            for read, column in (
                ("messages", "conversations"), ("prompt", "conversations"), ("prompt", "messages")
            )
            for asked in ([USER], [*TALK, USER])
            for turns in (OTHER_GPT, [USER, {**ASSISTANT, "content": "b"}])
        ),
    ],
)  # fmt: skip
def test_conversations_that_say_the_same_are_left_alone(
    kind: str, row: dict[str, Any], columns: dict[str, str]
) -> None:
    parse(kind, row, columns)


@pytest.mark.parametrize(
    ("kind", "row", "read"),
    [
        pytest.param("sft", ASKED, "prompt and response", id="pair"),
        pytest.param("sft", {"messages": TALK}, "messages", id="messages"),
        pytest.param("sft", {**ASKED, "messages": TALK}, "prompt and response", id="all"),
        pytest.param("pref", PAIR, "prompt and chosen and rejected", id="texts"),
        pytest.param("pref", CHOSEN, "prompt and chosen and rejected", id="turns"),
        pytest.param(
            "pref", MIRACL, "query and positive_passages and negative_passages", id="MIRACL"
        ),
        pytest.param("prompt", {"prompt": "u"}, "prompt", id="prompt"),
        pytest.param("prompt", {"messages": [USER]}, "messages", id="turns of a prompt"),
        pytest.param("prompt", {"prompt": "u", "messages": TALK}, "prompt", id="both"),
        pytest.param("prompt", {"prompt": [SYSTEM, USER]}, "prompt", id="behind a system turn"),
    ],
)
@pytest.mark.parametrize(
    "form", [("from", "human", "gpt", "value"), ("role", "user", "assistant", "content")]
)
def test_conversations_that_say_something_else_are_refused_by_name(
    kind: str, row: dict[str, Any], read: str, form: tuple[str, str, str, str]
) -> None:
    role, user, assistant, content = form
    turns = [{role: user, content: "v"}, {role: assistant, content: "w"}]
    with pytest.raises(DataError) as caught:
        parse(kind, {**row, "conversations": turns}, {})

    told = str(caught.value)
    assert caught.value.exit_code == ExitCode.DATA
    assert told.startswith("data.jsonl: line 1: conversations: [{")
    assert f": differs from {read}, which would be read; correct it, name what is meant in" in told


@pytest.mark.parametrize("read", ["prompt", "messages"])
def test_a_question_behind_another_system_turn_is_compared(read: str) -> None:
    turns = [{"from": "system", "value": "u"}, {"from": "human", "value": "v"}, *OTHER_GPT]

    with pytest.raises(DataError, match=r"line 1: conversations: .*differs from "):
        parse("prompt", {read: [USER], "conversations": turns}, {})
