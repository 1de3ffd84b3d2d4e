"""The alerts in the chart: switches, what Helm refuses, the form of Grafana, the runbook."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from alert_rules import CHART, RELEASE_NAMESPACE, Raw, rendered, rendered_rules

from rlhf_chart.alerts import ALERTS

ROOT = Path(__file__).parents[2]
RUNBOOK = ROOT / "docs" / "runbook.md"
NAMES = [alert.name for alert in ALERTS]
ON = "grafana.alerts.enabled=true"


def setting(alert: str, **values: str) -> list[str]:
    return [f"prometheusRule.alerts.{alert}.{name}={value}" for name, value in values.items()]


def rule_of(alert: str, *values: str) -> Raw:
    (found,) = (rule for rule in rendered_rules(*values) if rule["alert"] == alert)
    return found


def grafana(*values: str, release: str = "demo") -> Raw:
    (text,) = rendered("grafana-alerts.yaml", ON, *values, release=release)["data"].values()
    found: Raw = yaml.safe_load(text)
    return found


def grafana_rules(*values: str, release: str = "demo") -> list[Raw]:
    (group,) = grafana(*values, release=release)["groups"]
    found: list[Raw] = group["rules"]
    return found


def refusal(*values: str) -> str:
    with pytest.raises(subprocess.CalledProcessError) as raised:
        rendered_rules(*values)
    told: str = raised.value.stderr
    return told


def test_the_values_show_each_default() -> None:
    given = yaml.safe_load((CHART / "values.yaml").read_text())["prometheusRule"]["alerts"]
    assert given == {alert.name: alert.values() for alert in ALERTS}


def test_all_alerts_are_there_in_order_with_their_links() -> None:
    rules = rendered_rules()
    assert [rule["alert"] for rule in rules] == NAMES
    for rule in rules:
        page = f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["annotations"]["runbook_url"] == page
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert "$" not in str(rule), "a placeholder was left"


def test_each_alert_is_set_by_itself() -> None:
    values = setting(
        "ProgressStalled",
        severity="info",
        threshold="1500000",
        runbookUrl="https://wiki.test/stalled",
        **{"for": "7m"},
    )
    rule = rule_of("ProgressStalled", *values)
    assert (rule["labels"], rule["for"]) == ({"severity": "info"}, "7m")
    assert rule["expr"].endswith(" > 1500000")
    assert rule["annotations"]["runbook_url"] == "https://wiki.test/stalled"
    others = [each for each in rendered_rules(*values) if each["alert"] != "ProgressStalled"]
    assert others == [each for each in rendered_rules() if each["alert"] != "ProgressStalled"]


@pytest.mark.parametrize("alert", NAMES)
def test_each_alert_can_be_switched_off(alert: str) -> None:
    left = rendered_rules(*setting(alert, enabled="false"))
    assert [rule["alert"] for rule in left] == [name for name in NAMES if name != alert]


def test_a_threshold_of_zero_is_one() -> None:
    rule = rule_of("KLAboveLimit", *setting("KLAboveLimit", threshold="0"))
    assert rule["expr"].endswith(" > 0")


def test_a_checkpoint_is_as_old_as_the_stage_has_run() -> None:
    rule = rule_of("CheckpointStale", *setting("CheckpointStale", threshold="900"))
    assert rule["expr"].count("> 900") == 1
    assert rule["expr"].count("offset 900s") == 2


def test_what_means_nothing_is_refused_by_name() -> None:
    told = refusal(*setting("OperatorDown", threshold="3"))
    assert "prometheusRule.alerts.OperatorDown.threshold is set, but this alert has none" in told
    told = refusal(*setting("CriticLosDiverging", enabled="false"))
    assert "CriticLosDiverging" in told


@pytest.mark.parametrize("major", [3, 4], ids=["helm3", "helm4"])
def test_both_objects_stand_where_they_are_wanted_with_their_labels(major: int) -> None:
    rule = rendered(
        "prometheusrule.yaml",
        "prometheusRule.enabled=true,prometheusRule.namespace=watch",
        "prometheusRule.additionalLabels.release=kube-prometheus-stack",
        major=major,
    )
    assert rule["metadata"]["namespace"] == "watch"
    assert rule["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    rules = rendered("grafana-alerts.yaml", ON, "grafana.alerts.namespace=graphs", major=major)
    assert rules["metadata"]["namespace"] == "graphs"
    assert rules["metadata"]["labels"]["grafana_alert"] == "1"
    # The operator is looked for where it runs, not where the rules lie.
    text = str(rule)
    assert f'rlhf_operator_leader{{namespace="{RELEASE_NAMESPACE}"}}' in text
    assert 'namespace="watch"' not in text


def test_grafana_is_given_a_provisioning_file() -> None:
    found = grafana("grafana.alerts.folder=Training,grafana.alerts.datasourceUid=thanos")
    assert found["apiVersion"] == 1
    (group,) = found["groups"]
    assert (group["orgId"], group["folder"], group["interval"]) == (1, "Training", "1m")
    for rule in group["rules"]:
        query, check = rule["data"]
        assert rule["condition"] == check["refId"] == check["model"]["refId"] == "B"
        assert query["refId"] == query["model"]["refId"] == check["model"]["expression"] == "A"
        assert query["datasourceUid"] == query["model"]["datasource"]["uid"] == "thanos"
        assert check["datasourceUid"] == check["model"]["datasource"]["uid"] == "__expr__"
        assert (query["model"]["instant"], check["model"]["type"]) == (True, "threshold")
        assert query["relativeTimeRange"] == check["relativeTimeRange"] == {"from": 600, "to": 0}
        # The query returns nothing where all is well.
        assert (rule["noDataState"], rule["execErrState"]) == ("OK", "Error")


def test_grafana_is_given_the_same_alerts() -> None:
    values = setting("KLAboveLimit", threshold="80", severity="info")
    values += setting("RewardCollapse", enabled="false")
    ours = {rule["alert"]: rule for rule in rendered_rules(*values)}
    theirs = {rule["title"]: rule for rule in grafana_rules(*values)}
    assert list(theirs) == list(ours)
    for name, rule in theirs.items():
        assert rule["data"][0]["model"]["expr"] == ours[name]["expr"]
        assert (rule["for"], rule["labels"]) == (ours[name]["for"], ours[name]["labels"])
        for key, text in rule["annotations"].items():
            assert text.replace(".Values.A.Value", ".Value") == ours[name]["annotations"][key]
            # Of .Value alone Grafana makes a sentence of all numbers; $ would be the environment's.
            assert "{{ .Value " not in text
            assert "$" not in text


def test_two_releases_can_share_a_grafana() -> None:
    first, second = (
        {rule["uid"] for rule in grafana_rules(release=name)} for name in ("demo", "other")
    )
    assert len(first) == len(second) == len(ALERTS)
    assert not first & second
    assert all(re.fullmatch(r"[a-z0-9-]{1,40}", uid) for uid in first | second)


def test_the_runbook_has_each_alert_under_its_name_with_its_defaults() -> None:
    text = RUNBOOK.read_text()
    assert re.findall(r"^## (\w+)$", text, re.M) == NAMES
    rows = re.findall(r"^\| \[`(\w+)`\]\(#(\w+)\) \| (\w+) \| (\w+) \| ([^|]+) \|", text, re.M)
    expected = []
    for alert in ALERTS:
        if alert.threshold is None:
            limit = "the guardrail's" if alert.has_threshold else "none"
        else:
            limit = f"{alert.threshold:g}"
        expected.append((alert.name, alert.name.lower(), alert.severity, alert.wait, limit))
    assert rows == expected


@pytest.mark.parametrize("name", NAMES)
def test_the_runbook_says_what_to_look_at_and_what_to_change(name: str) -> None:
    section = RUNBOOK.read_text().partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert "\n- Look at " in section
    assert "\n- Change" in section
