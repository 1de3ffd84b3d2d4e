"""From a critic that diverges to the alert in Alertmanager: nothing in between is played.

The chart's monitors and rules, prometheus-operator, Prometheus and Alertmanager, operator and
trainers are the real ones.
"""

import subprocess
import urllib.request

import pytest
from cluster.kube_fixtures import SYSTEM
from cluster.monitoring import promtool
from critic_jobs import DIVERGING, HEALTHY, RULE, WatchedJobs
from training import succeeded
from waiting import eventually

pytestmark = pytest.mark.timeout(1800)

SECONDS = 60
VERDICT = f'{{rlhfjob="{DIVERGING}", rule="{RULE}"}} == 1'


def test_every_target_is_up_while_both_train(watched: WatchedJobs) -> None:
    def all_up() -> list[str]:
        found = watched.monitoring.targets()
        up = [each["scrapePool"] for each in found if each["health"] == "up"]
        return up if len(up) == len(found) else []

    pools = sorted(eventually(all_up, what=lambda: str(watched.monitoring.targets())))
    # Of the healthy job's two pods the second has no metrics, and is no target.
    kinds = [pool.split("/")[0] for pool in pools]
    assert kinds == ["podMonitor", "podMonitor", "serviceMonitor"], pools
    assert all(f"/{SYSTEM}/" in pool for pool in pools)


def test_promtool_finds_nothing_on_any_page(watched: WatchedJobs) -> None:
    found = watched.monitoring.targets()
    assert found
    for each in found:
        with urllib.request.urlopen(each["scrapeUrl"], timeout=SECONDS) as answer:
            page = answer.read()
        done = subprocess.run(
            [promtool(), "check", "metrics"],
            input=page,
            capture_output=True,
            check=False,
            timeout=SECONDS,
        )
        told = (done.stdout + done.stderr).decode()
        assert (done.returncode, told) == (0, ""), each["scrapePool"]


def test_the_alert_reaches_alertmanager(watched: WatchedJobs) -> None:
    alert = watched.alert
    about = {"namespace": watched.jobs.namespace, "rlhfjob": DIVERGING, "stage": "ppo"}
    assert about.items() <= alert["labels"].items()
    assert alert["annotations"]["runbook_url"].endswith(f"#{str(RULE).lower()}")
    # One alert, though both tell.
    for source in ("rlhf_train_health_verdict", "rlhf_job_health_verdict"):
        assert len(watched.monitoring.query(source + VERDICT, watched.moment)) == 1, source


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
