"""The dashboard's picture, drawn from a real Prometheus."""

import html
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dashboard_queries
import pytest
from dashboard_queries import DASHBOARD
from matplotlib.image import imread

from rlhf_chart.picture import main, name_of, rows_of

Raw = dict[str, Any]

RATE_INTERVAL = "10s"


@pytest.fixture
def dashboard() -> Raw:
    found: Raw = json.loads(DASHBOARD.read_text())
    return found


@pytest.fixture
def asked(url: str) -> list[str]:
    dashboard_queries.all_answered(url, RATE_INTERVAL)
    return ["--prometheus", url, "--minutes", "1", "--rate-interval", RATE_INTERVAL]


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


@pytest.mark.parametrize("picked", [("--job", "another"), ("--namespace", "another")])
def test_a_job_that_is_not_there_is_not_drawn(
    asked: list[str], picked: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "dashboard.svg"
    assert main([*asked, *picked, "--output", str(path)]) == 1
    assert "has nothing of --job " in (told := capsys.readouterr().err)
    assert f"{picked[0]} 'another'" in told
    assert told.endswith(" UTC; check these, --minutes and --end\n")
    assert not path.exists()


def test_the_folder_of_the_picture_is_made(asked: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "dashboard.svg"
    picked = ["--job", "demo", "--rows", "Critic", "--output", str(path)]
    assert main([*asked, *picked]) == 0
    assert path.exists()


def test_a_picture_that_cannot_be_written_is_named(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "dashboard.svg"
    assert main([*asked, "--rows", "Critic", "--output", str(path)]) == 1
    assert f"--output {path}: cannot be written (" in capsys.readouterr().err


def test_a_form_that_is_unknown_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--prometheus", "http://127.0.0.1:1", "--output", str(tmp_path / "a.gif")])
    assert "a.gif: ends in none of .png, .svg; write one" in capsys.readouterr().err


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


NO_PROMETHEUS = {
    "127.0.0.1:9090": "127.0.0.1:9090: is no URL; write it with http:// or https:// before it",
    "http://127.0.0.1:1": (
        "http://127.0.0.1:1/api/v1/query_range does not answer as a Prometheus (no connection): "
        "check the URL"
    ),
}


@pytest.mark.parametrize("url", NO_PROMETHEUS)
def test_a_prometheus_that_does_not_answer_is_named(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.png"
    assert main(["--prometheus", url, "--output", str(path)]) == 1
    assert capsys.readouterr().err == f"{NO_PROMETHEUS[url]}\n"
    assert not path.exists()


@pytest.mark.parametrize("answer", ["<html>", "[]", "{}", "null"])
def test_a_server_that_is_no_prometheus_is_named(
    answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer.encode())

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert main(["--prometheus", url, "--output", str(tmp_path / "a.png")]) == 1
        server.shutdown()
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"{url}/api/v1/query_range does not answer as a Prometheus")
    assert told.endswith(": check the URL")
    assert "query=" not in told


def test_legends_are_filled_as_by_grafana() -> None:
    labels = {"rlhfjob": "a", "stage": "ppo"}
    assert name_of("{{rlhfjob}} {{stage}} kl {{rule}}", labels) == "a ppo kl"
