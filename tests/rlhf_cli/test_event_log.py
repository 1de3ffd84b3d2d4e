"""events.jsonl is read on as it grows, whatever stands in it."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_api.names import GuardrailRule
from rlhf_cli.event_log import EventLog
from rlhf_operator.planning.observed import ObservedProgress, ObservedVerdict


def line(kind: str, step: int, **extra: Any) -> str:
    event = {"time": 0.0, "type": kind, "step": step, "totalSteps": 10, "epoch": 0.1}
    return json.dumps(event | {"metrics": {}, "etaSeconds": None} | extra) + "\n"


def test_a_file_that_grows(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    assert log.read() is None
    path.write_text(line("start", 0) + line("step", 1, metrics={"loss": 2.0})[:20])
    assert log.read() == ObservedProgress(0, 10)
    path.write_text(line("start", 0) + line("step", 1, metrics={"loss": 2.0}, etaSeconds=9))
    assert log.read() == ObservedProgress(1, 10, 9.0, {"loss": 2.0})
    with path.open("a") as file:
        file.write(line("checkpoint", 1) + line("evaluation", 1, metrics={"perplexity": 7}))
    assert log.read() == ObservedProgress(1, 10, None, {"loss": 2.0, "perplexity": 7.0}, 1)
    assert log.read() == ObservedProgress(1, 10, None, {"loss": 2.0, "perplexity": 7.0}, 1)


def test_the_step_of_the_last_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    path.write_text(line("start", 0) + line("step", 4))
    log.read()
    assert log.evaluated_step is None
    path.write_text(line("start", 0) + line("step", 4) + line("evaluation", 4) + line("step", 5))
    log.read()
    assert log.evaluated_step == 4


def test_an_evaluation_goes_on_until_something_else_is_told(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    assert not log.evaluating
    told = line("start", 0)
    for kind, evaluating in (
        ("step", False),
        ("evaluating", True),
        ("evaluation", False),
        ("evaluating", True),
        ("end", False),
    ):
        told += line(kind, 4)
        path.write_text(told)
        log.read()
        assert log.evaluating is evaluating


def test_what_was_found_before_training_is_taken_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    path.write_text(line("start", 0, notes=["answers end with x", 7]) + line("step", 1))
    assert log.take_notes() == []
    log.read()
    assert log.take_notes() == ["answers end with x", "7"]
    assert log.take_notes() == []
    with path.open("a") as file:
        file.write(line("start", 1, notes="none") + line("step", 2, notes=["no start"]))
    log.read()
    assert log.take_notes() == []


def test_a_metric_that_is_no_number_any_more_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(
        line("step", 1, metrics={"loss": 2.0, "kl": 1}) + line("step", 2, metrics={"loss": None})
    )
    assert EventLog(path).read() == ObservedProgress(2, 10, None, {"kl": 1.0})


def test_rules_are_told_when_they_turn(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    rule = {"rule": "KLAboveLimit", "action": "Observe", "threshold": 10}
    path.write_text(line("verdict", 4, broken=True, value=12.5, **rule))
    assert log.read() == ObservedProgress(
        4, 10, verdicts={GuardrailRule.KL_ABOVE_LIMIT: ObservedVerdict(True, 12.5, 10.0, 4)}
    )
    with path.open("a") as file:
        file.write(line("verdict", 5, broken=False, value=None, **rule))
        file.write(line("verdict", 5, broken=True, rule="NewerRule"))
        file.write(line("verdict", 5, broken=True, rule=["x"]) + line("step", 6))
    assert log.read() == ObservedProgress(
        6, 10, verdicts={GuardrailRule.KL_ABOVE_LIMIT: ObservedVerdict(False, None, 10.0, 5)}
    )


def test_all_rules_are_told_after_a_resume(tmp_path: Path) -> None:
    """What an attempt that was killed told of them may hold no more."""
    path = tmp_path / "events.jsonl"
    broken = {"rule": "KLAboveLimit", "action": "Observe", "threshold": 10, "value": 12.5}
    told = [broken | {"step": 4}, {"rule": "NewerRule"}, "x"]
    path.write_text(line("start", 5) + line("verdicts", 5, verdicts=told))
    found = EventLog(path).read()
    assert found is not None
    assert list(found.verdicts) == list(GuardrailRule)
    assert [rule for rule, each in found.verdicts.items() if each.broken] == ["KLAboveLimit"]
    assert found.verdicts[GuardrailRule.KL_ABOVE_LIMIT] == ObservedVerdict(True, 12.5, 10.0, 4)


@pytest.mark.parametrize("bad", ["", "{", "[1]", '"x"', "null", "\x00\x00", '{"step": "x"}', "{}"])
def test_lines_that_are_no_events_do_no_harm(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(f"{bad}\n" + line("step", 3) + f"{bad}")
    assert EventLog(path).read() == ObservedProgress(3, 10)


def test_what_became_of_the_rows_is_told_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    rows = {"dataset": {"kept": 3, "overLong": 2, "fromALaterRelease": 1}}
    path.write_text(line("start", 0, rows=rows) + line("step", 1))
    found = EventLog(path).read()
    assert found is not None
    assert found.rows["dataset"].to_document() == rows["dataset"]


@pytest.mark.parametrize("rows", [None, [], {"dataset": {}}, {"dataset": {"kept": -1}}, {"x": 1}])
def test_rows_that_say_nothing_do_no_harm(tmp_path: Path, rows: Any) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(line("start", 3, rows=rows))
    assert EventLog(path).read() == ObservedProgress(3, 10)
