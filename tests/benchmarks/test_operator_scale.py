"""The benchmark's arithmetic as tables, and one run of all its parts with a few jobs."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from scale.audit import (
    AuditLog,
    Request,
    is_counted_write,
    job_of_child,
    seconds_to_child,
    status_rule,
    without_progress,
)
from scale.figures import goals, percentile, rate_of, spread, table
from scale.kubelet import STEPS_PER_SECOND, exposition, result

from rlhf_api.metrics import Metric, metric_name
from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import StageResult

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "operator_scale.py"
DIGEST = "sha256:" + "b" * 64


def line(verb: str, resource: str, name: str = "one", **more: Any) -> str:
    """A line of the audit log."""
    plural, _, subresource = resource.partition("/")
    event = {
        "level": "Metadata",
        "stage": "ResponseComplete",
        "verb": verb,
        "user": {"username": "rlhf-operator", "groups": ["system:authenticated"]},
        "objectRef": {"resource": plural, "namespace": "here", "name": name}
        | ({"subresource": subresource} if subresource else {}),
        "responseStatus": {"metadata": {}, "code": 201 if verb == "create" else 200},
        "requestReceivedTimestamp": "2026-11-25T12:00:00.250000Z",
        "stageTimestamp": "2026-11-25T12:00:00.258500Z",
    }
    return json.dumps(event | more)


def request(verb: str, resource: str, name: str = "one", **more: Any) -> Request:
    return Request.from_line(line(verb, resource, name, **more))


def written(name: str = "one", **status: Any) -> Request:
    """A write of a job's status."""
    return request("patch", "rlhfjobs/status", name, responseObject={"status": status})


def refused_write() -> Request:
    """Its answer is a Status, whose own field `status` is a word."""
    answer = {"kind": "Status", "status": "Failure"}
    return request("patch", "rlhfjobs/status", responseObject=answer, responseStatus={"code": 409})


def at(second: float) -> str:
    return f"2026-11-25T12:00:{second:09.6f}Z"


@pytest.mark.parametrize(
    ("share", "expected"), [(0.001, 1), (0.5, 50), (0.501, 51), (0.99, 99), (1, 100)]
)
def test_percentile_is_a_value_that_was_measured(share: float, expected: float) -> None:
    assert percentile(range(100, 0, -1), share) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.001, 1))
def test_enough_values_do_not_exceed_a_percentile(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) < share * len(values)


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0), ([1.0], 1.5)])
def test_percentile_of_nothing_is_refused(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match=r"give one|nothing was measured"):
        percentile(values, share)


def test_a_line_is_read_with_its_microseconds() -> None:
    found = request("patch", "rlhfjobs/status")
    assert (found.user, found.kind, found.code) == (
        "rlhf-operator",
        "patch rlhfjobs/status",
        200,
    )
    assert found.answered - found.received == pytest.approx(0.0085, abs=1e-6)


def test_a_line_without_object_is_read() -> None:
    found = request("get", "", objectRef=None, responseStatus=None)
    assert (found.resource, found.code, found.is_read) == ("", 0, True)


@pytest.mark.parametrize(
    ("verb", "resource", "counted"),
    [
        ("create", "jobs", True),
        ("patch", "rlhfjobs/status", True),
        ("delete", "jobs", True),
        ("create", "events", False),
        ("update", "leases", False),
        *((verb, "jobs", False) for verb in ("get", "list", "watch")),
    ],
)
def test_which_requests_are_writes(verb: str, resource: str, counted: bool) -> None:
    assert is_counted_write(request(verb, resource)) is counted


def test_refused_writes_count() -> None:
    assert is_counted_write(request("patch", "rlhfjobs/status", responseStatus={"code": 409}))


def test_time_to_child_is_from_answer_to_the_first_answer() -> None:
    log = [
        request("create", "rlhfjobs", "my-job", stageTimestamp=at(1)),
        request("create", "rlhfjobs", "alone", stageTimestamp=at(1)),
        request("create", "rlhfjobs", "refused", responseStatus={"code": 422}),
        request("create", "jobs", "my-job-sft-1", responseStatus={"code": 500}),
        request("create", "jobs", "my-job-ppo-1", stageTimestamp=at(9)),
        request("create", "jobs", "my-job-sft-1", stageTimestamp=at(1.025)),
        request("create", "jobs", "stranger-sft-1", stageTimestamp=at(1.025)),
    ]
    assert seconds_to_child(log, "here") == {"my-job": pytest.approx(0.025, abs=1e-6)}
    assert seconds_to_child(log, "elsewhere") == {}


@pytest.mark.parametrize(("stage", "attempt"), list(product(StageName, (1, 12))))
def test_a_child_tells_its_job(stage: StageName, attempt: int) -> None:
    assert job_of_child(f"a-job-2-{stage}-{attempt}") == "a-job-2"


def stage_status(step: int, **more: Any) -> dict[str, Any]:
    """A stage that has told of itself at `step`, and for the first time at step 2."""
    progress = {"step": step, "totalSteps": 10, "percent": 10 * step}
    told = {"progress": progress, "metrics": {"loss": 1 / step}, "lastProgressTime": at(step)}
    first = {"reportedAttempt": 1} if step > 1 else {}
    return {"stages": {"sft": {"state": "Running", **told, **first, **more}}}


def condition(kind: str, status: str = "True") -> dict[str, Any]:
    told = {"reason": "Why", "message": "", "lastTransitionTime": at(1)}
    return {"type": kind, "status": status, **told}


@pytest.mark.parametrize(
    ("second", "kept"),
    [
        (written(**stage_status(2)), 1),
        (written(**stage_status(2), summary={"progress": "2%", "reward": "1.00"}), 1),
        (written(**stage_status(2), conditions=[condition("ProgressReporting")]), 1),
        (written(**stage_status(2, state="Succeeded")), 2),
        (written(**stage_status(2, restarts=1)), 2),
        (written(**stage_status(2, lastCheckpointStep=2)), 2),
        (written(**stage_status(2, verdicts={"KL": "high"})), 2),
        (written(**stage_status(2), summary={"reason": "Finished"}), 2),
        (written(**stage_status(2), conditions=[condition("Running")]), 2),
        (refused_write(), 2),
        (written("another", **stage_status(2)), 2),
        (request("create", "jobs"), 2),
    ],
)
def test_writes_of_mere_progress_are_left_out(second: Request, kept: int) -> None:
    first = written(**stage_status(1), summary={})
    assert len(list(without_progress([first, second]))) == kept


def test_reporting_is_progress_and_another_condition_is_not() -> None:
    def turning(kind: str) -> list[Request]:
        states = [condition(kind, each) for each in ("True", "Unknown")]
        return [written(**stage_status(1), conditions=[each]) for each in states]

    assert len(list(without_progress(turning("ProgressReporting")))) == 1
    assert len(list(without_progress(turning("Running")))) == 2


def test_the_log_is_followed_through_its_rotation(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    whole = line("get", "pods", "b")
    path.write_text(line("get", "pods", "a") + "\n" + whole[:40])
    log = AuditLog(path)
    assert [each.name for each in log.read()] == ["a"]
    with path.open("a") as file:
        file.write(whole[40:] + "\n")
    path.rename(tmp_path / "audit-old.log")
    path.write_text(line("get", "pods", "c") + "\n")
    assert [each.name for each in log.read()] == ["a", "b", "c"]
    assert [each.name for each in log.read()] == ["a", "b", "c"]
    log.close()


def test_the_audit_rule_names_the_jobs_of_one_namespace() -> None:
    rule = status_rule("there")
    assert rule["namespaces"] == ["there"]
    assert rule["resources"] == [{"group": "rlhf.dev", "resources": ["rlhfjobs/status"]}]


def test_pods_serve_what_a_trainer_does() -> None:
    labels = {"rlhfjob": "one", "stage": "sft", "attempt": "1"}
    found = {
        family.name: family.samples[0]
        for family in text_string_to_metric_families(exposition(labels, 7.19))
    }
    step = found[metric_name(Metric.STEP)]
    assert (step.value, step.labels) == (int(7.19 * STEPS_PER_SECOND), labels)
    assert metric_name(Metric.TOTAL_STEPS) in found


def test_pods_end_with_a_result_that_is_understood() -> None:
    status = {"stages": {"reward": {"configDigest": DIGEST}}}
    job = {"metadata": {"name": "one", "uid": "0123456789"}, "status": status}
    found = StageResult.from_message(result(job, StageName.REWARD, 2))
    assert found is not None
    assert found.artifact is not None
    assert (found.exit_code, found.attempt, found.config_digest) == (0, 2, DIGEST)
    assert found.artifact.uri == "one-01234567/reward/attempt-2/artifact"


@pytest.mark.parametrize(
    ("value", "rate", "missed"),
    [(0.059, 20, False), (0.061, 20, True), (0.061, 100, False), (0.6, 100, True)],
)
def test_the_table_says_which_goals_are_missed(value: float, rate: float, missed: bool) -> None:
    text = table({"apply_to_child_p99_s": value, "jobs": 3}, rate)
    assert len(text.splitlines()) == 2
    assert ("missed" in text) is missed


@pytest.mark.parametrize(
    ("times", "rate"), [([], 0), ([5.0], 0), ([5.0, 5.0], 0), ([2.0, 1.0, 1.5], 2)]
)
def test_rate_is_that_of_the_times_between(times: list[float], rate: float) -> None:
    assert rate_of(times) == rate


def test_spread_has_both_keys() -> None:
    assert spread("wait", [0.25, 0.5, 1.0]) == {"wait_p50_s": 0.5, "wait_p99_s": 1.0}


@pytest.mark.timeout(280)
def test_all_parts_run_and_give_their_figures(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    few = ["--jobs", "5", "--rate", "10", "--staged", "1", "--rest", "3"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *few, "--json", str(path), "--folder", str(tmp_path / "f")],
        capture_output=True,
        text=True,
        timeout=270,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(path.read_text())
    assert goals(10).keys() <= figures.keys()
    assert figures.keys() >= {"jobs", "rate", "cpu_count", "api_requests_per_second"}
    assert all(isinstance(value, int | float | str) for value in figures.values())
    assert 0 < figures["floor_create_s"] < 60
    assert 0 < figures["apply_to_child_p50_s"] <= figures["apply_to_child_p99_s"] < 60
    assert 3 * 3 <= figures["writes_per_job"] <= goals(10)["writes_per_job"].limit
    assert figures["running"] == 5
    assert 0 <= figures["progress_age_p50_s"] <= figures["progress_age_max_s"] < 120
    assert 20 < figures["rss_mb"] < 1000
    assert "apply_to_child_p99_s" in done.stderr
