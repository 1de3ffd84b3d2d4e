"""Stages as pods run them: the launcher, its ranks, signals, exit codes and the metrics' endpoint.

A launch costs seconds, so that each fixture tells one long story, and the tests read its chapters.
What comes before or after a chapter that needs a launcher is run by ranks that are there already.
"""

import os
import re
import resource
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import metrics_pages
import pytest
import stage_runs
import tiny
from prometheus_client.parser import text_string_to_metric_families

from rlhf_api.metrics import METRIC_PREFIX, STATUS_METRICS, Metric, metric_name
from rlhf_api.names import MAX_RESULT_METRICS, ExitCode, FileName, Reason
from rlhf_api.v1alpha1 import CheckpointPolicy, Dataset, StageConfig, StageResult
from rlhf_trainer.process.outcome import StageOutcome

STEPS = 30
# Steps of many small passes, so that a signal finds a stage at work.
SLOW: dict[str, Any] = {
    "batch_size": 8,
    "micro_batch_size": 1,
    "max_steps": STEPS,
    "learning_rate": 1e-3,
}


@dataclass
class Ended:
    """An attempt that was launched, and how it ended."""

    config: StageConfig
    code: int
    result: StageResult
    checkpoints: list[str]
    log: str
    stdout: str


def ended(launched: stage_runs.Launched) -> Ended:
    code = launched.wait()
    return Ended(
        launched.config,
        code,
        launched.result,
        stage_runs.checkpoints(launched.config),
        launched.log,
        launched.stdout,
    )


def steps_kept(attempt: Ended) -> list[int]:
    """Steps of the checkpoints that it left."""
    return [int(name[5:]) for name in attempt.checkpoints if name.startswith("step-")]


def step_told(config: StageConfig) -> int:
    """The last step in the attempt's events."""
    return int(stage_runs.events(config, "step")[-1]["step"])


def same_course(straight: StageConfig, *attempts: StageConfig) -> None:
    """The last word about every step is the same in both."""
    expected = {event["step"]: event for event in stage_runs.events(straight, "step")}
    found = {event["step"]: event for one in attempts for event in stage_runs.events(one, "step")}
    assert list(found) == list(expected)
    for step, event in expected.items():
        metrics = stage_runs.learned(event["metrics"])
        assert stage_runs.learned(found[step]["metrics"]) == pytest.approx(metrics, rel=1e-5)


def same_end(outcome: StageOutcome, end: StageOutcome | StageResult) -> None:
    """The last metrics are the same; a result holds no more than so many of them."""
    expected, found = (stage_runs.learned(dict(each.metrics)) for each in (outcome, end))
    if len(end.metrics) == MAX_RESULT_METRICS:
        assert set(STATUS_METRICS) & expected.keys() <= found.keys()
        expected = {name: value for name, value in expected.items() if name in found}
    assert found == pytest.approx(expected, rel=1e-5)


# SFT on one rank: the disk is full, then a request to stop, then the end.


@pytest.fixture(scope="module")
def sft_story(tmp_path_factory: pytest.TempPathFactory) -> list[Ended]:
    folder = tmp_path_factory.mktemp("launched-sft")
    policy = CheckpointPolicy(every_steps=4)
    first = tiny.stage_config("sft", folder, packing=False, checkpoint=policy, **SLOW)
    chapters = []
    with stage_runs.launched(first, folder / "1") as launched:
        launched.until(lambda: "step-4" in stage_runs.checkpoints(first))
        # Events are smaller than this, a checkpoint's files larger.
        for pid in launched.ranks():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (40_000, 40_000))
        chapters.append(ended(launched))
    second = stage_runs.attempt(first, 2)
    with stage_runs.launched(second, folder / "2") as launched:
        launched.until(lambda: "latest" in stage_runs.checkpoints(second))
        launched.stop()
        chapters.append(ended(launched))
    return chapters


def test_a_full_disk_keeps_the_last_good_checkpoint(sft_story: list[Ended]) -> None:
    full = sft_story[0]
    assert full.code == full.result.exit_code == ExitCode.IO
    assert full.result.reason is Reason.IO_ERROR
    assert "free space" in full.result.message
    assert full.result.last_checkpoint_step is not None
    assert full.checkpoints == ["latest", f"step-{full.result.last_checkpoint_step}"]
    assert full.result.step == step_told(full.config) > full.result.last_checkpoint_step


def test_sigterm_between_steps(sft_story: list[Ended]) -> None:
    full, stopped = sft_story
    assert stopped.code == stopped.result.exit_code == ExitCode.STOPPED_WITH_CHECKPOINT
    assert stopped.result.reason is Reason.STOPPED
    assert stopped.result.last_checkpoint_step == stopped.result.step == step_told(stopped.config)
    assert f"step-{stopped.result.step}" in stopped.checkpoints
    first = stage_runs.events(stopped.config)[0]
    assert first["step"] == full.result.last_checkpoint_step
    # Its own checkpoint was complete: those of the first attempt are gone.
    assert not [name for name in stage_runs.checkpoints(full.config) if name.startswith("step")]


def test_sft_ends_as_if_nothing_had_happened(sft_story: list[Ended], tmp_path: Path) -> None:
    straight = tiny.stage_config("sft", tmp_path, packing=False, **SLOW)
    outcome = stage_runs.run(straight)
    last = stage_runs.attempt(sft_story[0].config, 3)
    same_end(outcome, stage_runs.run(last))
    # The first attempt told of steps that no checkpoint has kept; the second did them again.
    same_course(straight, *[chapter.config for chapter in sft_story], last)


# The reward model on two ranks: a request to stop, then a rank is killed, then the end.


@dataclass
class RewardStory:
    """The attempt that was stopped, and the one with the killed rank."""

    stopped: StageConfig
    killed: Ended


@pytest.fixture(scope="module")
def reward_story(tmp_path_factory: pytest.TempPathFactory) -> RewardStory:
    folder = tmp_path_factory.mktemp("launched-reward")
    first = tiny.stage_config("reward", folder, world_size=2, zero_stage=2, **SLOW)
    for rank in stage_runs.run_on_pair(first, looks=12):
        assert rank["error"].exit_code == ExitCode.STOPPED_WITH_CHECKPOINT
    second = stage_runs.attempt(first, 2)
    with stage_runs.launched(second, folder / "2") as launched:
        launched.until(lambda: len(stage_runs.checkpoints(second)) == 3)
        os.kill(launched.ranks()[-1], signal.SIGKILL)
        return RewardStory(first, ended(launched))


def test_a_killed_rank_takes_the_stage_with_it(reward_story: RewardStory) -> None:
    killed = reward_story.killed
    assert killed.code == killed.result.exit_code == ExitCode.KILLED
    assert killed.result.reason is Reason.CRASHED
    assert "rank 1 was killed by signal 9" in killed.result.message
    assert killed.result.total_steps == STEPS
    assert stage_runs.events(killed.config)[0]["step"] == step_told(reward_story.stopped) > 0
    # What it tells is what lies there; one may be complete that it had no time to name.
    assert killed.result.last_checkpoint_step in steps_kept(killed)
    assert killed.result.step >= killed.result.last_checkpoint_step


def test_reward_ends_as_if_nothing_had_happened(reward_story: RewardStory, tmp_path: Path) -> None:
    straight = tiny.stage_config("reward", tmp_path, world_size=2, zero_stage=2, **SLOW)
    outcome = stage_runs.run_on_pair(straight)[0]["outcome"]
    last = stage_runs.attempt(reward_story.stopped, 3)
    same_end(outcome, stage_runs.run_on_pair(last)[0]["outcome"])
    assert stage_runs.events(last)[0]["step"] == max(steps_kept(reward_story.killed))
    same_course(straight, reward_story.stopped, reward_story.killed.config, last)


# PPO on two ranks with ZeRO 3: a request to stop in long answers, then the end.

PPO: dict[str, Any] = {
    "world_size": 2,
    "zero_stage": 3,
    "max_steps": 4,
    "max_response_length": 40,
    "reward_scaling": "RunningStd",
    "eval_dataset": True,
    "samples_every_steps": 1,
}


def held_out(folder: Path) -> Dataset:
    path = tiny.write_rows(folder / "held-out.jsonl", tiny.prompt_rows(4, seed=2))
    return Dataset(uri=f"file://{path}")


@dataclass
class PPOStory:
    """The attempt that was stopped, and what was scraped before."""

    stopped: Ended
    page: str


@pytest.fixture(scope="module")
def ppo_story(tmp_path_factory: pytest.TempPathFactory) -> PPOStory:
    folder = tmp_path_factory.mktemp("launched-ppo")
    first = tiny.stage_config("ppo", folder, **PPO | {"eval_dataset": held_out(folder)})
    with stage_runs.launched(first, folder / "1") as launched:
        launched.wait_for_step(1)
        page = metrics_pages.fetched(stage_runs.events(first, "start")[0]["metricsPort"])
        launched.stop()
        return PPOStory(ended(launched), page)


def test_sigterm_in_a_rollout(ppo_story: PPOStory) -> None:
    stopped = ppo_story.stopped
    assert stopped.code == ExitCode.STOPPED_WITH_CHECKPOINT
    assert stopped.result.last_checkpoint_step == stopped.result.step >= 1
    assert stopped.result.total_steps == 4


def test_ppo_ends_as_if_nothing_had_happened(ppo_story: PPOStory, tmp_path: Path) -> None:
    last = stage_runs.attempt(ppo_story.stopped.config, 2)
    done = stage_runs.run_on_pair(last)[0]["outcome"]
    assert (done.step, done.total_steps) == (4, 4)
    straight = tiny.stage_config("ppo", tmp_path, **PPO | {"eval_dataset": held_out(tmp_path)})
    outcome = stage_runs.run_on_pair(straight)[0]["outcome"]
    same_end(outcome, done)
    assert stage_runs.events(last)[0]["step"] == ppo_story.stopped.result.step
    same_course(straight, ppo_story.stopped.config, last)
    folder = stage_runs.artifact(last, done)
    figures = stage_runs.document(folder, FileName.EVALUATION)
    expected = stage_runs.document(stage_runs.artifact(straight, outcome), FileName.EVALUATION)
    for when in ("before", "after"):
        assert figures[when] == pytest.approx(expected[when], rel=1e-5)


def test_samples_are_in_the_log(ppo_story: PPOStory) -> None:
    assert re.search(
        r"sample at step 1: score .*, kl .*, \d+ tokens, ended by", ppo_story.stopped.log
    )


def test_metrics_are_served_while_it_trains(ppo_story: PPOStory) -> None:
    families = list(text_string_to_metric_families(ppo_story.page))
    series = {sample.name: sample for family in families for sample in family.samples}
    assert all(name.startswith(METRIC_PREFIX) for name in series)
    for sample in series.values():
        assert sample.labels["rlhfjob"] == "tiny"
        assert sample.labels["stage"] == "ppo"
        assert sample.labels["attempt"] == "1"
        assert not {"job", "namespace", "pod", "instance"} & set(sample.labels)
    for metric in (Metric.REWARD, Metric.KL, Metric.CRITIC_LOSS, Metric.STEP, Metric.STEP_SECONDS):
        assert metric_name(metric) in series
    told = {
        event["step"]: event["metrics"]
        for event in stage_runs.events(ppo_story.stopped.config, "step")
    }
    step = int(series[metric_name(Metric.STEP)].value)
    assert series[metric_name(Metric.REWARD)].value == told[step]["reward"]
    assert series[metric_name(Metric.TOTAL_STEPS)].value == 4
    # Of both ranks; the page may have been read between the count and the step.
    assert series[metric_name(Metric.SAMPLES)].value in (4 * step, 4 * (step + 1))
    assert metrics_pages.faults(ppo_story.page) == ""


def test_bad_input_is_told_by_the_launcher(tmp_path: Path) -> None:
    """Both ranks meet it; the person is told once, with field, value and remedy."""
    missing = Dataset(uri=f"file://{tmp_path}/no-such.jsonl")
    config = tiny.stage_config("sft", tmp_path, world_size=2, dataset=missing)
    with stage_runs.launched(config, tmp_path / "run") as launched:
        found = ended(launched)
    assert found.code == found.result.exit_code == ExitCode.INPUT
    assert found.result.reason is Reason.INPUT_INVALID
    assert "spec.stages.sft.dataset.uri" in found.result.message
    assert "no-such.jsonl" in found.result.message
    assert "correct the path" in found.result.message
    assert "Traceback" not in found.log
