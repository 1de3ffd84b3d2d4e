"""Rows as the chat template's own tokens, with tokenizers whose tokens ignore boundaries."""

from typing import Any

import pytest
import subwords
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CTRLTokenizer, PreTrainedTokenizerBase

from rlhf_api.errors import DataError
from rlhf_trainer.data.parse.columns import Message, Text
from rlhf_trainer.data.parse.formats import PreferenceRow, PromptRow, SFTRow
from rlhf_trainer.data.read.rows import Source
from rlhf_trainer.data.tokenize.tokenized import (
    Counts,
    SFTExample,
    preference_pairs,
    prompts,
    sft_examples,
)

SOURCE = Source("data.jsonl", 7)
TALK = (
    Message("user", "hello there"),
    Message("assistant", "the cat"),
    Message("user", "and the hat?"),
    Message("assistant", "好坏 12345"),
    Message("user", " how are you? "),
)
TEMPLATES = {"ChatML": subwords.CHATML, "Llama 2": subwords.LLAMA_2, "words": subwords.WORDS}
TOKENIZERS = {
    (kind, name): subwords.with_template(make(), template)
    for kind, make in subwords.KINDS.items()
    for name, template in [*TEMPLATES.items(), ("none", None)]
}
TEXT = st.text(st.sampled_from("the catso :12\n好坏é"), min_size=1, max_size=12).filter(str.strip)

each_tokenizer = pytest.mark.parametrize(("kind", "template"), TOKENIZERS)


def _sft(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, response: str
) -> tuple[SFTExample, Counts]:
    row = SFTRow(SOURCE, prompt, response)
    (example,), counts = sft_examples([row], tokenizer, max_length=500, over_long="Drop")
    return example, counts


def _prompt(tokenizer: PreTrainedTokenizerBase, prompt: Text) -> tuple[list[int], Counts]:
    row = PromptRow(SOURCE, prompt)
    (found,), counts = prompts([row], tokenizer, max_length=500, over_long="Drop")
    return found.tokens.tolist(), counts


def _templated(tokenizer: PreTrainedTokenizerBase, prompt: Text, response: str) -> list[int]:
    """What transformers makes of the conversation, up to the end of its last turn."""
    turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    messages.append({"role": "assistant", "content": response})
    ids = list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))
    return ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]


@pytest.mark.parametrize("prompt", ["the ca", TALK])
@pytest.mark.parametrize("template", ["ChatML", "Llama 2"])
@pytest.mark.parametrize("kind", subwords.KINDS)
def test_a_row_is_what_the_template_makes_of_it(kind: str, template: str, prompt: Text) -> None:
    tokenizer = TOKENIZERS[kind, template]

    example, counts = _sft(tokenizer, prompt, "t sat 好")

    assert example.tokens.tolist() == _templated(tokenizer, prompt, "t sat 好")
    assert counts == Counts(kept=1)


@pytest.mark.parametrize(
    ("kind", "template", "learned"),
    [
        ("Metaspace", "ChatML", "t he ▁cat </s> t ▁sat </s>"),
        ("Metaspace", "Llama 2", "▁the ▁cat ▁ </s> ▁t ▁sat ▁ </s>"),
        ("Metaspace", "words", "t he ▁cat </s> t ▁sat </s>"),
        ("Metaspace", "none", "t he ▁cat </s> t ▁sat </s>"),
        ("byte-level", "ChatML", "the Ġcat </s> t Ġsat </s>"),
        ("byte-level", "Llama 2", "Ġthe Ġcat Ġ </s> Ġt Ġsat Ġ </s>"),
        ("byte-level", "words", "the Ġcat </s> t Ġsat </s>"),
        ("byte-level, prefix", "none", "t he Ġcat </s> t Ġsat </s>"),
    ],
)
def test_every_turn_is_learned_alike(kind: str, template: str, learned: str) -> None:
    tokenizer = TOKENIZERS[kind, template]

    example, _ = _sft(tokenizer, TALK[:3], "t sat")

    ids = example.tokens[example.response_mask].tolist()
    assert " ".join(tokenizer.convert_ids_to_tokens(ids)) == learned


@each_tokenizer
@settings(max_examples=12)
@given(talks=st.lists(st.lists(TEXT, min_size=2, max_size=4), min_size=8, max_size=8))
def test_the_prompt_of_ppo_is_the_prefix_of_sft(
    kind: str, template: str, talks: list[list[str]]
) -> None:
    tokenizer = TOKENIZERS[kind, template]
    rows = [SFTRow(SOURCE, _alternating(before), response) for *before, response in talks]
    limits: dict[str, Any] = {"max_length": 500, "over_long": "Drop"}

    alone, alone_counts = prompts(
        [PromptRow(SOURCE, row.prompt) for row in rows], tokenizer, **limits
    )
    examples, counts = sft_examples(rows, tokenizer, **limits)

    assert alone_counts.encoded_apart <= counts.encoded_apart
    for prompt, example in zip(alone, examples, strict=True):
        assert example.tokens[: len(prompt.tokens)].tolist() == prompt.tokens.tolist()
        assert example.response_mask[len(prompt.tokens) :].all()
        assert example.tokens[-1] == tokenizer.eos_token_id
    if template != "none":
        as_templated = [
            example.tokens.tolist() == _templated(tokenizer, row.prompt, row.response)
            for row, example in zip(rows, examples, strict=True)
        ]
        assert sum(as_templated) >= len(rows) - counts.encoded_apart


def _alternating(texts: list[str]) -> tuple[Message, ...]:
    """Turns that end with a user's and start with one."""
    before = texts if len(texts) % 2 else ["the", *texts]
    return tuple(Message(("user", "assistant")[at % 2], text) for at, text in enumerate(before))


@pytest.mark.parametrize("kind", ["Metaspace", "byte-level"])
def test_a_straddled_boundary_is_counted(kind: str) -> None:
    """The generation prompt ends by the space that would be the first word's."""
    tokenizer = TOKENIZERS[kind, "words"]

    example, counts = _sft(tokenizer, TALK[:3], "the hat")

    assert counts == Counts(kept=1, encoded_apart=1)
    assert _prompt(tokenizer, TALK[:3])[1] == Counts(kept=1, encoded_apart=1)
    assert _prompt(tokenizer, "hello")[1] == Counts(kept=1)
    assert _templated(tokenizer, TALK[:3], "the hat") != example.tokens.tolist()


@pytest.mark.parametrize("chosen", ["t sat", "t sat</s>", "t sat </s>"])
@each_tokenizer
def test_a_pair_ends_with_one_eos(kind: str, template: str, chosen: str) -> None:
    tokenizer = TOKENIZERS[kind, template]
    row = PreferenceRow(SOURCE, "the ca", chosen, "好")

    (pair,), _ = preference_pairs([row], tokenizer, max_length=500, over_long="Drop")

    for tokens, response in ((pair.chosen, chosen), (pair.rejected, "好")):
        assert tokens.tolist() == _sft(tokenizer, "the ca", response)[0].tokens.tolist()
        assert tokens[-1] == tokenizer.eos_token_id
        assert tokens[-2] != tokenizer.eos_token_id


def test_a_template_s_own_end_of_turn_is_learned_in_every_turn() -> None:
    template = subwords.CHATML.replace("</s>", "<s>")
    tokenizer = subwords.with_template(subwords.metaspace(), template)

    example, _ = _sft(tokenizer, TALK[:3], "t sat")

    ids = example.tokens[example.response_mask].tolist()
    assert tokenizer.convert_ids_to_tokens(ids) == ["t", "he", "▁cat", "<s>", "t", "▁sat", "<s>"]


def test_a_template_that_takes_no_answer_is_one_without_ending() -> None:
    template = "{% for m in messages %}{% if m.role == 'assistant' %}{{ raise_exception('no') }}"
    template += "{% endif %}{{ m.content }}:{% endfor %}"
    tokenizer = subwords.with_template(subwords.byte_level(), template)

    example, _ = _sft(tokenizer, "the", "cat")

    assert tokenizer.decode(example.tokens.tolist()) == "the:cat</s>"


@pytest.mark.parametrize(
    ("kind", "pad", "prompt", "response", "held"),
    [
        pytest.param("byte-level", "!", "the cat!", "sat", "the cat!", id="prompt"),
        pytest.param("byte-level", "!", "the cat", "sat!", "sat!", id="response"),
        pytest.param("byte-level", "ÿ", "the cat", "L'Haÿ", "L'Haÿ", id="no token of the text"),
        pytest.param("byte-level", "at", "the cat", "sat", "the cat", id="the text of a token"),
        pytest.param("Metaspace", "▁hat", "the cat", "a hat", "a hat", id="a token of the text"),
    ],
)
def test_no_text_may_hold_what_pads_unless_it_is_a_special_token(
    kind: str, pad: str, prompt: str, response: str, held: str
) -> None:
    tokenizer = subwords.KINDS[kind]()
    assert pad in tokenizer.get_vocab()
    row = SFTRow(Source("data.jsonl", 7), prompt, response)
    tokenizer.pad_token = pad

    with pytest.raises(DataError) as caught:
        sft_examples([row], tokenizer, max_length=99, over_long="Drop")

    for word in [f'data.jsonl: line 7: "{held}": holds {pad!r}', "set the model's padToken to a"]:
        assert word in str(caught.value)
    tokenizer.pad_token = "<pad>"
    assert len(sft_examples([row], tokenizer, max_length=99, over_long="Drop")[0]) == 1


def test_a_tokenizer_without_offsets(tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = subwords.without_offsets(tmp_path_factory.mktemp("ctrl"))

    example, counts = _sft(tokenizer, (Message("user", "a"), Message("assistant", "b")), "ab")

    assert isinstance(tokenizer, CTRLTokenizer)
    tokens = tokenizer.convert_ids_to_tokens(example.tokens.tolist())
    assert tokens == ["a", "b", "</s>", "a@@", "b", "</s>"]
    assert example.response_mask.tolist() == [False, True, True, True, True, True]
    assert counts == Counts(kept=1)
