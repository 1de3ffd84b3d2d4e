"""What a reward is asked about, and what may pass as its answer.

Called by `function`, `endpoint` and `scoring`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from rlhf_api.errors import InputError
from rlhf_trainer.ppo.rollout import Rollout

_SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Texts:
    """One rank's share of a rollout in words, row by row.

    Attributes:
        prompts: as the policy read them, special tokens left out.
        responses: without special tokens and without the token that ended them.
    """

    prompts: Sequence[str]
    responses: Sequence[str]

    @classmethod
    def of(cls, rollout: Rollout, tokenizer: PreTrainedTokenizerBase) -> "Texts":
        """Decode a rollout."""
        width = rollout.prompts.shape[1]
        contents = (rollout.response_lengths - rollout.ended.long()).tolist()

        def decoded(rows: list[list[int]]) -> list[str]:
            return [str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]

        return cls(
            decoded(
                [
                    row[width - length :].tolist()
                    for row, length in zip(
                        rollout.prompts, rollout.prompt_lengths.tolist(), strict=True
                    )
                ]
            ),
            decoded(
                [
                    row[:length].tolist()
                    for row, length in zip(rollout.responses, contents, strict=True)
                ]
            ),
        )

    def rows(self, start: int, stop: int) -> "Texts":
        """The rows from `start` up to `stop`."""
        return Texts(self.prompts[start:stop], self.responses[start:stop])


class Judge(Protocol):
    """Whatever can score responses."""

    def __call__(self, texts: Texts) -> list[float]:
        """One finite score a row; NaN for all once this rank was asked to stop.

        Raises:
            InputError: it gave something else.
            ServiceUnavailable: it cannot be reached now.
        """


def checked_scores(given: Any, texts: Texts, who: str, first_row: int = 0) -> list[float]:
    """`given` as one finite number a row of `texts`.

    Args:
        given: what a reward gave.
        texts: what it was asked.
        who: field and value that name the reward, for the message.
        first_row: number of the first row among those of the rank.

    Raises:
        InputError: another number of scores, or one that is no finite number.
    """
    count = len(texts.responses)
    remedy = "give one finite number for each response, in their order"
    if isinstance(given, str | bytes | dict) or not isinstance(given, Iterable):
        raise InputError(f"{who} gave {_shown(given)} and no list of scores; {remedy}")
    scores = list(given)
    if len(scores) != count:
        raise InputError(f"{who} gave {len(scores)} scores for {count} responses; {remedy}")
    numbers = [_number(score) for score in scores]
    for row, (score, number) in enumerate(zip(scores, numbers, strict=True)):
        if not math.isfinite(number):
            prompt, response = _shown(texts.prompts[row]), _shown(texts.responses[row])
            raise InputError(
                f"{who} gave {_shown(score)} for row {first_row + row} (prompt {prompt}, response "
                f"{response}); {remedy}"
            )
    return numbers


def _number(score: Any) -> float:
    """The score as a float; NaN where it is no number."""
    if isinstance(score, str | bytes):
        return math.nan
    try:
        return float(score)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
