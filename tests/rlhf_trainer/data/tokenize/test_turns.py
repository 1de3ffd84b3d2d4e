"""Where a turn ends, by the templates that families ship."""

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_trainer.data.tokenize import turns
from rlhf_trainer.data.tokenize.turns import (
    CHOSEN_END,
    EndOfTurn,
    TemplateRenderError,
    UnknownEndingError,
    end_of_turn,
    probe,
    templated,
)

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]

EOS = EndOfTurn("</s>", 2, "EOS")
TURNS = "{% for m in messages %}{{ m.role }}:{{ m.content }}"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        pytest.param(None, EOS, id="no template"),
        pytest.param(TURNS + "<|end|>\n{% endfor %}", "<|end|>", id="ChatML"),
        pytest.param(TURNS + " {{ eos_token }}{% endfor %}", "</s>", id="Llama 2"),
        pytest.param(TURNS + "<|end|>\n{% endfor %}{{ eos_token }}", "<|end|>", id="Phi 3"),
        pytest.param(TURNS + "\n</s><|end|>{% endfor %}", "</s>", id="the first of two"),
        pytest.param(TURNS + "\n{% endfor %}", EOS, id="a line break"),
        pytest.param(TURNS + " z {% endfor %}", "z", id="one plain token"),
        pytest.param("{{ messages[0].content }}:", EOS, id="one question only"),
        pytest.param("{{ raise_exception('no') }}", EOS, id="refuses every answer"),
        pytest.param("{{ messages[0].content + 3 }}", EOS, id="its own mistake"),
    ],
)
def test_the_end_of_a_turn_is_what_the_template_writes_behind_an_answer(
    make_tokenizer: MakeTokenizer, template: str | None, end: str | EndOfTurn
) -> None:
    tokenizer = make_tokenizer(chat_template=template)
    expected = (
        EndOfTurn(end, tokenizer.get_vocab()[end], "the chat template")
        if isinstance(end, str)
        else end
    )

    assert end_of_turn(tokenizer) == expected


def test_one_token_may_be_bos_eos_and_unknown(make_tokenizer: MakeTokenizer) -> None:
    """As in GPT-2."""
    tokenizer = make_tokenizer(chat_template=TURNS + "{{ eos_token }}{% endfor %}")
    tokenizer.bos_token = tokenizer.unk_token = tokenizer.eos_token = "<|end|>"

    assert end_of_turn(tokenizer) == EndOfTurn("<|end|>", 4, "the chat template")


def test_a_token_that_begins_another_is_not_taken_for_it(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(chat_template=TURNS + "<|end|>x{% endfor %}")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>x", "<|e"]})

    assert end_of_turn(tokenizer).token == "<|end|>x"


def test_an_ending_that_is_no_token_is_told(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(UnknownEndingError, match=r"^:end\.$"):
        end_of_turn(make_tokenizer(chat_template=TURNS + " :end.\n{% endfor %}"))


def test_what_was_chosen_wins_and_stays_with_the_tokenizer(
    make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer(chat_template=TURNS + " :end.\n{% endfor %}")
    tokenizer.init_kwargs[CHOSEN_END] = "<|end|>"
    chosen = EndOfTurn("<|end|>", 4, "endOfTurn")
    assert end_of_turn(tokenizer) == chosen

    tokenizer.save_pretrained(str(tmp_path))
    again = PreTrainedTokenizerFast.from_pretrained(str(tmp_path))

    assert end_of_turn(again) == chosen
    assert again.all_special_tokens == tokenizer.all_special_tokens


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('turns must alternate') }}", "^turns must alternate$"),
        ("{{ messages[0].content + 3 }}", "^TypeError: .*str"),
        ("{{ messages[0].content.nothing.more }}", "has no attribute"),
        ("{{ 1 / 0 }}", "^ZeroDivisionError: division by zero"),
        ("{{ [3, 'a'] | sort }}", "^TypeError: '<' not supported"),
        ("{% for m in messages %}", "endfor"),
        ("{{ 'a' * 10**17 }}", "^it writes more than there is memory for$"),
        ("{{ 'a' * 10**30 }}", "^OverflowError: "),
    ],
)
def test_whatever_a_template_raises_is_one_failure(
    make_tokenizer: MakeTokenizer, template: str, told: str
) -> None:
    with pytest.raises(TemplateRenderError, match=told):
        templated(make_tokenizer(chat_template=template), probe(), generation_prompt=True)


def test_a_text_that_no_model_reads_is_not_split_into_tokens(
    make_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "_MAX_CHARACTERS", 1000)
    longest = make_tokenizer(chat_template="{{ 'a' * 1000 }}")
    assert templated(longest, probe(), generation_prompt=True) == "a" * 1000
    longer = make_tokenizer(chat_template="{{ 'a' * 1001 }}")
    with pytest.raises(TemplateRenderError, match=r"^it writes 1,001 characters, more than any"):
        templated(longer, probe(), generation_prompt=True)
