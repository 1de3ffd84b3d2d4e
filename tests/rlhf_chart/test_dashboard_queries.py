"""The dashboard's queries against a real Prometheus that scrapes all series there are."""

import re

import dashboard_queries
import pytest
from waiting import eventually

from rlhf_api.metrics import LabelledMetric
from rlhf_chart.dashboard_rows import NOT_SHOWN
from rlhf_chart.panel_queries import either, filled, names_in
from rlhf_chart.prometheus_api import PrometheusError, at_once, names_of, over_time
from rlhf_chart.series import exported
from rlhf_operator.job_series import MIRRORED

NAMESPACE = "team"
RATE_INTERVAL = "10s"


def test_every_query_returns_series(url: str) -> None:
    dashboard_queries.all_answered(url, RATE_INTERVAL)


def test_every_series_on_both_pages_is_shown_or_left_out_for_a_reason(url: str) -> None:
    eventually(lambda: names_of(url) >= exported(), what="all series are scraped")
    shown = names_in(each.expr for each in dashboard_queries.asked())
    # What Prometheus adds of its own is no metric of ours.
    own = re.compile(r"up|(scrape|ALERTS)(_\w+)?")
    rest = {name for name in names_of(url) - shown if not own.fullmatch(name)}
    left_out = {name for name in rest if any(re.fullmatch(each, name) for each in NOT_SHOWN)}
    assert rest - left_out == set()
    assert all(any(re.fullmatch(each, name) for name in left_out) for each in NOT_SHOWN)


@pytest.mark.parametrize("job", ["demo", "gone"])
def test_the_operator_stands_in_for_a_trainer_that_is_gone(url: str, job: str) -> None:
    asked = {
        metric: filled(either(metric), namespace=NAMESPACE, rlhfjob=job, rate_interval="10s")
        for metric in (*MIRRORED, LabelledMetric.HEALTH_VERDICT)
    }

    def one_each() -> bool:
        return all(len(at_once(url, expr)) == 1 for expr in asked.values())

    eventually(one_each, what="one series of each metric that is mirrored")


def test_a_query_without_series_is_named(url: str) -> None:
    with pytest.raises(AssertionError, match=r"queries without series:\n(.*\n)*Reward A: "):
        dashboard_queries.run(url, rlhfjob="another", absent={})


def test_what_is_absent_for_a_reason_is_not_asked(url: str) -> None:
    words = {"rlhfjob": "every query of a job names it", "ALERTS": "no alerts", "le": "no passes"}
    words |= {name: "no operator" for name in exported() if name.startswith("rlhf_operator_")}
    dashboard_queries.run(url, rlhfjob="another", absent=words)


def test_values_come_at_once_and_over_time(url: str) -> None:
    eventually(lambda: at_once(url, "count_over_time(up[1m]) > 2"), what="three scrapes")
    (course,) = at_once(url, "vector(2)")
    assert (course.labels, course.values[0][1]) == ({}, 2.0)
    end = course.values[0][0]
    (course,) = over_time(url, "vector(2)", end - 4, end, 2)
    assert [value for _, value in course.values] == [2.0, 2.0, 2.0]


def test_a_query_that_is_refused_is_named(url: str) -> None:
    with pytest.raises(PrometheusError, match=r"refuses sum\(: "):
        at_once(url, "sum(")


def test_a_wrong_address_is_named() -> None:
    with pytest.raises(PrometheusError, match=r"127\.0\.0\.1:1/api/v1/query does not answer"):
        at_once("http://127.0.0.1:1", "up")
