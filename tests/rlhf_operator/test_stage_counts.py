"""What became of stages is counted once, by the step from one written status to the next."""

from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY

from rlhf_api.names import (
    REASON_OF_EXIT_CODE,
    ExitCode,
    FailureClass,
    Reason,
    StageName,
    failure_class,
)
from rlhf_api.v1alpha1 import RLHFJobStatus
from rlhf_operator.metrics import PREFIX, RESTART_REASONS
from rlhf_operator.planning.observed import ProcessPhase
from rlhf_operator.stage_counts import count_stages

MakeTrial = Callable[..., Any]
BASE = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://a/b"}}


class Counts:
    """How much the counters of stage sft have grown since this was made."""

    def __init__(self) -> None:
        self._before = self._now()

    def grown(self) -> dict[str, float]:
        now = self._now()
        return {
            key: value - self._before.get(key, 0)
            for key, value in now.items()
            if value != self._before.get(key, 0)
        }

    def _now(self) -> dict[str, float]:
        names = ("stage_restarts_total", "stage_disruptions_total")
        names += ("stage_duration_seconds_sum", "stage_duration_seconds_count")
        return {
            " ".join([sample.name.removeprefix(PREFIX), *map(str, sample.labels.values())]): (
                sample.value
            )
            for family in REGISTRY.collect()
            for sample in family.samples
            if sample.name.removeprefix(PREFIX) in names
        }


def passes(trial: Any, after: float = 0) -> None:
    """A pass whose status is written and counted, twice as after a lost answer."""
    told = trial.job.status
    trial.look(after)
    count_stages(told, trial.job.status)
    count_stages(trial.job.status, trial.job.status)


def started(trial: MakeTrial, **spec: Any) -> Any:
    t = trial(stages={"sft": BASE}, **spec)
    passes(t)
    t.run("sft", step=1)
    passes(t, 10)
    return t


def test_an_end_is_counted_with_its_seconds(trial: MakeTrial) -> None:
    counts, t = Counts(), started(trial)
    t.finish("sft")
    passes(t, 3600)
    passes(t, 10)
    assert counts.grown() == {
        "stage_duration_seconds_count sft Succeeded": 1,
        "stage_duration_seconds_sum sft Succeeded": 3610,
    }


def test_idle_time_is_left_out(trial: MakeTrial) -> None:
    counts, t = Counts(), started(trial)
    t.spec(suspend=True)
    passes(t)
    t.end("sft", 75, said={"last_checkpoint_step": 1})
    passes(t)
    passes(t)
    t.spec(suspend=False)
    passes(t, 500)
    t.run("sft", step=2)
    passes(t)
    t.end("sft", 65)
    passes(t, 20)
    assert counts.grown() == {
        "stage_disruptions_total sft": 1,
        "stage_duration_seconds_count sft Failed": 1,
        "stage_duration_seconds_sum sft Failed": 30,
    }


@pytest.mark.parametrize(
    ("code", "changes", "key"),
    [
        (1, {}, "stage_restarts_total sft Crashed"),
        (74, {"result": None}, "stage_restarts_total sft IOError"),
        (75, {"said": {"last_checkpoint_step": 5}}, "stage_disruptions_total sft"),
    ],
)
def test_a_restart_is_counted_by_what_it_costs(
    trial: MakeTrial, code: int, changes: dict[str, Any], key: str
) -> None:
    counts, t = Counts(), started(trial)
    t.end("sft", code, **changes)
    passes(t)
    passes(t, 5)
    assert t.stage("sft").attempt == 2
    assert counts.grown() == {key: 1}


RESTARTED = [
    code
    for code in ExitCode
    if code != ExitCode.DONE
    and failure_class(code) not in (FailureClass.GUARDRAIL, FailureClass.USER_ERROR)
]
"""Exit codes after which a stage is restarted."""


@pytest.mark.parametrize("code", RESTARTED)
def test_the_first_restart_of_a_reason_is_an_increase(trial: MakeTrial, code: ExitCode) -> None:
    t = started(trial)
    t.end("sft", code, result=None)
    passes(t)
    reason = t.stage("sft").reason
    assert t.stage("sft").restarts == 1
    assert reason == REASON_OF_EXIT_CODE.get(code, Reason.CRASHED)
    assert reason in RESTART_REASONS


def deleted(t: Any) -> None:
    t.attempts.clear()


def out_of_memory(t: Any) -> None:
    t.end("sft", ExitCode.KILLED, result=None, reason=Reason.OUT_OF_MEMORY)


def hangs(t: Any) -> None:
    passes(t, t.job.spec.run_policy.progress_deadline_seconds + 1)
    t.attempts.clear()


def ends_without_a_result(t: Any) -> None:
    ended = t.process("sft", phase=ProcessPhase.SUCCEEDED, exit_code=0, finished_at=t.now)
    t.put("sft", processes=(ended,), complete=True)


@pytest.mark.parametrize(
    ("happens", "reason"),
    [
        (deleted, Reason.DISRUPTED),
        (out_of_memory, Reason.OUT_OF_MEMORY),
        (hangs, Reason.PROGRESS_DEADLINE_EXCEEDED),
        (ends_without_a_result, Reason.ARTIFACT_INVALID),
    ],
)
def test_so_is_that_of_a_reason_which_is_no_exit_code(
    trial: MakeTrial, happens: Callable[[Any], None], reason: Reason
) -> None:
    counts, t = Counts(), started(trial)
    happens(t)
    passes(t)
    assert counts.grown() == {f"stage_restarts_total sft {reason}": 1}
    assert reason in RESTART_REASONS


def test_restarts_are_told_from_0_by_each_stage_and_reason() -> None:
    # Some may have grown in other tests.
    told = {
        (sample.labels["stage"], sample.labels["reason"])
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == f"{PREFIX}stage_restarts_total"
    }
    assert told >= {(stage.value, each.value) for stage in StageName for each in RESTART_REASONS}


def test_a_new_leader_counts_nothing_again(trial: MakeTrial) -> None:
    t = started(trial)
    t.end("sft", 1)
    passes(t)
    counts = Counts()
    found = RLHFJobStatus.model_validate_json(t.job.status.model_dump_json(by_alias=True))
    count_stages(found, found)
    t.look(5)
    count_stages(found, t.job.status)
    assert counts.grown() == {}


def test_a_stage_that_never_began_has_no_duration(trial: MakeTrial) -> None:
    t = trial(stages={"sft": BASE})
    t.placement = type(t.placement)(storage="")
    counts = Counts()
    passes(t)
    assert t.stage("sft").state == "Failed"
    assert counts.grown() == {}
