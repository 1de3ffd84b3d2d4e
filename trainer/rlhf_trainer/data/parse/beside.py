"""What a row says beside the columns that a stage reads, where it would change what is learned.

Called by `formats`. A row may say that it is not learned; what else only other trainers read is
refused by name, never dropped.
"""

from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

from rlhf_api.v1alpha1 import Columns
from rlhf_trainer.data.parse.columns import ENDED, THOUGHTS, says_ended
from rlhf_trainer.data.parse.said import frames, says, texts
from rlhf_trainer.data.parse.values import mistake
from rlhf_trainer.data.read.rows import Row

LEARNED = ("weight", "sample_weight", "loss_weight", "train", "training", "loss")
"""Columns that say whether a row is learned, as the keys of a message do."""
GIVEN_TO_TEMPLATES = (
    "chat_template",
    "chat_template_kwargs",
    "enable_thinking",
    "thinking_budget",
    "reasoning_effort",
    "model_identity",
    "builtin_tools",
    "custom_tools",
    "xml_tools",
    "python_tools",
    "tools_in_user_message",
    "keep_past_thinking",
    "clear_thinking",
)
"""A template, and what templates ask for by these names, so that a prompt differs by it."""
UNREAD = (
    "system",
    "system_prompt",
    "system_message",
    "instruction",
    "input",
    "suffix",
    "context",
    "history",
    "documents",
    "image",
    "images",
    "video",
    "videos",
    "audio",
    "audios",
    "tool_calls",
    "function_call",
    "loss_mask",
    *GIVEN_TO_TEMPLATES,
)
"""Columns that some trainer puts before a prompt, learns as an answer or gives to the chat
template; Alpaca's `input` goes with the instruction."""
ANSWERS = ("completion", "output", "answer", "text")
"""What some trainer learns as the answer, or `text` as the whole; PPO's rewards may compare an
answer with it."""
VERDICT = "label"
"""Whether an answer is a good one, where it is true or false, as in KTO's files; a number is the
class that a classifier learns."""
UNREAD_BY_SFT = (*UNREAD, *THOUGHTS, "mask", *ANSWERS, VERDICT, ENDED)
"""Thoughts that lead to the response are learned with it; in pairs they may be a judge's."""
_WRITE_IT = "write it into the prompt or the turns of messages, or remove the column"
_TEMPLATE = (
    "remove the column, and where all rows are to be written so, set a chatTemplate of the model"
)
_READ = ("prompt", "query", "messages", "chosen", "rejected")
"""Columns in which a stage may read the same."""


@dataclass
class Skipped:
    """Counts the rows that say not to be learned."""

    rows: int = 0


def learned_rows(
    rows: Iterable[Row], columns: Columns, skipped: Skipped, unread: Sequence[str] = UNREAD
) -> Iterator[Row]:
    """The rows without those that say, by `weight: 0` or `train: false`, not to be learned.

    Args:
        rows: of a dataset.
        columns: of its spec; what it names is read as it says.
        skipped: counts those that are left out.
        unread: columns that must hold nothing which is not said by those that are read.

    Raises:
        DataError: a row that is learned holds something of its own in a column that would not be,
            or says that its answer is a bad one.
    """
    mapped = set(columns.model_dump().values())
    weighed, unread = (
        [name for name in names if name not in mapped] for names in (LEARNED, unread)
    )
    read = mapped.union(_READ)
    # What the spec names is what is meant, and nothing is compared with it.
    is_meant = columns.response is not None or columns.messages is not None
    answers: Set[str] = set() if is_meant else {"response", "messages"}
    for row in rows:
        if not all(_is_learned(row, name) for name in weighed):
            skipped.rows += 1
            continue
        switches = [name for name in THOUGHTS if isinstance(row.values.get(name), bool)]
        for name in {*switches} - mapped:
            _require_nothing(row, name, read)
        for name in unread:
            if name == VERDICT:
                _require_good(row)
            elif name == ENDED:
                _require_ended(row)
            elif name in ANSWERS:
                _require_same_answer(row, name, read, answers)
            else:
                _require_nothing(row, name, read)
        yield row


def _require_nothing(row: Row, name: str, read: Set[str]) -> None:
    value = row.values.get(name)
    # Thoughts are a text, and by the same name some templates ask whether to write any.
    is_given = name in GIVEN_TO_TEMPLATES or (name in THOUGHTS and isinstance(value, bool))
    # What they are given says something also where it is false or 0.
    says_something = value or (is_given and value not in (None, "", [], {}))
    # A row with nothing to read is told what it lacks.
    if not (says_something and row.values.keys() & read):
        return
    # Only of a text can a copy stand in what is read: of a document or picture more is meant.
    # And what a template is given says how it writes, not what.
    is_text = isinstance(value, str) and not is_given
    is_copy = is_text and says(_said(row, read), value)
    if not is_copy:
        remedy = _TEMPLATE if is_given else _WRITE_IT
        raise mistake(row, name, value, f"would not be learned; {remedy}")


def _require_same_answer(row: Row, name: str, read: Set[str], answers: Set[str]) -> None:
    value = row.values.get(name)
    spelled = _spelled(value)
    if not ((value or spelled) and row.values.keys() & answers):
        return
    is_copy = any(says(_said(row, answers), text) for text in spelled)
    # Alpaca's `text` frames all that is read.
    is_whole = name == "text" and frames(value, _said(row, read | answers))
    if not (is_copy or is_whole):
        learned = " or ".join(sorted(answers & row.values.keys()))
        raise mistake(
            row,
            name,
            value,
            f"would not be learned, but {learned}, which says something else; set columns.response "
            "or columns.messages to the column that is meant, or remove the other",
        )


def _spelled(value: object) -> list[str]:
    """A text, or a number as an answer may spell it; nothing of other values."""
    if isinstance(value, str):
        return [value] if value else []
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    # A column of whole numbers with a gap holds floats.
    is_whole = isinstance(value, float) and value.is_integer()
    return [str(value), str(int(value))] if is_whole else [str(value)]


def _require_good(row: Row) -> None:
    # 0 is equal to false, but the number of a class.
    if (value := row.values.get(VERDICT)) is False:
        raise mistake(
            row,
            VERDICT,
            value,
            "says that the answer is a bad one, which would be learned as the good ones are; "
            "remove such rows, or give them weight 0",
        )


def _require_ended(row: Row) -> None:
    if not says_ended(row, ENDED, row.values.get(ENDED)):
        raise mistake(
            row,
            ENDED,
            row.values[ENDED],
            "says that the answer goes on, but every answer is written with its end; remove such "
            "rows, or give them weight 0",
        )


def _said(row: Row, columns: Set[str]) -> list[str]:
    return [text for column in columns for text in texts(row.values.get(column))]


def _is_learned(row: Row, name: str) -> bool:
    value = row.values.get(name)
    # 1 and 1.0 are equal to true.
    if value is not None and value not in (0, 1):
        remedy = "must be 0 or 1: a row is learned or not; correct it or remove the column"
        raise mistake(row, name, value, remedy)
    return value is None or bool(value)
