"""Rows that are lost, and whether the spec agrees to it.

Called by `loading`, which counts all losses, and by `preview`, which sees those of equal texts.
"""

from collections.abc import Mapping, Sequence

from rlhf_api.errors import DataError
from rlhf_api.v1alpha1 import Dataset, RowCounts
from rlhf_trainer.data.parse.formats import PreferenceRow

CORRECT_PAIRS = "correct the pairs whose responses are identical"


def require_consent(
    dataset: Dataset, counts: RowCounts, field: str, remedies: Mapping[str, int]
) -> None:
    """Raise DataError if more than half of the rows is lost without `allowLoss`.

    Args:
        dataset: the spec.
        counts: what became of its rows.
        field: its path in the spec, for messages.
        remedies: what can be done, each with the number of rows that it saves.
    """
    whole = counts.kept + counts.lost
    if dataset.allow_loss or 2 * counts.lost <= whole:
        return
    advice = ", ".join(remedy for remedy, number in remedies.items() if number)
    raise DataError(
        f"{field}.allowLoss: false, but {counts.lost} of {whole} rows of {dataset.uri} are lost "
        f"({counts.text}); {advice}, or set allowLoss to true to go on with {counts.kept}"
    )


def identical_pairs(pairs: Sequence[PreferenceRow], dataset: Dataset, field: str) -> int:
    """How many pairs have one text as both responses, so that nothing can be learned from them.

    Raises:
        DataError: all of them, or more than half without `allowLoss`.
    """
    same = sum(pair.chosen == pair.rejected for pair in pairs)
    if same == len(pairs):
        raise DataError(
            f"{field}.uri: {dataset.uri}: none of {same} pairs can be used: chosen and rejected "
            "are the same in each; correct the pairs"
        )
    counts = RowCounts(kept=len(pairs) - same, identical=same)
    require_consent(dataset, counts, field, {CORRECT_PAIRS: same})
    return same
