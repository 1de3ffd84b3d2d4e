"""The text that a model reads for a prompt, and which stretches of it were an assistant's.

Called by `tokenized`. With a chat template that text is the template's, ending with its generation
prompt; without one it is the prompt as it stands, or the turns one after the other with EOS behind
each of the assistant's. The response that follows is never rendered: what is learned is what the
policy samples, the response and EOS.
"""

from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf_api.errors import DataError
from rlhf_trainer.data.parse.columns import Conversation, Message, Text
from rlhf_trainer.data.read.rows import Source, clipped


@dataclass(frozen=True)
class Rendered:
    """A prompt as text."""

    text: str
    learned: tuple[tuple[int, int], ...] = ()
    """Start and end of each earlier assistant turn's content, ascending."""

    def pieces(self) -> list[tuple[str, bool]]:
        """The text cut at those stretches, and whether each piece is one; empty ones left out."""
        found: list[tuple[str, bool]] = []
        at = 0
        for start, end in self.learned:
            found += [(self.text[at:start], False), (self.text[start:end], True)]
            at = end
        found.append((self.text[at:], False))
        return [piece for piece in found if piece[0]]


def render(tokenizer: PreTrainedTokenizerBase, prompt: Text, source: Source) -> Rendered:
    """The text before a response.

    Raises:
        DataError: the chat template refuses the turns, or rewrites an assistant's earlier one so
            that its place cannot be told.
    """
    if tokenizer.chat_template is None:
        return Rendered(prompt) if isinstance(prompt, str) else _joined(tokenizer, prompt)
    turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    text = _templated(tokenizer, turns, source)
    places = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    return Rendered(text, tuple(_place(tokenizer, turns, index, text, source) for index in places))


def _joined(tokenizer: PreTrainedTokenizerBase, turns: Conversation) -> Rendered:
    text = ""
    learned: list[tuple[int, int]] = []
    for turn in turns:
        start = len(text)
        text += turn.content
        if turn.role == "assistant":
            learned.append((start, len(text)))
            text += str(tokenizer.eos_token)
    return Rendered(text, tuple(learned))


def _templated(tokenizer: PreTrainedTokenizerBase, turns: Conversation, source: Source) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise DataError(
            f"{source}: the chat template refuses the turns {clipped(messages)}: {error}; correct "
            "the row or set the model's chatTemplate"
        ) from error
    return str(text)


def _place(
    tokenizer: PreTrainedTokenizerBase,
    turns: Conversation,
    index: int,
    text: str,
    source: Source,
) -> tuple[int, int]:
    """Where the content of an earlier assistant turn stands in the whole conversation's text."""
    before = _templated(tokenizer, turns[:index], source)
    # Many templates trim what they are given.
    for content in (turns[index].content, turns[index].content.strip()):
        if text.startswith(before + content):
            return len(before), len(before) + len(content)
    raise DataError(
        f"{source}: the chat template rewrites turn {index + 1}, {clipped(turns[index].content)}, "
        "where more turns follow, so that its tokens cannot be told; write one row for each "
        "response or set the model's chatTemplate"
    )
