"""What Prometheus is told of the jobs in the store: of which, how long, and how much at most."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Sample

from rlhf_api.metrics import Metric
from rlhf_api.names import GuardrailRule, Phase, StageName
from rlhf_operator.job_metrics import JobMetrics, exported
from rlhf_operator.job_series import MIRRORED
from rlhf_operator.metrics import JOBS, UNKNOWN
from rlhf_operator.planning.observed import ObservedProgress, ObservedVerdict
from rlhf_operator.scraper import Reading
from rlhf_operator.store import Kind, Store

Raw = dict[str, Any]

KEEP = 900.0
END = datetime(2026, 1, 1, 12, tzinfo=UTC)
THEN = "2026-01-01T12:00:00Z"
MOST_SERIES = 60_000


class Read:
    """What a scraper has read, by uid."""

    def __init__(self, readings: Mapping[StageName, Reading] | None = None) -> None:
        self._readings = readings or {}

    def readings(self, uid: str) -> Mapping[StageName, Reading]:
        return self._readings


class Trial:
    """A store of jobs, and a registry in which they are told."""

    def __init__(self, readings: Mapping[StageName, Reading] | None = None) -> None:
        self.store, self.registry, self.now = Store(), CollectorRegistry(), END
        self.looks: list[Callable[[], None]] = []
        self.metrics = JobMetrics(self.store, Read(readings), KEEP, lambda: self.now)

    def put(self, name: str, version: int = 1, **more: Any) -> Raw:
        status = more.pop("status", {"phase": "Running", "stages": {"sft": stage()}})
        metadata = {"name": name, "namespace": "team", "uid": name, "resourceVersion": str(version)}
        raw = {"metadata": metadata | more, "status": status}
        self.store.put(Kind.RLHFJOB, raw)
        return raw

    def samples(self, name: str = "rlhf_job_step") -> list[Sample]:
        self.metrics.look()
        families = self.registry.collect()
        return [each for family in families for each in family.samples if each.name == name]

    def told(self) -> set[str]:
        """The jobs that have series."""
        return {sample.labels["rlhfjob"] for sample in self.samples()}


def stage(state: str = "Running", **more: Any) -> Raw:
    given = {"state": state, "attempt": 1, "reportedAttempt": 1}
    return given | {"progress": {"step": 5, "totalSteps": 10, "percent": 50}} | more


def test_a_job_is_told_until_its_deletion_or_its_time_after_the_end() -> None:
    t = Trial()
    t.registry.register(t.metrics)
    running = t.put("running")
    ended = {"phase": "Failed", "completionTime": THEN, "stages": {"sft": stage("Failed")}}
    t.put("ended", status=ended)
    t.now = END + timedelta(minutes=14)
    assert t.told() == {"running", "ended"}
    t.now = END + timedelta(minutes=16)
    assert t.told() == {"running"}
    t.store.remove(Kind.RLHFJOB, running)
    assert t.told() == set()


def test_a_job_that_is_being_deleted_or_cannot_be_read_is_not_told() -> None:
    t = Trial()
    t.registry.register(t.metrics)
    t.put("leaving", deletionTimestamp=THEN)
    t.put("broken", status={"phase": "Running", "startTime": 7})
    t.put("new", status=None)
    t.put("sound")
    assert t.told() == {"sound"}
    assert {each.labels["rlhfjob"] for each in t.samples("rlhf_job_restarts_total")} == {"sound"}


def test_one_answer_tells_what_was_there_at_its_look() -> None:
    t = Trial()
    t.registry.register(t.metrics)
    t.put("one")
    t.metrics.look()
    t.put("two")
    found = generate_latest(t.registry).decode()
    assert 'rlhfjob="one"' in found
    assert 'rlhfjob="two"' not in found


def test_counters_and_gauges_say_what_they_are() -> None:
    t = Trial()
    t.registry.register(t.metrics)
    t.put("one")
    t.metrics.look()
    page = generate_latest(t.registry).decode()
    assert "# TYPE rlhf_job_restarts_total counter" in page
    assert "# TYPE rlhf_job_step gauge" in page
    assert 'rlhf_job_step{attempt="1",namespace="team",rlhfjob="one",stage="sft"} 5.0' in page
    # What nobody has told has no text either.
    assert "rlhf_job_critic_loss" not in page


def test_jobs_are_counted_by_phase_while_this_replica_leads() -> None:
    t = Trial()
    phases = ["Running", "Running", "Failed", None, "Melting"]
    for number, phase in enumerate(phases):
        t.put(str(number), status={"phase": phase} if phase else None)
    with exported(t.metrics, t.looks, t.registry):
        for look in t.looks:
            look()
        found = {sample.labels["phase"]: sample.value for sample in counted()}
        assert found == dict.fromkeys(Phase, 0) | {"Running": 2, "Failed": 1, UNKNOWN: 2}
    assert not t.looks
    assert not counted()
    assert not list(t.registry.collect())


def counted() -> list[Sample]:
    return [sample for family in JOBS.collect() for sample in family.samples]


def test_a_replica_that_leads_anew_tells_again() -> None:
    t = Trial()
    t.put("one")
    for _ in range(2):
        with exported(t.metrics, t.looks, t.registry):
            assert t.told() == {"one"}


def reading(attempt: int, metrics: list[Metric], *, judged: bool = False) -> Reading:
    verdicts = {rule: ObservedVerdict(True, 2.0, 1.0) for rule in GuardrailRule if judged}
    told = {metric.value: 1.5 for metric in metrics}
    return Reading(attempt, ObservedProgress(5, 10, metrics=told, verdicts=verdicts))


@pytest.mark.parametrize("broken", [0, len(GuardrailRule)])
def test_a_thousand_jobs_in_ppo_stay_below_the_bound(broken: int) -> None:
    """With all that a job can say while PPO runs: both stages before it, and every condition."""
    before = [Metric.STEP, Metric.TOTAL_STEPS, Metric.PROGRESS, Metric.ETA, Metric.LOSS]
    before += [Metric.NONFINITE, Metric.LAST_CHECKPOINT_STEP, Metric.LAST_CHECKPOINT_TIMESTAMP]
    # PPO tells its losses by other names.
    ppo = [metric for metric in MIRRORED if metric is not Metric.LOSS]
    t = Trial(
        {
            StageName.SFT: reading(1, before),
            StageName.REWARD: reading(1, before),
            StageName.PPO: reading(2, ppo, judged=True),
        }
    )
    t.registry.register(t.metrics)
    kinds = ["Accepted", "ChildrenReady", "Admitted", "Running", "Suspended", "Healthy"]
    conditions = [
        {"type": kind, "status": "True", "reason": "Valid", "message": ""}
        | {"lastTransitionTime": THEN}
        for kind in (*kinds, "ProgressReporting")
    ]
    rules = {rule.value: "2 against a threshold of 1 at update 5" for rule in list(GuardrailRule)}
    verdicts = dict(list(rules.items())[:broken])
    running = stage(attempt=2, reportedAttempt=2, lastProgressTime=THEN, verdicts=verdicts)
    done = stage("Succeeded", lastCheckpointStep=5)
    status = {"phase": "Running", "conditions": conditions}
    status["stages"] = {"sft": done, "reward": done, "ppo": running}
    for number in range(1000):
        t.put(f"job-{number}", status=status)
    t.metrics.look()
    samples = [sample for family in t.registry.collect() for sample in family.samples]
    assert len(samples) <= MOST_SERIES - 1000
    assert len({each.labels["rlhfjob"] for each in samples}) == 1000
