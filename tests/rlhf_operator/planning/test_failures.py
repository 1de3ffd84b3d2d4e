"""A gang's failure is judged by its strongest evidence."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rlhf_api.names import FailureClass, GuardrailAction, GuardrailRule, Reason, StageName
from rlhf_api.v1alpha1 import HealthVerdict, StageResult
from rlhf_operator.planning.failures import Verdict, backoff, judge, last_checkpoint_step
from rlhf_operator.planning.observed import (
    ObservedAttempt,
    ObservedProcess,
    ObservedProgress,
    ProcessPhase,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def failed(code: int | None, seconds: float = 0, index: int = 0, **changes: Any) -> ObservedProcess:
    given = {
        "name": f"pod-{index}",
        "index": index,
        "phase": ProcessPhase.FAILED,
        "exit_code": code,
        "finished_at": NOW + timedelta(seconds=seconds),
    }
    return ObservedProcess(**(given | changes))


def said(code: int, reason: Reason = Reason.CRASHED, **changes: Any) -> StageResult:
    given = {
        "stage": StageName.SFT,
        "attempt": 1,
        "config_digest": "sha256:" + "0" * 64,
        "exit_code": code,
        "reason": reason,
    }
    return StageResult(**(given | changes))


def attempt(*processes: ObservedProcess, **changes: Any) -> ObservedAttempt:
    return ObservedAttempt(StageName.SFT, 1, processes, **changes)


def verdict(*processes: ObservedProcess, after: float = 0, **changes: Any) -> Verdict:
    found = judge(attempt(*processes, **changes), NOW + timedelta(seconds=after))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("code", "kind", "reason", "final", "counted"),
    [
        (42, FailureClass.GUARDRAIL, Reason.GUARDRAIL, False, False),
        (64, FailureClass.USER_ERROR, Reason.USAGE, True, True),
        (65, FailureClass.USER_ERROR, Reason.DATA_ERROR, True, True),
        (66, FailureClass.USER_ERROR, Reason.INPUT_INVALID, True, True),
        (69, FailureClass.CRASH, Reason.SERVICE_UNAVAILABLE, False, True),
        (70, FailureClass.USER_ERROR, Reason.SELF_CHECK_FAILED, True, True),
        (74, FailureClass.CRASH, Reason.IO_ERROR, False, True),
        (75, FailureClass.STOPPED, Reason.STOPPED, False, True),
        (77, FailureClass.USER_ERROR, Reason.NO_PERMISSION, True, True),
        (78, FailureClass.USER_ERROR, Reason.CONFIG_INVALID, True, True),
        (80, FailureClass.PEER_LOST, Reason.PEER_LOST, False, True),
        (1, FailureClass.CRASH, Reason.CRASHED, False, True),
        (137, FailureClass.CRASH, Reason.CRASHED, False, True),
        (143, FailureClass.STOPPED, Reason.STOPPED, False, True),
        (None, FailureClass.CRASH, Reason.CRASHED, False, True),
        (0, FailureClass.CRASH, Reason.CRASHED, False, True),
    ],
)
def test_every_row_of_the_exit_code_table(
    code: int | None, kind: FailureClass, reason: Reason, final: bool, counted: bool
) -> None:
    found = verdict(failed(code))
    assert (found.failure, found.reason, found.final, found.counted) == (
        kind,
        reason,
        final,
        counted,
    )


# Strongest first: each of these speaks for a gang in which any later one stands beside it.
ORDER = (None, 70, 42, 65, 1, 75, 143, 80)


@pytest.mark.parametrize("strong", range(len(ORDER)))
@pytest.mark.parametrize("weak", range(len(ORDER)))
def test_the_strongest_evidence_speaks(strong: int, weak: int) -> None:
    if strong >= weak:
        return

    def process(place: int, index: int, seconds: float) -> ObservedProcess:
        message = f"evidence {place}"
        code = ORDER[place] or 1
        disrupted = ORDER[place] is None
        return failed(code, seconds, index, disrupted=disrupted, message=message)

    # The weaker one came first and has the lower index.
    assert verdict(process(weak, 0, 0), process(strong, 1, 5)).message == f"evidence {strong}"


@pytest.mark.parametrize(
    ("processes", "reason", "counted"),
    [
        # Gone, or killed for it; at most a second lies between.
        ((), Reason.CHILD_ENDED, True),
        ((failed(143, 6),), Reason.CHILD_ENDED, True),
        ((failed(143, 5),), Reason.CHILD_ENDED, True),
        ((failed(137, 6), failed(80, 5, 1)), Reason.CHILD_ENDED, True),
        ((failed(None, finished_at=None),), Reason.CHILD_ENDED, True),
        ((failed(75, 6, result=said(75, last_checkpoint_step=9)),), Reason.CHILD_ENDED, False),
        # Those know better.
        ((failed(1, 5), failed(143, 6, 1)), Reason.CRASHED, True),
        ((failed(65, 6),), Reason.DATA_ERROR, True),
        ((failed(42, 6),), Reason.GUARDRAIL, False),
        ((failed(143, 6, disrupted=True),), Reason.DISRUPTED, True),
    ],
)
def test_who_was_killed_is_spoken_for_by_the_platform(
    processes: tuple[ObservedProcess, ...], reason: Reason, counted: bool
) -> None:
    killed_at = NOW + timedelta(seconds=5)
    for ended_by in ("it took too long", ""):
        found = verdict(*processes, failed=True, killed_at=killed_at, ended_by=ended_by, after=60)
        assert found.counted == counted
        if ended_by:
            assert found.reason is reason
        assert (found.message == "it took too long") == (
            bool(ended_by) and reason is Reason.CHILD_ENDED
        )
        assert (found.reason is Reason.CHILD_ENDED) == (found.message == "it took too long")


def test_of_equals_the_first_speaks_then_the_lowest() -> None:
    late, early = failed(1, 2, 0, message="late"), failed(137, 1, 1, message="early")
    assert verdict(late, early).message == "early"
    assert verdict(failed(1, 1, 3), failed(1, 1, 2, message="two")).message == "two"


def test_others_may_tell_more_for_ten_seconds() -> None:
    gang = attempt(failed(80), ObservedProcess("pod-1", 1, ProcessPhase.RUNNING, ready=True))
    assert judge(gang, NOW + timedelta(seconds=9)) is None
    found = judge(gang, NOW + timedelta(seconds=10))
    assert found is not None
    assert found.failure is FailureClass.PEER_LOST


def test_a_lost_process_is_not_waited_for() -> None:
    lost = ObservedProcess("pod-1", 1, ProcessPhase.RUNNING, lost=True, disrupted=True)
    assert verdict(failed(80), lost).failure is FailureClass.DISRUPTED


def test_what_was_killed_with_the_rest_is_no_evidence() -> None:
    killed = NOW + timedelta(seconds=1)
    assert verdict(failed(80), failed(137, 30, 1), killed_at=killed).reason is Reason.PEER_LOST
    assert verdict(failed(80), failed(137, 30, 1, disrupted=True), killed_at=killed).reason is (
        Reason.DISRUPTED
    )
    # Where nothing else is left, it has to do.
    assert verdict(failed(137, 30), killed_at=killed).reason is Reason.CRASHED


def test_a_guardrail_speaks_whenever_its_process_ended() -> None:
    """Nothing that is killed ends with its code."""
    killed = NOW + timedelta(seconds=1)
    found = verdict(failed(80), failed(42, 30, 1), killed_at=killed)
    assert (found.reason, found.final) == (Reason.GUARDRAIL, False)


@pytest.mark.parametrize(("action", "final"), [("Suspend", False), ("Fail", True)])
def test_whoever_tells_its_rule_speaks_for_a_gang_that_a_guardrail_ended(
    action: str, final: bool
) -> None:
    rule = {"rule": GuardrailRule.NEGATIVE_KL, "action": GuardrailAction(action), "step": 7}
    broken = HealthVerdict(**rule, value=-0.5, threshold=-0.1)
    result = said(42, Reason.GUARDRAIL, verdicts=(broken,), message="look at the reference")
    found = verdict(failed(42, 0, 0), failed(42, 5, 1, result=result))
    assert (found.reason, found.final, found.counted) == (Reason.GUARDRAIL, final, False)
    assert found.message == (
        f"guardrail NegativeKL ({action}): -0.5 against a threshold of -0.1 at update 7; "
        "look at the reference"
    )


@pytest.mark.parametrize(
    ("process", "before", "after", "counted"),
    [
        (failed(75), None, 10, False),
        (failed(75), 10, 20, False),
        (failed(75), 10, 10, True),
        (failed(75), None, None, True),
        (failed(143), 10, 20, True),
        (failed(1), 10, 20, True),
        (failed(80), 10, 20, True),
        (failed(137, disrupted=True), 10, 20, False),
        (failed(137, disrupted=True), 10, 10, True),
        (failed(143, disrupted=True), None, 0, False),
    ],
)
def test_a_free_restart_needs_a_checkpoint_that_grew(
    process: ObservedProcess, before: int | None, after: int | None, counted: bool
) -> None:
    progress = ObservedProgress(step=30, total_steps=100, last_checkpoint_step=after)
    assert verdict(process, checkpoint_step=before, progress=progress).counted is counted


def test_the_newest_checkpoint_that_anything_tells_of() -> None:
    result = said(75, last_checkpoint_step=40)
    progress = ObservedProgress(step=35, total_steps=100, last_checkpoint_step=30)
    gang = attempt(failed(75, result=result), failed(80, index=1), progress=progress)
    assert last_checkpoint_step(gang) == 40
    assert last_checkpoint_step(attempt(failed(1))) is None


@pytest.mark.parametrize(("step", "final"), [(0, True), (1, False)])
def test_out_of_memory_is_final_before_the_first_step(step: int, final: bool) -> None:
    result = said(1, Reason.OUT_OF_MEMORY, message="needs 3 GiB", step=step)
    found = verdict(failed(1, result=result))
    assert (found.reason, found.final, found.message) == (
        Reason.OUT_OF_MEMORY,
        final,
        "needs 3 GiB",
    )
    # The kubelet's word has no result beside it, since the process was killed.
    progress = ObservedProgress(step=step, total_steps=100)
    killed = failed(137, reason=Reason.OUT_OF_MEMORY)
    assert verdict(killed, progress=progress).final is final


def test_messages_say_what_is_known() -> None:
    assert verdict(failed(65, result=said(65, message="rows.jsonl: line 3"))).message == (
        "rows.jsonl: line 3"
    )
    assert "pod-0 ended with exit code 1" in verdict(failed(1)).message
    assert "no known exit code" in verdict(failed(None)).message
    assert verdict(failed(137, disrupted=True, message="Preempted")).message == "Preempted"


def test_a_failure_without_processes_counts() -> None:
    found = verdict(failed=True)
    assert (found.reason, found.final, found.counted) == (Reason.CRASHED, False, True)


def test_no_verdict_without_a_failure() -> None:
    running = ObservedProcess("pod-0", phase=ProcessPhase.RUNNING)
    assert judge(attempt(running), NOW) is None
    assert judge(attempt(), NOW) is None


def test_backoff_grows_to_a_bound() -> None:
    assert [backoff(n).total_seconds() for n in (1, 2, 3, 4, 5, 900)] == [2, 8, 60, 180, 300, 300]
