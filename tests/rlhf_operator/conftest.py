"""Jobs, attempts and results as `plan` sees them."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rlhf_api.names import ExitCode, Reason, StageName
from rlhf_api.v1alpha1 import Artifact, RLHFJob, RLHFJobStatus, StageResult
from rlhf_operator.planning.actions import StartAttempt, StopAttempt
from rlhf_operator.planning.configs import Placement
from rlhf_operator.planning.observed import (
    Observed,
    ObservedAttempt,
    ObservedProcess,
    ObservedProgress,
    Oddity,
    ProcessPhase,
    Refusal,
)
from rlhf_operator.planning.plan import Plan, plan

UID = "0123456789abcdef"
START = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
PLACEMENT = Placement(storage="/storage")
DIGEST = "sha256:" + "a" * 64


def make_job(**spec: Any) -> RLHFJob:
    """A job of sft, reward on sft, and ppo on both; `stages` replaces them."""
    dataset = {"uri": "file:///data/rows.jsonl"}
    stages = {
        "sft": {"model": {"uri": "hf://org/base"}, "dataset": dataset},
        "reward": {"model": {"fromStage": "sft"}, "dataset": dataset},
        "ppo": {
            "model": {"fromStage": "sft"},
            "rewardModel": {"fromStage": "reward"},
            "dataset": dataset,
        },
    }
    return RLHFJob.from_document(
        {
            "apiVersion": "rlhf.dev/v1alpha1",
            "kind": "RLHFJob",
            "metadata": {"name": "reviews", "uid": UID},
            "spec": {"stages": stages} | spec,
        }
    )


class Trial:
    """A job and what stands beside it, moved on by hand; the clock goes in seconds."""

    def __init__(self, job: RLHFJob) -> None:
        self.job = job
        self.attempts: dict[tuple[StageName, int], ObservedAttempt] = {}
        self.seconds = 0.0
        self.scrape_error = ""
        self.refusals: dict[tuple[StageName, int], Refusal] = {}
        self.oddities: tuple[Oddity, ...] = ()
        self.placement = PLACEMENT
        self.last = Plan((), RLHFJobStatus())

    @property
    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def stage(self, name: str) -> Any:
        return getattr(self.job.status.stages, name)

    def condition(self, kind: str) -> Any:
        found = [each for each in self.job.status.conditions if each.type == kind]
        return found[0] if found else None

    def look(self, after: float = 0) -> Plan:
        """A pass `after` seconds later, whose status is written."""
        self.seconds += after
        self.last = plan(self.job, self.seen(), self.now, self.placement)
        self.job = self.job.model_copy(update={"status": self.last.status})
        return self.last

    def seen(self) -> Observed:
        attempts = self.attempts.values()
        error = self.scrape_error
        return Observed(
            tuple(replace(each, scrape_error=error) if error else each for each in attempts),
            dict(self.refusals),
            self.oddities,
        )

    def wait(self) -> float | None:
        """Seconds until the last pass wants the next one."""
        when = self.last.look_at
        return None if when is None else (when - self.now).total_seconds()

    def running(self, *names: str) -> "Trial":
        """The same with each stage before the last done and the last one running."""
        self.look()
        for name in names[:-1]:
            self.run(name)
            self.look(1)
            self.finish(name)
            self.look(1)
        self.run(names[-1], step=10)
        self.look(1)
        return self

    def spec(self, **changes: Any) -> None:
        """As the API server: another spec is another generation."""
        spec, metadata = self.job.spec.model_copy(update=changes), self.job.metadata
        if spec != self.job.spec:
            metadata = metadata.model_copy(update={"generation": metadata.generation + 1})
        self.job = self.job.model_copy(update={"spec": spec, "metadata": metadata})

    def started(self) -> list[tuple[str, int]]:
        return [
            (each.stage.value, each.attempt)
            for each in self.last.actions
            if isinstance(each, StartAttempt)
        ]

    def stops(self) -> list[tuple[str, int]]:
        return [
            (each.stage.value, each.attempt)
            for each in self.last.actions
            if isinstance(each, StopAttempt)
        ]

    def put(self, name: str, **changes: Any) -> None:
        """The current attempt of a stage, as seen from now on."""
        stage = StageName(name)
        number = self.stage(name).attempt
        old = self.attempts.get((stage, number), ObservedAttempt(stage, number))
        self.attempts[stage, number] = ObservedAttempt(**(vars(old) | changes))

    def process(self, name: str, **changes: Any) -> ObservedProcess:
        return ObservedProcess(**({"name": f"reviews-{name}-0"} | changes))

    def run(self, name: str, **progress: Any) -> None:
        """The current attempt runs and tells how far it is."""
        told = ObservedProgress(**({"step": 0, "total_steps": 100} | progress))
        runs = self.process(name, phase=ProcessPhase.RUNNING, ready=True)
        self.put(name, processes=(runs,), progress=told)

    def result(self, name: str, code: int = 0, **changes: Any) -> StageResult:
        stage = self.stage(name)
        folder = f"reviews-{UID[:8]}/{name}/attempt-{stage.attempt}/artifact"
        said = {
            "stage": StageName(name),
            "attempt": stage.attempt,
            "config_digest": stage.config_digest,
            "exit_code": code,
            "reason": Reason.CRASHED if code else Reason.FINISHED,
            "artifact": None if code else Artifact(uri=folder, digest=DIGEST),
        }
        return StageResult(**(said | changes))

    def finish(self, name: str, **changes: Any) -> None:
        """The current attempt ends well."""
        ended = self.process(
            name,
            phase=ProcessPhase.SUCCEEDED,
            exit_code=0,
            finished_at=self.now,
            result=self.result(name, **changes),
        )
        self.put(name, processes=(ended,), complete=True)

    def end(self, name: str, code: int = ExitCode.CRASH, **changes: Any) -> None:
        """The current attempt ends otherwise; `said` changes its result."""
        said = changes.pop("said", {})
        process = {
            "phase": ProcessPhase.FAILED,
            "exit_code": code,
            "finished_at": self.now,
            "result": self.result(name, code, **said),
        }
        self.put(name, processes=(self.process(name, **(process | changes)),), failed=True)


@pytest.fixture
def trial() -> Callable[..., Trial]:
    """Makes a trial of a job whose spec has the given fields."""
    return lambda **spec: Trial(make_job(**spec))
