"""A guardrail that fires under `rlhf run`, with real processes."""

import json
import time
from typing import Any

import pytest

ALL = ("sft", "reward", "ppo")
KL = {"rule": "KLAboveLimit", "action": "Suspend", "value": 12.5, "threshold": 10.0}


def test_what_a_guardrail_has_suspended_goes_on_with_the_same_command(
    bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.write(ALL, runPolicy={"maxRestarts": 0})
    trips = {"crash_at": 3, "code": 42, "verdict": KL, "message": "the actor moved too far"}
    bench.go(ppo=[trips, trips | {"crash_at": 6}, {}])
    for attempt, step in ((1, 3), (2, 6)):
        assert bench.run() == 42
        output = capsys.readouterr()
        (line,) = (each for each in output.out.splitlines() if "the actor moved too far" in each)
        assert " stage ppo: guardrail KLAboveLimit (Suspend)" in line
        # The remedy of a cluster; the last line has the one that is meant here.
        assert "spec.suspend" not in output.out
        said = output.err.strip().splitlines()[-1]
        assert said.startswith("rlhf: reviews is suspended by a guardrail: stage ppo: guardrail ")
        assert f"KLAboveLimit (Suspend): 12.5 against a threshold of 10 at update {step}; " in said
        assert "the actor moved too far; the same command again goes on" in said
        stage = bench.stage("ppo")
        assert (stage.state, stage.attempt, stage.restarts) == ("Suspended", attempt, 0)
        conditions = {each.type: each for each in bench.job.status.conditions}
        assert conditions["Suspended"].reason == "Guardrail"
        assert (conditions["Healthy"].status, conditions["Healthy"].reason) == (
            "False",
            "KLAboveLimit",
        )
    time.sleep(1.1)
    assert bench.run() == 0
    first = json.loads((bench.attempt(3, "ppo") / "events.jsonl").read_text().splitlines()[0])
    assert first["step"] == 6
    given = [json.loads((bench.attempt(n, "ppo") / "stage.json").read_text()) for n in (1, 2, 3)]
    assert [each.get("guardrailAttempt") for each in given] == [None, 1, 2]
    assert (bench.stage("ppo").attempt, bench.stage("ppo").restarts) == (3, 0)
    assert bench.job.status.idle_seconds >= 1


def test_what_a_guardrail_has_failed_goes_on_with_the_same_command_too(
    bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fails = {"crash_at": 3, "code": 42, "verdict": KL | {"action": "Fail"}}
    bench.go(sft=[fails, fails | {"crash_at": 6}, {}])
    for attempt, step in ((1, 3), (2, 6)):
        assert bench.run() == 42
        output = capsys.readouterr()
        assert "the same command goes on" in output.out
        # The remedy of a cluster, and of other failures.
        assert "spec.suspend" not in output.out + output.err
        assert "--retry" not in output.out
        said = output.err.strip().splitlines()[-1]
        assert said.startswith("rlhf: reviews has failed (Guardrail): stage sft: guardrail ")
        assert f"12.5 against a threshold of 10 at update {step}" in said
        assert bench.attempts()[-1] == f"attempt-{attempt}"
        assert bench.stage("sft").state == "Failed"
    assert bench.run() == 0
    given = [json.loads((bench.attempt(n, "sft") / "stage.json").read_text()) for n in (1, 2, 3)]
    assert [each.get("guardrailAttempt") for each in given] == [None, 1, 2]


def test_the_verdicts_of_a_checkpoint_come_back_after_a_crash(bench: Any) -> None:
    """Those that the killed attempt told later are not those of the state that is gone on with."""
    bench.write(ALL)
    diverging = {"rule": "CriticLossDiverging", "action": "Observe", "step": 7}
    diverging |= {"value": 4.5, "threshold": 3.0}
    kept = KL | {"action": "Observe", "step": 4}
    bench.go(
        ppo=[
            {"crash_at": 8, "code": 137, "silent": True, "told": {"7": [diverging]}},
            {"crash_at": 6, "code": 137, "silent": True, "resumed": [kept], "told": {}},
            {"steps": 1000, "seconds": 0.02, "resumed": []},
        ]
    )

    def rules() -> dict[str, str] | None:
        stage = bench.stage("ppo")
        return None if stage is None else stage.verdicts

    runner = bench.spawn()
    told = {"CriticLossDiverging": "4.5 against a threshold of 3 at update 7"}
    bench.wait(lambda: rules() == told)
    bench.wait(lambda: rules() == {"KLAboveLimit": "12.5 against a threshold of 10 at update 4"})
    bench.wait(lambda: rules() == {})
    runner.terminate()
    assert runner.wait(60) == 143


def test_a_guardrail_stops_its_stage_and_lets_others_end(bench: Any) -> None:
    dataset = {"uri": "file://rows.jsonl"}
    base = {"model": {"uri": "hf://org/base"}, "dataset": dataset}
    ppo = base | {"rewardModel": {"uri": "hf://org/scores"}}
    bench.write(stages={"sft": base, "ppo": ppo})
    bench.go(sft=[{"seconds": 0.2}], ppo=[{"crash_at": 1, "code": 42, "verdict": KL}, {}])
    assert bench.run() == 42
    assert bench.stage("sft").state == "Succeeded"
    assert bench.stage("ppo").attempt == 1
    assert bench.run() == 0


def test_what_was_suspended_when_its_runner_was_killed_goes_on_too(bench: Any) -> None:
    dataset = {"uri": "file://rows.jsonl"}
    base = {"model": {"uri": "hf://org/base"}, "dataset": dataset}
    bench.write(stages={"sft": base, "ppo": base | {"rewardModel": {"uri": "hf://org/scores"}}})
    slow = {"seconds": 0.1, "steps": 600}
    bench.go(sft=[slow], ppo=[{"crash_at": 1, "code": 42, "verdict": KL}, {}])
    runner = bench.spawn()
    bench.wait(lambda: bench.stage("ppo").state == "Suspended")
    runner.kill()
    runner.wait()
    for process in bench.alive():
        process.kill()
    bench.wait(lambda: not bench.alive())
    bench.go(sft=[{}], ppo=[{}])
    assert bench.stage("ppo").idle_since is not None
    assert bench.run() == 0
    assert (bench.stage("ppo").attempt, bench.stage("ppo").restarts) == (2, 0)
    assert bench.stage("ppo").idle_since is None
