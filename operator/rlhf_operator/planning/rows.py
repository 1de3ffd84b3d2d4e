"""What became of the rows that stages read, as status and Events tell it. Pure; called by `stages`,
`summaries` and `rlhf run`."""

from collections.abc import Iterator, Mapping

from rlhf_api.names import Reason, StageName
from rlhf_api.v1alpha1 import RowCounts, StageStatus
from rlhf_operator.planning.observed import ObservedAttempt


def rows_told(stage: StageStatus, attempt: ObservedAttempt) -> dict[str, RowCounts] | None:
    """The counts that anything of the attempt tells of, else those that are known already."""
    results = [each.result for each in attempt.processes if each.result is not None]
    told = [result.rows for result in results if result.rows]
    if attempt.progress is not None and attempt.progress.rows:
        told.append(dict(attempt.progress.rows))
    return told[0] if told else stage.rows


def rows_text(stages: Mapping[StageName, StageStatus]) -> str:
    """How many rows were left out of how many, by dataset; empty where all are used."""
    return ",".join(
        f"{name}.{dataset} {counts.left_out}/{counts.kept + counts.left_out}"
        for name, stage in stages.items()
        for dataset, counts in (stage.rows or {}).items()
        if counts.left_out
    )


def rows_used(before: StageStatus, after: StageStatus) -> Iterator[tuple[str, RowCounts]]:
    """Each dataset that was read now and of which nothing was left out."""
    known = before.rows or {}
    for dataset, counts in (after.rows or {}).items():
        if not counts.left_out and known.get(dataset) != counts:
            yield dataset, counts


def rows_left_out(
    name: StageName, before: StageStatus, after: StageStatus
) -> Iterator[tuple[bool, Reason, str]]:
    """For each dataset that was read now: whether any row is lost, and how to say it."""
    known = before.rows or {}
    for dataset, counts in (after.rows or {}).items():
        if counts.left_out and known.get(dataset) != counts:
            yield counts.lost > 0, Reason.ROWS_LEFT_OUT, f"stage {name}: {dataset}: {counts.text}"
