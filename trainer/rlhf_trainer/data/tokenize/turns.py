"""What a chat template makes of a conversation, and the token that ends a turn.

Called by `encoding` and `rendering`, and when a model is opened, which refuses what cannot be told
here. Training teaches the end of a turn behind every response, and the policy stops at it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

QUESTION, ANSWER = "probe 7", "probe 8"
CHOSEN_END = "end_of_turn"
"""Where the tokenizer's own settings keep `endOfTurn`, so that it goes along with an artifact."""

_TEMPLATE_ERRORS = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)
"""What a template's own mistakes, or a row that it does not expect, raise while it is rendered."""
_MAX_CHARACTERS = 100_000_000
"""Of a text that is split into tokens, which takes many times its own memory."""

Origin = Literal["endOfTurn", "the chat template", "EOS"]


class TemplateRenderError(ValueError):
    """A chat template that could not be rendered; the text says why."""


class UnknownEndingError(ValueError):
    """A chat template ends an answer by a text that is no single token; the text is the message."""


@dataclass(frozen=True)
class EndOfTurn:
    """The token behind every answer."""

    token: str
    token_id: int
    origin: Origin
    """What says so."""


def templated(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    *,
    generation_prompt: bool,
    tools: Sequence[Mapping[str, Any]] = (),
) -> str:
    """What the tokenizer's chat template makes of `messages`.

    Raises:
        TemplateRenderError: whatever the template raised.
    """
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=[dict(tool) for tool in tools] or None,
            tokenize=False,
            add_generation_prompt=generation_prompt,
        )
    except MemoryError as error:
        raise TemplateRenderError("it writes more than there is memory for") from error
    except _TEMPLATE_ERRORS as error:
        reason = (
            str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
        )
        raise TemplateRenderError(reason) from error
    if len(text) > _MAX_CHARACTERS:
        raise TemplateRenderError(f"it writes {len(text):,} characters, more than any model reads")
    return str(text)


def probe(answer: str | None = None) -> list[dict[str, str]]:
    """A conversation of one question, and its answer."""
    asked = [{"role": "user", "content": QUESTION}]
    return asked if answer is None else [*asked, {"role": "assistant", "content": answer}]


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> EndOfTurn:
    """`endOfTurn` where it was chosen, else the first special token that the chat template writes
    behind an answer, else EOS.

    Raises:
        UnknownEndingError: the template writes a text there that is no token.
    """
    chosen = tokenizer.init_kwargs.get(CHOSEN_END)
    if chosen is not None:
        return EndOfTurn(chosen, tokenizer.get_vocab()[chosen], "endOfTurn")
    token = _templates_token(tokenizer)
    if token is None:
        return EndOfTurn(str(tokenizer.eos_token), int(tokenizer.eos_token_id), "EOS")
    return EndOfTurn(token, tokenizer.get_vocab()[token], "the chat template")


def _templates_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What the template ends an answer by; None where it writes nothing, or renders no answer."""
    if tokenizer.chat_template is None:
        return None
    try:
        whole = templated(tokenizer, probe(ANSWER), generation_prompt=False)
    except TemplateRenderError:
        # Rows with an earlier answer are refused when they are rendered.
        return None
    _, answer, ending = whole.rpartition(ANSWER)
    if not answer or not ending.strip():
        return None
    vocabulary = tokenizer.get_vocab()
    special: set[str] = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    tokens = [token for token in special if token.strip() and token in ending]
    if tokens:
        # The first; of those which begin alike the longest, as the tokenizer reads it.
        return min(tokens, key=lambda token: (ending.find(token), -len(token)))
    plain = ending.strip()
    if plain in vocabulary:
        return plain
    raise UnknownEndingError(plain)
