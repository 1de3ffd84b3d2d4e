"""The figures of benchmarks/critic_stability.py, and that its jobs are good ones."""

import argparse
import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import critic_stability
import pytest
import tiny
from critic import figures, growing, page, plots, toy
from health_histories import HEALTHY

from rlhf_api.metrics import Metric
from rlhf_api.names import FileName
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_trainer.ppo.health import Health
from rlhf_trainer.run.report import Reporter

DOCS = Path(__file__).parents[2] / "docs"

STEADY = {
    "reward": [1.0] * 10 + [8.0] * 10,
    "explained_variance": [0.0] * 18 + [0.8, 0.6],
    "critic_loss": [2.0] * 10 + [6.0, 1.0] * 5,
    "critic_loss_of_mean": [1.0] * 18 + [1.0, 6.0],
    "returns_abs_mean": [2.0, 4.0] + [5.0] * 16 + [8.0, 10.0],
    "kl": [0.0] * 18 + [3.0, 5.0],
    "critic_loss_diverging": [0.0] * 20,
}
POOR = STEADY | {
    "reward": [1.0] * 18 + [6.0, 2.0],
    "explained_variance": [0.0] * 20,
    "critic_loss_diverging": [0.0] * 15 + [1.0] * 5,
}
WORSE = POOR | {
    "critic_loss": [1.0] * 20,
    "critic_loss_diverging": [0.0] * 11 + [1.0, 0.0] + [0.0] * 7,
}


def test_figures_are_over_the_ends_of_runs_and_over_seeds() -> None:
    found = figures.figures({"default": {0: STEADY, 1: POOR}, "none": {0: POOR, 1: WORSE}})
    assert found == {
        "default.explained_variance_min": 0.0,
        "default.explained_variance_max": 0.7,
        "default.best_score_share_min": 1.0,
        "default.critic_loss_growth_min": 3.0,
        "default.critic_loss_growth_max": 3.0,
        # (6 + 1) / (1 + 6).
        "default.critic_loss_over_mean": 1.0,
        "default.return_scale_growth": 3.0,
        "default.kl_end": 4.0,
        # On the second seed alone.
        "default.critic_loss_diverging_from_min": 16,
        "default.critic_loss_diverging_seeds": 1,
        "none.explained_variance_min": 0.0,
        "none.explained_variance_max": 0.0,
        # The best score of seed 0 is 8, that of seed 1 is 4, which both variants reach.
        "none.best_score_share_min": 0.5,
        # One seed whose critic is steady is not hidden by one whose critic is not.
        "none.critic_loss_growth_min": 1.0,
        "none.critic_loss_growth_max": 3.0,
        "none.critic_loss_over_mean": pytest.approx((1 + 2 / 7) / 2),
        "none.return_scale_growth": 3.0,
        "none.kl_end": 4.0,
        "none.critic_loss_diverging_from_min": 12,
        "none.critic_loss_diverging_seeds": 2,
    }


def test_a_rule_that_is_never_broken_is_told_as_such() -> None:
    found = figures.figures({"default": {0: STEADY, 1: STEADY}})
    assert found["default.critic_loss_diverging_from_min"] is None
    assert figures.rounded(found)["default.critic_loss_diverging_from_min"] is None
    heading, line = figures.table(found, ["default"]).splitlines()
    assert heading.endswith("critic_loss_diverging_from_min")
    assert line.endswith("  never")
    assert len(line) == len(heading)


def test_every_metric_that_is_read_is_one_of_the_trainer_and_drawn() -> None:
    assert set(critic_stability.METRICS) <= set(Metric)
    assert set(critic_stability.METRICS) - set(plots.PANELS) == {"critic_loss_of_mean"}
    assert set(critic_stability.METRICS) >= set(plots.PANELS)


def test_what_the_trainer_tells_is_read(tmp_path: Path) -> None:
    """A critic that diverges for ten updates and is judged so after five, and likewise back."""
    config = tiny.stage_config("ppo", tmp_path)
    diverging = {
        Metric.CRITIC_LOSS: 13.0,
        Metric.CRITIC_LOSS_OF_MEAN: 3.6,
        Metric.EXPLAINED_VARIANCE: 0.1,
        Metric.KL: 120.0,
    }
    updates = [
        HEALTHY | {Metric.RETURNS_ABS_MEAN: float(at)} | (diverging if 21 <= at <= 30 else {})
        for at in range(1, 41)
    ]
    health = Health()
    with Reporter(config, tiny.ranks()) as reporter:
        reporter.start(len(updates))
        for at, update in enumerate(updates, 1):
            judgement = health.judge(at, update)
            reporter.step(at, 0.0, update | judgement.metrics)
            reporter.health(at, judgement.readings)
        reporter.end(len(updates))
    course = critic_stability.read_course(Path(config.attempt_folder) / FileName.EVENTS)
    assert course.keys() == {*critic_stability.METRICS, figures.BROKEN}
    for metric in critic_stability.METRICS:
        assert course[metric] == [update[Metric(metric)] for update in updates]
    assert course[figures.BROKEN] == [0.0] * 24 + [1.0] * 10 + [0.0] * 6
    assert figures.diverging_from(course) == 25


GOOD = {
    "default.explained_variance_min": 0.5,
    "default.best_score_share_min": 0.98,
    "none.explained_variance_max": 0.49,
    "none.critic_loss_growth_min": 3.0,
    "seconds": 1800.0,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # Rounded as in the JSON these two would pass.
        ("default.explained_variance_min", 0.49999),
        ("default.best_score_share_min", 0.97999),
        ("default.explained_variance_min", float("nan")),
        # The task has to be one on which the critic diverges without remedies.
        ("none.explained_variance_max", 0.5),
        ("none.critic_loss_growth_min", 2.99),
        ("seconds", 1800.1),
    ],
)
def test_a_missed_goal_is_told(name: str, value: float) -> None:
    assert figures.missed(GOOD) == []
    (sentence,) = figures.missed(GOOD | {name: value})
    assert sentence.startswith(f"{name} is {value}, the goal ")


def test_goals_that_nothing_is_known_of_are_neither_reached_nor_missed() -> None:
    found = {"popArt.explained_variance_min": 0.0}
    assert figures.missed(found) == []
    told = figures.not_measured(found)
    assert [sentence.split()[0] for sentence in told] == [goal.figure for goal in figures.GOALS]
    assert all(" is not measured, the goal " in sentence for sentence in told)
    assert figures.not_measured(GOOD) == []


def test_a_share_of_the_best_score_needs_all_variants() -> None:
    found = figures.figures({"default": {0: STEADY}}, compared=False)
    assert "default.best_score_share_min" not in found
    assert figures.table(found, ["default"]).splitlines()[1].count("not measured") == 1


def written_by(
    arguments: list[str], course: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, dict[str, Any]]:
    """Exit status and JSON of the command, with the same course in the place of each run."""

    def measured(given: argparse.Namespace, folder: Path) -> figures.Runs:
        courses = {"none": POOR | {"critic_loss": [1.0] * 19 + [9.0]}}
        return {
            variant: dict.fromkeys(range(given.seeds), courses.get(variant, course))
            for variant in given.variants
        }

    monkeypatch.setattr(critic_stability, "measure", measured)
    written = folder / "found.json"
    status = critic_stability.main(["--json", str(written), *arguments])
    return status, json.loads(written.read_text())


@pytest.mark.parametrize(
    ("arguments", "full"),
    [
        ([], True),
        (["--seeds", "4"], False),
        (["--updates", "99"], False),
        (["--variants", "none", "default"], False),
    ],
)
def test_a_full_run_measures_its_seconds(
    arguments: list[str],
    full: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, found = written_by(arguments, STEADY, tmp_path, monkeypatch)
    assert status == 0
    assert ("seconds" in found) == full
    told = capsys.readouterr()
    assert ("seconds is not measured" in told.out) == (not full)
    assert ("the goals are for all variants" in told.err) == (not full)


def test_a_full_run_that_lacks_a_figure_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    another = (*figures.GOALS, figures.Goal("default.sought_in_vain", ">=", 0.0))
    monkeypatch.setattr(figures, "GOALS", another)
    assert written_by([], STEADY, tmp_path, monkeypatch)[0] == 1
    assert written_by(["--seeds", "1"], STEADY, tmp_path, monkeypatch)[0] == 0


@pytest.mark.parametrize(("seconds", "status"), [(1800.0, 0), (1801.0, 1)])
def test_a_run_slower_than_half_an_hour_fails(
    seconds: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([100.0, 100.0 + seconds])
    clock = SimpleNamespace(monotonic=lambda: next(times))
    monkeypatch.setattr(critic_stability, "time", clock)
    assert written_by([], STEADY, tmp_path, monkeypatch)[0] == status


def test_each_run_has_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says: sums end otherwise with another number."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    seen = []

    def started(*arguments: Any, env: dict[str, str], **settings: Any) -> Any:
        seen.append(env["OMP_NUM_THREADS"])
        raise subprocess.TimeoutExpired("rlhf", 1)

    monkeypatch.setattr(subprocess, "run", started)
    with pytest.raises(critic_stability.RunError):
        critic_stability.run("popart-3", "popArt", 3, 2, tmp_path)
    assert seen == ["1"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("critic.md", ["variants", "goals"]),
        ("adr/0007-rewards-are-scaled-as-a-whole.md", ["decision"]),
    ],
)
def test_the_pages_show_the_figures_of_the_committed_run(name: str, parts: list[str]) -> None:
    """`make critic` writes both; `python -m critic.page` the pages alone."""
    found = json.loads((DOCS / "critic.json").read_text())
    text = (DOCS / name).read_text()
    assert re.findall(r"<!-- critic: (\w+) -->", text) == parts
    assert page.with_figures(text, found) == text
    other = found | {"default.explained_variance_min": 0.123}
    assert page.with_figures(text, other) != text


def test_what_each_remedy_costs_is_what_the_committed_run_found() -> None:
    """The table is made anew with each run, the sentences below it are not."""
    found = json.loads((DOCS / "critic.json").read_text())
    text = (DOCS / "critic.md").read_text()
    costs = text.partition("## What each remedy costs\n")[2].partition("\n## ")[0]
    assert re.findall(r"0\.\d{4}", costs) == [
        f"{found[f'{variant}.best_score_share_min']:.4f}"
        for variant in ("gamma99", "none", "report", "runningStd")
    ]

    def of(figure: str) -> dict[str, float]:
        return {variant: found[f"{variant}.{figure}"] for variant in toy.VARIANTS}

    share, explained, kl = map(of, ("best_score_share_min", "explained_variance_min", "kl_end"))
    assert share["report"] < share["runningStd"] < share["gamma99"] < share["none"]
    assert max(explained, key=explained.__getitem__) == "report"
    dividing_the_score = {"report", "runningStd"}
    others = [kl[variant] for variant in kl.keys() - dividing_the_score]
    assert max(kl[variant] for variant in dividing_the_score) < min(others)


def test_what_differs_from_the_defaults_in_every_variant_is_told() -> None:
    text = (DOCS / "critic.md").read_text()
    for words in (
        f"updates of {toy.COMMON['batchSize']} answers",
        f"`klCoef` {toy.COMMON['klCoef']}",
        f"`scoreClip` {toy.COMMON['scoreClip']}",
        f"scores reach {toy.RESPONSE_TOKENS}",
    ):
        assert words in text


def test_the_committed_run_reaches_the_goals() -> None:
    committed = json.loads((DOCS / "critic.json").read_text())
    assert figures.missed(committed) == []
    assert figures.not_measured(committed) == []


def test_figures_are_rounded_where_they_are_written_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nearly = STEADY | {"explained_variance": [0.0] * 18 + [0.49999, 0.49999]}
    runs = {"default": dict.fromkeys(range(5), nearly)}
    monkeypatch.setattr(critic_stability, "measure", lambda given, folder: runs)
    written = tmp_path / "found.json"
    arguments = ["--json", str(written), "--variants", "default"]
    assert critic_stability.main(arguments) == 1
    assert json.loads(written.read_text())["default.explained_variance_min"] == 0.5
    assert (tmp_path / "found.svg").exists()
    told = capsys.readouterr()
    assert told.out.count("default.explained_variance_min is 0.49999, the goal >= 0.5") == 1
    assert "the goals are for all variants, 5 seeds or more and 100 updates" in told.err


def test_a_run_that_takes_too_long_is_told_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(critic_stability, "RUN_SECONDS", 0.01)
    with pytest.raises(critic_stability.RunError, match=r"popart-3 took longer than 0\.01 s"):
        critic_stability.run("popart-3", "popArt", 3, 2, tmp_path)


def test_the_reward_counts_vowels() -> None:
    assert growing.good_letters(["ab", "ab", "ab"], ["", "xaze", "aeiou"]) == [0.0, 2.0, 5.0]


@pytest.mark.parametrize("variant", toy.VARIANTS)
def test_the_job_of_each_variant_is_valid(variant: str, tmp_path: Path) -> None:
    document = toy.job("critic-0", variant, 0, 150, tmp_path)
    ppo = RLHFJob.from_document(document).spec.stages.ppo
    assert ppo is not None
    assert ppo.rewards[0].function is not None
    assert ppo.seed == 0
