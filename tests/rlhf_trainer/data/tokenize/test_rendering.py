"""What a chat template makes of tools, calls and thoughts, and what it must not leave out."""

from typing import Any

import pytest
import subwords
from transformers import PreTrainedTokenizerFast

from rlhf_api.errors import DataError
from rlhf_trainer.data.parse.columns import Message, Text, Tools
from rlhf_trainer.data.parse.formats import PreferenceRow, PromptRow, SFTRow
from rlhf_trainer.data.read.rows import Source
from rlhf_trainer.data.tokenize.tokenized import (
    Counts,
    preference_pairs,
    prompts,
    sft_examples,
)

SOURCE = Source("data.jsonl", 7)
TOOLS: Tools = ({"type": "function", "function": {"name": "cat"}},)
CALL = {"tool_calls": [{"type": "function", "function": {"name": "cat", "arguments": {"a": 1}}}]}
LIMITS: dict[str, Any] = {"max_length": 500, "over_long": "Drop"}
TEMPLATE = (
    "{% for tool in tools or [] %}the {{ tool.function.name }}\n{% endfor %}"
    "{% for m in messages %}<|end|>{{ m.role }}\n"
    "{% if m.name %}{{ m.name }}: {% endif %}"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}[{{ call.function.name }}]{% endfor %}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|end|>assistant\n{% endif %}"
)
USER = Message("user", "the cat?")
CALLING = Message("assistant", "", CALL)
RESULT = Message("tool", "sat", names={"name": "cat"})


def _tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    return subwords.with_template(subwords.byte_level(), template)


def _learned(
    prompt: Text,
    response: str | Message,
    tools: Tools = (),
    template: str | None = TEMPLATE,
    **row: Any,
) -> tuple[str, str]:
    """The whole sequence as text, and what of it is learned."""
    tokenizer = _tokenizer(template)
    row_of = SFTRow(SOURCE, prompt, response, tools, **row)
    (example,), counts = sft_examples([row_of], tokenizer, **LIMITS)
    assert counts == Counts(kept=1)
    return (
        str(tokenizer.decode(example.tokens)),
        str(tokenizer.decode(example.tokens[example.response_mask])),
    )


def test_a_call_is_learned_as_the_template_writes_it() -> None:
    whole, learned = _learned((USER,), CALLING, TOOLS)

    assert whole == "the cat\n<|end|>user\nthe cat?</s>\n<|end|>assistant\n[cat]</s>"
    assert learned == "[cat]</s>"


def test_a_call_without_content_is_learned_where_a_turn_must_have_either() -> None:
    # As Qwen 2.5's template does, which adds up text and what is not there.
    strict = TEMPLATE.replace(
        "{{ m.content }}",
        "{% if m.tool_calls %}{{ m.content or '' }}{% else %}{{ '' + m.content }}{% endif %}",
    )

    assert _learned((USER,), CALLING, TOOLS, strict)[1] == "[cat]</s>"
    assert _learned((USER, CALLING, RESULT), "sat", TOOLS, strict)[1] == "[cat]</s>sat</s>"


def test_tools_are_written_where_the_template_demands_them() -> None:
    demanding = "{% if not tools %}{{ raise_exception('no tools') }}{% endif %}" + TEMPLATE

    assert _learned("the cat?", "sat", TOOLS, demanding)[0].startswith("the cat\n")


def test_an_earlier_call_is_learned_too() -> None:
    whole, learned = _learned((USER, CALLING, RESULT), "sat", TOOLS)

    assert whole.endswith(
        "assistant\n[cat]</s>\n<|end|>tool\ncat: sat</s>\n<|end|>assistant\nsat</s>"
    )
    assert learned == "[cat]</s>sat</s>"


@pytest.mark.parametrize(
    "names", [["reasoning_content"], ["thinking"], ["reasoning"], ["thinking", "reasoning_content"]]
)
def test_thoughts_are_learned_with_the_answer_whatever_their_name(names: list[str]) -> None:
    thinking = Message("assistant", "sat", dict.fromkeys(names, "hat"))

    assert _learned("the cat?", thinking)[1] == "(hat)sat</s>"


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_a_turn_that_is_not_learned_is_read_all_the_same(template: str | None) -> None:
    kept_out = Message("assistant", "the hat", is_learned=False)

    whole, learned = _learned((USER, kept_out, USER), "sat", template=template)
    assert "the hat</s>" in whole
    assert learned == "sat</s>"

    learned_turn = Message("assistant", "the hat")
    whole, learned = _learned(
        (USER, learned_turn, USER), "sat", template=template, is_learned=False
    )
    assert whole.endswith("sat</s>")
    assert learned == "the hat</s>"


def test_a_row_that_truncation_leaves_nothing_to_learn_of_is_dropped() -> None:
    rows = [
        SFTRow(SOURCE, (USER, Message("assistant", "a"), Message("user", "cat" * 9)), "s" * 9)
    ] * 2
    rows[1] = SFTRow(*[rows[1].source, rows[1].prompt, rows[1].response], is_learned=False)

    examples, counts = sft_examples(rows, _tokenizer(None), max_length=12, over_long="Truncate")

    assert len(examples) == 1
    assert counts == Counts(kept=1, dropped_over_long=1, truncated=1)


def test_tools_and_calls_stand_in_pairs_and_prompts() -> None:
    tokenizer = _tokenizer()
    row = PreferenceRow(SOURCE, (USER,), CALLING, "sat", tools=TOOLS)

    (pair,), _ = preference_pairs([row], tokenizer, **LIMITS)
    (prompt,), _ = prompts([PromptRow(SOURCE, (USER,), TOOLS)], tokenizer, **LIMITS)

    assert tokenizer.decode(pair.chosen) == prompt.text + "[cat]</s>"
    assert tokenizer.decode(pair.rejected) == prompt.text + "sat</s>"
    assert prompt.text.startswith("the cat\n")


@pytest.mark.parametrize(
    ("prompt", "response", "tools", "named"),
    [
        pytest.param("the", "cat", TOOLS, 'tools: [{"type"', id="tools"),
        pytest.param((USER,), CALLING, (), 'tool_calls: [{"type"', id="call"),
        pytest.param((USER, CALLING, RESULT), "sat", (), 'tool_calls: [{"type"', id="earlier"),
        pytest.param(
            (USER, Message("assistant", "", CALL, is_learned=False), RESULT),
            "sat",
            (),
            'tool_calls: [{"type"',
            id="not learned",
        ),
        pytest.param(
            "the",
            Message("assistant", "sat", {"thinking": "hat"}),
            (),
            'thinking: "hat"',
            id="thoughts",
        ),
    ],
)
@pytest.mark.parametrize("template", [subwords.CHATML, None])
def test_what_the_template_leaves_out_is_refused_by_name(
    prompt: Text, response: str | Message, tools: Tools, named: str, template: str | None
) -> None:
    with pytest.raises(DataError) as caught:
        _learned(prompt, response, tools, template)

    why = "chat template does not write it" if template else "has no chat template, which alone"
    for word in [f"data.jsonl: line 7: {named}", why, "set the model's chatTemplate"]:
        assert word in str(caught.value)


def test_the_remedy_for_the_older_call_is_the_newer_one() -> None:
    calling = Message("assistant", "", {"function_call": {"name": "cat", "arguments": "{}"}})

    with pytest.raises(DataError, match=r"7: function_call: .*write function_call as tool_calls"):
        _learned((USER,), calling)


def test_a_call_that_is_not_written_behind_the_generation_prompt_is_refused() -> None:
    template = TEMPLATE.replace("<|end|>assistant\n{% endif", "<|end|>assistant:{% endif")

    with pytest.raises(DataError, match=r"line 7: .*prompt ends by .*assistant:\", but before"):
        _learned((USER,), CALLING, TOOLS, template)
