"""What keeps the operator from deleting: judged by what is said, told, and tried until it is done.

A webhook chooses the HTTP status of its refusal; none means that the object is gone.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from admission import Webhook
from operating import Jobs, OperatorProcess, eventually

MakeWebhook = Callable[..., Webhook]
LONG = 90.0
"""Seconds until what was refused a few times is tried again."""
LONGER = 180.0
"""Seconds until it is tried twice more."""
REFUSALS = {
    404: {"code": 404, "reason": "NotFound", "message": 'jobs.batch "x" not found'},
    409: {"code": 409, "reason": "Conflict", "message": "deletion is protected"},
}


def refuse(hook: Webhook, code: int, of: str) -> Webhook:
    """Let a webhook refuse the deletion of what is so called, in words of the API server's own."""
    return hook.answer(lambda seen: REFUSALS[code] if seen["metadata"]["name"] == of else None)


def refuses(jobs: Jobs, *what: str) -> None:
    """Until the API server asks the webhook: it learns of one a moment after it is registered."""
    args = ("delete", *what, f"--namespace={jobs.namespace}", "--dry-run=server")
    eventually(lambda: "denied the request" in jobs.access.kubectl(*args, check=False).stderr)


def told(jobs: Jobs, name: str, child: str, hook: Webhook) -> None:
    """Until the refusal is told, by condition and one Event, with its remedy."""
    ready = eventually(
        lambda: (
            found
            if (found := jobs.condition(name, "ChildrenReady")).get("reason") == "WebhookDenied"
            else None
        )
    )
    assert ready["message"].startswith(f'deleting {child}: admission webhook "{hook.name}" denied')
    assert ready["message"].endswith("let the operator do it there")
    eventually(lambda: ("Warning", "WebhookDenied") in jobs.events(name))


@pytest.mark.parametrize("code", REFUSALS)
def test_a_job_that_may_not_be_deleted_is_no_job_that_is_gone(
    operator: OperatorProcess, jobs: Jobs, webhook: MakeWebhook, code: int
) -> None:
    jobs.create("guarded")
    jobs.run("guarded")
    jobs.reaches("guarded", "Running")
    hook = refuse(webhook("jobs", "DELETE"), code, of="guarded-sft-1")
    refuses(jobs, "job", "guarded-sft-1")
    jobs.patch("guarded", suspend=True)
    told(jobs, "guarded", "Job guarded-sft-1", hook)
    jobs.patch("guarded", suspend=False)
    asked = len(hook.asked)
    eventually(lambda: len(hook.asked) > asked + 1, LONGER)
    found = jobs.stage("guarded")
    assert (found["state"], found["attempt"]) == ("Stopping", 1)
    assert not jobs.pods("guarded", attempt=2)
    hook.close()
    jobs.run("guarded", attempt=2, seconds=LONG)
    jobs.reaches("guarded", "Running", attempt=2)
    assert not jobs.pods("guarded", attempt=1)
    assert jobs.condition("guarded", "ChildrenReady")["status"] == "True"
    assert jobs.events("guarded").count(("Warning", "WebhookDenied")) == 1


def test_a_config_map_that_may_not_be_deleted_is_asked_for_again(
    operator: OperatorProcess, jobs: Jobs, webhook: MakeWebhook
) -> None:
    jobs.create("maps", runPolicy={"keepFailedAttempts": 0})
    jobs.run("maps")
    jobs.reaches("maps", "Running")
    hook = refuse(webhook("configmaps", "DELETE"), 404, of="maps-sft-1")
    refuses(jobs, "configmap", "maps-sft-1")
    jobs.finish("maps", code=1)
    told(jobs, "maps", "ConfigMap maps-sft-1", hook)
    hook.close()
    path = jobs.core.list_namespaced_config_map
    eventually(
        lambda: "maps-sft-1" not in {each.metadata.name for each in path(jobs.namespace).items},
        LONG,
    )
    eventually(lambda: jobs.condition("maps", "ChildrenReady")["status"] == "True")


@pytest.mark.parametrize("code", REFUSALS)
def test_a_job_whose_time_is_over_and_that_may_not_be_deleted_is_told_and_asked_for_again(
    operator: OperatorProcess, jobs: Jobs, webhook: MakeWebhook, code: int
) -> None:
    hook = refuse(webhook("rlhfjobs", "DELETE"), code, of="expired")
    jobs.create("expired", runPolicy={"ttlSecondsAfterFinished": 600})
    refuses(jobs, "rlhfjob", "expired")
    jobs.run("expired")
    jobs.reaches("expired", "Running")
    jobs.finish("expired")
    eventually(lambda: jobs.phase("expired") == "Succeeded")
    asked = len(hook.asked)
    jobs.patch("expired", runPolicy={"ttlSecondsAfterFinished": 1})
    told(jobs, "expired", "RLHFJob expired", hook)
    eventually(lambda: len(hook.asked) >= asked + 3, LONGER)
    assert jobs.phase("expired") == "Succeeded"
    # More time ends the complaint.
    jobs.patch("expired", runPolicy={"ttlSecondsAfterFinished": 600})
    eventually(lambda: jobs.condition("expired", "ChildrenReady")["status"] == "True")
    jobs.patch("expired", runPolicy={"ttlSecondsAfterFinished": 1})
    hook.close()
    where = jobs.access.kubectl
    eventually(lambda: "expired" not in where("get", "-n", jobs.namespace, "rlhf").stdout, LONG)
    assert jobs.events("expired").count(("Warning", "WebhookDenied")) <= 2


def test_the_config_map_of_a_stopped_attempt_is_asked_for_until_it_is_gone(
    jobs: Jobs, webhook: MakeWebhook, tmp_path: Path
) -> None:
    """Though the next attempt runs by then, and another operator asks."""
    first = OperatorProcess(jobs.access, jobs.namespace, tmp_path)
    first.wait_until_leading()
    try:
        jobs.create("left")
        jobs.run("left")
        jobs.reaches("left", "Running")
        jobs.patch("left", suspend=True)
        eventually(lambda: jobs.phase("left") == "Suspended")
        hook = refuse(webhook("configmaps", "DELETE"), 409, of="left-sft-1")
        refuses(jobs, "configmap", "left-sft-1")
        jobs.patch("left", suspend=False)
        jobs.run("left", attempt=2)
        jobs.reaches("left", "Running", attempt=2)
        told(jobs, "left", "ConfigMap left-sft-1", hook)
    finally:
        first.end_well()
    second = OperatorProcess(jobs.access, jobs.namespace, tmp_path)
    second.wait_until_leading()
    try:
        asked = len(hook.asked)
        eventually(lambda: len(hook.asked) > asked)
        hook.close()
        found = jobs.core.list_namespaced_config_map
        eventually(
            lambda: (
                "left-sft-1" not in {each.metadata.name for each in found(jobs.namespace).items}
            ),
            LONG,
        )
        eventually(lambda: jobs.condition("left", "ChildrenReady")["status"] == "True")
        found_stage = jobs.stage("left")
        assert (found_stage["state"], found_stage["attempt"]) == ("Running", 2)
    finally:
        second.end_well()
