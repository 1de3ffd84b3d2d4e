"""What a chat template makes of an answer is learned, the last one as those before it."""

import pytest
import subwords
from transformers import PreTrainedTokenizerFast

from rlhf_api.errors import DataError
from rlhf_trainer.data.parse.columns import Message, Text
from rlhf_trainer.data.parse.formats import PreferenceRow, SFTRow
from rlhf_trainer.data.read.rows import Source
from rlhf_trainer.data.tokenize.tokenized import preference_pairs, sft_examples
from rlhf_trainer.data.tokenize.turns import CHOSEN_END

SOURCE = Source("data.jsonl", 7)
USER = Message("user", "the cat?")
TALK = (USER, Message("assistant", "the hat"), USER)
ASKS = "{% if add_generation_prompt %}<|end|>assistant\n{% endif %}"
TURNS = "{% for m in messages %}<|end|>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
THINKS = (
    "{% for m in messages %}<|end|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    "<think>\n{{ m.reasoning_content or '' }}\n</think>\n\n{% endif %}"
    "{{ m.content }}{% for call in m.tool_calls or [] %}[{{ call.name }}]{% endfor %}</s>\n"
    "{% endfor %}"
)
"""As Qwen3's: thoughts stand before the last answer, empty ones too, and before no other."""
THOUGHT = "<think>\n\n</think>\n\n"
OPENS_THOUGHT = ASKS.replace("assistant\n", "assistant\n<think>\n")
MARKED = TURNS.replace("{{ m.content }}", "{{ '> ' if m.role == 'assistant' }}{{ m.content }}")


def _tokenizer(template: str | None, end: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = subwords.with_template(subwords.byte_level(), template)
    if end is not None:
        tokenizer.init_kwargs[CHOSEN_END] = end
    return tokenizer


def _learned(
    tokenizer: PreTrainedTokenizerFast, prompt: Text, response: str | Message
) -> tuple[list[int], str]:
    """The sequence, and what of it is learned."""
    row = SFTRow(SOURCE, prompt, response)
    (example,), _ = sft_examples([row], tokenizer, max_length=500, over_long="Drop")
    learned = tokenizer.decode(example.tokens[example.response_mask])
    return example.tokens.tolist(), str(learned)


@pytest.mark.parametrize(
    ("template", "learned"),
    [
        pytest.param(THINKS + ASKS, THOUGHT + "sat on</s>", id="an empty thought"),
        pytest.param(THINKS + OPENS_THOUGHT, "\n</think>\n\nsat on</s>", id="in a thought"),
        pytest.param(MARKED + ASKS, "> sat on</s>", id="a mark"),
        pytest.param(
            MARKED.replace("{{ '> '", "{{ '> ' if loop.last and").replace("and if", "and") + ASKS,
            "> sat on</s>",
            id="a mark at the end",
        ),
    ],
)
def test_a_response_is_what_the_template_writes_behind_its_generation_prompt(
    template: str, learned: str
) -> None:
    tokenizer = _tokenizer(template)
    messages = [
        {"role": "user", "content": USER.content},
        {"role": "assistant", "content": "sat on"},
    ]
    whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)

    tokens, found = _learned(tokenizer, (USER,), "sat on")

    assert found == learned
    assert tokens == whole[: len(tokens)]
    assert tokenizer.decode(whole[len(tokens) :]) == "\n"
    row = PreferenceRow(SOURCE, (USER,), "sat on", "the mat")
    (pair,), _ = preference_pairs([row], tokenizer, max_length=500, over_long="Drop")
    assert pair.chosen.tolist() == tokens


def test_earlier_answers_are_learned_as_they_stand_in_the_conversation() -> None:
    tokenizer = _tokenizer(THINKS + ASKS)
    calling = Message("assistant", "", {"tool_calls": [{"name": "cat"}]})

    assert _learned(tokenizer, TALK, "sat")[1] == f"the hat</s>{THOUGHT}sat</s>"
    assert _learned(tokenizer, (USER, calling, USER), "sat")[1] == f"[cat]</s>{THOUGHT}sat</s>"
    tokenizer = _tokenizer(MARKED + ASKS)
    assert _learned(tokenizer, TALK, "sat")[1] == "> the hat</s>> sat</s>"


def test_thoughts_that_more_turns_remove_are_refused() -> None:
    thinking = Message("assistant", "the hat", {"reasoning_content": "hm"})

    with pytest.raises(DataError, match=r"7: reasoning_content: \"hm\": the model's chat templ"):
        _learned(_tokenizer(THINKS + ASKS), (USER, thinking, USER), "sat")


@pytest.mark.parametrize("response", ["sat", Message("assistant", "sat", {"name": "x"})])
@pytest.mark.parametrize(
    "template",
    [
        pytest.param(TURNS + OPENS_THOUGHT, id="a thought"),
        pytest.param(TURNS + ASKS.replace("assistant\n", "assistant\nanswer: "), id="a word"),
    ],
)
def test_an_answer_that_is_not_written_behind_the_generation_prompt_is_refused(
    template: str, response: str | Message
) -> None:
    if isinstance(response, Message):
        template = template.replace("{{ m.content }}", "{{ m.name }}{{ m.content }}")

    with pytest.raises(DataError) as caught:
        _learned(_tokenizer(template), (USER,), response)

    for words in ['data.jsonl: line 7: "sat": ', "generation prompt ends by", "set the model's"]:
        assert words in str(caught.value)


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param("m.content | trim", None, id="trimmed"),
        pytest.param("m.content | replace('  ', ' ')", None, id="white space"),
        pytest.param("m.content | replace('hat', 'cat')", "the  cat", id="another word"),
        pytest.param("m.content.split('the')[-1]", "  hat", id="a part"),
    ],
)
def test_a_template_may_change_white_space_and_nothing_else_in_any_answer(
    change: str, told: str | None, *, earlier: bool
) -> None:
    tokenizer = _tokenizer(TURNS.replace("m.content", change) + ASKS)
    hat = Message("assistant", "the  hat")
    user = Message("user", "on")
    prompt, response = ((user, hat, user), "sat") if earlier else ((user,), "the  hat")

    if told is None:
        written = "the  hat" if "trim" in change else "the hat"
        assert _learned(tokenizer, prompt, response)[1].startswith(written + "</s>")
        return
    with pytest.raises(DataError) as caught:
        _learned(tokenizer, prompt, response)
    for words in ['line 7: "the  hat": ', f'rewrites this answer as "{told}', "correct the row"]:
        assert words in str(caught.value)


ENDLESS = TURNS.replace("</s>", "")


@pytest.mark.parametrize(
    ("template", "end", "told"),
    [
        pytest.param(TURNS + ASKS, "<pad>", "leave the model's endOfTurn out", id="another end"),
        pytest.param(ENDLESS + ASKS, None, "chatTemplate to one that ends every", id="no end"),
        pytest.param(ENDLESS + ASKS, "<pad>", "leave the model's endOfTurn", id="chosen, no end"),
        pytest.param(
            ENDLESS.replace("}\n{% endfor", "}{% endfor") + ASKS,
            None,
            "chatTemplate to one that ends every",
            id="the next turn follows at once",
        ),
    ],
)
def test_an_earlier_answer_that_does_not_end_as_the_response_does_is_refused(
    template: str, end: str | None, told: str
) -> None:
    tokenizer = _tokenizer(template, end)
    token = end or "</s>"

    assert _learned(tokenizer, (USER,), "sat")[1] == "sat" + token
    unlearned = Message("assistant", "the hat", is_learned=False)
    assert _learned(tokenizer, (USER, unlearned, USER), "sat")[1] == "sat" + token
    with pytest.raises(DataError) as caught:
        _learned(tokenizer, TALK, "sat")
    for words in [f'7: turn 2, "the hat": the chat template does not end it by {token!r}', told]:
        assert words in str(caught.value)


def test_a_chosen_end_that_the_template_writes_ends_every_answer() -> None:
    tokenizer = _tokenizer(TURNS.replace("</s>", "<pad></s>") + ASKS, "</s>")

    assert _learned(tokenizer, TALK, "sat")[1] == "the hat<pad></s>sat<pad></s>"
