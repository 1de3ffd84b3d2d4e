"""Turns that a chat template leaves out, as those do which know no system or tool turns.

Called by `rendering`. The content of a turn mostly stands in the text as it is. Where it does not,
or could stand there by chance, the conversation is rendered with other content in its place: a
template that then writes the same text has not read it.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from rlhf_trainer.data.parse.columns import Conversation, Message
from rlhf_trainer.data.tokenize.turns import TemplateRenderError

Render = Callable[[Conversation], str]
"""What the template makes of turns; raises TemplateRenderError."""
Shape = tuple[bool, tuple[tuple[str, ...], ...]]


class OmissionCheck:
    """Looks for turns that are left out; once for each order of roles, and cheaply in each row."""

    def __init__(self) -> None:
        self._unwritten: dict[Shape, frozenset[int]] = {}

    def first_omitted(
        self, turns: Conversation, text: str, render: Render, *, has_tools: bool = False
    ) -> int | None:
        """The first turn without which the text would be the same; None where there is none.

        An assistant's turn that is learned is looked at where it is placed.

        Args:
            turns: of a row.
            text: what `render` makes of them.
            render: the template, given the row's tools.
            has_tools: whether there are any, with which a template may write turns otherwise.
        """
        asked = [index for index, turn in enumerate(turns) if _is_asked(turn)]
        compact = _compact(text)
        suspects = {index for index in asked if _compact(turns[index].content) not in compact}
        suspects |= self._unwritten_of(turns, asked, render, has_tools=has_tools)
        return next((i for i in sorted(suspects) if _is_omitted(turns, i, text, render)), None)

    def _unwritten_of(
        self, turns: Conversation, asked: list[int], render: Render, *, has_tools: bool
    ) -> frozenset[int]:
        """Turns of which the template does not write the content that stands in for theirs."""
        shape = tuple(
            (turn.role, str(index in asked), *turn.written, *turn.names)
            for index, turn in enumerate(turns)
        )
        key = (has_tools, shape)
        known = self._unwritten.get(key)
        if known is None:
            known = self._unwritten[key] = frozenset(_unwritten(turns, asked, render))
        return known


def _unwritten(turns: Conversation, asked: list[int], render: Render) -> Iterator[int]:
    stand_ins = tuple(
        replace(turn, content=_stand_in(index)) if index in asked else turn
        for index, turn in enumerate(turns)
    )
    try:
        text = render(stand_ins)
    except TemplateRenderError:
        # It reads the content, and takes only some.
        return
    compact = _compact(text)
    yield from (index for index in asked if _stand_in(index) not in compact)


def _is_omitted(turns: Conversation, index: int, text: str, render: Render) -> bool:
    other = replace(turns[index], content=_stand_in(index))
    try:
        return render((*turns[:index], other, *turns[index + 1 :])) == text
    except TemplateRenderError:
        return False


def _is_asked(turn: Message) -> bool:
    return bool(turn.content) and not (turn.role == "assistant" and turn.is_learned)


def _stand_in(index: int) -> str:
    return f"turn{index}probe"


def _compact(text: str) -> str:
    """The text without white space, which templates trim, and in small letters."""
    return "".join(text.split()).casefold()
