"""From a critic that diverges to the alert in Alertmanager: nothing in between is played.

The chart's monitors and rules, prometheus-operator, Prometheus and Alertmanager, operator and
trainers are the real ones.
"""

import urllib.parse

import dashboard_queries
import pytest
from cluster.kube_fixtures import SYSTEM
from critic_jobs import DIVERGING, HEALTHY, RULE, SOURCES, WatchedJobs
from dashboard_queries import ABSENT_IN_PPO
from metrics_pages import faults, fetched
from training import succeeded
from waiting import eventually

pytestmark = pytest.mark.timeout(1800)


def test_every_target_is_up_while_both_train(watched: WatchedJobs) -> None:
    # Of the healthy job's two pods the second has no metrics, and is no target.
    wanted = ["podMonitor", "podMonitor", "serviceMonitor"]

    def all_up() -> bool:
        found = watched.monitoring.targets()
        kinds = sorted(each["scrapePool"].partition(f"/{SYSTEM}/")[0] for each in found)
        return kinds == wanted and all(each["health"] == "up" for each in found)

    eventually(all_up, what=lambda: f"{wanted} are up: {watched.monitoring.targets()}")


def test_promtool_finds_nothing_on_any_page(watched: WatchedJobs) -> None:
    found = watched.monitoring.targets()
    assert found
    for each in found:
        target = urllib.parse.urlsplit(each["scrapeUrl"])
        page = fetched(target.port, str(target.hostname))
        assert faults(page) == "", each["scrapePool"]


def test_the_alert_reaches_alertmanager(watched: WatchedJobs) -> None:
    alert = watched.alert
    about = {"namespace": watched.jobs.namespace, "rlhfjob": DIVERGING, "stage": "ppo"}
    assert about.items() <= alert["labels"].items()
    assert alert["annotations"]["runbook_url"].endswith(f"#{str(RULE).lower()}")
    # One alert, though both tell.
    for source in SOURCES:
        assert len(watched.told_by(source, watched.moment)) == 1, source


def test_every_query_of_the_dashboard_returns_series(watched: WatchedJobs) -> None:
    assert watched.moment
    absent = {word: why for word, why in ABSENT_IN_PPO.items() if word != "ALERTS"}
    url, namespace = watched.monitoring.url, watched.jobs.namespace
    dashboard_queries.run(url, namespace=namespace, rate_interval="30s", absent=absent)


def test_the_healthy_job_is_silent_to_its_end(watched: WatchedJobs) -> None:
    monitoring = watched.monitoring
    assert watched.moment
    succeeded(watched.jobs, HEALTHY, seconds=1200)
    ended = f'rlhf_job_condition{{rlhfjob="{HEALTHY}", type="Succeeded"}} == 1'
    eventually(lambda: monitoring.query(ended))
    firing = monitoring.query('ALERTS{alertstate="firing"}[2h]')
    labels = [each["metric"] for each in firing]
    assert not [each for each in labels if each.get("rlhfjob") == HEALTHY]
    # The other's did not change its labels, and so did not begin anew, while its pod went.
    named = [each for each in labels if each["alertname"] == RULE]
    assert [each["rlhfjob"] for each in named] == [DIVERGING]
    assert monitoring.alerts(rlhfjob=HEALTHY) == []
