"""What only other trainers learn: left alone where it says the same or the row is not learned."""

from typing import Any

import pytest
from row_shapes import ASKED, TALK, USER, dataset_of, parse, rows_of
from row_shapes import FIELD as PATH

from rlhf_api.errors import DataError
from rlhf_trainer.data.parse.beside import Skipped
from rlhf_trainer.data.parse.formats import sft_rows

RESULT = {"prompt": "u", "response": "The result is 4"}
THOUGHT = {"prompt": "u", "response": "<think>\nx\n</think>\n\na"}
OPENED = {"prompt": "u", "response": "x\n</think>\n\na"}
THOUGHTS = {
    "messages": [
        USER,
        {"role": "assistant", "content": "<think>x</think>a"},
        USER,
        {"role": "assistant", "content": "<think>y</think>b"},
    ]
}


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(RESULT | {"answer": 4}, id="int"),
        pytest.param(RESULT | {"answer": 4.0}, id="a column with gaps makes floats"),
        pytest.param(RESULT | {"response": "It is 2.5", "output": 2.5}, id="float"),
        pytest.param(RESULT | {"response": "It is 0", "answer": 0}, id="zero"),
        pytest.param(RESULT | {"label": True}, id="a good answer"),
        pytest.param({"messages": TALK, "label": True}, id="good turns"),
        pytest.param(THOUGHT | {"text": "s u a"}, id="final thought dropped"),
        pytest.param(THOUGHT | {"text": "u <think>\n\n</think> a"}, id="thought emptied"),
        pytest.param(THOUGHT | {"text": "u <think>x</think> a"}, id="thought written"),
        pytest.param(OPENED | {"text": "u a"}, id="thought that the prompt opens"),
        pytest.param(THOUGHTS | {"text": "u a u <think>y</think>b"}, id="earlier dropped"),
        pytest.param(THOUGHTS | {"text": "u a u b"}, id="all dropped"),
    ],
)
def test_an_answer_that_says_the_same_is_left_alone(row: dict[str, Any]) -> None:
    parse("sft", row, {})


@pytest.mark.parametrize(
    ("row", "field"),
    [
        pytest.param(RESULT | {"answer": 5}, "answer", id="int"),
        pytest.param(RESULT | {"answer": 0}, "answer", id="zero"),
        pytest.param(RESULT | {"answer": 4.5}, "answer", id="float"),
        pytest.param(RESULT | {"response": "True", "answer": True}, "answer", id="no number"),
        pytest.param(THOUGHT | {"text": "s u b"}, "text", id="another answer"),
        pytest.param(THOUGHT | {"text": "u <think>y</think> a"}, "text", id="another thought"),
        pytest.param(
            THOUGHTS | {"text": "u <think>z</think>a u <think>y</think>b"},
            "text",
            id="another earlier thought",
        ),
        pytest.param(
            {"prompt": "u", "response": "<think>x</think>", "text": "u v"}, "text", id="no answer"
        ),
    ],
)
def test_an_answer_that_says_something_else_is_refused(row: dict[str, Any], field: str) -> None:
    with pytest.raises(DataError, match=rf"^data.jsonl: line 1: {field}: .* not be learned, but "):
        parse("sft", row, {})


def test_a_bad_answer_is_refused() -> None:
    rows = rows_of(ASKED | {"label": True}, ASKED | {"label": False})

    with pytest.raises(DataError, match=r"^data.jsonl: line 2: label: .*bad .* weight 0$"):
        sft_rows(rows, dataset_of(), PATH)


@pytest.mark.parametrize("column", [{"label": False}, {"completion": "x"}, {"images": ["x"]}])
def test_what_stands_in_a_row_that_is_not_learned_changes_nothing(column: dict[str, Any]) -> None:
    skipped = Skipped()

    kept = sft_rows(rows_of(ASKED, ASKED | column | {"weight": 0}), dataset_of(), PATH, skipped)

    assert (len(kept), skipped.rows) == (1, 1)
