"""The quickstart as docs/install.md shows it, on the cluster's default StorageClass."""

from pathlib import Path

import pytest
from cluster.kube_fixtures import Cluster
from operating import Jobs

EXAMPLES = Path(__file__).parents[2] / "examples"
IMAGE = "registry.example.com/rlhf/trainer:0.1.0"

pytestmark = pytest.mark.timeout(1200)


def test_the_quickstart_succeeds(jobs: Jobs, cluster: Cluster) -> None:
    place = ("-n", jobs.namespace)
    data = (EXAMPLES / "quickstart-data.yaml").read_text(encoding="utf-8")
    assert IMAGE in data
    cluster.kubectl("apply", *place, "-f", "-", text=data.replace(IMAGE, cluster.trainer_image))
    waiting = ("wait", *place, "--timeout=10m")
    cluster.kubectl(*waiting, "--for=condition=Complete", "job/quickstart-data")
    cluster.kubectl("apply", *place, "-f", str(EXAMPLES / "quickstart.yaml"))
    cluster.kubectl(*waiting, "--for=condition=Succeeded", "rlhf/quickstart")
    metrics = jobs.stage("quickstart", "ppo")["metrics"]
    assert metrics["eos_rate"] > 0.5
    assert jobs.stage("quickstart", "reward")["metrics"]["eval_accuracy"] > 0.8
