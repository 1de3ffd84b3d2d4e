"""When a job is looked at again, after a pass that told all and after one that put it off."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from raw_gangs import job_document

from rlhf_api.names import Reason, StageName
from rlhf_api.v1alpha1 import RLHFJob, RLHFJobStatus
from rlhf_operator.manifests import cluster_placement
from rlhf_operator.memory import FIRST_RETRY_SECONDS, LACKING_SECONDS, Memory, ident_of
from rlhf_operator.planning.actions import StartAttempt, StopAttempt
from rlhf_operator.planning.configs import stage_config
from rlhf_operator.planning.observed import Refusal
from rlhf_operator.planning.plan import Plan
from rlhf_operator.wakeups import SPARE_SECONDS, next_look, spare_look

FIRST, LAST = SPARE_SECONDS
LATENESS = 0.5
"""Seconds that a slow machine may take between a table's time and the look at the clock."""


def plan_due_in(seconds: float | None) -> Plan:
    due = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
    return Plan((), RLHFJobStatus(), look_at=due)


@pytest.mark.parametrize(
    ("due", "least", "most"),
    [(None, FIRST, LAST), (60.0, FIRST, LAST), (2.0, FIRST, 2.0), (0.0, FIRST, FIRST)],
)
def test_what_was_put_off_is_tried_again_no_later_than_what_is_due(
    due: float | None, least: float, most: float
) -> None:
    waits = [spare_look(plan_due_in(due), Memory()) for _ in range(200)]
    assert least <= min(waits)
    assert max(waits) <= most
    # Many jobs may wait at once.
    assert len(set(waits)) == (1 if least == most else len(waits))


def test_a_refused_action_is_not_kept_waiting_by_what_was_put_off() -> None:
    memory = Memory()
    refused = Refusal(Reason.FORBIDDEN, "no", at_least=2.0)
    memory.refuse((StopAttempt, StageName.SFT, 1), refused, time.monotonic())
    waits = [spare_look(plan_due_in(None), memory) for _ in range(200)]
    assert min(waits) >= FIRST
    assert max(waits) <= 2.0


@pytest.mark.parametrize("due", [None, 60.0, 0.0])
def test_a_job_is_looked_at_when_the_first_thing_is_due(due: float | None) -> None:
    assert next_look(plan_due_in(None), Memory()) is None
    memory = Memory()
    memory.refuse(
        (StopAttempt, StageName.SFT, 1), Refusal(Reason.FORBIDDEN, "no"), time.monotonic()
    )
    wait = next_look(plan_due_in(due), memory)
    expected = FIRST_RETRY_SECONDS if due is None else min(due, FIRST_RETRY_SECONDS)
    assert wait is not None
    assert expected - LATENESS <= wait <= expected


@pytest.mark.parametrize("refused", [False, True])
def test_a_started_attempt_is_looked_at_though_no_pod_is_made(refused: bool) -> None:
    job, memory = RLHFJob.from_document(job_document()), Memory()
    config = stage_config(job, StageName.SFT, 1, {}, cluster_placement(job))
    start = StartAttempt(StageName.SFT, 1, config)
    if refused:
        late = Refusal(Reason.FORBIDDEN, "no", at_least=10 * LACKING_SECONDS)
        memory.refuse(ident_of(start), late, time.monotonic())
    wait = next_look(Plan((start,), RLHFJobStatus()), memory)
    assert wait is not None
    assert (wait > LACKING_SECONDS) == refused
