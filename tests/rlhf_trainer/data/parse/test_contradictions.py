"""Columns beside those that are read: what says the same is left alone, all else is refused."""

from typing import Any

import pytest
from row_shapes import (
    ASKED,
    ASSISTANT,
    CALL,
    CHOSEN,
    FIELD,
    GPT,
    MIRACL,
    OTHER_TALK,
    PAIR,
    SYSTEM,
    TALK,
    USER,
    N,
    P,
    dataset_of,
    parse,
    rows_of,
    turns_of,
)

from rlhf_api.errors import DataError
from rlhf_trainer.data.parse.beside import Skipped
from rlhf_trainer.data.parse.formats import preference_rows, prompt_rows, sft_rows


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
        *(
            pytest.param("sft", row | {name: value}, {}, id=f"{name} of {shape}")
            for name, value in {
                "completion": "a\n",
                "output": "a",
                "answer": "a",
                "text": "Question: u\nAnswer: a",
                "mask": None,
                "enable_thinking": None,
                "chat_template": "",
                "label": 0,
            }.items()
            for shape, row in {"a pair": ASKED, "turns": {"messages": TALK}}.items()
        ),
        pytest.param(
            "sft",
            {"prompt": "u", "completion": "a", "text": "b"},
            {"response": "text"},
            id="text is meant",
        ),
        pytest.param(
            "sft",
            {**ASKED, "label": False},
            {"prompt": "prompt", "margin": "label"},
            id="a mapped label",
        ),
        pytest.param(
            "prompt",
            {"prompt": "p", "answer": "4", "output": "o", "text": "t", "label": False, "mask": [1]},
            {},
            id="what rewards compare",
        ),
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
        pytest.param("prompt", {"prompt": "u", "messages": [USER]}, {}, id="one question"),
        pytest.param("prompt", {"prompt": "u", "messages": TALK}, {}, id="answered"),
        pytest.param(
            "prompt",
            {"prompt": "u", "messages": [{"from": "human", "value": "u"}, GPT]},
            {},
            id="answered by ShareGPT's gpt",
        ),
        pytest.param(
            "prompt", {"prompt": "u", "messages": [*TALK, *OTHER_TALK]}, {}, id="answered again"
        ),
        pytest.param(
            "prompt", {"prompt": [*TALK, USER], "messages": [*TALK, *TALK]}, {}, id="second answer"
        ),
        pytest.param("prompt", {"prompt": "s\nu", "messages": [SYSTEM, USER]}, {}, id="in one"),
        pytest.param(
            "prompt", {"prompt": "p", "messages": [USER]}, {"prompt": "prompt"}, id="prompt meant"
        ),
        pytest.param(
            "prompt",
            {"prompt": "p", "messages": [USER]},
            {"messages": "messages"},
            id="turns",
        ),
        pytest.param("prompt", {"prompt": "p", "query": "p"}, {}, id="same query"),
        pytest.param("pref", {**PAIR, "prompt": "u", "messages": None}, {}, id="no turns"),
        pytest.param("pref", {**CHOSEN, "messages": TALK}, {}, id="turns of the chosen"),
        pytest.param("pref", {**PAIR, "query": PAIR["prompt"]}, {}, id="same query of a pair"),
        pytest.param(
            "pref",
            {**MIRACL, "chosen": P["text"], "rejected": N["text"]},
            {},
            id="passages",
        ),
        pytest.param(
            "pref",
            {**MIRACL, "chosen": "x", "rejected": "y"},
            {"chosen": "chosen"},
            id="responses meant",
        ),
    ],
)
def test_what_says_the_same_is_left_alone(
    kind: str, row: dict[str, Any], columns: dict[str, str]
) -> None:
    parse(kind, row, columns)


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
        *(
            pytest.param(
                "sft", row | {name: "u"}, {}, name, "learned, but", id=f"{name} of {shape}"
            )
            for name in ["completion", "output", "answer", "text"]
            for shape, row in {
                "a pair": {"prompt": "u", "response": "a"},
                "turns": {"messages": [{**USER, "content": "v"}, ASSISTANT]},
            }.items()
        ),
        *(
            pytest.param(
                kind, row | {name: value}, {}, name, "would not be learned", id=f"{kind} {name}"
            )
            for name, value in {
                "enable_thinking": False,
                "chat_template": "{{ 1 }}",
                "builtin_tools": ["search"],
                "thinking_budget": 0,
                "thinking": False,
                # The word stands in what is read, as another thing.
                "reasoning_effort": "p",
            }.items()
            for kind, row in {"sft": ASKED, "pref": PAIR, "prompt": {"prompt": "p"}}.items()
        ),
        pytest.param("sft", {**ASKED, "mask": [0, 1]}, {}, "mask", "not be learned", id="mask"),
        pytest.param(
            "sft",
            {"prompt": "p", "completion": "c", "label": False},
            {"response": "completion"},
            "label",
            "remove such rows",
            id="KTO",
        ),
        pytest.param(
            "sft", {"prompt": "p", "completion": "c"}, {}, "response", "columns.response", id="c"
        ),
        pytest.param("sft", {**ASKED, "images": ["u"]}, {}, "images", "remove", id="pictures"),
        pytest.param(
            "sft", {**ASKED, "documents": [{"title": "t"}]}, {}, "documents", "", id="doc"
        ),
        pytest.param(
            "sft", {**ASKED, "sample_weight": 0.5}, {}, "sample_weight", "0 or 1", id="weight"
        ),
        pytest.param("sft", {**ASKED, "loss_weight": 2}, {}, "loss_weight", "0 or 1", id="loss"),
        pytest.param("prompt", {"prompt": "p", "suffix": "s"}, {}, "suffix", "remove", id="FIM"),
        *(
            pytest.param("sft", {**ASKED, "end_turn": value}, {}, "end_turn", remedy, id=name)
            for name, value, remedy in (
                ("goes on", False, "remove such rows"),
                ("goes on, in a column of floats", 0.0, "give them weight 0"),
                ("goes on or not", "no", "must be true or false"),
            )
        ),
        pytest.param(
            "sft", {"instruction": "i", "output": "o"}, {}, "prompt", "columns.prompt", id="Alpaca"
        ),
        *(
            pytest.param(
                "prompt",
                {"prompt": "u", "messages": turns},
                {},
                "messages",
                "(messages",
                id=name,
            )
            for name, turns in {
                "other question": OTHER_TALK,
                "with a system turn": [SYSTEM, USER],
                "system turn, answered": [SYSTEM, *TALK],
                "a second question": [*TALK, {**USER, "content": "v"}],
                "ShareGPT": [{"from": "human", "value": "v"}, {"from": "gpt", "value": "u"}],
                "text": "v",
            }.items()
        ),
        pytest.param(
            "prompt",
            {"prompt": [*TALK, USER], "messages": [*TALK, *OTHER_TALK]},
            {},
            "messages",
            "prompt, which",
            id="other second question",
        ),
        pytest.param("prompt", {"prompt": "u", "query": "v"}, {}, "query", "(prompt)", id="query"),
        pytest.param("sft", {**ASKED, "query": "v"}, {}, "query", "(prompt)", id="SFT's query"),
        pytest.param(
            "sft",
            {"messages": TALK, "prompt": "u", "query": "v"},
            {},
            "query",
            "",
            id="turns' query",
        ),
        pytest.param("pref", {**PAIR, "query": "v"}, {}, "query", "(prompt)", id="pair's query"),
        pytest.param("pref", {**CHOSEN, "query": "v"}, {}, "query", "in chosen", id="turns' query"),
        pytest.param(
            "pref", {**MIRACL, "prompt": "v"}, {}, "query", "(prompt)", id="query of both"
        ),
        pytest.param(
            "pref", {**PAIR, "messages": [SYSTEM]}, {}, "messages", "chosen", id="turns of a pair"
        ),
        pytest.param(
            "pref",
            {**MIRACL, "messages": [SYSTEM]},
            {},
            "messages",
            "positive_passages",
            id="turns",
        ),
        pytest.param(
            "pref",
            {**MIRACL, "chosen": "x", "rejected": N["text"]},
            {},
            "positive_passages",
            "differs from chosen",
            id="passages of another response",
        ),
    ],
)
def test_what_says_something_else_is_refused_by_name(
    kind: str, row: dict[str, Any], columns: dict[str, str], field: str, told: str
) -> None:
    with pytest.raises(DataError) as caught:
        parse(kind, row, columns)

    assert str(caught.value).startswith(f"data.jsonl: line 1: {field}: ")
    assert told in str(caught.value)


def test_a_margin_of_passages_is_kept() -> None:
    rows = rows_of({**MIRACL, "m": 2})

    (pair,), _ = preference_rows(rows, dataset_of({"margin": "m"}), FIELD, seed=1)

    assert pair.margin == 2.0


def test_prompts_beside_messages_are_compared_where_only_a_later_row_has_them() -> None:
    rows = rows_of({"messages": [USER]}, {"messages": [USER], "prompt": "p"})

    with pytest.raises(DataError, match=r"line 2: prompt: \"p\": differs from messages, which"):
        prompt_rows(rows, dataset_of(), FIELD)


def test_responses_beside_passages_are_compared_where_only_a_later_row_has_them() -> None:
    rows = rows_of(MIRACL, {**MIRACL, "rejected": "x"})

    with pytest.raises(DataError, match=r"line 2: rejected: \"x\": differs from negative_passages"):
        preference_rows(rows, dataset_of(), FIELD, seed=1)


def test_tools_of_passages_are_kept() -> None:
    tool = {"type": "function", "function": {"name": "f"}}

    (pair,), _ = preference_rows(rows_of({**MIRACL, "tools": [tool]}), dataset_of(), FIELD, seed=1)

    assert pair.tools == (tool,)


def test_a_row_of_no_weight_is_counted() -> None:
    skipped = Skipped()
    rows = rows_of(ASKED, {**ASKED, "sample_weight": 0}, {**ASKED, "sample_weight": 1.0})

    assert len(sft_rows(rows, dataset_of(), FIELD, skipped)) == 2
    assert skipped.rows == 1
