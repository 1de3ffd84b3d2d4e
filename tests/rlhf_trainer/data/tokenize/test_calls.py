"""Arguments of calls: text as in OpenAI's files, objects as in those of transformers."""

from typing import Any

import pytest
import subwords

from rlhf_api.errors import DataError
from rlhf_trainer.data.parse.columns import Message
from rlhf_trainer.data.parse.formats import SFTRow
from rlhf_trainer.data.read.rows import Source
from rlhf_trainer.data.tokenize.calls import CallWriter
from rlhf_trainer.data.tokenize.tokenized import sft_examples

TEMPLATE = (
    "{% for m in messages %}<|end|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}"
    "{% if call.function is defined %}{% set call = call.function %}{% endif %}"
    "[{{ call.name }}|WRITTEN]{% endfor %}"
    "{% if m.function_call %}{% set call = m.function_call %}(WRITTEN){% endif %}"
    "</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|end|>assistant\n{% endif %}"
)
OBJECT = {"a": "é", "b": [1, 2.5]}
TEXT = '{"a":"é", "b":[1,2.5]}'
JSON = '{"a": "é", "b": [1, 2.5]}'

# What families' templates write in the place of WRITTEN.
ENCODES = "{{ call.arguments | tojson }}"
CONCATENATES = "{{ 'x: ' + call.arguments }}"
PRINTS = "{{ call.arguments }}"
EITHER = (
    "{% if call.arguments is string %}{{ call.arguments }}{% else %}"
    "{{ call.arguments | tojson }}{% endif %}"
)
WALKS = "{% for k, v in call.arguments.items() %}<{{ k }}={{ v | tojson }}>{% endfor %}"


def shape(kind: str, arguments: Any) -> dict[str, Any]:
    """A call as files hold it."""
    call = {"name": "cat", "arguments": arguments}
    if kind == "nested":
        return {"tool_calls": [{"id": "a", "type": "function", "function": call}]}
    return {"tool_calls": [call]} if kind == "flat" else {"function_call": call}


def learned(written: str, arguments: Any, kind: str = "nested", *, earlier: bool = False) -> str:
    """What of a conversation with a call is learned, as text."""
    tokenizer = subwords.with_template(subwords.byte_level(), TEMPLATE.replace("WRITTEN", written))
    user, calling = Message("user", "the cat?"), Message("assistant", "", shape(kind, arguments))
    row = (
        SFTRow(Source("data.jsonl", 7), (user, calling, Message("tool", "sat")), "sat")
        if earlier
        else SFTRow(Source("data.jsonl", 7), (user,), calling)
    )
    (example,), _ = sft_examples([row], tokenizer, max_length=500, over_long="Drop")
    return str(tokenizer.decode(example.tokens[example.response_mask]))


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize(
    ("written", "arguments", "expected"),
    [
        pytest.param(ENCODES, TEXT, JSON, id="text where an object is encoded"),
        pytest.param(ENCODES, OBJECT, JSON, id="an object where it is encoded"),
        pytest.param(WALKS, TEXT, '<a="é"><b=[1, 2.5]>', id="text where keys are walked"),
        pytest.param(CONCATENATES, TEXT, "x: " + TEXT, id="text where text is wanted"),
        pytest.param(CONCATENATES, OBJECT, "x: " + JSON, id="an object where text is wanted"),
        pytest.param(PRINTS, TEXT, TEXT, id="text where it is printed"),
        pytest.param(PRINTS, OBJECT, JSON, id="an object that would be spelled as Python does"),
        pytest.param(EITHER, TEXT, TEXT, id="text where both are taken"),
        pytest.param(EITHER, OBJECT, JSON, id="an object where both are taken"),
    ],
)
def test_arguments_are_written_once(
    written: str, arguments: Any, expected: str, *, earlier: bool
) -> None:
    rest = "sat</s>" if earlier else ""
    assert learned(written, arguments, earlier=earlier) == f"[cat|{expected}]</s>{rest}"


@pytest.mark.parametrize(
    ("kind", "expected"), [("flat", f"[cat|{JSON}]</s>"), ("function_call", f"({JSON})</s>")]
)
def test_however_a_call_is_spelled(kind: str, expected: str) -> None:
    assert learned(ENCODES, TEXT, kind) == expected


@pytest.mark.parametrize("text", ["the cat", "[1]", "3", '{"a": NaN}', '{"a"', "[" * 100_000])
def test_text_that_is_no_object_stays(text: str) -> None:
    tokenizer = subwords.with_template(subwords.byte_level(), TEMPLATE.replace("WRITTEN", ENCODES))
    turn = Message("assistant", "", shape("nested", text))

    assert CallWriter(tokenizer).fitted(turn) is turn


@pytest.mark.parametrize("value", ["cat", [3], [{"function": "cat"}], {"arguments": None}, [[]]])
def test_what_is_no_call_stays(value: Any) -> None:
    tokenizer = subwords.with_template(subwords.byte_level(), TEMPLATE.replace("WRITTEN", ENCODES))
    turn = Message("assistant", "", {"tool_calls": value})

    assert CallWriter(tokenizer).fitted(turn) is turn


def test_a_template_that_takes_neither_form_refuses_the_row_in_its_own_words() -> None:
    with pytest.raises(DataError, match=r"line 7: the chat template refuses .*no calls, please"):
        learned("{{ raise_exception('no calls, please') }}", TEXT)
