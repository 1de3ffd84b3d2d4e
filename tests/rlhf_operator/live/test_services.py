"""The Service by which pods of a gang find each other, deleted or changed while it is needed."""

import json
from collections.abc import Callable

import pytest
from operating import Jobs, OperatorProcess, children_ready, eventually, stage

from rlhf_api.names import Label

GANG = {"sft": stage(nodes=2, batchSize=32)}
CHANGED = ("Warning", "ChildChanged")


def select(jobs: Jobs, name: str, selector: dict[str, str] | None) -> None:
    """As whoever may: let the Service select other pods."""
    changes = [{"op": "replace", "path": "/spec/selector", "value": selector}]
    where = (f"--namespace={jobs.namespace}", "--type=json", f"--patch={json.dumps(changes)}")
    jobs.access.kubectl("patch", "service", name, *where)


def delete_service(jobs: Jobs, name: str) -> str:
    """Delete the Service; gives its uid."""
    uid = jobs.core.read_namespaced_service(name, jobs.namespace).metadata.uid
    jobs.core.delete_namespaced_service(name, jobs.namespace)
    return str(uid)


def is_made_anew(jobs: Jobs, name: str, before: str) -> bool:
    """Whether there is another Service than that one, which selects the job's pods."""
    found = jobs.core.list_namespaced_service(jobs.namespace).items
    wanted = {Label.JOB_UID: jobs.get(name)["metadata"]["uid"]}
    own = [each for each in found if each.metadata.name == name and each.metadata.uid != before]
    return [each.spec.selector for each in own] == [wanted]


def is_well(jobs: Jobs, name: str) -> bool:
    """Whether nothing is told of the job's children."""
    return bool(jobs.condition(name, "ChildrenReady").get("status") == "True")


def test_a_service_that_is_gone_when_a_gang_comes_to_run_is_made_anew_and_told(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    """Without it the pods look for each other for half an hour, and hold their nodes."""
    jobs.create("lonely", stages=GANG)
    jobs.wait_for_pods("lonely", n=2)
    before = delete_service(jobs, "lonely")
    jobs.run("lonely", n=2)
    eventually(lambda: is_made_anew(jobs, "lonely", before))
    jobs.wait_for_events("lonely", CHANGED)
    eventually(lambda: is_well(jobs, "lonely"))
    found = jobs.stage("lonely")
    assert (found["state"], found["attempt"], found["restarts"]) == ("Running", 1, 0)
    assert jobs.events("lonely").count(CHANGED) == 1


def test_a_service_that_leads_elsewhere_when_a_gang_comes_to_run_is_told_until_it_is_mended(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("misled", stages=GANG)
    jobs.wait_for_pods("misled", n=2)
    select(jobs, "misled", {"app": "other"})
    jobs.run("misled", n=2)
    jobs.reaches("misled", "Running")
    told = jobs.condition("misled", "ChildrenReady")
    assert (told["status"], told["reason"]) == ("False", "ChildChanged")
    assert told["message"].startswith('Service misled: spec.selector is {"app": "other"}; write ')
    select(jobs, "misled", {Label.JOB_UID: jobs.get("misled")["metadata"]["uid"]})
    eventually(lambda: is_well(jobs, "misled"))
    assert jobs.events("misled").count(CHANGED) == 1


def test_the_service_of_a_gang_is_asked_for_once(
    operator: OperatorProcess, jobs: Jobs, requests: Callable[[], list[str]]
) -> None:
    for name, stages, pods in (("whole", GANG, 2), ("alone", {"sft": stage()}, 1)):
        jobs.create(name, stages=stages)
        jobs.run(name, n=pods)
        jobs.reaches(name, "Running")
        # Each is a pass.
        for limit in (5, 6):
            jobs.patch(name, runPolicy={"maxRestarts": limit})
            generation = jobs.get(name)["metadata"]["generation"]
            eventually(
                lambda name=name, generation=generation: (
                    jobs.get(name)["status"]["observedGeneration"] == generation
                )
            )
    asked = [each for each in requests() if each.startswith("get services/")]
    assert asked == ["get services/whole"]


def test_a_service_that_is_deleted_while_an_attempt_runs_is_told_before_the_next(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("later")
    jobs.run("later")
    jobs.reaches("later", "Running")
    before = delete_service(jobs, "later")
    jobs.finish("later", code=80)
    jobs.run("later", attempt=2)
    jobs.reaches("later", "Running", attempt=2)
    assert is_made_anew(jobs, "later", before)
    jobs.wait_for_events("later", CHANGED)
    assert is_well(jobs, "later")
    assert jobs.stage("later")["restarts"] == 1


@pytest.mark.parametrize("selector", [{"app": "other"}, None])
def test_no_attempt_starts_behind_a_service_that_does_not_select_it(
    operator: OperatorProcess, jobs: Jobs, selector: dict[str, str] | None
) -> None:
    jobs.create("apart")
    jobs.run("apart")
    jobs.reaches("apart", "Running")
    select(jobs, "apart", selector)
    jobs.finish("apart", code=1)
    message = children_ready(jobs, "apart", "ChildChanged")
    uid = jobs.get("apart")["metadata"]["uid"]
    assert message.startswith(f"Service apart: spec.selector is {json.dumps(selector)}; write ")
    assert f'{{"rlhf.dev/job-uid": "{uid}"}} again, or delete the Service' in message
    before = delete_service(jobs, "apart")
    jobs.run("apart", attempt=2)
    jobs.reaches("apart", "Running", attempt=2)
    assert is_made_anew(jobs, "apart", before)
