"""How a run fails: what is tried again, and what is said of it."""

import json
from typing import Any

import pytest

BASE = {"model": {"uri": "hf://org/base"}, "dataset": {"uri": "file://rows.jsonl"}}


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_crash_is_made_good_from_the_checkpoint(bench: Any) -> None:
    bench.go(sft=[{"crash_at": 7, "save_every": 5}, {}])
    assert bench.run() == 0
    assert (bench.stage().attempt, bench.stage().restarts) == (2, 1)
    first = (bench.attempt(2) / "events.jsonl").read_text().splitlines()[0]
    assert json.loads(first)["step"] == 5
    assert bench.job.status.summary.restarts == "1"


def test_a_persons_mistake_fails_once_and_can_be_retried(
    bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    mistake = {"crash_at": 0, "code": 65, "message": "rows.jsonl: line 3: query is missing"}
    bench.go(sft=[mistake, {}])
    assert bench.run() == 65
    shown = capsys.readouterr()
    assert shown.err == (
        "rlhf: reviews has failed (DataError): stage sft: rows.jsonl: line 3: query is missing; "
        f"log: {bench.attempt(1)}/launcher.log\n"
    )
    # Once, and last.
    assert "query is missing" not in shown.out
    assert "stage sft has failed" in shown.out
    assert shown.out.splitlines()[-1] == (
        "when the cause is removed, --retry goes on; where that takes another value of a field "
        "that determines results, choose another --workdir, or remove the folder, to run it anew"
    )
    assert not (bench.workdir / "summary.json").exists()
    assert bench.run() == 65
    assert bench.attempts() == ["attempt-1"]
    assert "query is missing" in last_line(capsys)
    assert bench.run(retry=True) == 0
    assert bench.attempts() == ["attempt-1", "attempt-2"]
    assert bench.job.status.phase == "Succeeded"


def test_a_reason_of_several_lines_is_one_line(
    bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.go(sft=[{"crash_at": 0, "code": 65, "message": "line 3: query is missing\n  add it\n"}])
    assert bench.run() == 65
    assert last_line(capsys).startswith(
        "rlhf: reviews has failed (DataError): stage sft: line 3: query is missing add it; log: "
    )


def test_restarts_end_with_the_code_of_the_last_failure(bench: Any) -> None:
    bench.write(runPolicy={"maxRestarts": 1})
    full = {"crash_at": 2, "code": 74, "message": "disk full", "save_every": 100}
    bench.go(sft=[full])
    assert bench.run() == 74
    assert bench.stage().message == "disk full (runPolicy.maxRestarts 1 is used up)"


def test_a_launcher_without_a_word_is_quoted_by_its_log(bench: Any) -> None:
    bench.write(runPolicy={"maxRestarts": 0})
    bench.go(sft=[{"crash_at": 0, "code": 3, "silent": True}])
    assert bench.run() == 1
    assert "exit code 3" in bench.stage().message
    assert "ends with: stand-in for sft, attempt 1" in bench.stage().message


def test_a_crash_that_is_told_by_its_log_names_that_once(
    bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.write(runPolicy={"maxRestarts": 0})
    bench.go(sft=[{"crash_at": 0, "code": 3, "silent": True}])
    assert bench.run() == 1
    assert last_line(capsys).count(str(bench.attempt(1) / "launcher.log")) == 1


def test_two_failures_are_told_once_each(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bench.write(stages={"sft": BASE, "reward": BASE})
    ways = {"crash_at": 0, "code": 65}
    bench.go(sft=[ways | {"message": "bad words"}], reward=[ways | {"message": "bad pairs"}])
    assert bench.run() == 65
    shown = capsys.readouterr()
    for words, stage in (("bad words", "sft"), ("bad pairs", "reward")):
        # The quicker failure may stop the other stage before that comes to its own.
        failed = bench.stage(stage).state == "Failed"
        assert (words in shown.out, shown.err.count(words)) == (False, failed)
        assert shown.err.count(str(bench.attempt(1, stage) / "launcher.log")) == failed
    assert len(shown.err.splitlines()) == 1
