"""What is made for an attempt, where a webhook changes it on the way."""

import asyncio
import copy
from typing import Any

import pytest
from raw_gangs import UID, Raw

from rlhf_api.names import Label, Reason, StageName
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_operator.act import Actor
from rlhf_operator.kube import Kube
from rlhf_operator.manifests import cluster_placement
from rlhf_operator.planning.actions import StartAttempt
from rlhf_operator.planning.configs import stage_config
from rlhf_operator.refusals import ChildError
from rlhf_operator.settings import Settings
from rlhf_operator.store import Store


class Mutating(Kube):
    """Makes what is sent, with another selector."""

    def __init__(self, selector: Raw | None) -> None:
        self.selector = selector
        self.made: list[str] = []

    async def find(self, path: str) -> Raw | None:
        return {} if "claims" in path else None

    async def request(self, method: str, path: str, body: Any = None, **_: Any) -> Any:
        made = copy.deepcopy(body)
        made["metadata"] |= {"uid": made["kind"], "resourceVersion": "1"}
        if made["kind"] == "Service":
            made["spec"]["selector"] = self.selector
        self.made.append(made["kind"])
        return made


@pytest.fixture
def job() -> RLHFJob:
    data = {"uri": "pvc://data/x"}
    return RLHFJob.from_document(
        {
            "apiVersion": "rlhf.dev/v1alpha1",
            "kind": "RLHFJob",
            "metadata": {"name": "demo", "namespace": "team", "uid": UID},
            "spec": {
                "storage": {"uri": "pvc://runs/x"},
                "stages": {"sft": {"model": {"uri": "hf://a/b"}, "dataset": data}},
            },
        }
    )


def start(job: RLHFJob, attempt: int, kube: Kube) -> None:
    config = stage_config(job, StageName.SFT, attempt, {}, cluster_placement(job))
    actor = Actor(kube, Store(), Settings(trainer_image="registry.test/trainer:1"))
    asyncio.run(actor.act(job, StartAttempt(StageName.SFT, attempt, config)))


@pytest.mark.parametrize("attempt", [1, 2])
def test_an_attempt_starts_behind_a_service_that_is_made_as_it_was_sent(
    job: RLHFJob, attempt: int
) -> None:
    kube = Mutating({Label.JOB_UID: UID})
    start(job, attempt, kube)
    assert kube.made[-1] == "Job"


@pytest.mark.parametrize("attempt", [1, 2])
@pytest.mark.parametrize("selector", [None, {}, {"app": "other"}])
def test_none_starts_behind_a_service_that_is_made_with_another_selector(
    job: RLHFJob, attempt: int, selector: Raw | None
) -> None:
    kube = Mutating(selector)
    with pytest.raises(ChildError) as refused:
        start(job, attempt, kube)
    found = refused.value.refusal
    assert (found.reason, found.child) == (Reason.CHILD_CHANGED, "Service demo")
    assert "if a webhook or policy sets it, correct that first" in found.message
    assert "Job" not in kube.made
