"""The dashboard: what it shows of all that is exported, and that Prometheus understands it."""

import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.monitoring import promtool
from dashboard_queries import ABSENT_IN_PPO, asked, words

from rlhf_chart.dashboard import dashboard_json
from rlhf_chart.dashboard_rows import NOT_SHOWN
from rlhf_chart.panel_queries import filled, names_in
from rlhf_chart.series import exported

FILES = Path(__file__).parents[2] / "charts" / "rlhf-operator" / "files"
ALERTS = FILES / "alerts.yaml"
LARGEST_CONFIG_MAP = 1 << 20
GRID = 24

Raw = dict[str, Any]


@pytest.fixture(scope="module")
def dashboard() -> Raw:
    found: Raw = json.loads(dashboard_json())
    return found


def shown() -> set[str]:
    return names_in(each.expr for each in asked())


def test_every_series_is_shown_or_alerted_on() -> None:
    in_alerts = names_in([ALERTS.read_text()])
    assert exported() - shown() - in_alerts == set()


def test_every_series_that_it_asks_for_is_exported() -> None:
    assert shown() - exported() == set()


def test_nothing_is_shown_that_is_said_to_be_left_out() -> None:
    found = [name for name in shown() for left_out in NOT_SHOWN if re.fullmatch(left_out, name)]
    assert found == []


def test_what_may_be_absent_is_asked_for() -> None:
    assert set().union(*map(words, asked())) >= ABSENT_IN_PPO.keys()


def test_prometheus_parses_every_query(tmp_path: Path) -> None:
    rules = [
        {
            "record": f"query:{number}",
            "expr": filled(each.expr, namespace="a|b", rlhfjob=".+", rate_interval="1m"),
        }
        for number, each in enumerate(asked())
    ]
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        [str(promtool()), "check", "rules", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_panels_fill_the_grid_and_hide_none(dashboard: Raw) -> None:
    cells = Counter(
        (x, y)
        for panel in dashboard["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )
    bottom = max(y for _, y in cells)
    assert cells == Counter((x, y) for x in range(GRID) for y in range(bottom + 1))


def test_panels_have_a_name_an_explanation_and_a_number_of_their_own(dashboard: Raw) -> None:
    panels = dashboard["panels"]
    assert len({each["id"] for each in panels}) == len(panels)
    assert len({each["title"] for each in panels}) == len(panels)
    assert all(each["description"] for each in panels if each["type"] != "row")
    for panel in panels:
        assert panel["type"] == "row" or panel["options"]
        references = [target["refId"] for target in panel.get("targets", [])]
        assert len(set(references)) == len(references)


def test_it_fits_a_config_map() -> None:
    assert len(dashboard_json().encode()) < LARGEST_CONFIG_MAP


def test_jobs_are_picked_within_namespaces(dashboard: Raw) -> None:
    source, namespace, job = dashboard["templating"]["list"]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    for picker in (namespace, job):
        assert picker["multi"]
        assert picker["includeAll"]
        assert picker["query"].endswith(f", {picker['name']})")
    assert '$namespace"' in job["query"]
    assert "$" not in namespace["query"]
