"""How long a stage still takes: its steps, and the evaluations that are left."""

from contextlib import suppress
from pathlib import Path

import metrics_pages
import pytest
import tiny
from reporting import FIRST, Clock, lines, scraped

from rlhf_api.metrics import Metric
from rlhf_trainer.run.eta import EvaluationClock, StepClock
from rlhf_trainer.run.report import Reporter


def test_the_first_step_counts_only_until_there_is_another() -> None:
    clock = StepClock(0.0)
    assert clock.eta(5) is None
    clock.tick(60.0, 1)
    assert clock.eta(5) == 300
    clock.tick(62.0, 1)
    assert clock.eta(5) == 10


def test_step_times_are_smoothed() -> None:
    clock = StepClock(0.0)
    now = 0.0
    for seconds in [9.0] + [1.0] * 40 + [11.0]:
        now += seconds
        clock.tick(now, 1)

    assert clock.eta(1) == pytest.approx(2.0)


def test_several_steps_at_once_share_their_time() -> None:
    clock = StepClock(0.0)
    clock.tick(10.0, 5)
    assert clock.eta(1) == 2
    clock.tick(10.0, 0)
    assert clock.eta(1) == 2


def test_what_is_left_out_is_no_part_of_a_step() -> None:
    clock = StepClock(0.0)
    clock.tick(2.0, 1)
    clock.leave_out(30.0)
    clock.tick(34.0, 1)
    assert clock.eta(3) == 6


# Passes over the held-out rows


@pytest.mark.parametrize(
    ("stage", "every", "step", "done", "left"),
    [
        ("sft", None, 3, 0, 1),
        ("sft", None, 10, 0, 1),
        ("sft", None, 10, 1, 0),
        # Those of steps 4 and 8, and the last.
        ("sft", 4, 3, 0, 3),
        ("sft", 4, 4, 0, 3),
        ("sft", 4, 4, 1, 2),
        ("sft", 4, 5, 0, 2),
        # The last step has one evaluation, be it due or not.
        ("reward", 5, 5, 1, 1),
        ("reward", 5, 9, 0, 1),
        ("reward", 5, 10, 0, 1),
        ("reward", 20, 9, 0, 1),
        # By the reference, too.
        ("ppo", None, 3, 0, 2),
        ("ppo", 4, 4, 0, 4),
        ("ppo", 4, 4, 1, 3),
        ("ppo", 4, 10, 1, 1),
        ("ppo", 4, 10, 2, 0),
    ],
)
def test_the_passes_that_are_left_take_what_those_before_took(
    tmp_path: Path, stage: str, every: int | None, step: int, done: int, left: int
) -> None:
    config = tiny.stage_config(stage, tmp_path, eval_dataset=True, eval_every_steps=every)
    clock = EvaluationClock(config)
    assert clock.eta(step, 10) == 0
    # Of another step, which is over.
    for seconds in (20.0, 40.0):
        clock.tick(step - 1, seconds)
    for _ in range(done):
        clock.tick(step, 30.0)
    assert clock.eta(step, 10) == 30 * left


def test_nothing_is_left_where_nothing_is_held_out(tmp_path: Path) -> None:
    clock = EvaluationClock(tiny.stage_config("sft", tmp_path, eval_every_steps=4))
    clock.tick(4, 30.0)
    assert clock.eta(4, 10) == 0


def test_evaluations_are_told_when_they_begin_and_count_in_what_is_left(
    tmp_path: Path, clock: Clock
) -> None:
    config = tiny.stage_config("sft", tmp_path, eval_dataset=True, eval_every_steps=2)
    with Reporter(config, FIRST, clock=clock) as reporter:
        reporter.start(5)
        for step in (1, 2):
            clock.now += 3
            reporter.step(step, 0.1, {})
        with reporter.evaluating():
            clock.now += 60
        reporter.evaluation(2, {Metric.EVAL_LOSS: 2.0})
        clock.now += 3
        reporter.step(3, 0.3, {})
        served = metrics_pages.values(scraped(reporter))
        phases = metrics_pages.values(scraped(reporter), "phase")
    told = [(event["type"], event["step"], event["etaSeconds"]) for event in lines(config)]
    assert told == [
        ("start", 0, None),
        ("step", 1, 12),
        # None has been timed yet.
        ("step", 2, 9),
        ("evaluating", 2, 9),
        # Those of step 4 and of the end are left.
        ("evaluation", 2, 9 + 120),
        ("step", 3, 6 + 120),
    ]
    assert served["rlhf_train_eta_seconds"] == 126
    assert phases["rlhf_train_phase_seconds_total evaluation"] == 60


def test_an_evaluation_that_was_cut_short_is_no_measure(tmp_path: Path, clock: Clock) -> None:
    config = tiny.stage_config("sft", tmp_path, eval_dataset=True, eval_every_steps=2)
    with Reporter(config, FIRST, clock=clock) as reporter:
        reporter.start(5)
        clock.now += 3
        reporter.step(2, 0.1, {})
        with suppress(InterruptedError), reporter.evaluating():
            clock.now += 1
            raise InterruptedError
        reporter.checkpoint(2)
    assert lines(config)[-1]["etaSeconds"] == 4.5
