"""The figures of benchmarks/ppo_step.py and supervised.py, and that their jobs are valid."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import ppo_step
import pytest
import tiny
from speed import figures, jobs, runs
from speed.figures import Events, Pace, PhaseSeconds, Update

from rlhf_api.metrics import Metric, Phase
from rlhf_api.names import FileName
from rlhf_api.v1alpha1 import RLHFJob, RowCounts
from rlhf_trainer.run.report import Reporter

FOLDERS = (Path("/data"), Path("/sft"), Path("/reward"))


def courses(scores: Sequence[float], kl: float = 1.0, seconds: float = 2.0) -> list[Update]:
    """Updates of 2 seconds each behind a first one of 10."""
    return [
        Update(10.0 + seconds * number, score, kl, 20.0 + number)
        for number, score in enumerate(scores)
    ]


def event(kind: str, time: float, **more: object) -> str:
    return json.dumps({"type": kind, "time": time, "step": 0, "epoch": 0.0, "metrics": {}, **more})


def step(time: float, epoch: float, seconds: float, reward: float = 0.0) -> str:
    metrics = {"step_seconds": seconds, "reward": reward, "kl": 0.5, "response_tokens": 8.0}
    return event("step", time, epoch=epoch, metrics=metrics)


START = event("start", 100.0, metricsPort=1, rows={"dataset": {"kept": 300}})


def test_time_begins_with_the_first_step_and_not_with_the_run() -> None:
    lines = [START, step(107.0, 0.25, 3.0, 1.5), event("checkpoint", 108.0), step(109.0, 0.5, 2.0)]
    found = Events.parse(lines)
    assert found.updates() == [Update(3.0, 1.5, 0.5, 8.0), Update(5.0, 0.0, 0.5, 8.0)]
    # A packed sequence holds several rows: they are counted by passes over all of them.
    assert found.paces() == [Pace(3.0, 75.0), Pace(5.0, 150.0)]


def test_a_run_without_steps_is_told() -> None:
    with pytest.raises(ValueError, match="tells of no step"):
        Events.parse([START])


def test_the_first_update_is_no_part_of_the_speed() -> None:
    updates = courses([0.0, 0.0, 0.0])
    assert figures.samples_per_second(updates, 64) == 32.0
    assert figures.mean_response_tokens(updates) == 21.5


def test_the_first_steps_are_no_part_of_the_speed() -> None:
    paces = [Pace(50.0, 64.0), Pace(60.0, 128.0), Pace(61.0, 192.0), Pace(62.0, 256.0)]
    assert figures.rows_per_second(paces, 2) == 64.0


def test_shares_are_of_the_updates_behind_the_first() -> None:
    def told(at: int, *seconds: float) -> PhaseSeconds:
        phases = (Phase.DATA, Phase.ROLLOUT, Phase.SCORING, Phase.LEARNING)
        return PhaseSeconds(at, dict(zip(phases, seconds, strict=True)))

    found = figures.shares([told(0, 1, 9, 9, 9), told(1, 1, 10, 10, 10), told(4, 2, 11, 12, 17)])
    assert found == {"share_rollout": 0.1, "share_scoring": 0.2, "share_training": 0.7}
    with pytest.raises(ValueError, match="ask for more --updates"):
        figures.shares([told(0, 1, 9, 9, 9), told(1, 1, 10, 10, 10)])


@pytest.mark.parametrize(
    ("kl", "seconds"),
    [
        # The mean of ten reaches 2 with the 24th of ours, which begin at 0.
        (1.0, 10.0 + 2.0 * 23),
        # More KL than the peer has.
        (1.1, None),
    ],
)
def test_the_peers_score_is_reached_by_means_over_updates(kl: float, seconds: float | None) -> None:
    peer = courses([0.0] * 90 + [1.0, 3.0] * 5)
    # One high score alone reaches nothing.
    ours = courses([0.0] * 5 + [4.0] + [0.0] * 8 + [2.0] * 20, kl)
    assert figures.seconds_to_score(ours, peer) == seconds


def test_a_score_that_is_not_reached_has_no_time() -> None:
    assert figures.seconds_to_score(courses([1.0] * 30), courses([1.1] * 30)) is None


def told_shares() -> list[PhaseSeconds]:
    phases = dict.fromkeys(figures.SHARES.values(), 0.0)
    return [PhaseSeconds(1, phases), PhaseSeconds(2, dict.fromkeys(phases, 1.0))]


def test_the_peers_figures_stand_beside_ours() -> None:
    ours = courses([2.0] * 20)
    alone = figures.ppo_figures(ours, told_shares(), 64, None)
    assert alone.keys() == {"samples_per_s", *figures.SHARES, "mean_response_tokens"}
    found = figures.ppo_figures(ours, told_shares(), 64, courses([2.0] * 20, seconds=6.0))
    assert found["samples_per_s"] == alone["samples_per_s"] == 32.0
    assert found["speedup_vs_trl"] == 3.0
    assert found["seconds_to_trl_score"] == 10.0 + 2.0 * 9
    assert found["seconds_trl"] == 10.0 + 6.0 * 19


@pytest.mark.parametrize(
    ("peer", "told"), [(19.1, False), (20.9, False), (19.0, True), (21.1, True)]
)
def test_work_of_other_lengths_is_told(peer: float, told: bool) -> None:
    found = {"mean_response_tokens": 20.0, "mean_response_tokens_trl": peer}
    assert (figures.unequal_lengths(found) is not None) is told
    assert figures.unequal_lengths({"mean_response_tokens": 20.0}) is None


def test_the_table_tells_what_was_never_reached() -> None:
    lines = figures.table({"samples_per_s": 51.23456, "seconds_to_trl_score": None}).splitlines()
    assert lines == ["samples_per_s         51.23", "seconds_to_trl_score  never"]


def test_what_a_rank_tells_is_read(tmp_path: Path) -> None:
    """Both files and endpoint, as a stage has them."""
    config = tiny.stage_config("ppo", tmp_path)
    endpoint = runs.Endpoint(Path(config.attempt_folder) / FileName.EVENTS)
    told = {Metric.STEP_SECONDS: 1.0, Metric.REWARD: 2.0, Metric.KL: 3.0}
    with Reporter(config, tiny.ranks()) as reporter:
        reporter.read_rows("dataset", RowCounts(kept=7))
        reporter.start(2)
        endpoint.ask()
        with reporter.phase(Phase.ROLLOUT):
            reporter.step(1, 0.5, told | {Metric.RESPONSE_TOKENS: 4.0})
            endpoint.ask()
        reporter.step(2, 1.0, told | {Metric.RESPONSE_TOKENS: 6.0})
        endpoint.ask()
        reporter.end(2)
    # Gone with the rank.
    endpoint.ask()
    assert [each.step for each in endpoint.told] == [1, 2]
    assert endpoint.told[0].seconds[Phase.ROLLOUT] > 0
    assert endpoint.told[0].seconds.keys() == {str(phase) for phase in Phase}
    events = Events.parse(endpoint.events.read_text("utf-8").splitlines())
    assert events.kept_rows == 7
    assert [update.response_tokens for update in events.updates()] == [4.0, 6.0]


def test_an_endpoint_of_a_stage_that_has_not_begun_is_no_mistake(tmp_path: Path) -> None:
    endpoint = runs.Endpoint(tmp_path / FileName.EVENTS)
    endpoint.ask()
    endpoint.events.write_text('{"type": "start", "metricsPo')
    endpoint.ask()
    assert endpoint.told == []


@pytest.mark.parametrize(
    "document",
    [
        jobs.models(FOLDERS[0]),
        jobs.ppo(*FOLDERS, 30),
        jobs.sft(*FOLDERS[:2], 60, packing=False),
        jobs.sft(*FOLDERS[:2], 60, packing=True),
        jobs.reward(*FOLDERS[:2], 60),
    ],
    ids=lambda document: document["metadata"]["name"],
)
def test_the_jobs_are_valid_and_of_the_example(document: jobs.Raw) -> None:
    job = RLHFJob.from_document(document)
    for stage in job.spec.stages.present().values():
        assert str(stage.dataset.uri).startswith("file:///data/")
        assert (job.metadata.name == "models") == (stage.eval_dataset is not None)
        if job.metadata.name != "models":
            assert stage.processes_per_node == 1
            assert stage.max_steps in (30, 60)


def test_ppo_takes_one_optimizer_step_a_pass() -> None:
    """TRL accumulates gradients over the whole rollout."""
    ppo = RLHFJob.from_document(jobs.ppo(*FOLDERS, 30)).spec.stages.ppo
    assert ppo is not None
    assert ppo.minibatch_size == ppo.batch_size


def test_a_run_that_fails_is_told_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(runs.RunError, match=r"job sft ended with 66: .*/sft does not exist"):
        runs.run(jobs.sft(*FOLDERS[:2], 60, packing=False), tmp_path, runs.environment(threads=1))


def test_all_processes_have_the_threads_that_are_asked_for() -> None:
    assert runs.environment(runs.threads_of(3))["OMP_NUM_THREADS"] == "3"
    assert runs.threads_of(None) >= 1


def test_a_peer_that_fails_is_told_with_its_reason(tmp_path: Path) -> None:
    script = tmp_path / "peer.py"
    script.write_text("import sys; sys.exit(open(sys.argv[1]).read())")
    with pytest.raises(runs.RunError, match=r'trl-sft ended with 1: \{"rows": 3\}'):
        runs.run_peer([sys.executable, str(script)], {"rows": 3}, tmp_path / "trl-sft", {})


@pytest.mark.parametrize(("tokens", "code"), [(20.5, 0), (15.0, 1)])
def test_figures_are_written_and_unequal_work_is_told(
    tokens: float,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = {
        "samples_per_s": 1 / 3,
        "mean_response_tokens": 20.0,
        "mean_response_tokens_trl": tokens,
    }
    monkeypatch.setattr(ppo_step, "prepare", lambda folder: runs.Prepared(*FOLDERS))
    monkeypatch.setattr(ppo_step, "measure", lambda given, models, folder: found)
    path = tmp_path / "ppo.json"
    assert ppo_step.main(["--json", str(path)]) == code
    assert json.loads(path.read_text())["samples_per_s"] == 0.3333
    assert ("compares different work" in capsys.readouterr().out) == bool(code)


def test_beside_the_peer_as_many_samples_are_taken_as_its_score_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And both have the same task."""
    asked: list[jobs.Raw] = []

    def run(document: jobs.Raw, *_: object) -> tuple[Path, list[PhaseSeconds]]:
        asked.append(document)
        return tmp_path, told_shares()

    def run_peer(command: list[str], task: jobs.Raw, *_: object) -> Path:
        asked.append(task)
        path = tmp_path / "measured.json"
        updates = [update._asdict() for update in courses([1.0] * 20, seconds=3.0)]
        path.write_text(json.dumps({"updates": updates}))
        return path

    monkeypatch.setattr(ppo_step, "run", run)
    monkeypatch.setattr(ppo_step, "run_peer", run_peer)
    monkeypatch.setattr(ppo_step, "interpreter", lambda wanted: Path("python"))
    monkeypatch.setattr(ppo_step, "ppo_task", lambda document: document)
    lines = [START, *(step(103.0 + 2.0 * at, 0.1, 3.0) for at in range(20))]
    monkeypatch.setattr(ppo_step, "events_of", lambda made, stage: Events.parse(lines))
    models = runs.Prepared(*FOLDERS)
    given = ppo_step.read_arguments(["--json", "x", "--peer", "trl"])
    assert ppo_step.measure(given, models, tmp_path)["speedup_vs_trl"] == 1.5
    assert asked[0] == asked[1]
    assert asked[0]["spec"]["stages"]["ppo"]["maxSteps"] == 100
    ppo_step.measure(ppo_step.read_arguments(["--json", "x"]), models, tmp_path)
    assert asked[2]["spec"]["stages"]["ppo"]["maxSteps"] == 30
    assert len(asked) == 3
