"""Whether two models read the same tokens and the same prompts.

Called by PPO before any weights: what a reward model or a critic is given are the actor's tokens.
What would change a score is refused, be it with the first row that brings it; what differs without
doing so becomes a note.
"""

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_api.errors import ConfigError, DataError
from rlhf_trainer.data.parse.columns import Conversation, Message, Tools
from rlhf_trainer.data.parse.kinds import (
    WITH_CALLS,
    WITH_THOUGHTS,
    WITH_TOOLS,
    WITH_TOOLS_AND_CALLS,
)
from rlhf_trainer.data.read.rows import Source
from rlhf_trainer.data.tokenize.rendering import Renderer
from rlhf_trainer.data.tokenize.turns import (
    ANSWER,
    QUESTION,
    TemplateRenderError,
    probe,
    templated,
)
from rlhf_trainer.models.opening import opening
from rlhf_trainer.models.source import Base

_CONVERSATIONS = (
    probe(),
    [*probe(ANSWER), *probe()],
    [{"role": "system", "content": "probe 9"}, *probe()],
)
_TOOLS: Tools = (
    {
        "type": "function",
        "function": {
            "name": "probe_1",
            "description": "probe 2",
            "parameters": {
                "type": "object",
                "properties": {"probe_3": {"type": "string", "description": "probe 4"}},
                "required": ["probe_3"],
            },
        },
    },
)
_ASKED = Message("user", QUESTION)
# Mistral's templates ask for an id of nine characters.
_CALL = {
    "id": "probe0009",
    "type": "function",
    "function": {"name": "probe_1", "arguments": {"probe_3": "probe 5"}},
}
_CALLED = (
    _ASKED,
    Message("assistant", "", {"tool_calls": [_CALL]}, is_learned=False),
    Message("tool", "probe 6", names={"name": "probe_1", "tool_call_id": "probe0009"}),
)
_THOUGHT = Message("assistant", ANSWER, {"reasoning_content": "probe 6"}, is_learned=False)
_RARE: tuple[tuple[str, Conversation, Tools], ...] = (
    (WITH_TOOLS, (_ASKED,), _TOOLS),
    (WITH_TOOLS_AND_CALLS, _CALLED, _TOOLS),
    (WITH_CALLS, _CALLED, ()),
    (WITH_THOUGHTS, (_ASKED, _THOUGHT, _ASKED), ()),
)
"""What few prompts hold, and templates that differ may write alike or not."""
_SHOWN_CHARACTERS = 60
_SHOWN_BEFORE = 20
"""Of those, so many stand before the first that differs."""
_TEMPLATES_DIFFER = (
    "chatTemplate",
    "train both with one template, or, where the reward model was trained with that of the actor, "
    "set chatTemplate to it, or useChatTemplate: false",
)
_ENDS_DIFFER = (
    "endOfTurn",
    "train both with one end of a turn, and set endOfTurn to it where the tokenizer's EOS is "
    "another",
)
"""Field and remedy."""


def require_same_tokens(actor: Base, other: Base) -> list[str]:
    """Every token of the actor must be the same one to `other`, and have a row in its embeddings.

    Returns:
        What differs besides, for people to read.

    Raises:
        ConfigError: a token has another id there, or none, or no row.
    """
    ours, theirs = actor.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    for token, i in sorted(ours.items(), key=lambda item: item[1]):
        if theirs.get(token) != i:
            raise ConfigError(
                f"{other.field}: its tokenizer ({len(other.tokenizer)} tokens) differs from that "
                f"of {actor.field} ({len(actor.tokenizer)} tokens), first at {token!r}, which is "
                f"token {i} of the latter and {theirs.get(token, 'none')} of the former; train "
                "both from models of one family"
            )
    highest, rows = max(ours.values()), other.embedding_rows
    if highest >= rows:
        raise ConfigError(
            f"{other.field}: has {rows} rows of embeddings, but the tokens of {actor.field} reach "
            f"{highest}; use a model that was trained with this tokenizer"
        )
    notes = []
    if len(theirs) > len(ours):
        notes.append(
            f"{other.field} has {len(theirs) - len(ours)} tokens that {actor.field} lacks: no "
            "answer holds them"
        )
    if rows != actor.embedding_rows:
        notes.append(
            f"{other.field} has {rows} rows of embeddings and {actor.field} "
            f"{actor.embedding_rows}: rows without a token are never sampled"
        )
    return notes


def require_same_prompts(actor: Base, reward_model: Base) -> tuple[list[str], dict[str, str]]:
    """The reward model must have been given prompts as the actor is: BOS, template and tokens.

    Returns:
        What differs without changing the score of a plain prompt, for people to read, and why
        prompts of a kind (`data.parse.kinds`) would be other ones to the reward model, by kind.

    Raises:
        ConfigError: a plain prompt would be another one to the reward model.
    """
    _require_same_beginning(actor, reward_model)
    for conversation in _CONVERSATIONS:
        ours, theirs = (_rendered(base, conversation) for base in (actor, reward_model))
        _require_same_text(actor, reward_model, ours, theirs)
    notes, refused = [], {}
    if _templates(actor) != _templates(reward_model):
        refused = _rare_differences(actor, reward_model)
        alike = "prompts alike"
        if refused:
            alike = f"plain prompts alike; a row {' or '.join(refused)} would end the stage"
        notes.append(
            f"the chat template of {reward_model.field} is not that of {actor.field}, but renders "
            f"{alike}"
        )
    return notes + _ending_notes(actor, reward_model), refused


def _ending_notes(actor: Base, reward_model: Base) -> list[str]:
    end = reward_model.generation.end
    others = [i for i in actor.generation.stop_ids if i != end.token_id]
    notes = []
    if actor.tokenizer.eos_token_id != reward_model.tokenizer.eos_token_id:
        notes.append(
            f"EOS of {reward_model.field} is {str(reward_model.tokenizer.eos_token)!r} and that of "
            f"{actor.field} {str(actor.tokenizer.eos_token)!r}"
        )
    if others:
        named = ", ".join(repr(str(actor.tokenizer.convert_ids_to_tokens(i))) for i in others)
        notes.append(
            f"an answer that ends with {named} is scored with {end.token!r} in its place, by which "
            f"{reward_model.field} knows the end of an answer"
        )
    return notes


def _require_same_beginning(actor: Base, reward_model: Base) -> None:
    ours, theirs = _beginning(actor.tokenizer), _beginning(reward_model.tokenizer)
    if ours != theirs:
        raise ConfigError(
            f"{reward_model.field}: texts begin with {_tokens(reward_model, theirs)} there and "
            f"with {_tokens(actor, ours)} in {actor.field}, so that its scores would be those of "
            "other texts; set add_bos_token alike in both tokenizer_config.json, or train the "
            "reward model from the same base"
        )


def _rare_differences(actor: Base, reward_model: Base) -> dict[str, str]:
    """Why the prompts that PPO's rows may bring besides would be other ones, by kind; one that the
    actor's template cannot write is refused with its row."""
    own, other = (Renderer(base.tokenizer) for base in (actor, reward_model))
    differences = {}
    for kind, turns, tools in _RARE:
        if (ours := _rare(own, turns, tools)) is not None:
            theirs = _rare(other, turns, tools)
            words = _difference(actor, reward_model, ours, theirs, f"for a prompt {kind} ")
            if words is not None:
                differences[kind] = words
    return differences


def _rare(renderer: Renderer, turns: Conversation, tools: Tools) -> str | None:
    """What the model reads; None where its template refuses the turns, or leaves out a part."""
    try:
        return renderer.prompt(turns, Source("probe", 1), tools).text
    except DataError:
        return None


def _require_same_text(
    actor: Base, reward_model: Base, ours: str | None, theirs: str | None
) -> None:
    if (words := _difference(actor, reward_model, ours, theirs)) is not None:
        raise ConfigError(words)


def _difference(
    actor: Base, reward_model: Base, ours: str | None, theirs: str | None, prompt: str = ""
) -> str | None:
    """Why a prompt would be another one to the reward model; None if it is the same."""
    if ours != theirs:
        name, remedy = _TEMPLATES_DIFFER
        if not _templates(actor) and not _templates(reward_model):
            name, remedy = _ENDS_DIFFER
        return (
            f"{reward_model.field}.{name}: {prompt}the reward model was given "
            f"{_shown(theirs, ours)} where {actor.field} is given {_shown(ours, theirs)}, so that "
            f"its scores would be those of other prompts; {remedy}"
        )
    if ours is None:
        return None
    text = ours
    ids, others = (_ids(base, text) for base in (actor, reward_model))
    if ids == others:
        return None
    return (
        f"{reward_model.field}: its tokenizer makes {len(others)} tokens of {_shown(text)}, "
        f"and that of {actor.field} other {len(ids)}; train both from models of one family"
    )


def _ids(base: Base, text: str) -> list[int]:
    with opening(f"{base.field}: its tokenizer cannot encode {_shown(text)}", "name another model"):
        return list(base.tokenizer(text, add_special_tokens=False)["input_ids"])


def _beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a prompt; a chat template says itself where BOS stands."""
    if tokenizer.chat_template is not None:
        return []
    return [i for i in tokenizer("")["input_ids"][:1] if i == tokenizer.bos_token_id]


def _rendered(base: Base, conversation: list[dict[str, str]]) -> str | None:
    """What the model reads; None where its template refuses such a conversation."""
    if base.tokenizer.chat_template is None:
        # As `Renderer` joins turns: the end of a turn behind each of the assistant's.
        ends = {"assistant": base.generation.end.token}
        return "".join(turn["content"] + ends.get(turn["role"], "") for turn in conversation)
    try:
        return templated(base.tokenizer, conversation, generation_prompt=True)
    except TemplateRenderError:
        return None


def _templates(base: Base) -> dict[str, Any]:
    """Its chat templates by name, of which one may be for tools."""
    own = base.tokenizer.chat_template
    if own is None:
        return {}
    return dict(own) if isinstance(own, dict) else {"default": own}


def _tokens(base: Base, ids: list[int]) -> str:
    names = [str(base.tokenizer.convert_ids_to_tokens(i)) for i in ids]
    return ", ".join(map(repr, names)) or "no token of their own"


def _shown(text: str | None, other: str | None = None) -> str:
    """The text, or of a long one the part where it begins to differ from `other`."""
    if text is None:
        return "nothing, since its template refuses the turns or leaves out a part,"
    start = 0
    if other is not None and max(len(text), len(other)) > _SHOWN_CHARACTERS:
        pairs = enumerate(zip(text, other, strict=False))
        differs = next((at for at, (a, b) in pairs if a != b), min(len(text), len(other)))
        start = max(differs - _SHOWN_BEFORE, 0)
    end = start + _SHOWN_CHARACTERS
    cut = ("…" if start else "") + text[start:end] + ("…" if text[end:] else "")
    return json.dumps(cut, ensure_ascii=False)
