"""RLHFJob as an API server gives it, and round trips."""

import copy
from typing import Any

import pytest

from rlhf_api.errors import ConfigError
from rlhf_api.names import Phase
from rlhf_api.v1alpha1 import RLHFJob


def test_round_trip(make_document: Any) -> None:
    document = make_document({"spec.stages.sft.learningRate": 9.65e-6, "spec.suspend": True})
    job = RLHFJob.from_document(copy.deepcopy(document))
    assert job.to_document() == document
    assert RLHFJob.from_document(job.to_resolved_document()).spec == job.spec


def test_an_object_of_the_api_server(make_document: Any) -> None:
    document = make_document(
        {
            "metadata.uid": "0b5c1c4e-8f57-4b0f-9f5e-4f3f5d0f6a11",
            "metadata.generation": 3,
            "metadata.managedFields": [{"manager": "kubectl"}],
            "metadata.creationTimestamp": "2026-01-01T00:00:00Z",
            "status": {
                "phase": "Running",
                "conditions": [
                    {
                        "type": "Running",
                        "status": "True",
                        "reason": "PodsReady",
                        "message": "",
                        "lastTransitionTime": "2026-01-01T00:00:00Z",
                    }
                ],
            },
        }
    )
    job = RLHFJob.from_document(document)
    assert job.metadata.generation == 3
    assert job.status.phase is Phase.RUNNING
    assert job.status.to_document() == document["status"]


def test_conditions_stand_once(make_document: Any) -> None:
    condition = {
        "type": "Running",
        "status": "True",
        "reason": "PodsReady",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    with pytest.raises(ConfigError, match=r"status\.conditions: type Running stands twice"):
        RLHFJob.from_document(make_document({"status.conditions": [condition, condition]}))


def test_sizes_of_a_stage(make_document: Any) -> None:
    job = RLHFJob.from_document(
        make_document({"spec.template": {"nodes": 2}, "spec.stages.sft.processesPerNode": 4})
    )
    assert [job.spec.nodes(name) for name in ("sft", "ppo")] == [2, 2]
    assert [job.spec.processes_per_node(name) for name in ("sft", "ppo")] == [4, 1]
