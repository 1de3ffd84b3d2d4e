"""What the operator's /metrics tells of itself and of jobs, while they run and after their end."""

import signal
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from metrics_pages import faults
from operating import Jobs, OperatorProcess, eventually, stage
from rank_zero import RankZero

from rlhf_api.metrics import Metric, metric_name
from rlhf_api.names import GuardrailRule

KEEP_SECONDS = 20
LONG = 180.0
"""Seconds: many times KEEP_SECONDS, or what it takes to follow a leader that was killed."""
KL = GuardrailRule.KL_ABOVE_LIMIT
PPO = {"ppo": stage(rewardModel={"uri": "hf://org/reward"})}
VALUE, THRESHOLD = 12.5, 10.0


def trainer_page(*, broken: bool) -> str:
    """What a trainer tells beside its steps."""
    values = {
        f"{metric_name(Metric.KL)}": VALUE if broken else 0.5,
        f"{metric_name(Metric.NONFINITE)}": 0,
        f"{metric_name(Metric.LAST_CHECKPOINT_TIMESTAMP)}": 1.7e9,
    }
    for name, value in (("verdict", int(broken)), ("value", 0.5), ("threshold", THRESHOLD)):
        values[f'rlhf_train_health_{name}{{rule="{KL}"}}'] = value
    return "".join(f"{name} {value}\n" for name, value in values.items())


def verdict(action: str) -> dict[str, Any]:
    return {"rule": KL, "action": action, "step": 8, "value": VALUE, "threshold": THRESHOLD}


def ends_by_guardrail(jobs: Jobs, name: str, action: str) -> None:
    """As the kubelet: PPO ends by exit code 42, before anybody has read its last page."""
    said = {"reason": "Guardrail", "lastCheckpointStep": 7, "verdicts": [verdict(action)]}
    jobs.finish(name, "ppo", code=42, message=jobs.result(name, "ppo", 1, 42, **said))


@contextmanager
def operating(jobs: Jobs, folder: Path, **settings: str) -> Iterator[OperatorProcess]:
    """An operator that has no fault of its own."""
    process = OperatorProcess(jobs.access, jobs.namespace, folder, **settings)
    try:
        yield process
    finally:
        process.end()
    log = process.log.read_text()
    assert "Traceback" not in log, log


@pytest.fixture
def told(jobs: Jobs) -> Callable[..., float | None]:
    """Reads a sample of a job; None where there is none."""

    def read(operator: OperatorProcess, key: str, job: str, **labels: str) -> float | None:
        named = {"namespace": jobs.namespace, "rlhfjob": job} | labels
        return operator.find_metric(f"rlhf_job_{key}", **named)

    return read


def test_a_job_is_told_while_it_runs_and_for_a_time_after_it_failed(
    jobs: Jobs, tmp_path: Path, told: Callable[..., Any]
) -> None:
    keep = str(KEEP_SECONDS)
    with (
        RankZero(7, 5, trainer_page(broken=False)) as page,
        operating(jobs, tmp_path, JOB_METRICS_SECONDS=keep) as operator,
    ):
        operator.wait_until_leading()
        ppo = {"stage": "ppo"}
        first = ppo | {"attempt": "1"}
        jobs.create("drifts", stages=PPO)
        jobs.wait_for_pods("drifts", "ppo")
        eventually(lambda: told(operator, "pending_timestamp_seconds", "drifts", **ppo))
        jobs.run("drifts", "ppo")
        jobs.reaches("drifts", "Running", "ppo")
        jobs.reach(jobs.pods("drifts", "ppo")[0], page.address)
        eventually(lambda: told(operator, "step", "drifts", **first) == 7)
        rule = first | {"rule": KL}
        eventually(
            lambda: told(
                operator, "condition", "drifts", stage="", type="Healthy", reason="WithinLimits"
            )
        )
        assert told(operator, "health_verdict", "drifts", **rule) == 0
        assert told(operator, "health_threshold", "drifts", **rule) == THRESHOLD
        assert told(operator, "last_checkpoint_timestamp_seconds", "drifts", **first) == 1.7e9
        assert told(operator, "progress_timestamp_seconds", "drifts", **ppo) > 1.7e9
        assert told(operator, "pending_timestamp_seconds", "drifts", **ppo) is None
        assert operator.metric("rlhf_operator_jobs", phase="Running") == 1
        assert operator.metric("rlhf_operator_jobs", phase="Failed") == 0
        assert faults(operator.get("/metrics")[1]) == ""
        ends_by_guardrail(jobs, "drifts", "Fail")
        failed = ppo | {"type": "Failed", "reason": "Guardrail"}
        eventually(lambda: told(operator, "condition", "drifts", **failed))
        assert told(operator, "health_verdict", "drifts", **rule) == 1
        assert told(operator, "health_value", "drifts", **rule) == VALUE
        assert told(operator, "kl", "drifts", **first) == 0.5
        ended = {"stage": "ppo", "outcome": "Failed"}
        assert operator.metric("rlhf_operator_stage_duration_seconds_count", **ended) == 1
        assert faults(operator.get("/metrics")[1]) == ""
        eventually(lambda: "drifts" not in operator.get("/metrics")[1], LONG)
        assert operator.metric("rlhf_operator_jobs", phase="Failed") == 1


def test_a_new_leader_tells_the_same_and_one_that_waits_tells_of_no_job(
    jobs: Jobs, tmp_path: Path, told: Callable[..., Any]
) -> None:
    rule = {"stage": "ppo", "attempt": "1", "rule": KL}

    def verdict_of(operator: OperatorProcess) -> list[float | None]:
        keys = ("health_verdict", "health_value", "health_threshold")
        return [told(operator, key, "held", **rule) for key in keys]

    with RankZero(7, 5, trainer_page(broken=False)) as page:
        with operating(jobs, tmp_path) as operator:
            operator.wait_until_leading()
            jobs.create("held", stages=PPO)
            jobs.run("held", "ppo")
            jobs.reaches("held", "Running", "ppo")
            jobs.reach(jobs.pods("held", "ppo")[0], page.address)
            eventually(lambda: jobs.stage("held", "ppo").get("verdicts") == {})
            ends_by_guardrail(jobs, "held", "Suspend")
            eventually(lambda: jobs.phase("held") == "Suspended")
            eventually(lambda: verdict_of(operator) == [1, VALUE, THRESHOLD])
            assert operator.metric("rlhf_operator_stage_disruptions_total", stage="ppo") == 1
            operator.end(signal.SIGKILL)
        with operating(jobs, tmp_path) as leader, operating(jobs, tmp_path) as second:
            both = (leader, second)
            eventually(
                lambda: any(each.metric("rlhf_operator_leader") for each in both),
                LONG,
                not_yet=OSError,
            )
            if not leader.metric("rlhf_operator_leader"):
                leader, second = second, leader
            eventually(lambda: verdict_of(leader) == [1, VALUE, THRESHOLD])
            assert told(leader, "kl", "held", stage="ppo", attempt="1") == 0.5
            # What the first one has counted is not counted again.
            assert leader.metric("rlhf_operator_stage_disruptions_total", stage="ppo") == 0
            assert told(leader, "disruptions_total", "held", stage="ppo") == 1
            eventually(second.is_ready)
            page_of_second = second.get("/metrics")[1]
            assert "rlhf_job_" not in page_of_second
            assert "rlhf_operator_jobs{" not in page_of_second
            jobs.delete("held")
            eventually(lambda: "held" not in leader.get("/metrics")[1])


def test_health_and_metrics_are_served(operator: OperatorProcess) -> None:
    assert operator.get("/healthz") == (200, "ok")
    eventually(operator.is_ready)
    status, text = operator.get("/metrics")
    assert status == 200
    assert "rlhf_operator_leader 1.0" in text
    with pytest.raises(urllib.error.HTTPError):
        operator.get("/nothing")
