"""A whole run on two nodes: progress, metrics, artifacts."""

from typing import Any

import pytest
from cluster.kube_fixtures import Cluster
from operating import Jobs, eventually
from training import folder, shortened_reviews, succeeded

pytestmark = pytest.mark.timeout(1800)


def test_three_stages_train_on_two_nodes(jobs: Jobs, cluster: Cluster) -> None:
    jobs.create("zh-reviews", stages=shortened_reviews())
    seen: dict[str, set[str]] = {}
    told = False

    def ended() -> bool:
        nonlocal told
        status = jobs.get("zh-reviews").get("status", {})
        for name in status.get("stages", {}):
            nodes = {pod.spec.node_name for pod in jobs.pods("zh-reviews", name)}
            seen.setdefault(name, set()).update(nodes - {None})
        ppo = status.get("stages", {}).get("ppo", {})
        running = ppo.get("state") == "Running" and ppo.get("progress", {}).get("step")
        told = told or bool(running and "reward" in ppo.get("metrics", {}))
        return status.get("phase") in ("Succeeded", "Failed")

    eventually(ended, seconds=1200, pause=0.5)
    status = succeeded(jobs, "zh-reviews")
    assert {name: len(nodes) for name, nodes in seen.items()} == {"sft": 2, "reward": 2, "ppo": 2}
    assert told, "progress and metrics of PPO never stood in status while it ran"
    table = cluster.kubectl("get", "rlhf", "-n", jobs.namespace, "-o", "wide").stdout
    assert "CRITICLOSS" in table
    print(table)  # noqa: T201
    if cluster.nodes is not None:
        _check_artifacts(cluster, jobs, status)


def _check_artifacts(cluster: Cluster, jobs: Jobs, status: dict[str, Any]) -> None:
    """The models load in transformers."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    root = folder(jobs, cluster, "zh-reviews").parent
    for name, kind in (
        ("sft", AutoModelForCausalLM),
        ("reward", AutoModelForSequenceClassification),
        ("ppo", AutoModelForCausalLM),
    ):
        path = root / status["stages"][name]["artifact"]["uri"]
        assert kind.from_pretrained(path).config.model_type == "llama"
