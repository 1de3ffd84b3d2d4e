"""The loop of every stage: courses of learning rates, stopping, saving, resuming."""

import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import loop_stages
import pytest
import tiny
import worlds
from loop_stages import NoEndpoint, cases, checkpoints, config, events, new, quick_loops, started

from rlhf_api.metrics import Metric, Phase
from rlhf_api.names import ExitCode, FileName
from rlhf_api.v1alpha1 import Artifact, CheckpointPolicy
from rlhf_trainer.errors import StopRequested, failure_of
from rlhf_trainer.run import loop
from rlhf_trainer.run.loop import total_steps
from rlhf_trainer.run.phases import PhaseClock


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_loops():
        yield


# Learning rates


def rates(stage: Any, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(stage.loop.learning_rate(0.5))
        stage.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("Constant", [0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]),
        ("Linear", [0.25, 0.5, 0.5, 2.5 / 6, 2 / 6, 1.5 / 6, 1 / 6, 0.5 / 6]),
        ("Cosine", [0.25, 0.5, *((1 + math.cos(math.pi * k / 6)) / 4 for k in range(6))]),
    ],
)
def test_the_learning_rate_rises_and_falls_and_goes_on_after_a_stop(
    tmp_path: Path, schedule: str, expected: list[float]
) -> None:
    settings = {"schedule": schedule, "warmup_ratio": 0.25}
    first = started(config(tmp_path, **settings))
    found = rates(first, 5)
    first.stop.ask()
    with pytest.raises(StopRequested):
        first.step()
    second = started(config(tmp_path, attempt=2, **settings))
    assert found + rates(second, 3) == pytest.approx(expected)


# Stopping


def test_a_stop_between_steps_saves_and_says_so(tmp_path: Path) -> None:
    found = config(tmp_path)
    stage = started(found)
    for _ in range(3):
        stage.step()
    stage.stop.ask()
    with pytest.raises(StopRequested) as caught:
        stage.step()
    assert (caught.value.step, caught.value.last_checkpoint_step) == (3, 3)
    assert failure_of(caught.value).exit_code == ExitCode.STOPPED_WITH_CHECKPOINT
    assert checkpoints(found) == ["step-3"]
    assert events(found, "checkpoint") == [3]


@pytest.mark.field("CheckpointPolicy.every_seconds")
def test_a_step_that_ends_late_ends_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 40 s and a checkpoint a minute: every second step, and the steps count as well."""
    found = config(tmp_path, checkpoint=CheckpointPolicy(every_steps=5, every_seconds=60, keep=9))
    now = 1000.0
    monkeypatch.setattr(loop.time, "monotonic", lambda: now)
    stage = started(found)
    for _ in range(8):
        now += 40.0
        stage.step()
    assert events(found, "checkpoint") == [2, 4, 5, 7]


def test_a_stop_right_after_a_checkpoint_does_not_save_again(tmp_path: Path) -> None:
    found = config(tmp_path, checkpoint=CheckpointPolicy(every_steps=2))
    stage = started(found)
    for _ in range(2):
        stage.step()
    stage.stop.ask()
    with pytest.raises(StopRequested, match="checkpoint of step 2"):
        stage.step()
    assert events(found, "checkpoint") == [2]


def test_a_stop_before_the_first_step_can_be_resumed(tmp_path: Path) -> None:
    stage = started(config(tmp_path))
    stage.stop.ask()
    with pytest.raises(StopRequested) as caught:
        stage.step()
    assert (caught.value.step, caught.value.last_checkpoint_step) == (0, 0)
    assert started(config(tmp_path, attempt=2)).loop.step == 0


def test_nobody_asked_means_nothing_happens(tmp_path: Path) -> None:
    found = config(tmp_path)
    stage = started(found)
    stage.loop.stop_if_asked()
    stage.loop.stop_if_asked(inside_step=True)
    stage.step()
    assert checkpoints(found) == []


@pytest.mark.parametrize("inside_step", [False, True])
def test_a_stopped_run_ends_like_an_uninterrupted_one(tmp_path: Path, inside_step: bool) -> None:
    whole = started(config(tmp_path / "whole"))
    expected = [whole.step() for _ in range(8)], whole.model.value, cases.draws()

    cases.seed()
    first = started(config(tmp_path / "stopped"))
    rows = [first.step() for _ in range(3)]
    if inside_step:
        # The rows of the step are taken and random numbers drawn before the request is heard.
        first.loop.next_batch()
        cases.draws()
        first.stop.ask()
        with pytest.raises(StopRequested) as caught:
            first.loop.stop_if_asked(inside_step=True)
    else:
        first.stop.ask()
        with pytest.raises(StopRequested) as caught:
            first.step()
    assert (caught.value.step, caught.value.last_checkpoint_step) == (3, 3)

    cases.draws()
    second = started(config(tmp_path / "stopped", attempt=2))
    assert second.loop.step == 3
    assert second.loop.last_checkpoint_step == 3
    rows += [second.step() for _ in range(5)]
    assert (rows, second.model.value, cases.draws()) == expected


def test_a_stop_inside_a_step_puts_cursor_and_random_numbers_back(tmp_path: Path) -> None:
    stage = started(config(tmp_path))
    stage.step()
    before = stage.loop.cursor.state_dict()
    rows = stage.loop.next_batch()
    drawn = cases.draws()
    stage.stop.ask()
    with pytest.raises(StopRequested):
        stage.loop.stop_if_asked(inside_step=True)
    assert stage.loop.cursor.state_dict() == before
    assert cases.draws() == drawn
    assert stage.loop.cursor.next_batch() == rows


def test_one_rank_that_is_asked_stops_all_at_the_same_step(tmp_path: Path) -> None:
    found = tiny.stage_config("sft", tmp_path, world_size=2, max_steps=8)
    told = worlds.pair()(loop_stages.PROGRAM, "stop_of_one", config=found)
    assert told == [(2, 2), (2, 2)]


# Saving and resuming


@pytest.mark.field("CheckpointPolicy.every_steps")
def test_a_checkpoint_is_kept_every_so_many_steps(tmp_path: Path) -> None:
    found = config(tmp_path, checkpoint=CheckpointPolicy(every_steps=3, keep=5))
    stage = started(found)
    for step in range(1, 8):
        stage.step()
        assert stage.loop.last_checkpoint_step == (step // 3 * 3 or None)
    assert checkpoints(found) == ["step-3", "step-6"]
    assert events(found, "step") == list(range(1, 8))


def test_a_state_that_may_not_be_kept_is_saved_by_nobody(tmp_path: Path) -> None:
    stage = started(config(tmp_path))
    stage.step()
    stage.loop.save()
    stage.step(keep=False)
    stage.loop.save_unless_saved()
    assert stage.loop.last_checkpoint_step == 1
    stage.stop.ask()
    with pytest.raises(StopRequested) as caught:
        stage.step()
    assert (caught.value.step, caught.value.last_checkpoint_step) == (2, 1)


def test_the_step_after_one_that_was_not_kept_is_kept(tmp_path: Path) -> None:
    stage = started(config(tmp_path))
    stage.step(keep=False)
    stage.step()
    stage.loop.save_unless_saved()
    assert stage.loop.last_checkpoint_step == 2


def test_the_stage_gets_its_own_state_back(tmp_path: Path) -> None:
    own = {"klCoef": 0.1 + 0.2, "moments": [1, 2.5]}
    stage = new(config(tmp_path), own=own)
    assert stage.loop.resume() == {}
    stage.step()
    stage.loop.save()
    again = new(config(tmp_path))
    assert again.loop.resume() == own
    assert again.model.value == stage.model.value


def test_events_say_from_where_a_run_goes_on(tmp_path: Path) -> None:
    stage = started(config(tmp_path))
    stage.step()
    stage.loop.save()
    second = config(tmp_path, attempt=2)
    started(second)
    assert events(second, "start") == [1]


def test_a_run_goes_on_with_the_time_of_its_checkpoint(tmp_path: Path) -> None:
    found = config(tmp_path)
    stage = started(found)
    assert Metric.LAST_CHECKPOINT_TIMESTAMP not in NoEndpoint.served
    stage.step()
    stage.loop.save()
    told = NoEndpoint.served[Metric.LAST_CHECKPOINT_TIMESTAMP]
    manifest = Path(found.attempt_folder) / "checkpoints" / "step-1" / FileName.MANIFEST
    assert told - 60 < manifest.stat().st_mtime <= told + 0.1
    os.utime(manifest, (1e9, 1e9))
    started(config(tmp_path, attempt=2))
    assert NoEndpoint.served[Metric.LAST_CHECKPOINT_TIMESTAMP] == 1e9
    assert NoEndpoint.served[Metric.LAST_CHECKPOINT_STEP] == 1


def test_what_all_ranks_trained_on_is_counted_by_the_attempt(tmp_path: Path) -> None:
    stage = started(config(tmp_path, batch_size=4))
    for _ in range(3):
        stage.step()
    assert NoEndpoint.served[Metric.TOKENS] == 3
    assert NoEndpoint.served[Metric.SAMPLES] == 12
    stage.loop.save()
    second = started(config(tmp_path, attempt=2, batch_size=4))
    second.step()
    assert NoEndpoint.served[Metric.SAMPLES] == 4


def test_loading_and_saving_are_a_phase(tmp_path: Path) -> None:
    clock = itertools.count()
    stage = new(config(tmp_path))
    stage.reporter._phases = PhaseClock(Phase, clock=lambda: float(next(clock)))

    def spent() -> dict[Phase, float]:
        return {name: took for name, took in stage.reporter._phases.seconds().items() if took}

    stage.loop.resume()
    loaded = spent()
    stage.step()
    stage.loop.save()
    assert set(loaded) == {Phase.CHECKPOINT}
    assert set(spent()) == {Phase.CHECKPOINT, Phase.DATA}
    assert spent()[Phase.CHECKPOINT] > loaded[Phase.CHECKPOINT]


def test_an_outcome_tells_what_was_reached(tmp_path: Path) -> None:
    found = config(tmp_path, checkpoint=CheckpointPolicy(every_steps=2))
    stage = started(found)
    for _ in range(3):
        stage.step()
    artifact = Artifact(uri="a/b", digest="sha256:" + 64 * "0")
    outcome = stage.loop.outcome(artifact)
    assert (outcome.artifact, outcome.step, outcome.total_steps) == (artifact, 3, 8)
    assert outcome.last_checkpoint_step == 2
    assert events(found, "end") == [3]


# Counting


@pytest.mark.parametrize(
    ("settings", "rows", "steps"),
    [
        ({"max_steps": 7}, 10, 7),
        ({"max_steps": None, "epochs": 2}, 10, 5),
        ({"max_steps": None, "epochs": 1}, 10, 3),
        ({"max_steps": None}, 10, 3),
        ({"max_steps": None}, 3, 1),
    ],
)
def test_steps_of_a_stage(tmp_path: Path, settings: dict[str, Any], rows: int, steps: int) -> None:
    assert total_steps(config(tmp_path, **settings), rows) == steps


def test_passes_over_the_data_are_counted_from_1(tmp_path: Path) -> None:
    # Eight steps of four rows are 3.2 passes over ten.
    stage = started(config(tmp_path))
    assert stage.loop.epochs == (1, 4)
    found = []
    for _ in range(8):
        stage.step()
        found.append(stage.loop.epochs)
    assert found == [(1, 4), (1, 4), (2, 4), (2, 4), (2, 4), (3, 4), (3, 4), (4, 4)]
