"""Every object of the chart as an API server takes it that knows prometheus-operator's kinds."""

import re
from collections.abc import Iterator

import pytest
import yaml
from chart_renders import REQUIRED, SETS, run_helm, template, values_of
from cluster.kube_fixtures import Access
from cluster.monitoring import monitoring_crds
from releases import CHART, set_options
from waiting import eventually

NAMESPACES = ("ops", "monitoring", "team-a", "team-b", "123", "1e3")
RESTRICTED = "pod-security.kubernetes.io/{}=restricted"


@pytest.fixture(scope="module")
def monitored(control_plane: Access) -> Iterator[Access]:
    """An API server with the CRDs of prometheus-operator, and the namespaces of the value sets."""
    if control_plane.own is None:
        pytest.skip("installs CRDs; not on a cluster that others use")
    files = [part for path in monitoring_crds() for part in ("--filename", str(path))]
    assert files
    control_plane.kubectl("apply", "--server-side", *files)
    for name in NAMESPACES:
        control_plane.kubectl("create", "namespace", name)
    labels = [RESTRICTED.format(mode) for mode in ("enforce", "warn")]
    control_plane.kubectl("label", "namespace", "ops", *labels)
    kinds = ("get", "servicemonitors,podmonitors,prometheusrules", "-A")
    eventually(
        lambda: control_plane.kubectl(*kinds, check=False).returncode == 0,
        what="the monitors can be listed",
    )
    yield control_plane
    control_plane.kubectl("delete", *files)
    control_plane.kubectl("delete", "namespace", "--wait=false", *NAMESPACES)


@pytest.mark.parametrize("major", [3, 4])
@pytest.mark.parametrize("name", SETS)
def test_an_api_server_takes_every_object(monitored: Access, major: int, name: str) -> None:
    objects = template(major, "--values", str(values_of(name)))
    done = monitored.kubectl(
        *("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict"),
        *("-f", "-"),
        text=yaml.safe_dump_all(objects),
    )
    assert done.stdout.count("(server dry run)") == len(objects)
    # Not even what the Pod Security Standard would only warn of.
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("major", [3, 4])
@pytest.mark.parametrize("name", ["123", "1e3"])
def test_an_api_server_takes_names_that_are_no_texts_for_yaml(
    monitored: Access, major: int, name: str
) -> None:
    """Without quotes they are numbers, which it refuses as the name of a namespace or a label."""
    labels = (f"podLabels.{name}", f"commonLabels.{name}", f"commonAnnotations.{name}")
    given = ("--values", str(values_of("namespaced")), "--set", f"watch.namespaces={{team-{name}}}")
    texts = [f"--set-string={each}={name}" for each in (*labels, "watch.namespaces[0]")]
    done = run_helm(
        *(major, "template", name, str(CHART), "--namespace", name, *given, *texts),
        "--api-versions=monitoring.coreos.com/v1",
    )
    assert done.returncode == 0, done.stderr
    # As Helm wrote it, and not as Python would.
    taken = monitored.kubectl(
        *("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-"),
        text=done.stdout,
    )
    assert taken.stdout.count("(server dry run)") == done.stdout.count("\nkind: ")


def test_an_api_server_takes_the_policy_that_the_page_shows(monitored: Access) -> None:
    page = (CHART.parents[1] / "docs" / "install.md").read_text()
    (policy,) = re.findall(r"^```yaml\n(apiVersion: networking.*?)^```", page, re.M | re.S)
    options = ("--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
    done = monitored.kubectl("apply", *options, text=policy)
    assert "networkpolicy.networking.k8s.io/rlhf-training" in done.stdout


def notes(access: Access, major: int, *values: str) -> str:
    """What Helm says after an installation."""
    given = set_options(*REQUIRED, "crds.enabled=false", *values)
    place = [f"--kubeconfig={access.kubeconfig}", "--namespace=ops", "--dry-run=server"]
    done = run_helm(major, "install", "demo", str(CHART), *place, *given)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("NOTES:")[2]


@pytest.mark.parametrize("major", [3, 4])
def test_notes_tell_what_is_next_and_which_labels_lack(monitored: Access, major: int) -> None:
    labels = "metrics.serviceMonitor.additionalLabels.release=prometheus"
    both = ("metrics.serviceMonitor.enabled=true", "metrics.podMonitor.enabled=true")
    told = notes(monitored, major, *both, labels)
    commands = [line.split()[0] for line in told.splitlines() if line.startswith("  ")]
    assert commands == ["kubectl", "helm", "kubectl"]
    assert "helm test demo --namespace ops" in told
    assert "WARNING: no additionalLabels: metrics.podMonitor. " in told
    assert "WARNING" not in notes(monitored, major, both[0], labels)


@pytest.mark.parametrize("major", [3, 4])
@pytest.mark.parametrize("made", ["prometheusRule", "grafana.alerts"])
def test_notes_tell_of_links_that_lead_nowhere(monitored: Access, major: int, made: str) -> None:
    enabled = f"{made}.enabled=true"
    told = notes(monitored, major, enabled)
    assert "WARNING: prometheusRule.runbookBaseUrl is docs/runbook.md, no http(s) URL" in told
    page = "prometheusRule.runbookBaseUrl=https://git.example.com/runbook.md"
    assert "runbookBaseUrl" not in notes(monitored, major, enabled, page)


@pytest.mark.parametrize("major", [3, 4])
def test_notes_tell_of_alerts_without_the_series_of_jobs(monitored: Access, major: int) -> None:
    page = "prometheusRule.runbookBaseUrl=https://git.example.com/runbook.md"
    label = "additionalLabels.release=prometheus"
    alerts = ("prometheusRule.enabled=true", f"prometheusRule.{label}", page)
    scraped = ("metrics.serviceMonitor.enabled=true", f"metrics.serviceMonitor.{label}")
    assert "WARNING" not in notes(monitored, major, *scraped, *alerts)
    lacking = "WARNING: alerts are on, and metrics.serviceMonitor.enabled is false. "
    assert lacking in notes(monitored, major, *alerts)
    assert lacking in notes(monitored, major, "grafana.alerts.enabled=true", page)
