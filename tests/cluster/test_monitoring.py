"""Debian's programs of Prometheus and the CRDs of prometheus-operator are there and work."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import packages
from cluster.monitoring import alertmanager, monitoring_crds, prometheus, promtool
from metrics_pages import faults

SECONDS = 60


@pytest.mark.parametrize("program", [promtool, prometheus, alertmanager])
def test_the_unpacked_programs_run(program: Callable[[], Path]) -> None:
    done = subprocess.run(
        [program(), "--version"], capture_output=True, text=True, check=True, timeout=SECONDS
    )
    assert ", version 0." in done.stdout or ", version 2." in done.stdout


def test_promtool_tells_good_metrics_from_bad() -> None:
    page = "# HELP one_seconds One.\n# TYPE one_seconds gauge\none_seconds 1\n"
    assert faults(page) == ""
    assert "one_minutes" in faults(page.replace("seconds", "minutes"))


def test_the_crds_are_those_that_the_chart_needs() -> None:
    """By their names: PyYAML cannot read the values that they list (`- =`)."""
    names = {path.stem.removeprefix("monitoring.coreos.com_") for path in monitoring_crds()}
    assert {"podmonitors", "prometheuses", "prometheusrules", "servicemonitors"} <= names
    assert all("kind: CustomResourceDefinition" in p.read_text() for p in monitoring_crds())


def test_without_apt_get_the_message_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(packages.PackagesError, match="prometheus: put its programs on"):
        promtool()
