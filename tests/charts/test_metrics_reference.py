"""docs/metrics.md: no metric is missing, and its scrape configuration finds the pods."""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.monitoring import promtool
from cluster.tools import helm
from prometheus_client import REGISTRY

from rlhf_api.metrics import BUILD_INFO, LabelledMetric, Metric, Phase, metric_name
from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_chart import metrics_reference as reference
from rlhf_operator.manifests import cluster_placement, stage_job
from rlhf_operator.metrics import PREFIX
from rlhf_operator.planning.actions import StartAttempt
from rlhf_operator.planning.configs import stage_config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
CHART = ROOT / "charts" / "rlhf-operator"

Raw = dict[str, Any]


def rows(prefix: str = "") -> dict[str, list[str]]:
    """Cells by the first one, a name that begins with `prefix`."""
    lines = [line for line in PAGE.splitlines() if line.startswith(f"| `{prefix}")]
    table = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert len({row[0] for row in table}) == len(table)
    return {row[0].strip("`"): row[1:] for row in table}


def test_every_training_metric_has_its_row() -> None:
    found = rows("rlhf_train_")
    assert set(found) == {metric_name(each) for each in (*Metric, *LabelledMetric)} | {BUILD_INFO}
    assert found["rlhf_train_phase_seconds_total"][:3] == [
        "counter",
        "`rlhfjob`, `stage`, `attempt`, `phase`",
        "all",
    ]
    assert found["rlhf_train_loss"] == [
        "gauge",
        "`rlhfjob`, `stage`, `attempt`",
        "sft, reward",
        "Training loss of the last step, in nats a token or a pair.",
    ]


def test_every_metric_of_the_operator_has_its_row() -> None:
    families = [each for each in REGISTRY.collect() if each.name.startswith(PREFIX)]
    found = rows(PREFIX)
    assert len(families) > 5
    assert set(found) == {
        f"{each.name}_total" if each.type == "counter" else each.name for each in families
    }
    assert found[f"{PREFIX}api_requests_total"][:2] == ["counter", "`method`, `code`"]
    assert found[f"{PREFIX}reconcile_duration_seconds"][0] == "histogram"


def test_every_row_has_a_meaning_and_every_phase_a_row() -> None:
    assert {phase.value for phase in Phase} <= set(rows())
    assert all(cells[-1].endswith(".") for name, cells in rows().items() if name != "phase")


@dataclass(frozen=True)
class Told:
    """A metric as the operator's table has it."""

    name: str
    help: str
    labels: tuple[str, ...]


def test_metrics_of_single_jobs_have_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told("rlhf_job_restarts_total", "Restarts | not.", ("namespace", "stage"))
    monkeypatch.setattr(reference, "JOB_METRICS", (told,))
    row = "| `rlhf_job_restarts_total` | counter | `namespace`, `stage` | Restarts \\| not. |"
    assert row in reference.metrics_reference().splitlines()


# The scrape configuration


def configuration() -> dict[str, Raw]:
    """Its scrapes by name, as the page shows them."""
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    return {each["job_name"]: each for each in yaml.safe_load(block)["scrape_configs"]}


def test_prometheus_takes_the_configuration(tmp_path: Path) -> None:
    # Debian's promtool is built without the discovery of pods.
    scrapes = [
        {key: value for key, value in scrape.items() if key != "kubernetes_sd_configs"}
        for scrape in configuration().values()
    ]
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump({"scrape_configs": scrapes}))
    done = subprocess.run(
        [promtool(), "check", "config", file],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def kept(scrape: Raw, labels: Mapping[str, str], port: str) -> bool:
    """Whether a running pod with these labels and a port of that name is scraped."""
    meta = {f"pod_label_{re.sub('[^a-zA-Z0-9_]', '_', key)}": text for key, text in labels.items()}
    meta |= {"pod_container_port_name": port, "pod_phase": "Running", "namespace": "team"}
    assert scrape["kubernetes_sd_configs"] == [{"role": "pod"}]
    keep, *others = scrape["relabel_configs"]
    names = [name.removeprefix("__meta_kubernetes_") for name in keep["source_labels"]]
    assert keep["action"] == "keep"
    assert [each["target_label"] for each in others] == ["namespace", "pod"]
    return bool(re.fullmatch(keep["regex"], ";".join(meta.get(name, "") for name in names)))


def training_pod() -> Raw:
    sft = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "pvc://data/x"}}
    job = RLHFJob.from_document(
        {
            "apiVersion": "rlhf.dev/v1alpha1",
            "kind": "RLHFJob",
            "metadata": {"name": "demo", "namespace": "team", "uid": "0123456789abcdef"},
            "spec": {"storage": {"uri": "pvc://runs"}, "stages": {"sft": sft}},
        }
    )
    config = stage_config(job, StageName.SFT, 1, {}, cluster_placement(job))
    action = StartAttempt(StageName.SFT, 1, config)
    pod: Raw = stage_job(job, action, "registry.test/trainer:1", "IfNotPresent")["spec"]["template"]
    return pod


def operator_pod() -> Raw:
    settings = ("image.repository=registry.test/operator", "trainerImage=registry.test/trainer:1")
    given = [part for value in settings for part in ("--set", value)]
    done = subprocess.run(
        [str(helm(3)), "template", "demo", str(CHART), *given],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    (deployment,) = (
        each for each in yaml.safe_load_all(done.stdout) if each and each["kind"] == "Deployment"
    )
    pod: Raw = deployment["spec"]["template"]
    return pod


def test_rank_0_alone_is_scraped_for_training() -> None:
    scrape = configuration()["rlhf-training"]
    pod = training_pod()
    (port,) = (each["name"] for each in pod["spec"]["containers"][0]["ports"])
    index = "batch.kubernetes.io/job-completion-index"
    labels = pod["metadata"]["labels"]
    assert kept(scrape, labels | {index: "0"}, port)
    assert not kept(scrape, labels | {index: "1"}, port)
    assert not kept(scrape, labels | {index: "0"}, "other")
    assert not kept(scrape, operator_pod()["metadata"]["labels"] | {index: "0"}, port)


def test_the_operator_is_scraped_and_names_the_namespaces_of_jobs() -> None:
    scrape = configuration()["rlhf-operator"]
    pod = operator_pod()
    (port,) = (each["name"] for each in pod["spec"]["containers"][0]["ports"])
    assert scrape["honor_labels"] is True
    assert kept(scrape, pod["metadata"]["labels"], port)
    assert not kept(scrape, training_pod()["metadata"]["labels"], port)
