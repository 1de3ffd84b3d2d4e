"""When each alert of the chart fires, judged by promtool on the rules that Helm renders."""

import subprocess
from pathlib import Path

import pytest
from alert_cases import CASES, Case
from alert_rules import Alerted, Raw, firing, rendered_rules, run_promtool, unit_test, write_rules
from cluster.monitoring import promtool

from rlhf_chart.alerts import ALERTS


@pytest.fixture(scope="module")
def rules() -> dict[str, Raw]:
    return {rule["alert"]: rule for rule in rendered_rules()}


def unit_test_of(alert: str, case: Case) -> Raw:
    def expected(minute: int) -> list[Alerted]:
        return [each for each, minutes in case.firing.items() if minute in minutes]

    checks = [firing(alert, minute, expected(minute)) for minute in range(case.until + 1)]
    return unit_test(case.series, checks)


@pytest.mark.parametrize("alert", CASES)
def test_it_fires_in_these_minutes_and_in_no_other(
    rules: dict[str, Raw], alert: str, tmp_path: Path
) -> None:
    path = write_rules(tmp_path, [rules[alert]])
    tests = {case.name: unit_test_of(alert, case) for case in CASES[alert]}
    if run_promtool(path, *tests.values()):
        # promtool does not say which of the tests it was.
        wrong = {name: run_promtool(path, test) for name, test in tests.items()}
        pytest.fail("\n".join(f"{name}:\n{told}" for name, told in wrong.items() if told))


def test_every_alert_is_seen_to_fire_and_to_be_silent() -> None:
    assert set(CASES) == {alert.name for alert in ALERTS}
    assert all(any(case.firing for case in cases) for cases in CASES.values())
    assert all(any(not case.firing for case in cases) for cases in CASES.values())


def test_prometheus_takes_the_whole_file(tmp_path: Path) -> None:
    path = write_rules(tmp_path, rendered_rules())
    command = [str(promtool()), "check", "rules", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout
