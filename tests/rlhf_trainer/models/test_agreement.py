"""Actor and reward model: what differs is refused where it would change a score, else told."""

from typing import Any

import pytest
import tiny
from tokenizers import processors
from transformers import LlamaConfig, PreTrainedTokenizerFast

from rlhf_api.errors import ConfigError
from rlhf_trainer.data.parse.kinds import (
    WITH_CALLS,
    WITH_THOUGHTS,
    WITH_TOOLS,
    WITH_TOOLS_AND_CALLS,
)
from rlhf_trainer.models.agreement import require_same_prompts, require_same_tokens
from rlhf_trainer.models.generation import read_generation
from rlhf_trainer.models.source import Base
from rlhf_trainer.run.artifact import ModelLocation

ACTOR, REWARD = "spec.stages.ppo.model", "spec.stages.ppo.rewardModel"
CHAT = "{% for m in messages %}{{ m.content }}!{% endfor %}"
BARE = "{% for m in messages %}{{ m.content }}{% endfor %}"
ABLE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.content or '' }}"
    "{{ m.reasoning_content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}!{% endfor %}"
)
"""Writes all that a row may bring."""
NO_TALKS = "{% if messages | length == 3 %}{{ raise_exception('no') }}{% endif %}"


def base(
    field: str,
    characters: str = tiny.CHARACTERS,
    *,
    rows: int | None = None,
    template: str | None = None,
    eos: str = tiny.EOS,
    adds_bos: bool = False,
    more: tuple[str, ...] = (),
) -> Base:
    """A model as it is opened."""
    tokenizer = tiny.tokenizer(characters)
    tokenizer.add_tokens(list(more))
    tokenizer.chat_template = template
    tokenizer.eos_token = eos
    if adds_bos:
        tokenizer.bos_token = "a"
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="a $A", special_tokens=[("a", 3)]
        )
    config = LlamaConfig(vocab_size=len(tokenizer) if rows is None else rows)
    location = ModelLocation("nowhere")
    return Base(
        field, location, tokenizer, config, read_generation(location, config, tokenizer, field)
    )


def told(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What is told of two models that agree."""
    actor, reward_model = base(ACTOR, **one), base(REWARD, **other)
    return require_same_tokens(actor, reward_model) + require_same_prompts(actor, reward_model)[0]


def refused(one: dict[str, Any], other: dict[str, Any]) -> dict[str, str]:
    """Why prompts that are not plain would be other ones, by kind."""
    return require_same_prompts(base(ACTOR, **one), base(REWARD, **other))[1]


def test_equal_models_differ_in_nothing() -> None:
    for settings in ({}, {"template": CHAT, "eos": "!"}, {"adds_bos": True}, {"rows": 64}):
        assert told(settings, settings) == []


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        pytest.param(
            {},
            {"characters": "ponmlkjihgfedcba .!"},
            ["its tokenizer (22 tokens) differs", "(22 tokens)", "'a', which is token 3", "and 18"],
            id="other ids",
        ),
        pytest.param(
            {"more": ("<x>",)},
            {},
            ["(22 tokens) differs", "'<x>', which is token 22", "and none of the former"],
            id="a token less",
        ),
        pytest.param(
            {}, {"rows": 21}, ["has 21 rows of embeddings", "reach 21"], id="too few rows"
        ),
        pytest.param(
            {"adds_bos": True}, {}, ["begin with no token of their own there", "'a'"], id="BOS"
        ),
        pytest.param(
            {"template": CHAT},
            {"template": ">" + CHAT},
            ['">probe 7!"', '"probe 7!"'],
            id="template",
        ),
        pytest.param(
            {}, {"template": CHAT}, [f"{REWARD}.chatTemplate", "useChatTemplate: false"], id="none"
        ),
        pytest.param(
            {"template": "{% if messages[0].role == 'system' %}a{% endif %}" + CHAT},
            {"template": CHAT},
            ['"probe 9!probe 7!"', '"aprobe 9!probe 7!"'],
            id="the system's turn",
        ),
        pytest.param(
            {"template": CHAT},
            {"template": NO_TALKS + CHAT},
            ["given nothing, since its template refuses the turns or leaves out a part,"],
            id="refuses what the actor takes",
        ),
        pytest.param(
            {},
            {"eos": "!"},
            [f"{REWARD}.endOfTurn", '"probe 7probe 8!probe 7"', '"probe 7probe 8</s>probe 7"'],
            id="ends of earlier turns",
        ),
    ],
)
def test_what_would_change_a_score_is_refused(
    one: dict[str, Any], other: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        told(one, other)

    assert str(caught.value).startswith(REWARD)
    for word in [ACTOR, *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "mark"),
    [
        pytest.param("with tools", "{% if tools %}a{% endif %}", id="tools"),
        pytest.param(
            "with tools and a call",
            "{% for m in messages if m.tool_calls %}a{% endfor %}",
            id="a call",
        ),
        pytest.param(
            "with tools and a call",
            "{% for m in messages if m.role == 'tool' %}a{% endfor %}",
            id="a tool's turn",
        ),
        pytest.param(
            "with a call",
            "{% for m in messages if m.tool_calls and not tools %}a{% endfor %}",
            id="a call without tools",
        ),
        pytest.param(
            "with thoughts",
            "{% for m in messages if m.reasoning_content %}a{% endfor %}",
            id="thoughts",
        ),
    ],
)
def test_templates_that_differ_in_what_few_prompts_hold_refuse_those(kind: str, mark: str) -> None:
    alike = {"template": ABLE}, {"template": ABLE + "{# v2 #}"}
    assert told(*alike)[0].endswith("renders prompts alike")
    assert refused(*alike) == {}

    differing = {"template": ABLE}, {"template": ABLE + mark}

    for word in [
        f"{REWARD}.chatTemplate: for a prompt {kind} the reward model was given",
        '!a" where',
        '!", so that',
        "useChatTemplate: false",
    ]:
        assert word in refused(*differing)[kind]
    note = told(*differing)[0]
    assert "renders plain prompts alike; a row with" in note
    assert kind in note
    assert note.endswith(" would end the stage")


def test_a_template_of_its_own_for_tools_is_compared() -> None:
    actor, reward_model = base(ACTOR, template=ABLE), base(REWARD, template=ABLE)
    reward_model.tokenizer.chat_template = {"default": ABLE, "tool_use": ABLE + "a"}  # type: ignore[assignment]

    assert set(require_same_prompts(actor, reward_model)[1]) == {WITH_TOOLS, WITH_TOOLS_AND_CALLS}


def test_what_only_the_actor_s_template_writes_is_refused_in_rows_alone() -> None:
    words = refused({"template": ABLE}, {"template": CHAT})

    assert "with tools the reward model was given nothing, since" in words[WITH_TOOLS]
    assert set(words) == {WITH_TOOLS, WITH_TOOLS_AND_CALLS, WITH_CALLS, WITH_THOUGHTS}


def test_what_the_actor_s_template_leaves_out_is_compared_with_nothing() -> None:
    """Rows that hold it are refused one by one."""
    assert refused({"template": CHAT}, {"template": ABLE}) == {}
    assert told({"template": CHAT}, {"template": ABLE})[0] == (
        f"the chat template of {REWARD} is not that of {ACTOR}, but renders prompts alike"
    )


def test_other_tokens_for_the_same_text_are_refused() -> None:
    actor, reward_model = base(ACTOR), base(REWARD)
    backend: Any = reward_model.tokenizer
    backend.backend_tokenizer.pre_tokenizer = None

    with pytest.raises(ConfigError, match=rf'{REWARD}: its tokenizer makes 1 tokens of "probe 7"'):
        require_same_prompts(actor, reward_model)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        pytest.param(
            {"rows": 64}, {}, ["has 22 rows of embeddings", "64", "never sampled"], id="rows"
        ),
        pytest.param({}, {"more": ("<x>",)}, ["1 tokens that", "no answer holds them"], id="more"),
        pytest.param(
            {"template": CHAT}, {"template": CHAT + "{# v2 #}"}, ["renders prompts alike"], id="v2"
        ),
        pytest.param(
            {"template": BARE},
            {"template": BARE, "eos": "!"},
            ["EOS of", "'!'", "'</s>'", "ends with '</s>' is scored with '!' in its place"],
            id="EOS",
        ),
    ],
)
def test_what_changes_no_score_is_told(
    one: dict[str, Any], other: dict[str, Any], words: list[str]
) -> None:
    text = "\n".join(told(one, other))

    for word in [REWARD, *words]:
        assert word in text


def test_rows_without_a_token_are_known() -> None:
    assert base(ACTOR).absent_ids == ()
    assert base(ACTOR, rows=25).absent_ids == (22, 23, 24)
    padded = base(ACTOR, rows=25)
    assert isinstance(padded.tokenizer, PreTrainedTokenizerFast)
    padded.tokenizer.add_tokens(["<x>"])
    assert padded.absent_ids == (23, 24)
