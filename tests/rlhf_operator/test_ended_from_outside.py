"""Limits and rules that others set on pods and Jobs, and that end them, are told in their words."""

import json

import pytest
from raw_gangs import NOW, STOPPED, ended, make_job, make_pod, seen

from rlhf_api.names import Reason
from rlhf_operator.planning.failures import judge

JOB_FAILED = [
    ("DeadlineExceeded", "Job was active longer than specified deadline"),
    (
        "PodFailurePolicy",
        "Container trainer for pod team/demo-sft-3-0 failed with exit code 1 matching FailJob "
        "rule at index 0",
    ),
    ("InventedLater", ""),
]


@pytest.mark.parametrize("code", [None, 75, 137, 143])
@pytest.mark.parametrize(
    ("reason", "message", "said"),
    [
        (
            "DeadlineExceeded",
            "Pod was active on the node longer than the specified deadline",
            "DeadlineExceeded: Pod was active on the node longer than the specified deadline",
        ),
        ("InventedLater", "", "InventedLater"),
    ],
)
def test_what_the_platform_says_of_the_end_of_a_pod_that_ran_is_told(
    code: int | None, reason: str, message: str, said: str
) -> None:
    result = json.dumps(STOPPED) if code == 75 else ""
    state = {"running": {}} if code is None else ended(code, message=result)
    failed = make_pod(phase="Failed", state=state)
    failed["status"] |= {"reason": reason, "message": message}
    gang = seen(make_job(("Failed",)), failed)
    verdict = judge(gang, NOW)
    assert verdict is not None
    assert (verdict.reason, verdict.final, verdict.patient) == (Reason.CHILD_ENDED, False, False)
    assert verdict.message.startswith(f"pod demo-sft-3-0-x was ended from outside: {said}; change")
    assert (gang.processes[0].result is not None) == (code == 75)


@pytest.mark.parametrize(("code", "reason"), [(65, Reason.DATA_ERROR), (1, Reason.CRASHED)])
def test_what_ended_by_itself_before_a_pods_deadline_says_why(code: int, reason: Reason) -> None:
    own = json.dumps(STOPPED | {"exitCode": code, "reason": reason, "message": "line 3"})
    failed = make_pod(phase="Failed", state=ended(code, message=own))
    failed["status"] |= {"reason": "DeadlineExceeded", "message": "Pod was active"}
    verdict = judge(seen(make_job(("Failed",)), failed), NOW)
    assert verdict is not None
    assert (verdict.reason, verdict.message) == (reason, "line 3")


@pytest.mark.parametrize(("reason", "message"), JOB_FAILED)
@pytest.mark.parametrize("kind", ["FailureTarget", "Failed"])
def test_a_job_that_is_ended_from_outside_says_why(reason: str, message: str, kind: str) -> None:
    job = make_job((kind,))
    job["status"]["conditions"][0] |= {"reason": reason, "message": message}
    text = f"{reason}: {message}" if message else reason
    gang = seen(job)
    assert gang.ended_by.startswith(f"Job demo-sft-3 was ended from outside: {text}; change what")
    verdict = judge(gang, NOW)
    assert verdict is not None
    assert (verdict.reason, verdict.message) == (Reason.CHILD_ENDED, gang.ended_by)


@pytest.mark.parametrize("reason", ["BackoffLimitExceeded", None])
def test_a_job_that_fails_since_a_pod_has_says_nothing_more(reason: str | None) -> None:
    job = make_job(("Failed",))
    told = {"message": "Job has reached the specified backoff limit", "reason": reason}
    job["status"]["conditions"][0] |= told
    assert seen(job).ended_by == ""
