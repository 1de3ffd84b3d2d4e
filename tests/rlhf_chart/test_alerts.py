"""When each alert of the chart fires, judged by promtool on the rules that Helm renders."""

import subprocess
from pathlib import Path

import pytest
from alert_cases import CASES
from alert_histories import Case, merged, mirror, train
from alert_rules import Alerted, Raw, firing, rendered_rules, run_promtool, unit_test, write_rules
from cluster.monitoring import promtool

from rlhf_chart.alerts import ALERTS

LOOK = "`kubectl -n team describe rlhf a` has the numbers, and the runbook what to change."
# What the first case that fires says in its first minute.
SAID = {
    "CriticLossDiverging": (
        "team/a, stage ppo: the critic diverges",
        "team/a, stage ppo: the critic's loss is at least 9 times the larger of its start and half "
        f"the loss of the mean return; {LOOK}",
    ),
    "KLAboveLimit": (
        "team/a, stage ppo: the actor leaves its reference",
        "team/a, stage ppo: the KL of actor against reference is at least 9 nats an answer; "
        f"{LOOK}",
    ),
    "RewardCollapse": (
        "team/a, stage ppo: the reward collapses",
        f"team/a, stage ppo: the reward is at least 9 deviations below its best level; {LOOK}",
    ),
    "NonFinite": (
        "team/a, stage ppo: losses or other metrics are NaN or infinite",
        "team/a, stage ppo: 2 or more metric values of this attempt were NaN or infinite.",
    ),
    "RLHFJobFailed": (
        "team/a, stage ppo: the job has failed: Guardrail",
        "team/a, stage ppo: the job has failed with reason Guardrail; "
        "`kubectl -n team describe rlhf a` says why.",
    ),
    "ProgressStalled": (
        "team/a, stage ppo: no further step",
        "team/a, stage ppo: the step has not grown for 22m 0s; `kubectl -n team describe rlhf a` "
        "says what is seen of its pods.",
    ),
    "RestartStorm": (
        "team/a, stage ppo: restarts again and again",
        "team/a, stage ppo: 3 restarts within an hour; `kubectl -n team describe rlhf a` says why.",
    ),
    "PendingTooLong": (
        "team/a, stage ppo: waits for its pods",
        "team/a, stage ppo: the pods of its newest attempt have not run for 17m 0s; "
        "`kubectl -n team describe rlhf a` says what they wait for.",
    ),
    "CheckpointStale": (
        "team/a, stage ppo: no new checkpoint",
        "team/a, stage ppo: no complete checkpoint was written for at least 2h 6m 0s; all since "
        "then is lost if a pod dies.",
    ),
    "OperatorDown": (
        "No replica of the operator in ops leads",
        "No replica of the operator is seen to lead. Pods train on, but no stage is started, "
        "restarted or ended; `kubectl -n ops get pods -l app.kubernetes.io/name=rlhf-operator` "
        "shows them.",
    ),
    "OperatorLagging": (
        "The operator in ops does not keep up",
        "The operator's queue age in seconds is 90: jobs are started, restarted and ended late.",
    ),
}
MORE_LABELS = {
    "RLHFJobFailed": {"reason": "Guardrail"},
    "OperatorLagging": {"cause": "queue age in seconds"},
}


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
    seen = {
        name: " ".join(v for case in cases for v in case.series.values())
        for name, cases in CASES.items()
    }
    assert [name for name, values in seen.items() if "NaN" not in values] == []


def test_prometheus_takes_the_whole_file(tmp_path: Path) -> None:
    path = write_rules(tmp_path, rendered_rules())
    command = [str(promtool()), "check", "rules", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


@pytest.mark.parametrize("alert", CASES)
def test_it_says_whom_it_concerns_and_by_how_much(
    rules: dict[str, Raw], alert: str, tmp_path: Path
) -> None:
    case = next(case for case in CASES[alert] if case.firing)
    ((who, minutes),) = case.firing.items()
    (summary, description), severity = SAID[alert], rules[alert]["labels"]["severity"]
    expected = {
        "exp_labels": {**who.labels, **MORE_LABELS.get(alert, {}), "severity": severity},
        "exp_annotations": {
            "summary": summary,
            "description": description,
            "runbook_url": f"docs/runbook.md#{alert.lower()}",
        },
    }
    check = {"eval_time": f"{min(minutes)}m", "alertname": alert, "exp_alerts": [expected]}
    test = unit_test(case.series, [], alert_rule_test=[check])
    assert not run_promtool(write_rules(tmp_path, [rules[alert]]), test)


@pytest.mark.parametrize(
    ("alert", "description"),
    [
        (
            "CriticLossDiverging",
            "team/a, stage ppo: the critic's loss is at least 0 times the larger of its start and "
            f"half the loss of the mean return; {LOOK}",
        ),
        (
            "KLAboveLimit",
            "team/a, stage ppo: the KL of actor against reference is at least 0 nats an answer; "
            f"{LOOK}",
        ),
        (
            "RewardCollapse",
            f"team/a, stage ppo: the reward is at least 0 deviations below its best level; {LOOK}",
        ),
    ],
)
def test_a_verdict_alone_is_told_as_no_more_than_that(
    rules: dict[str, Raw], alert: str, description: str, tmp_path: Path
) -> None:
    labels = {**Alerted().labels, "severity": rules[alert]["labels"]["severity"]}
    said = {"summary": SAID[alert][0], "description": description}
    said["runbook_url"] = f"docs/runbook.md#{alert.lower()}"
    told = {"exp_labels": labels, "exp_annotations": said}
    check = {"eval_time": "5m", "alertname": alert, "exp_alerts": [told]}
    verdict = mirror("health_verdict", "1x20", attempt="1", rule=alert)
    test = unit_test(verdict, [], alert_rule_test=[check])
    assert not run_promtool(write_rules(tmp_path, [rules[alert]]), test)


@pytest.mark.parametrize(("threshold", "first"), [("0", 1), ("1", 4), ("3", 11)])
def test_a_threshold_of_nonfinite_is_of_the_count_alone(
    tmp_path: Path, threshold: str, first: int
) -> None:
    alert = "NonFinite"
    told = rendered_rules(f"prometheusRule.alerts.{alert}.threshold={threshold}")
    path = write_rules(tmp_path, [rule for rule in told if rule["alert"] == alert])
    verdict = train("health_verdict", "1x20", rule=alert)
    count = train("nonfinite_total", "1x2 2x6 4x10")
    case = Case("", merged(verdict, count), {Alerted(): set(range(first, 21))})
    assert not run_promtool(path, unit_test_of(alert, case))


def test_what_the_operator_tells_of_the_attempt_before_ends_no_warmup(tmp_path: Path) -> None:
    alert = "KLAboveLimit"
    told = rendered_rules(f"prometheusRule.alerts.{alert}.threshold=3")
    path = write_rules(tmp_path, [rule for rule in told if rule["alert"] == alert])
    value = train("health_value", "9x20", attempt=2, rule=alert)
    before = mirror("health_verdict", "0x20", attempt="1", rule=alert)
    verdict = train("health_verdict", "_x10 0x10", attempt=2, rule=alert)
    case = Case("", merged(value, before, verdict), {Alerted(): set(range(11, 21))})
    assert not run_promtool(path, unit_test_of(alert, case))
