"""Whole turns that a chat template leaves out, and those that it only writes otherwise."""

from typing import Any

import pytest
import subwords

from rlhf_api.errors import DataError
from rlhf_trainer.data.parse.columns import Conversation, Message
from rlhf_trainer.data.parse.formats import PreferenceRow, PromptRow, SFTRow
from rlhf_trainer.data.read.rows import Source
from rlhf_trainer.data.tokenize.omissions import OmissionCheck
from rlhf_trainer.data.tokenize.tokenized import preference_pairs, prompts, sft_examples

SOURCE = Source("data.jsonl", 7)
LIMITS: dict[str, Any] = {"max_length": 500, "over_long": "Drop"}
LOOP = (
    "{% for m in messages %}{% if CONDITION %}<|end|>{{ m.role }}\n{{ m.content }}</s>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|end|>assistant\n{% endif %}"
)
KNOWN_ROLES = LOOP.replace("CONDITION", "m.role in ['user', 'assistant']")
LAST_TURNS = LOOP.replace("CONDITION", "loop.revindex <= 2")
FIRST_SYSTEM = LOOP.replace("CONDITION", "m.role != 'system' or loop.first")
SYSTEM, USER = Message("system", "be kind"), Message("user", "the cat?")
TOOL = Message("tool", "sat")
KEPT_OUT = Message("assistant", "the hat", is_learned=False)


def _encode(kind: str, prompt: Conversation, template: str) -> None:
    tokenizer = subwords.with_template(subwords.byte_level(), template)
    if kind == "sft":
        sft_examples([SFTRow(SOURCE, prompt, "sat")], tokenizer, **LIMITS)
    elif kind == "pref":
        preference_pairs([PreferenceRow(SOURCE, prompt, "sat", "hat")], tokenizer, **LIMITS)
    else:
        prompts([PromptRow(SOURCE, prompt)], tokenizer, **LIMITS)


@pytest.mark.parametrize(
    ("prompt", "template", "named"),
    [
        pytest.param((SYSTEM, USER), KNOWN_ROLES, 'turn 1 (system): "be kind"', id="system"),
        pytest.param((USER, KEPT_OUT, TOOL), KNOWN_ROLES, 'turn 3 (tool): "sat"', id="tool"),
        pytest.param((USER, SYSTEM, USER), FIRST_SYSTEM, "turn 2 (system)", id="later system"),
        pytest.param(
            (Message("user", "good?"), KEPT_OUT, USER),
            LAST_TURNS,
            'turn 1 (user): "good?"',
            id="user",
        ),
        pytest.param(
            (Message("system", "the cat"), USER),
            KNOWN_ROLES,
            "turn 1 (system)",
            id="said by chance",
        ),
        pytest.param((USER, KEPT_OUT, USER), LAST_TURNS, "turn 1 (user)", id="said twice"),
        pytest.param(
            (USER, KEPT_OUT, USER),
            LOOP.replace("CONDITION", "m.role == 'user'"),
            "turn 2 (assistant)",
            id="not learned",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["sft", "pref", "prompt"])
def test_a_turn_that_is_left_out_is_refused_by_name(
    kind: str, prompt: Conversation, template: str, named: str
) -> None:
    with pytest.raises(DataError) as caught:
        _encode(kind, prompt, template)

    for word in [f"data.jsonl: line 7: {named}", "does not write it", "the model's chatTemplate"]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "written",
    [
        "{{ m.content | trim }}",
        "{{ m.content | tojson }}",
        "{{ m.content | upper }}",
        "{{ m.content.split('</think>')[-1] }}",
        "{% if m.role == 'system' and 'probe' in m.content %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.content }}",
    ],
)
def test_a_turn_that_is_written_otherwise_is_no_omission(written: str) -> None:
    template = LOOP.replace("CONDITION", "true").replace("{{ m.content }}", written)

    for system in ['say "be kind"\n', "good</think>be kind"]:
        _encode("prompt", (Message("system", system), USER), template)


def test_rows_of_one_shape_are_rendered_once_more_together() -> None:
    check, rendered = OmissionCheck(), []

    def render(turns: Conversation) -> str:
        rendered.append(turns)
        return " ".join(turn.content for turn in turns)

    for word in ["good", "bad", "cat"]:
        turns = (SYSTEM, Message("user", word))
        assert check.first_omitted(turns, f"be kind {word}", render) is None

    assert len(rendered) == 1

    check.first_omitted((SYSTEM, Message("user", "hat")), "be kind hat", render, has_tools=True)
    assert len(rendered) == 2
