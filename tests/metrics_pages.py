"""Pages of metrics as Prometheus would read them: fetched, parsed, and judged by promtool."""

import subprocess
import urllib.request

from cluster.monitoring import promtool
from prometheus_client.parser import text_string_to_metric_families

SECONDS = 60


def fetched(port: int | None, address: str = "127.0.0.1") -> str:
    """What an endpoint serves now."""
    with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=10) as answer:
        page: str = answer.read().decode()
    return page


def values(page: str, label: str | None = None) -> dict[str, float]:
    """Values by the name of the series; with `label`, of those that have it, by name and label."""
    found = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if label is None:
                found[sample.name] = sample.value
            elif label in sample.labels:
                found[f"{sample.name} {sample.labels[label]}"] = sample.value
    return found


def faults(page: str) -> str:
    """What `promtool check metrics` finds wrong with names, types and texts; empty if nothing.

    Raises:
        AssertionError: the page cannot be parsed at all.
    """
    done = subprocess.run(
        [promtool(), "check", "metrics"],
        input=page,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode in (0, 3), done.stderr
    told = done.stdout + done.stderr
    assert bool(told) == bool(done.returncode), (done.returncode, told)
    return told
