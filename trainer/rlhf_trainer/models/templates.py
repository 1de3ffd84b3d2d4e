"""The chat template that a stage uses, and the end of a turn: settled when a tokenizer is opened.

Called by `tokenizers`. What cannot be rendered, or does not say where an answer begins or ends, is
refused here, before any row is read.
"""

import json

from transformers import PreTrainedTokenizerBase

from rlhf_api.errors import ConfigError
from rlhf_trainer.data.tokenize.turns import (
    ANSWER,
    CHOSEN_END,
    QUESTION,
    EndOfTurn,
    TemplateRenderError,
    UnknownEndingError,
    end_of_turn,
    probe,
    templated,
)

_SHOWN_CHARACTERS = 80


def settle_template(
    tokenizer: PreTrainedTokenizerBase, given: str | None, *, used: bool, field: str
) -> None:
    """Let the tokenizer have the template that the spec says, able to render what a stage asks.

    A template that ignores `add_generation_prompt` leaves out what stands before an answer: it gets
    the same text as its generation prompt.

    Args:
        tokenizer: whose template is changed.
        given: `chatTemplate` of the spec; None keeps the tokenizer's own.
        used: `useChatTemplate` of the spec.
        field: the model's path in the spec, for messages.

    Raises:
        ConfigError: several templates and none of them named default, or one that cannot be
            rendered, or that does not say where an answer begins.
    """
    if given is not None:
        tokenizer.chat_template = given
    if not used:
        tokenizer.chat_template = None
    if tokenizer.chat_template is None:
        return
    _require_default(tokenizer, field)
    what, remedy = _naming(given, field)
    try:
        prompt = templated(tokenizer, probe(), generation_prompt=True)
        plain = templated(tokenizer, probe(), generation_prompt=False)
    except TemplateRenderError as error:
        raise ConfigError(f"{what} cannot be rendered: {error}; {remedy}") from error
    if QUESTION not in prompt:
        raise ConfigError(
            f"{what} leaves out what the user says: it must render each message's content; {remedy}"
        )
    if prompt == plain:
        _require_opening(tokenizer, prompt, what, remedy)


def settle_end(
    tokenizer: PreTrainedTokenizerBase, chosen: str | None, *, place: object, field: str
) -> EndOfTurn:
    """The end of a turn; `chosen`, `endOfTurn` of the spec, stays with the tokenizer.

    Raises:
        ConfigError: it is not in the vocabulary, or the template ends an answer by no token.
    """
    if chosen is not None:
        tokenizer.init_kwargs[CHOSEN_END] = chosen
    kept = tokenizer.init_kwargs.get(CHOSEN_END)
    if kept is not None and kept not in tokenizer.get_vocab():
        raise ConfigError(
            f"{field}.endOfTurn: {kept!r} is not in the vocabulary of {place}, which writes it as "
            f"{_pieces(tokenizer, kept)}; name one token of its vocabulary, since an answer ends "
            "by exactly one"
        )
    try:
        return end_of_turn(tokenizer)
    except UnknownEndingError as error:
        raise ConfigError(
            f"{field}.endOfTurn: the chat template ends an answer by {str(error)!r}, which is no "
            "single token, so that nothing could stop there; set endOfTurn to the token that ends "
            "an answer, or chatTemplate to a template that writes one"
        ) from error


def _pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return list(tokenizer.convert_ids_to_tokens(ids))


def _require_default(tokenizer: PreTrainedTokenizerBase, field: str) -> None:
    templates = tokenizer.chat_template
    if isinstance(templates, dict) and "default" not in templates:
        raise ConfigError(
            f"{field}.chatTemplate: the tokenizer has chat templates named "
            f"{', '.join(sorted(templates))} and none named default; set chatTemplate to the text "
            "of one of them, or useChatTemplate: false"
        )


def _naming(given: str | None, field: str) -> tuple[str, str]:
    """How messages begin, and what is to be done."""
    if given is None:
        return (
            f"{field}.uri: the tokenizer's own chat template",
            "set chatTemplate to another template, or useChatTemplate: false",
        )
    shown = json.dumps(given[:_SHOWN_CHARACTERS], ensure_ascii=False)
    return f"{field}.chatTemplate: {shown}:", "correct the template"


def _require_opening(
    tokenizer: PreTrainedTokenizerBase, prompt: str, what: str, remedy: str
) -> None:
    """Make `prompt`, rendered with and without a generation prompt alike, end where an answer of
    the template begins."""
    try:
        whole = templated(tokenizer, probe(ANSWER), generation_prompt=False)
    except TemplateRenderError:
        return
    before, answer, _ = whole.rpartition(ANSWER)
    if not answer:
        # Made for one question: the answer follows what it writes.
        return
    if not before.startswith(prompt):
        raise ConfigError(
            f"{what} ignores add_generation_prompt and writes {_shown(prompt)} for a question but "
            f"{_shown(before)} before its answer, so that it is not known where an answer begins: "
            f"it must end with what stands before an answer if that is true; {remedy}"
        )
    opening = before.removeprefix(prompt)
    # White space alone is the answer's: the policy has to write it.
    if opening.strip():
        _append_opening(tokenizer, opening)


def _append_opening(tokenizer: PreTrainedTokenizerBase, opening: str) -> None:
    own = tokenizer.chat_template
    # Jinja reads the escapes of JSON.
    text = json.dumps(opening, ensure_ascii=False)
    ending = "{% if add_generation_prompt %}{{ " + text + " }}{% endif %}"
    if isinstance(own, dict):
        tokenizer.chat_template = {**own, "default": own["default"] + ending}
    else:
        tokenizer.chat_template = str(own) + ending


def _shown(text: str) -> str:
    return json.dumps(text[-_SHOWN_CHARACTERS:], ensure_ascii=False)
