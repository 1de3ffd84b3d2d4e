"""What became of the rows that stages read: in status, in its summary and in Events."""

from collections.abc import Callable
from typing import Any

import pytest

from rlhf_api.names import Reason
from rlhf_api.v1alpha1 import RLHFJobStatus, RowCounts

MakeTrial = Callable[..., Any]
ALL_USED = {"dataset": RowCounts(kept=100)}
LOSSY = {
    "dataset": RowCounts(kept=88, over_long=9, identical=3, truncated=0),
    "evalDataset": RowCounts(kept=4),
}
SENTENCE = (
    "stage sft: dataset: 88 rows used, 9 left out as too long, 3 left out with identical responses"
)


def rows_events(trial: Any) -> list[tuple[str, str]]:
    found = [each for each in trial.last.events if each.reason is Reason.ROWS_LEFT_OUT]
    return [(each.type, each.message) for each in found]


def test_a_running_stage_tells_of_its_rows_once(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    t.run("sft", rows=LOSSY)
    t.look(1)
    assert t.stage("sft").rows == LOSSY
    assert t.job.status.summary.rows == "sft.dataset 12/100"
    assert rows_events(t) == [("Warning", SENTENCE)]
    t.run("sft", step=1, rows=LOSSY)
    t.look(1)
    assert rows_events(t) == []


def test_the_result_of_an_attempt_tells_of_its_rows(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    t.run("sft")
    t.look(1)
    assert t.stage("sft").rows is None
    t.finish("sft", rows=LOSSY)
    t.look(1)
    assert (t.stage("sft").state, t.stage("sft").rows) == ("Succeeded", LOSSY)
    assert rows_events(t) == [("Warning", SENTENCE)]


def test_what_was_told_outlives_attempts_that_say_nothing(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    t.run("sft", rows=LOSSY)
    t.look(1)
    t.end("sft", 1)
    t.look(1)
    t.look(60)
    t.run("sft")
    t.look(1)
    t.finish("sft")
    t.look(1)
    assert (t.stage("sft").attempt, t.stage("sft").rows) == (2, LOSSY)
    assert t.job.status.summary.rows == "sft.dataset 12/100"


@pytest.mark.parametrize(
    ("rows", "summary", "kinds"),
    [
        (ALL_USED, "", []),
        ({"dataset": RowCounts(kept=5, truncated=5)}, "", []),
        ({"dataset": RowCounts(kept=5, encoded_apart=5)}, "", []),
        ({"dataset": RowCounts(kept=5, empty_list=1)}, "sft.dataset 1/6", ["Normal"]),
        ({"dataset": RowCounts(kept=1, not_learned=99)}, "sft.dataset 99/100", ["Normal"]),
        ({"evalDataset": RowCounts(kept=5, over_long=1)}, "sft.evalDataset 1/6", ["Warning"]),
    ],
)
def test_only_rows_that_are_left_out_are_told(
    trial: MakeTrial, rows: dict[str, RowCounts], summary: str, kinds: list[str]
) -> None:
    t = trial()
    t.look()
    t.run("sft", rows=rows)
    t.look(1)
    assert t.job.status.summary.rows == summary
    assert [kind for kind, _ in rows_events(t)] == kinds


def test_numbers_of_a_later_release_are_kept() -> None:
    rows = {"dataset": {"kept": 5, "duplicates": 2}}
    document = {"stages": {"sft": {"state": "Running", "rows": rows}}}
    status = RLHFJobStatus.model_validate(document)
    assert status.to_document()["stages"]["sft"]["rows"] == rows
