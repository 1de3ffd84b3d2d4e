"""Columns beside those that are read: what says the same is left alone, all else is refused."""

from typing import Any

import pytest
from row_shapes import (
    ASSISTANT,
    CALL,
    FIELD,
    PAIR,
    SYSTEM,
    USER,
    N,
    P,
    dataset_of,
    rows_of,
    turns_of,
)

from rlhf_api.errors import DataError
from rlhf_trainer.data.parse.beside import Skipped
from rlhf_trainer.data.parse.formats import preference_rows, prompt_rows, sft_rows

TALK = [USER, ASSISTANT]
ASKED = {"prompt": "u", "response": "a"}
CHOSEN = {"chosen": TALK, "rejected": [USER, {**ASSISTANT, "content": "b"}]}
MIRACL = {"query": "q", "positive_passages": [P], "negative_passages": [N]}


def _parse(kind: str, row: dict[str, Any], columns: dict[str, str]) -> None:
    if kind == "sft":
        sft_rows(rows_of(row), dataset_of(columns), FIELD)
    elif kind == "pref":
        preference_rows(rows_of(row), dataset_of(columns), FIELD, seed=1)
    else:
        prompt_rows(rows_of(row), dataset_of(columns), FIELD)


@pytest.mark.parametrize(
    ("kind", "row", "columns"),
    [
        pytest.param("sft", {**ASKED, "messages": None}, {}, id="no messages"),
        pytest.param("sft", {**ASKED, "prompt": "u\n", "messages": TALK}, {}, id="white space"),
        pytest.param(
            "sft", {"messages": [SYSTEM, *TALK, *TALK], "prompt": "u"}, {}, id="first turn of many"
        ),
        pytest.param(
            "sft",
            {"messages": [SYSTEM, *TALK, *TALK], "prompt": "system: s\nuser: u\nbot: a\nuser: u"},
            {},
            id="turns in one text",
        ),
        pytest.param(
            "sft",
            {"messages": [SYSTEM, *TALK], "prompt": "s\n\nu"},
            {},
            id="turns before the answer in one text",
        ),
        pytest.param(
            "sft",
            {"prompt": "p", "response": "r", "messages": TALK},
            {"messages": "messages"},
            id="messages are meant",
        ),
        pytest.param(
            "sft",
            {"prompt": "p", "response": "r", "messages": TALK},
            {"response": "response"},
            id="a pair is meant",
        ),
        pytest.param("pref", {**CHOSEN, "prompt": "u"}, {}, id="same prompt"),
        pytest.param("pref", {**CHOSEN, "prompt": [USER]}, {}, id="same turns"),
        pytest.param("pref", {**CHOSEN, "prompt": None}, {}, id="no prompt"),
        pytest.param("pref", {**PAIR, "margin": None, "reasoning": "a judge's"}, {}, id="a judge"),
        pytest.param("prompt", {"prompt": "p", "reasoning": "of the answer"}, {}, id="no answer"),
        pytest.param("sft", {**ASKED, "system_prompt": None, "instruction": "u"}, {}, id="copy"),
        pytest.param("sft", {**ASKED, "instruction": " u\r\n"}, {}, id="copy with white space"),
        pytest.param(
            "sft",
            {
                "messages": [
                    {"role": "system", "content": [{"type": "text", "text": "be kind"}]},
                    *TALK,
                ],
                "system": "be kind",
            },
            {},
            id="copy of a part",
        ),
        pytest.param("pref", {**MIRACL, "query_id": "1", "source": "x"}, {}, id="MIRACL"),
    ],
)
def test_what_says_the_same_is_left_alone(
    kind: str, row: dict[str, Any], columns: dict[str, str]
) -> None:
    _parse(kind, row, columns)


@pytest.mark.parametrize(
    ("kind", "row", "columns", "field", "told"),
    [
        pytest.param(
            "sft", {**ASKED, "messages": turns_of("user")}, {}, "messages", "prompt and", id="other"
        ),
        pytest.param(
            "sft", {**ASKED, "messages": [SYSTEM, *TALK]}, {}, "messages", "prompt and", id="more"
        ),
        pytest.param("sft", {"messages": TALK, "prompt": "p"}, {}, "prompt", "messages", id="p"),
        pytest.param("sft", {"messages": TALK, "query": "p"}, {}, "query", "messages", id="q"),
        pytest.param(
            "sft", {"messages": TALK, "response": "r"}, {}, "response", "messages", id="response"
        ),
        pytest.param("sft", {"messages": TALK, "prompt": "a"}, {}, "prompt", "messages", id="a"),
        pytest.param(
            "sft",
            {"messages": [*TALK, USER, ASSISTANT], "response": "u"},
            {},
            "response",
            "messages",
            id="turn before the answer",
        ),
        pytest.param(
            "sft",
            {"messages": [USER, {"role": "assistant", "tool_calls": CALL}], "response": "r"},
            {},
            "response",
            "messages",
            id="answer of calls alone",
        ),
        pytest.param("pref", {**CHOSEN, "prompt": "p"}, {}, "prompt", "in chosen", id="prompt"),
        pytest.param(
            "pref", {**CHOSEN, "prompt": [SYSTEM]}, {}, "prompt", "in chosen", id="system turn"
        ),
        pytest.param(
            "pref", {**CHOSEN, "p": "x"}, {"prompt": "p"}, "p", "in chosen", id="named prompt"
        ),
        pytest.param(
            "pref", {**PAIR, "margin": 2}, {}, "margin", f"set {FIELD}.columns.margin", id="margin"
        ),
        pytest.param(
            "pref", {**MIRACL, "margin": 2}, {}, "margin", "columns.margin", id="MIRACL's margin"
        ),
        *(
            pytest.param("sft", {**ASKED, name: "x"}, {}, name, "would not be learned", id=name)
            for name in [
                "system_prompt",
                "system_message",
                "instruction",
                "suffix",
                "reasoning",
                "reasoning_content",
                "thinking",
            ]
        ),
        pytest.param(
            "sft",
            {"system_prompt": "s", "question": "p", "response": "r"},
            {"prompt": "question"},
            "system_prompt",
            "would not be learned",
            id="OpenOrca",
        ),
        pytest.param("sft", {**ASKED, "images": ["u"]}, {}, "images", "remove", id="pictures"),
        pytest.param(
            "sft", {**ASKED, "documents": [{"title": "t"}]}, {}, "documents", "", id="doc"
        ),
        pytest.param(
            "sft", {**ASKED, "sample_weight": 0.5}, {}, "sample_weight", "0 or 1", id="weight"
        ),
        pytest.param("prompt", {"prompt": "p", "suffix": "s"}, {}, "suffix", "remove", id="FIM"),
        pytest.param(
            "sft", {"instruction": "i", "output": "o"}, {}, "prompt", "columns.prompt", id="Alpaca"
        ),
    ],
)
def test_what_says_something_else_is_refused_by_name(
    kind: str, row: dict[str, Any], columns: dict[str, str], field: str, told: str
) -> None:
    with pytest.raises(DataError) as caught:
        _parse(kind, row, columns)

    assert str(caught.value).startswith(f"data.jsonl: line 1: {field}: ")
    assert told in str(caught.value)


def test_a_margin_of_passages_is_kept() -> None:
    rows = rows_of({**MIRACL, "m": 2})

    (pair,), _ = preference_rows(rows, dataset_of({"margin": "m"}), FIELD, seed=1)

    assert pair.margin == 2.0


def test_a_row_of_no_weight_is_counted() -> None:
    skipped = Skipped()
    rows = rows_of(ASKED, {**ASKED, "sample_weight": 0}, {**ASKED, "sample_weight": 1.0})

    assert len(sft_rows(rows, dataset_of(), FIELD, skipped)) == 2
    assert skipped.rows == 1
