"""What few prompts hold besides plain turns, which chat templates that else agree write otherwise.

Called by `loading`, and by PPO where it compares two models.
"""

from collections.abc import Iterable, Mapping, Set

from rlhf_api.errors import ConfigError
from rlhf_trainer.data.parse.columns import CALLS, THOUGHTS, Text, Tools
from rlhf_trainer.data.parse.formats import PromptRow

WITH_TOOLS = "with tools"
WITH_TOOLS_AND_CALLS = "with tools and a call"
WITH_CALLS = "with a call"
WITH_THOUGHTS = "with thoughts"


def kinds_of(prompt: Text, tools: Tools = ()) -> Set[str]:
    """Which of them a prompt is; none if it is plain."""
    turns = () if isinstance(prompt, str) else prompt
    kinds = {WITH_TOOLS} if tools else set()
    if any(turn.role == "tool" or turn.written.keys() & set(CALLS) for turn in turns):
        kinds.add(WITH_TOOLS_AND_CALLS if tools else WITH_CALLS)
    if any(turn.written.keys() & set(THOUGHTS) for turn in turns):
        kinds.add(WITH_THOUGHTS)
    return kinds


def refuse_kinds(rows: Iterable[PromptRow], refused: Mapping[str, str]) -> None:
    """Refuse the first row of a kind that the models cannot both be given.

    Args:
        rows: of prompts.
        refused: what is wrong, by kind.

    Raises:
        ConfigError: a row is of such a kind; it names the row.
    """
    for row in rows if refused else ():
        for kind in sorted(kinds_of(row.prompt, row.tools) & refused.keys()):
            raise ConfigError(
                f"{refused[kind]}, or remove the rows {kind}, of which {row.source} is the first"
            )
