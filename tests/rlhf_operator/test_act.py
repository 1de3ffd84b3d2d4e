"""What is made for an attempt, where a webhook changes it on the way."""

import copy

import pytest
from answering import Asked, answering
from raw_gangs import UID, Raw, job_document

from rlhf_api.names import Label, Reason, StageName
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_operator.act import Actor
from rlhf_operator.manifests import cluster_placement
from rlhf_operator.planning.actions import StartAttempt
from rlhf_operator.planning.configs import stage_config
from rlhf_operator.refusals import ChildError
from rlhf_operator.settings import Settings
from rlhf_operator.store import Store


class Mutating:
    """Makes what is sent, the Service with another selector."""

    def __init__(self, selector: Raw | None) -> None:
        self.selector = selector
        self.made: list[str] = []

    def answer(self, asked: Asked) -> tuple[int, Raw]:
        if asked.method == "GET":
            missing = {"kind": "Status", "reason": "NotFound", "code": 404}
            return (200, {}) if "claims" in asked.path else (404, missing)
        made = copy.deepcopy(asked.body)
        made["metadata"] |= {"uid": made["kind"], "resourceVersion": "1"}
        if made["kind"] == "Service":
            made["spec"]["selector"] = self.selector
        self.made.append(made["kind"])
        return 201, made


@pytest.fixture
def job() -> RLHFJob:
    return RLHFJob.from_document(job_document())


def start(job: RLHFJob, attempt: int, cluster: Mutating) -> None:
    config = stage_config(job, StageName.SFT, attempt, {}, cluster_placement(job))
    with answering(cluster.answer) as session:
        actor = Actor(session.kube, Store(), Settings(trainer_image="registry.test/trainer:1"))
        session.wait(actor.act(job, StartAttempt(StageName.SFT, attempt, config)))


@pytest.mark.parametrize("attempt", [1, 2])
def test_an_attempt_starts_behind_a_service_that_is_made_as_it_was_sent(
    job: RLHFJob, attempt: int
) -> None:
    cluster = Mutating({Label.JOB_UID: UID})
    start(job, attempt, cluster)
    assert cluster.made[-1] == "Job"


@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize("selector", [None, {}, {"app": "other"}])
def test_none_starts_behind_a_service_that_is_made_with_another_selector(
    job: RLHFJob, attempt: int, selector: Raw | None
) -> None:
    cluster = Mutating(selector)
    with pytest.raises(ChildError) as refused:
        start(job, attempt, cluster)
    found = refused.value.refusal
    assert (found.reason, found.child) == (Reason.CHILD_CHANGED, "Service demo")
    assert "if a webhook or policy sets it, correct that first" in found.message
    assert "Job" not in cluster.made
