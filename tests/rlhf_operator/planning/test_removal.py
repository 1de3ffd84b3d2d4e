"""Which attempts are kept for their logs, and when the rest goes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rlhf_api.names import ConditionType, Reason, StageName, StageState
from rlhf_api.v1alpha1 import RLHFJobSpec, RunPolicy, StageStatus
from rlhf_operator.planning.actions import StartAttempt
from rlhf_operator.planning.conditions import find_condition
from rlhf_operator.planning.observed import (
    Observed,
    ObservedAttempt,
    ObservedProcess,
    ProcessPhase,
    Refusal,
)
from rlhf_operator.planning.plan import plan
from rlhf_operator.planning.removal import RemoveAttempt, surplus

MakeTrial = Callable[..., Any]

SFT = {"model": {"uri": "hf://org/base"}, "dataset": {"uri": "file:///data/rows.jsonl"}}
RUNS = ObservedProcess("p", phase=ProcessPhase.RUNNING, ready=True)
LOST = ObservedProcess("p", phase=ProcessPhase.RUNNING, lost=True, disrupted=True)
ENDED = ObservedProcess("p", phase=ProcessPhase.FAILED, exit_code=1)


def removed(t: Any) -> list[tuple[str, int]]:
    return [(a.stage.value, a.attempt) for a in t.last.actions if isinstance(a, RemoveAttempt)]


def crash(t: Any, times: int) -> None:
    """Let the running attempt of sft fail, and the next ones after it."""
    for _ in range(times):
        t.run("sft")
        t.look(1)
        t.end("sft")
        t.look(1)
        drop(t)
        t.look(400)
        drop(t)


def drop(t: Any) -> None:
    """As a cluster: what is to be removed is gone."""
    for name, attempt in removed(t):
        t.attempts.pop((StageName(name), attempt), None)


def kept(t: Any) -> list[int]:
    return sorted(number for _, number in t.attempts)


@pytest.mark.parametrize(
    ("keep", "after"), [(None, [3, 4]), (2, [3, 4]), (0, []), (1, [4]), (9, [1, 2, 3, 4])]
)
def test_the_newest_failed_attempts_are_kept(
    trial: MakeTrial, keep: int | None, after: list[int]
) -> None:
    policy = {"maxRestarts": 9} | ({} if keep is None else {"keepFailedAttempts": keep})
    t = trial(stages={"sft": SFT}, runPolicy=policy)
    t.look()
    crash(t, 4)
    assert t.stage("sft").attempt == 5
    assert kept(t) == after
    # Those that failed before a success tell what it took.
    t.run("sft")
    t.look(1)
    t.finish("sft")
    t.look(1)
    assert t.job.status.phase == "Succeeded"
    assert kept(t) == [*after, 5]
    assert removed(t) == []


def test_the_attempt_that_failed_for_good_is_one_of_them(trial: MakeTrial) -> None:
    t = trial(stages={"sft": SFT}, runPolicy={"maxRestarts": 2, "keepFailedAttempts": 1})
    t.look()
    crash(t, 3)
    assert t.job.status.phase == "Failed"
    assert kept(t) == [3]


@pytest.mark.parametrize("finished", [False, True])
def test_a_smaller_number_holds_at_once(trial: MakeTrial, finished: bool) -> None:
    t = trial(stages={"sft": SFT}, runPolicy={"maxRestarts": 9})
    t.look()
    crash(t, 2)
    t.run("sft")
    t.look(1)
    digest = t.stage("sft").config_digest
    if finished:
        t.finish("sft")
        t.look(1)
    t.spec(run_policy=RunPolicy(max_restarts=9, keep_failed_attempts=0))
    before = t.job.status.stages
    t.look(1)
    assert removed(t) == [("sft", 2), ("sft", 1)]
    assert (t.job.status.stages, t.stage("sft").config_digest) == (before, digest)
    assert t.last.events == ()
    drop(t)
    assert t.look(1).actions == ()


def test_each_stage_keeps_its_own(trial: MakeTrial) -> None:
    stages = {"sft": SFT, "reward": SFT}
    t = trial(stages=stages, runPolicy={"keepFailedAttempts": 1})
    t.look()
    for name in stages:
        t.run(name)
        t.look(1)
        t.end(name)
        t.look(1)
    assert removed(t) == []


@pytest.mark.parametrize(
    ("state", "current", "changes", "goes"),
    [
        (StageState.RESTARTING, 3, {}, [3, 2]),
        (StageState.SUSPENDED, 3, {}, [3, 2]),
        (StageState.FAILED, 3, {}, [3, 2]),
        # A verdict on it is still to come, or it is what the next stage reads.
        (StageState.RUNNING, 3, {}, [2]),
        (StageState.STOPPING, 3, {}, [2]),
        (StageState.SUCCEEDED, 3, {}, [2]),
        # Of a status that an earlier leader has not seen nothing is decided.
        (StageState.RESTARTING, 2, {}, [2]),
        ("Sleeping", 3, {}, []),
        (StageState.RESTARTING, 3, {"processes": (ENDED, RUNS)}, []),
        (StageState.RESTARTING, 3, {"processes": (ENDED, LOST)}, [3, 2]),
        (StageState.RESTARTING, 3, {"deleting": True}, []),
        # Stopped in place of removed.
        (StageState.RESTARTING, 3, {"processes": (replace(ENDED, beside=("proxy",)),)}, []),
    ],
)
def test_what_still_runs_or_counts_is_left_alone(
    state: Any, current: int, changes: dict[str, Any], goes: list[int]
) -> None:
    given = {"processes": (ENDED,), "failed": True} | changes
    found = [ObservedAttempt(StageName.SFT, number, **given) for number in (2, 3)]
    stage = StageStatus.model_validate({"state": state, "attempt": current})
    seen = Observed((*found, ObservedAttempt(StageName.PPO, 1, (ENDED,), failed=True)))
    actions = surplus({StageName.SFT: stage}, seen, RunPolicy(keep_failed_attempts=0))
    assert list(actions) == [RemoveAttempt(StageName.SFT, number) for number in goes]


def test_what_is_left_of_an_attempt_without_job_goes_when_the_next_one_starts(
    trial: MakeTrial,
) -> None:
    t = trial(stages={"sft": SFT}).running("sft")
    t.spec(suspend=True)
    t.look(1)
    assert t.stops() == [("sft", 1)]
    # Stopped, it is deleted with its pods; its ConfigMap is not seen.
    t.attempts.clear()
    t.look(1)
    assert t.stage("sft").state is StageState.SUSPENDED
    assert t.last.actions == ()
    t.spec(suspend=False)
    t.look(1)
    start, leaving = t.last.actions
    assert isinstance(start, StartAttempt)
    assert (start.attempt, leaving) == (2, RemoveAttempt(StageName.SFT, 1))
    t.run("sft")
    t.look(1)
    assert t.last.actions == ()


@pytest.mark.parametrize("state", ["running", "suspended", "finished"])
def test_what_could_not_be_removed_is_asked_for_until_it_is_gone(
    trial: MakeTrial, state: str
) -> None:
    """Whatever has become of the stage meanwhile, and told as long as it is refused."""
    t = trial(stages={"sft": SFT}).running("sft")
    t.end("sft", 1)
    t.look(1)
    t.look(60)
    t.attempts.clear()
    t.run("sft")
    t.look(1)
    assert t.stage("sft").attempt == 2
    if state == "finished":
        t.end("sft", 65)
        t.look(1)
    t.spec(suspend=state == "suspended")
    kept = Observed(tuple(t.attempts.values()), unremoved=frozenset({(StageName.SFT, 1)}))
    refusal = Refusal(Reason.WEBHOOK_DENIED, "deleting ConfigMap demo-sft-1: no")
    refused = replace(kept, refusals={(StageName.SFT, 1): refusal})
    for seen in (kept, refused):
        found = plan(t.job, seen, t.now, t.placement)
        assert RemoveAttempt(StageName.SFT, 1) in found.actions
    told = find_condition(found.status.conditions, ConditionType.CHILDREN_READY)
    assert told is not None
    assert (told.status, told.message) == ("False", refusal.message)
    after = plan(t.job, replace(kept, unremoved=frozenset()), t.now, t.placement)
    assert RemoveAttempt(StageName.SFT, 1) not in after.actions
    # An attempt that has a Job is kept for its logs.
    logs = ObservedAttempt(StageName.SFT, 1, (ENDED,), failed=True)
    seen = replace(kept, attempts=(*kept.attempts, logs))
    assert RemoveAttempt(StageName.SFT, 1) not in plan(t.job, seen, t.now, t.placement).actions


@pytest.mark.parametrize("stuck", [False, True])
def test_an_attempt_that_is_seen_is_none_of_those_unless_its_deletion_hangs(
    trial: MakeTrial, stuck: bool
) -> None:
    t = trial(stages={"sft": SFT}).running("sft")
    process = t.process("sft", phase=ProcessPhase.RUNNING, lost=True, disrupted=True)
    t.put("sft", processes=(process,), failed=True, deleting=stuck)
    t.look(11)
    t.look(60)
    assert t.started() == [("sft", 2)]
    assert removed(t) == ([("sft", 1)] if stuck else [])


def test_it_may_be_changed_and_changes_no_digest(trial: MakeTrial) -> None:
    digests = set()
    for keep in (0, 2, 1000):
        t = trial(stages={"sft": SFT}, runPolicy={"keepFailedAttempts": keep})
        t.look()
        digests.add(t.stage("sft").config_digest)
    assert len(digests) == 1
    rules = " ".join(rule.cel for rule in RLHFJobSpec.API_RULES)
    assert "runPolicy" not in rules


def test_none_is_kept_but_its_verdict_is_written_first(trial: MakeTrial) -> None:
    t = trial(stages={"sft": SFT}, runPolicy={"keepFailedAttempts": 0}).running("sft")
    t.end("sft", 65, said={"reason": Reason.DATA_ERROR, "message": "no rows"})
    t.look()
    # The verdict is written in the pass that removes what it came from.
    assert t.condition("Failed").message == "stage sft: no rows"
    assert removed(t) == [("sft", 1)]


@pytest.mark.parametrize("keep", [0, 1])
def test_a_refusal_is_told_of_what_is_to_be_removed_and_not_of_what_is_kept(
    trial: MakeTrial, keep: int
) -> None:
    t = trial(stages={"sft": SFT}, runPolicy={"keepFailedAttempts": keep}).running("sft")
    t.end("sft", 65)
    t.look()
    t.refusals["sft", 1] = Refusal(Reason.FORBIDDEN, "deleting ConfigMap reviews-sft-1: no")
    t.look(1)
    assert (t.condition("ChildrenReady").status == "False") == (keep == 0)
