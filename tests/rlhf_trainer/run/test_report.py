"""The stream of events, its sinks, and what reaches them from which rank."""

import logging
import math
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import metrics_pages
import pytest
from reporting import FIRST, SECOND, Clock, lines, scraped

from rlhf_api.metrics import Metric, Phase
from rlhf_api.v1alpha1 import StageConfig
from rlhf_trainer.errors import StorageError
from rlhf_trainer.run.json_lines import JsonLines
from rlhf_trainer.run.report import Reporter, Sample


def test_a_run_is_told_line_by_line(reporter: Reporter, config: StageConfig, clock: Clock) -> None:
    reporter.start(4, 0)
    clock.now += 2
    reporter.step(1, 0.25, {Metric.LOSS: 2.0, Metric.LEARNING_RATE: 1e-5})
    reporter.checkpoint(1)
    reporter.evaluation(1, {Metric.EVAL_ACCURACY: 0.75})
    reporter.end(4)

    events = lines(config)

    assert [event["type"] for event in events] == [
        "start",
        "step",
        "checkpoint",
        "evaluation",
        "end",
    ]
    start, step = events[:2]
    assert start["step"] == 0
    assert start["metricsPort"] == reporter.metrics_port
    assert start["metrics"] == {}
    assert start["etaSeconds"] is None
    assert {key: step[key] for key in step if key != "time"} == {
        "type": "step",
        "step": 1,
        "totalSteps": 4,
        "epoch": 0.25,
        "metrics": {"loss": 2.0, "learning_rate": 1e-5},
        "etaSeconds": 6.0,
    }
    assert step["time"] > 1.7e9
    assert events[3]["metrics"] == {"eval_accuracy": 0.75}
    assert events[4]["etaSeconds"] == 0


def test_a_line_is_there_as_soon_as_it_is_told(reporter: Reporter, config: StageConfig) -> None:
    reporter.start(4, 0)
    assert len(lines(config)) == 1
    reporter.step(1, 0.1, {})
    assert len(lines(config)) == 2


def test_nonfinite_values_are_null_counted_and_served_as_they_are(
    reporter: Reporter, config: StageConfig
) -> None:
    reporter.start(4, 0)
    reporter.step(1, 0.1, {Metric.LOSS: math.nan, Metric.KL: math.inf, Metric.ENTROPY: 1.0})

    assert lines(config)[-1]["metrics"] == {"loss": None, "kl": None, "entropy": 1.0}
    text = scraped(reporter)
    assert 'rlhf_train_nonfinite_total{attempt="1",rlhfjob="demo",stage="sft"} 2.0' in text
    assert 'rlhf_train_loss{attempt="1",rlhfjob="demo",stage="sft"} NaN' in text


def test_the_endpoint_follows_the_stream(reporter: Reporter, clock: Clock) -> None:
    reporter.start(10, 4)
    clock.now += 3
    reporter.step(5, 0.5, {Metric.LOSS: 2.0})
    reporter.checkpoint(5)

    values = metrics_pages.values(scraped(reporter))
    assert values["rlhf_train_step"] == 5
    assert values["rlhf_train_total_steps"] == 10
    assert values["rlhf_train_progress_ratio"] == 0.5
    assert values["rlhf_train_epoch"] == 0.5
    assert values["rlhf_train_eta_seconds"] == 15
    assert values["rlhf_train_last_checkpoint_step"] == 5
    assert values["rlhf_train_loss"] == 2


def test_the_checkpoint_that_a_run_goes_on_from_is_served_until_there_is_another(
    reporter: Reporter,
) -> None:
    step, when = "rlhf_train_last_checkpoint_step", "rlhf_train_last_checkpoint_timestamp_seconds"
    assert not {step, when} & set(metrics_pages.values(scraped(reporter)))
    reporter.start(10, 4, 1.6e9)
    resumed = metrics_pages.values(scraped(reporter))
    before = time.time()
    reporter.checkpoint(6)
    new = metrics_pages.values(scraped(reporter))

    assert (resumed[step], resumed[when]) == (4, 1.6e9)
    assert new[step] == 6
    assert before <= new[when] <= time.time()


def test_what_was_trained_on_adds_up(reporter: Reporter, config: StageConfig) -> None:
    reporter.start(4)
    for tokens in (7, 5):
        reporter.trained_on(tokens, 2)
        reporter.step(1, 0.1, {})

    served = metrics_pages.values(scraped(reporter))
    assert served["rlhf_train_tokens_total"] == 12
    assert served["rlhf_train_samples_total"] == 4
    assert lines(config)[-1]["metrics"] == reporter.last_metrics == {}


def test_phases_are_served_by_the_reporters_clock(reporter: Reporter, clock: Clock) -> None:
    with reporter.phase(Phase.DATA):
        clock.now += 2
    clock.now += 1
    with reporter.phase(Phase.LEARNING):
        clock.now += 4
        served = metrics_pages.values(scraped(reporter), "phase")

    assert served == {
        "rlhf_train_phase_seconds_total data": 2,
        "rlhf_train_phase_seconds_total learning": 4,
        "rlhf_train_phase_seconds_total checkpoint": 0,
        "rlhf_train_phase_seconds_total evaluation": 0,
    }


def test_single_rewards_are_told_and_served_by_name(
    reporter: Reporter, config: StageConfig
) -> None:
    reporter.start(4, 0)
    reporter.step(1, 0.1, {Metric.REWARD: 1.0})
    reporter.step(2, 0.2, {Metric.REWARD: 1.0}, {"exact": 0.5, "model": math.nan})
    reporter.evaluation(2, {Metric.EVAL_REWARD: 2.0}, {"exact": 0.75, "model": 3.0})
    reporter.samples(2, [Sample("p", "r", 1.0, 0.1, 3, "stop", {"exact": 1.0, "model": math.inf})])

    _, unnamed, step, evaluation = lines(config)
    assert "rewards" not in unnamed
    assert step["rewards"] == {"exact": 0.5, "model": None}
    assert evaluation["rewards"] == {"exact": 0.75, "model": 3.0}
    assert lines(config, "samples.jsonl")[0]["rewards"] == {"exact": 1.0, "model": None}
    labels = 'attempt="1",reward="exact",rlhfjob="demo",stage="sft"'
    page = scraped(reporter)
    assert f"rlhf_train_reward_component{{{labels}}} 0.5\n" in page
    assert f"rlhf_train_eval_reward_component{{{labels}}} 0.75\n" in page


def test_the_last_metrics_are_the_newest_finite_ones(reporter: Reporter) -> None:
    reporter.start(4, 0)
    reporter.step(1, 0.1, {Metric.LOSS: 3.0, Metric.KL: 1.0})
    reporter.evaluation(1, {Metric.EVAL_ACCURACY: 0.5})
    reporter.step(2, 0.2, {Metric.LOSS: 2.0, Metric.KL: math.nan})

    assert reporter.last_metrics == {"loss": 2.0, "eval_accuracy": 0.5}


def test_other_ranks_write_and_serve_nothing(config: StageConfig) -> None:
    with Reporter(config, SECOND) as reporter:
        reporter.start(4, 0)
        reporter.step(1, 0.1, {Metric.LOSS: 1.0})
        reporter.checkpoint(1)
        reporter.evaluation(1, {})
        reporter.samples(1, [Sample("p", "r", 1.0, 0.1, 3, "Eos")])
        reporter.end(1)
        assert reporter.metrics_port is None
        assert reporter.last_metrics == {"loss": 1.0}

    assert not Path(config.attempt_folder).exists()


def test_samples_are_written_and_the_first_ones_logged(
    reporter: Reporter, config: StageConfig, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [Sample(f"问题{i}", "好\n吃" + "啊" * 300, 1.5, math.nan, 12, "Eos") for i in range(5)]
    with caplog.at_level(logging.INFO):
        reporter.samples(10, rows)

    written = lines(config, "samples.jsonl")
    assert written[0] == {
        "step": 10,
        "prompt": "问题0",
        "response": rows[0].response,
        "score": 1.5,
        "kl": None,
        "length": 12,
        "stopReason": "Eos",
    }
    assert len(written) == 5
    assert "问题2" in caplog.text
    assert "问题3" not in caplog.text
    assert "好⏎吃" in caplog.text
    assert "啊" * 250 not in caplog.text
    assert "问题0" in Path(config.attempt_folder, "samples.jsonl").read_text(encoding="utf-8")


def test_half_a_character_is_still_json(reporter: Reporter, config: StageConfig) -> None:
    reporter.samples(1, [Sample("p", "broken \ud83d", 1.0, 0.0, 1, "Length")])

    assert lines(config, "samples.jsonl")[0]["response"] == "broken \ud83d"


def test_steps_are_logged_for_people_every_few_seconds_and_at_the_end(
    reporter: Reporter, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        reporter.start(100, 0)
        for step in range(1, 12):
            clock.now += 1
            reporter.step(step, 0.1, {Metric.LOSS: 1 / 3})
        reporter.step(100, 1.0, {})

    steps = [r.getMessage() for r in caplog.records if r.getMessage().startswith("step ")]
    assert [text.split("/")[0] for text in steps] == ["step 1", "step 6", "step 11", "step 100"]
    assert steps[1] == "step 6/100 (6 %), 1 min 34 s left: loss 0.3333"


def test_the_time_before_the_first_step_does_not_count(config: StageConfig, clock: Clock) -> None:
    with Reporter(config, FIRST, clock=clock) as reporter:
        clock.now += 1000
        reporter.start(10, 0)
        clock.now += 2
        reporter.step(1, 0.1, {})

    assert lines(config)[-1]["etaSeconds"] == 18


def test_a_second_reporter_of_the_attempt_goes_on_after_the_last_whole_line(
    config: StageConfig,
) -> None:
    with Reporter(config, FIRST) as reporter:
        reporter.start(4, 0)
    path = Path(config.attempt_folder, "events.jsonl")
    with path.open("a") as file:
        file.write('{"time": 1, "ty')

    with Reporter(config, FIRST) as reporter:
        reporter.start(4, 2)

    assert [event["step"] for event in lines(config)] == [0, 2]


def test_a_taken_port_leaves_the_stream_without_one(
    reporter: Reporter, config: StageConfig
) -> None:
    other = config.model_copy(update={"metrics_port": reporter.metrics_port, "attempt": 2})
    with Reporter(other, FIRST) as second:
        second.start(4, 0)
        second.step(1, 0.1, {Metric.LOSS: 1.0})

    assert "metricsPort" not in lines(other)[0]
    assert len(lines(other)) == 2


@contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 100 bytes, which refuses writes as a full disk does.

    No fixture: pytest itself writes between a test and its teardown, perhaps to a long file.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_keeps_whole_lines_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    stream = JsonLines(path)
    stream.write([{"step": 1}])
    with small_files(), pytest.raises(StorageError, match=r"events\.jsonl"):
        stream.write([{"text": "x" * 200}])
    stream.close()

    assert path.read_text() == '{"step": 1}\n'


def test_closing_twice_is_harmless(config: StageConfig) -> None:
    reporter = Reporter(config, FIRST)
    reporter.close()
    reporter.close()
    reporter.step(1, 0.1, {Metric.LOSS: 1.0})
    assert lines(config) == []
