"""The chart's alerts as Helm renders them, and promtool's verdict on when they fire.

One sample and one evaluation a minute; minute 0 is the first, and the beginning of Unix time.
"""

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from chart_renders import MONITORING
from cluster.monitoring import promtool
from cluster.tools import helm

CHART = Path(__file__).parents[1] / "charts" / "rlhf-operator"
RELEASE_NAMESPACE = "ops"
_REQUIRED = ("image.repository=registry.test/operator", "trainerImage=registry.test/trainer:1")
_BY = "namespace, rlhfjob, stage"

Raw = dict[str, Any]
Series = Mapping[str, str]
"""For each series with its labels what it is, minute by minute, as promtool reads it."""


def rendered(template: str, *values: str, major: int = 4, release: str = "demo") -> Raw:
    """The one object of a template of the chart.

    Raises:
        subprocess.CalledProcessError: Helm refuses the values; its `stderr` says why.
    """
    settings = [part for value in (*_REQUIRED, *values) for part in ("--set", value)]
    command = [str(helm(major)), "template", release, str(CHART), MONITORING]
    command += [f"--namespace={RELEASE_NAMESPACE}", f"--show-only=templates/{template}", *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found: Raw = yaml.safe_load(done.stdout)
    return found


def rendered_rules(*values: str) -> list[Raw]:
    """The rules of the chart's PrometheusRule under these values."""
    found = rendered("prometheusrule.yaml", "prometheusRule.enabled=true", *values)
    return [rule for group in found["spec"]["groups"] for rule in group["rules"]]


def write_rules(folder: Path, rules: Sequence[Raw]) -> Path:
    """The rules as a file for Prometheus."""
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "test", "rules": list(rules)}]}))
    return path


@dataclass(frozen=True)
class Alerted:
    """What one alert concerns; labels that it has not are empty."""

    namespace: str = "team"
    job: str = "a"
    stage: str = "ppo"

    @property
    def labels(self) -> dict[str, str]:
        """By name."""
        found = {"namespace": self.namespace, "rlhfjob": self.job, "stage": self.stage}
        return {name: value for name, value in found.items() if value}


def selector(labels: Mapping[str, str]) -> str:
    """Labels as Prometheus writes them."""
    return "{" + ", ".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def firing(alert: str, minute: int, expected: Iterable[Alerted]) -> Raw:
    """A test that in that minute the alert fires once for each of these, and for no other."""
    return {
        "expr": f'count by ({_BY}) (ALERTS{{alertname="{alert}", alertstate="firing"}})',
        "eval_time": f"{minute}m",
        "exp_samples": [{"labels": selector(each.labels), "value": 1} for each in expected],
    }


def unit_test(series: Series, checks: Sequence[Raw], **more: Any) -> Raw:
    """One test of promtool: what there is, and what follows."""
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    return {"interval": "1m", "input_series": inputs, "promql_expr_test": list(checks)} | more


def run_promtool(rules: Path, *tests: Raw) -> str:
    """What promtool finds wrong; empty if nothing."""
    path = rules.with_name("tests.yaml")
    document = {"rule_files": [rules.name], "evaluation_interval": "1m", "tests": list(tests)}
    path.write_text(yaml.safe_dump(document))
    command = [str(promtool()), "test", "rules", path.name]
    done = subprocess.run(
        command, cwd=path.parent, capture_output=True, text=True, check=False, timeout=120
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr
