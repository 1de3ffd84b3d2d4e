"""Token sequences written out by hand, with and without BOS and chat template."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from rlhf_api.errors import DataError
from rlhf_trainer.data.parse.columns import Message, Text
from rlhf_trainer.data.parse.formats import PreferenceRow, PromptRow, SFTRow
from rlhf_trainer.data.read.rows import Source
from rlhf_trainer.data.tokenize.tokenized import (
    Counts,
    OverLong,
    SFTExample,
    preference_pairs,
    prompts,
    sft_examples,
)
from rlhf_trainer.data.tokenize.turns import end_of_turn

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]
SOURCE = Source("data.jsonl", 7)
TALK = (Message("user", "u"), Message("assistant", "ab"), Message("user", "v"))


def _spelled(tokenizer: PreTrainedTokenizerFast, ids: np.ndarray) -> str:
    assert ids.dtype == np.int32
    return "".join(tokenizer.convert_ids_to_tokens(ids.tolist()))


def _shown(tokenizer: PreTrainedTokenizerFast, example: SFTExample) -> tuple[str, str]:
    """The sequence, and the tokens that are learned."""
    assert example.response_mask.dtype == np.bool_
    assert example.response_mask.shape == example.tokens.shape
    tokens = _spelled(tokenizer, example.tokens)
    return tokens, _spelled(tokenizer, example.tokens[example.response_mask])


def _sft(
    tokenizer: PreTrainedTokenizerFast,
    prompt: Text,
    response: str,
    max_length: int = 100,
    over_long: OverLong = "Drop",
) -> tuple[tuple[str, str], Counts]:
    row = SFTRow(SOURCE, prompt, response)
    (example,), counts = sft_examples([row], tokenizer, max_length=max_length, over_long=over_long)
    return _shown(tokenizer, example), counts


@pytest.mark.parametrize(
    ("options", "prompt", "response", "tokens", "learned"),
    [
        pytest.param({}, "ab", "cd", "abcd</s>", "cd</s>", id="plain"),
        pytest.param({"adds_bos": True}, "ab", "cd", "<s>abcd</s>", "cd</s>", id="BOS"),
        pytest.param({"adds_bos": True}, "<s>ab", "cd", "<s>abcd</s>", "cd</s>", id="BOS spelled"),
        pytest.param({}, "<s>ab", "cd", "<s>abcd</s>", "cd</s>", id="BOS in the text only"),
        pytest.param({}, "ab", "cd</s>", "abcd</s>", "cd</s>", id="EOS spelled"),
        pytest.param({}, "a", "好坏", "a好坏</s>", "好坏</s>", id="non-ASCII"),
        pytest.param({}, TALK, "w", "uab</s>vw</s>", "ab</s>w</s>", id="turns"),
        pytest.param({"adds_bos": True}, TALK, "w", "<s>uab</s>vw</s>", "ab</s>w</s>", id="both"),
    ],
)
def test_prompt_response_eos(
    make_tokenizer: MakeTokenizer,
    options: dict[str, Any],
    prompt: Text,
    response: str,
    tokens: str,
    learned: str,
) -> None:
    found, counts = _sft(make_tokenizer(**options), prompt, response)

    assert found == (tokens, learned)
    assert counts == Counts(kept=1)


@pytest.mark.parametrize(
    ("prompt", "tokens", "learned"),
    [
        ("ab", "user:ab<|end|>\nassistant:w<|end|>", "w<|end|>"),
        (
            (Message("system", "s"), Message("user", "u")),
            "system:s<|end|>\nuser:u<|end|>\nassistant:w<|end|>",
            "w<|end|>",
        ),
        (
            TALK,
            "user:u<|end|>\nassistant:ab<|end|>\nuser:v<|end|>\nassistant:w<|end|>",
            "ab<|end|>w<|end|>",
        ),
    ],
)
@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_chat_template_says_all_but_the_response(
    make_tokenizer: MakeTokenizer,
    chat_template: str,
    adds_bos: bool,
    prompt: Text,
    tokens: str,
    learned: str,
) -> None:
    tokenizer = make_tokenizer(adds_bos=adds_bos, chat_template=chat_template)

    assert _sft(tokenizer, prompt, "w")[0] == (tokens, learned)

    tokenizer.chat_template = "{{ bos_token }}" + chat_template
    assert _sft(tokenizer, prompt, "w")[0] == ("<s>" + tokens, learned)


def test_a_template_that_trims_has_its_spans_found(
    make_tokenizer: MakeTokenizer, chat_template: str
) -> None:
    trimming = chat_template.replace("m['content']", "m['content'] | trim")
    talk = (Message("user", " u "), Message("assistant", " ab "), Message("user", "v"))

    found, _ = _sft(make_tokenizer(chat_template=trimming), talk, "w")

    assert found[0].startswith("user:u<|end|>\nassistant:ab<|end|>\n")
    assert found[1] == "ab<|end|>w<|end|>"


def test_what_ends_a_response_is_a_special_token(
    make_tokenizer: MakeTokenizer, chat_template: str
) -> None:
    plain = chat_template.replace("<|end|>", "")

    found, _ = _sft(make_tokenizer(chat_template=plain), TALK[:1], "w")

    assert found == ("user:u\nassistant:w</s>", "w</s>")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('turns must alternate') }}", ["refuses", "turns must alternate"]),
        ("{{ messages[-1].content }}", ["rewrites turn 2", '"ab"', "one row for each"]),
    ],
)
def test_a_template_that_does_not_take_the_row_is_an_error(
    make_tokenizer: MakeTokenizer, template: str, words: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        _sft(make_tokenizer(chat_template=template), TALK, "w")

    for word in ["data.jsonl: line 7: the chat template ", "chatTemplate", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("max_length", "tokens", "learned"),
    [
        pytest.param(9, "abcdwxyz</s>", "wxyz</s>", id="fits"),
        pytest.param(8, "abcdwxyz", "wxyz", id="half each"),
        pytest.param(6, "bcdwxy", "wxy", id="less"),
        pytest.param(2, "dw", "w", id="least"),
    ],
)
def test_truncation_keeps_half_of_each(
    make_tokenizer: MakeTokenizer, max_length: int, tokens: str, learned: str
) -> None:
    found, counts = _sft(make_tokenizer(), "abcd", "wxyz", max_length, "Truncate")

    assert found == (tokens, learned)
    assert counts == Counts(kept=1, truncated=int(max_length < 9))


@pytest.mark.parametrize(
    ("prompt", "response", "tokens"),
    [
        ("abcdefgh", "w", "cdefghw</s>"),
        ("a", "rstuvwxyz", "arstuvwx"),
        ("ab", "rstuvwxyz", "abrstuvw"),
        ("abcdefgh", "rstuvwxyz", "efghrstu"),
    ],
)
def test_what_needs_less_than_half_leaves_the_rest_to_the_other(
    make_tokenizer: MakeTokenizer, prompt: str, response: str, tokens: str
) -> None:
    assert _sft(make_tokenizer(), prompt, response, 8, "Truncate")[0][0] == tokens


def test_truncation_keeps_bos_and_never_learns_the_first_token(
    make_tokenizer: MakeTokenizer,
) -> None:
    with_bos = make_tokenizer(adds_bos=True)
    assert _sft(with_bos, "abcdef", "wx", 6, "Truncate")[0][0] == "<s>efwx</s>"

    # The cut falls into the earlier response, whose b would be first.
    found, _ = _sft(make_tokenizer(), TALK, "wxy", 7, "Truncate")
    assert found == ("b</s>vwxy</s>", "</s>wxy</s>")


def test_over_long_rows_are_dropped_and_counted(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    rows = [SFTRow(SOURCE, "a", "b" * length) for length in (1, 3, 4, 9)]

    examples, counts = sft_examples(rows, tokenizer, max_length=5, over_long="Drop")

    assert [len(example.tokens) for example in examples] == [3, 5]
    assert counts == Counts(kept=2, dropped_over_long=2)
    assert counts.row_counts.text == "2 rows used, 2 left out as too long"


def _pair(
    tokenizer: PreTrainedTokenizerFast,
    texts: tuple[Text, str, str],
    max_length: int = 100,
    over_long: OverLong = "Truncate",
) -> tuple[str, str]:
    row = PreferenceRow(SOURCE, *texts, margin=0.5)
    (pair,), _ = preference_pairs([row], tokenizer, max_length=max_length, over_long=over_long)
    assert pair.margin == 0.5
    return _spelled(tokenizer, pair.chosen), _spelled(tokenizer, pair.rejected)


@pytest.mark.parametrize(
    ("max_length", "chosen", "rejected"),
    [
        (9, "abcdwxyz</s>", "abcdv</s>"),
        (8, "abcdwxy</s>", "abcdv</s>"),
        (6, "bcdwx</s>", "bcdv</s>"),
        (4, "cdw</s>", "cdv</s>"),
    ],
)
def test_a_scored_sequence_ends_with_eos_also_when_cut(
    make_tokenizer: MakeTokenizer, max_length: int, chosen: str, rejected: str
) -> None:
    tokenizer = make_tokenizer()

    assert _pair(tokenizer, ("abcd", "wxyz", "v"), max_length) == (chosen, rejected)


def test_pairs_take_template_and_bos_as_supervised_rows_do(
    make_tokenizer: MakeTokenizer, chat_template: str
) -> None:
    texts: tuple[Text, str, str] = ("ab", "c</s>", "d")

    assert _pair(make_tokenizer(adds_bos=True), texts) == ("<s>abc</s>", "<s>abd</s>")
    assert _pair(make_tokenizer(chat_template=chat_template), texts) == (
        "user:ab<|end|>\nassistant:c<|end|>",
        "user:ab<|end|>\nassistant:d<|end|>",
    )


def test_a_pair_is_dropped_when_either_side_is_too_long(make_tokenizer: MakeTokenizer) -> None:
    rows = [
        PreferenceRow(SOURCE, "a", "bb", "c"),
        PreferenceRow(SOURCE, "a", "b", "ccc"),
        PreferenceRow(SOURCE, "a", "bbb", "c"),
    ]

    pairs, counts = preference_pairs(rows, make_tokenizer(), max_length=4, over_long="Drop")

    assert len(pairs) == 1
    assert counts == Counts(kept=1, dropped_over_long=2)


@pytest.mark.parametrize(
    ("options", "prompt", "max_length", "tokens", "text"),
    [
        ({}, "abcd", 4, "abcd", "abcd"),
        ({}, "abcd", 3, "bcd", "bcd"),
        ({"adds_bos": True}, "abcd", 5, "<s>abcd", "abcd"),
        ({"adds_bos": True}, "abcd", 3, "<s>cd", "<s>cd"),
        ({}, TALK, 9, "uab</s>v", "uab</s>v"),
    ],
)
def test_prompts_lose_their_beginning(
    make_tokenizer: MakeTokenizer,
    options: dict[str, Any],
    prompt: Text,
    max_length: int,
    tokens: str,
    text: str,
) -> None:
    tokenizer = make_tokenizer(**options)

    (found,), counts = prompts(
        [PromptRow(SOURCE, prompt)], tokenizer, max_length=max_length, over_long="Truncate"
    )

    assert _spelled(tokenizer, found.tokens) == tokens
    assert found.text == text
    assert counts.truncated == (len(prompt) == 4 and max_length < 4)


def test_the_text_of_a_prompt_shows_the_template(
    make_tokenizer: MakeTokenizer, chat_template: str
) -> None:
    tokenizer = make_tokenizer(chat_template=chat_template)

    (found,), _ = prompts([PromptRow(SOURCE, "ab")], tokenizer, max_length=99, over_long="Drop")

    assert found.text == "user:ab<|end|>\nassistant:"
    assert _spelled(tokenizer, found.tokens) == found.text


def test_the_prompt_of_ppo_is_the_prompt_of_sft(
    make_tokenizer: MakeTokenizer, chat_template: str
) -> None:
    for options in ({}, {"adds_bos": True}, {"chat_template": chat_template}):
        tokenizer = make_tokenizer(**options)
        (prompt,), _ = prompts(
            [PromptRow(SOURCE, TALK)], tokenizer, max_length=99, over_long="Drop"
        )
        sequence, _ = _sft(tokenizer, TALK, "w")
        assert (
            sequence[0] == _spelled(tokenizer, prompt.tokens) + "w" + end_of_turn(tokenizer).token
        )


@pytest.mark.parametrize(
    ("tokenize", "row"),
    [
        (sft_examples, SFTRow(SOURCE, "abc", "d")),
        (preference_pairs, PreferenceRow(SOURCE, "abc", "d", "e")),
        (prompts, PromptRow(SOURCE, "abc")),
    ],
)
def test_no_row_left_is_an_error(
    make_tokenizer: MakeTokenizer, tokenize: Callable[..., Any], row: Any
) -> None:
    with pytest.raises(DataError) as caught:
        tokenize([row], make_tokenizer(), max_length=2, over_long="Drop")

    for word in [
        "data.jsonl: none of 1 rows fits in 2 tokens: they have ",
        "raise maxLength",
        "Truncate",
    ]:
        assert word in str(caught.value)


@pytest.mark.parametrize(("prompt", "response"), [("\u200b", "a"), ("a", "\u200b"), ("a", "</s>")])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_a_text_without_tokens_is_an_error(
    make_tokenizer: MakeTokenizer, prompt: str, response: str, adds_bos: bool
) -> None:
    tokenizer = make_tokenizer(adds_bos=adds_bos)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")

    with pytest.raises(DataError, match=r"^data\.jsonl: line 7: .*makes no token of it; correct"):
        _sft(tokenizer, prompt, response)


def test_many_rows_keep_their_order(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer()
    letters = "abcdefghijklmnopqrstuvwxyz"
    rows = [SFTRow(SOURCE, letters[i % 26], letters[i % 25]) for i in range(2500)]

    examples, _ = sft_examples(rows, tokenizer, max_length=9, over_long="Drop")

    assert [_spelled(tokenizer, example.tokens) for example in examples] == [
        f"{row.prompt}{row.response}</s>" for row in rows
    ]
