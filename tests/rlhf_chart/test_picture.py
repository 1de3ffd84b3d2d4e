"""The dashboard's picture, drawn from a real Prometheus."""

import html
import json
from pathlib import Path
from typing import Any

import pytest
from dashboard_queries import DASHBOARD
from matplotlib.image import imread
from waiting import eventually

from rlhf_chart.picture import main, name_of, rows_of
from rlhf_chart.prometheus_api import at_once

Raw = dict[str, Any]


@pytest.fixture
def dashboard() -> Raw:
    found: Raw = json.loads(DASHBOARD.read_text())
    return found


@pytest.fixture
def asked(url: str) -> list[str]:
    eventually(lambda: at_once(url, "rate(rlhf_train_tokens_total[10s])"), what="rates are there")
    return ["--prometheus", url, "--minutes", "1", "--rate-interval", "10s"]


def test_every_panel_is_drawn_with_its_series(
    dashboard: Raw, asked: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "dashboard.svg"
    assert main([*asked, "--output", str(path)]) == 0
    drawn = html.unescape(path.read_text())
    for panel in dashboard["panels"]:
        assert f">{panel['title']}<" in drawn
    assert ">no data<" not in drawn
    assert ">team/demo sft<" in drawn
    assert ">team/demo sft critic_loss<" in drawn
    assert ">3 s<" in drawn, "large digits"
    assert ">checkpoint_age<" in drawn, "a column of a table"
    assert "> team/demo sft one<" in drawn, "a bar of states"


def test_rows_are_chosen_by_title(asked: list[str], tmp_path: Path) -> None:
    path = tmp_path / "dashboard.png"
    assert main([*asked, "--rows", "Critic", "Operator", "--output", str(path)]) == 0
    few = imread(path)
    assert main([*asked, "--rows", "Critic", "--output", str(path)]) == 0
    assert 0 < imread(path).shape[0] < few.shape[0]


def test_a_job_that_is_not_there_gives_empty_panels(asked: list[str], tmp_path: Path) -> None:
    path = tmp_path / "dashboard.svg"
    arguments = ["--job", "another", "--rows", "Critic", "--output", str(path)]
    assert main([*asked, *arguments]) == 0
    assert path.read_text().count(">no data<") == 5


def test_rows_keep_the_dashboards_order(dashboard: Raw) -> None:
    found = rows_of(dashboard, ["Critic", "Progress"])
    assert [row.title for row in found] == ["Progress", "Critic"]
    assert [panel["title"] for panel in found[0].panels][:1] == ["Share of steps done"]
    assert len(rows_of(dashboard, None)) > len(found)


def test_a_row_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path / "a.png")]
    assert main(["--prometheus", "http://127.0.0.1:1", "--rows", "Actress", *output]) == 1
    assert "--rows 'Actress' is none of the dashboard; take of ['Progress', " in (
        capsys.readouterr().err
    )


def test_a_prometheus_that_does_not_answer_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.png"
    assert main(["--prometheus", "http://127.0.0.1:1", "--output", str(path)]) == 1
    assert "127.0.0.1:1/api/v1/query_range does not answer" in capsys.readouterr().err
    assert not path.exists()


def test_legends_are_filled_as_by_grafana() -> None:
    labels = {"rlhfjob": "a", "stage": "ppo"}
    assert name_of("{{rlhfjob}} {{stage}} kl {{rule}}", labels) == "a ppo kl"
