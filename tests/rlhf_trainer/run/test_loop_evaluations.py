"""When the loop of a stage evaluates, and what it makes up for after a stop."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loop_stages import config, quick_loops, started

from rlhf_api.names import FileName
from rlhf_api.v1alpha1 import CheckpointPolicy
from rlhf_trainer.errors import StopRequested


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_loops():
        yield


def test_evaluations_are_due_every_so_many_steps_but_not_at_the_end(tmp_path: Path) -> None:
    stage = started(config(tmp_path, eval_every_steps=4))
    due = []
    for _ in range(8):
        stage.step()
        due.append(stage.loop.evaluation_due())
    assert due == [False, False, False, True, False, False, False, False]
    stage = started(config(tmp_path / "never"))
    stage.step()
    assert not stage.loop.evaluation_due()


def to_step_4(stage: Any) -> Any:
    while stage.loop.step < 4:
        stage.step()
    return stage


def test_an_evaluation_that_was_told_is_not_due_again(tmp_path: Path) -> None:
    stage = to_step_4(started(config(tmp_path, eval_every_steps=4)))
    assert stage.loop.evaluation_due()
    stage.loop.evaluated({})
    assert not stage.loop.evaluation_due()


@pytest.mark.parametrize(("every", "ended"), [(100, "stopped"), (2, "stopped"), (2, "killed")])
def test_an_evaluation_that_was_cut_short_is_made_up_for(
    tmp_path: Path, every: int, ended: str
) -> None:
    """Whether the step was kept before its evaluation began, or because of the stop."""
    settings = {"eval_every_steps": 4, "checkpoint": CheckpointPolicy(every_steps=every)}
    stage = to_step_4(started(config(tmp_path, **settings)))
    if ended == "stopped":
        stage.stop.ask()
        with pytest.raises(StopRequested):
            stage.loop.stop_if_asked()
    second = started(config(tmp_path, attempt=2, **settings))
    assert second.loop.evaluation_due()
    second.loop.evaluated({})
    # The checkpoint is still that of the first attempt.
    third = started(config(tmp_path, attempt=3, **settings))
    assert (third.loop.step, third.loop.resumed_attempt) == (4, 1)
    assert not third.loop.evaluation_due()


def test_what_was_evaluated_on_a_course_that_was_given_up_is_evaluated_again(
    tmp_path: Path,
) -> None:
    settings = {"eval_every_steps": 4, "checkpoint": CheckpointPolicy(every_steps=3)}
    first = to_step_4(started(config(tmp_path, **settings)))
    first.loop.evaluated({})
    second = started(config(tmp_path, attempt=2, **settings))
    assert second.loop.step == 3
    second.step()
    second.loop.save()
    third = started(config(tmp_path, attempt=3, **settings))
    assert third.loop.step == 4
    assert third.loop.evaluation_due()


def test_where_events_are_gone_a_step_is_evaluated_once_more(tmp_path: Path) -> None:
    settings = {"eval_every_steps": 4, "checkpoint": CheckpointPolicy(every_steps=4)}
    found = config(tmp_path, **settings)
    to_step_4(started(found)).loop.evaluated({})
    path = Path(found.attempt_folder) / FileName.EVENTS
    again = config(tmp_path, attempt=2, **settings)
    assert not started(again).loop.evaluation_due()
    # A killed writer leaves half a line.
    path.write_bytes(path.read_bytes()[:-20])
    assert started(config(tmp_path, attempt=3, **settings)).loop.evaluation_due()
    path.unlink()
    assert started(config(tmp_path, attempt=4, **settings)).loop.evaluation_due()


def test_a_run_goes_on_with_the_epoch_of_its_checkpoint(tmp_path: Path) -> None:
    stage = to_step_4(started(config(tmp_path)))
    stage.loop.save()
    second = config(tmp_path, attempt=2)
    started(second)
    (line,) = (Path(second.attempt_folder) / FileName.EVENTS).read_text().splitlines()
    assert json.loads(line)["epoch"] == stage.loop.cursor.epoch > 0
