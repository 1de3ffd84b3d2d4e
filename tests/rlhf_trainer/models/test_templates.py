"""Chat templates as repositories ship them: used, mended or refused when a model is opened."""

from pathlib import Path
from typing import Any

import pytest
import tiny
from transformers import PreTrainedTokenizerFast

from rlhf_api.errors import ConfigError
from rlhf_trainer.data.tokenize.turns import end_of_turn
from rlhf_trainer.models.tokenizers import load_tokenizer

FIELD = "spec.stages.ppo.model"
END = "<|end|>"
TURNS = "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}<|end|>\n{% endfor %}"
ASKS = "{% if add_generation_prompt %}<assistant>\n{% endif %}"
SECOND = "{{% if messages[1] is defined %}}{}{{% endif %}}"
TALK = [
    {"role": "user", "content": "ab"},
    {"role": "assistant", "content": "cd"},
    {"role": "user", "content": "e"},
]


def shipped(folder: Path, template: str | dict[str, str] | None) -> Path:
    """A tokenizer's folder with a chat template in it."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [END]})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(str(folder))
    return folder


def opened(folder: Path, template: str | dict[str, str] | None, **given: Any) -> Any:
    """The tokenizer as a stage gets it."""
    return load_tokenizer(shipped(folder, template), field=FIELD, **given)


def prompt(tokenizer: PreTrainedTokenizerFast, talk: list[dict[str, str]]) -> str:
    """What the policy reads."""
    found = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    return str(found)


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(TURNS, id="left out"),
        pytest.param({"default": TURNS, "tools": "{{ tools }}"}, id="one of several"),
        pytest.param(TURNS.replace("\\n", '"\\n').replace("assistant", 'a"\\\\'), id="quotes"),
    ],
)
def test_a_template_that_ignores_the_generation_prompt_gets_one(
    tmp_path: Path, template: str | dict[str, str]
) -> None:
    tokenizer = opened(tmp_path / "own", template)
    whole = str(tokenizer.apply_chat_template(TALK, tokenize=False))

    for turns in (1, 3):
        asked = prompt(tokenizer, TALK[:turns])
        following = [*TALK[:turns], {"role": "assistant", "content": "cd"}]
        answered = str(tokenizer.apply_chat_template(following, tokenize=False))
        assert answered.startswith(asked + "cd")
    assert prompt(tokenizer, TALK[:1]) == "<user>\nab<|end|>\n<assistant>\n"
    assert whole.endswith("<user>\ne<|end|>\n")

    # An artifact is read as it was trained.
    tokenizer.save_pretrained(str(tmp_path / "again"))
    again = load_tokenizer(tmp_path / "again", field=FIELD)
    assert again.chat_template == tokenizer.chat_template
    assert prompt(again, TALK) == prompt(tokenizer, TALK)


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(TURNS + ASKS, id="asks"),
        pytest.param(TURNS + "{% if add_generation_prompt %}<think>{% endif %}", id="thinks"),
        pytest.param(TURNS.replace("<{{ m.role }}>\n", ""), id="nothing before an answer"),
        pytest.param(
            "{{ messages[0].content }}" + SECOND.format(" {{ messages[1].content }}"),
            id="white space",
        ),
        pytest.param("Q: {{ messages[0].content }}\nA:", id="one question"),
        pytest.param("{{ messages[0].content }}" + SECOND.format("{{ 1 / 0 }}"), id="no answer"),
    ],
)
def test_a_template_that_says_where_an_answer_begins_stays(tmp_path: Path, template: str) -> None:
    assert opened(tmp_path, template).chat_template == template


@pytest.mark.parametrize(
    ("template", "told"),
    [
        pytest.param(
            {"rag": TURNS, "tools": TURNS},
            [f"{FIELD}.chatTemplate: ", "named rag, tools and none named default", "useChat"],
            id="no default",
        ),
        pytest.param(
            "{{ messages[0].content + 3 }}",
            [f"{FIELD}.uri: ", "cannot be rendered: TypeError", "set chatTemplate to another"],
            id="TypeError",
        ),
        pytest.param(
            "{{ raise_exception('tools only') }}",
            [f"{FIELD}.uri: ", "cannot be rendered: tools only", "useChatTemplate: false"],
            id="refuses",
        ),
        pytest.param("hello", ["leaves out what the user says", "useChatTemplate"], id="constant"),
        pytest.param(
            "{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token }}",
            ["ignores add_generation_prompt", '"probe 7</s>"', '"probe 7"', "set chatTemplate"],
            id="EOS behind a question",
        ),
        pytest.param(
            TURNS.replace(END, " [END] "),
            [f"{FIELD}.endOfTurn: ", "by '[END]', which is no single token", "set endOfTurn"],
            id="ends by a text",
        ),
    ],
)
def test_a_template_that_cannot_be_used_is_refused_with_a_remedy(
    tmp_path: Path, template: str | dict[str, str], told: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path, template)

    for words in told:
        assert words in str(caught.value)


def test_the_end_of_a_turn_can_be_chosen(tmp_path: Path) -> None:
    text = TURNS.replace(END, " [END] ")

    tokenizer = opened(tmp_path / "own", text, end_of_turn="!")

    assert end_of_turn(tokenizer).token == "!"
    # The next stage ends its answers alike.
    tokenizer.save_pretrained(str(tmp_path / "again"))
    assert end_of_turn(load_tokenizer(tmp_path / "again", field=FIELD)).token == "!"


def test_a_chosen_end_must_be_in_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^{FIELD}\.endOfTurn: 'ab' is not in the voc") as told:
        opened(tmp_path, TURNS + ASKS, end_of_turn="ab")
    assert "which writes it as ['a', 'b']; name one token of its vocabulary" in str(told.value)


def test_a_base_model_may_do_without_its_template(tmp_path: Path) -> None:
    broken = "{{ messages[0].content + 3 }}"
    tokenizer = opened(tmp_path / "own", broken, use_chat_template=False)

    assert tokenizer.chat_template is None
    assert end_of_turn(tokenizer).token == tiny.EOS
    tokenizer.save_pretrained(str(tmp_path / "again"))
    assert load_tokenizer(tmp_path / "again", field=FIELD).chat_template is None
