"""A job from its first run to its last, with real processes."""

import errno
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from waiting import PATIENCE

from rlhf_api.errors import InputError, UsageError
from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import RLHFJob, StageConfig
from rlhf_cli.view import Evaluations, LineView
from rlhf_cli.workdir import Workdir

ALL = ("sft", "reward", "ppo")
BASE = {"model": {"uri": "hf://org/base"}, "dataset": {"uri": "file://rows.jsonl"}}
SLOW = {"seconds": 0.1, "steps": 600, "save_every": 5}


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_whole_job(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bench.write(ALL)
    assert bench.run() == 0
    status = bench.job.status
    assert status.phase == "Succeeded"
    assert {c.type for c in status.conditions if c.status == "True"} == {
        *("Accepted", "Healthy", "Succeeded", "ChildrenReady"),
    }
    assert [bench.stage(name).attempt for name in ALL] == [1, 1, 1]
    assert bench.stage("sft").completion_time <= bench.stage("reward").attempt_start_time
    assert bench.stage("ppo").artifact.uri.endswith("/ppo/attempt-1/artifact")
    assert "stand-in for sft" in (bench.attempt(1) / "launcher.log").read_text()
    config = json.loads((bench.attempt(1, "ppo") / "stage.json").read_text())
    assert config["storage"] == str(bench.workdir)
    assert config["job"]["uid"] == bench.job.metadata.uid
    assert config["ppo"]["dataset"]["uri"] == f"file://{bench.folder}/rows.jsonl"
    assert set(config["artifacts"]) == {"sft", "reward"}

    summary = json.loads((bench.workdir / "summary.json").read_text())
    assert summary["scorePpo"] == 2.0
    assert set(summary["secondsByStage"]) == set(ALL)
    out = capsys.readouterr().out
    assert "prompt  这本书\nbefore  不好 [x]  (score -1)\nafter   很好  (score 2)\n" in out
    assert out.strip().splitlines()[-1].startswith("reviews has succeeded")
    told = [line.split(" ", 1)[1] for line in out.splitlines() if line[2:3] == ":"]
    assert [line for line in told if line.startswith("stage ppo: attempt")] == [
        "stage ppo: attempt 1 starts",
        "stage ppo: attempt 1 runs",
    ]

    before = snapshot(bench.workdir)
    assert bench.run() == 0
    after = snapshot(bench.workdir)
    lock = str(bench.workdir / "lock")
    assert {**before, lock: after[lock]} == after
    assert "has succeeded already" in capsys.readouterr().out


def test_what_a_stage_has_found_is_printed(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bench.go(sft=[{"notes": ["answers end with '[x]', by EOS"]}])

    assert bench.run() == 0

    told = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert told.count("stage sft: answers end with '[x]', by EOS") == 1


def test_an_evaluation_is_shown_while_it_runs(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.go(sft=[{"evaluates": str(bench.folder / "seen")}])
    shown: list[set[StageName]] = []
    show = LineView.show

    def watch(view: LineView, job: RLHFJob, *, evaluations: Evaluations, **others: Any) -> None:
        shown.append(set(evaluations.running))
        if evaluations.running:
            (bench.folder / "seen").touch()
        show(view, job, evaluations=evaluations, **others)

    monkeypatch.setattr(LineView, "show", watch)
    assert bench.run() == 0
    assert {StageName.SFT} in shown
    assert all(each in (set(), {StageName.SFT}) for each in shown)
    assert shown[-1] == set()


def test_how_many_rows_are_used_is_told_always_and_once(
    bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"dataset": {"kept": 64}, "evalDataset": {"kept": 4, "overLong": 1}}
    bench.go(sft=[{"rows": rows, "crash_at": 7}, {"rows": rows}])

    assert bench.run() == 0

    told = capsys.readouterr().out
    assert told.count("stage sft: dataset: 64 rows used\n") == 1
    assert told.count("stage sft: evalDataset: 4 rows used, 1 left out as too long\n") == 1
    assert told.count("\nsft dataset: 64 rows used\n") == 1


def test_what_every_attempt_finds_is_printed_once(
    bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = ["answers end with '[x]', by EOS"]
    bench.go(sft=[{"notes": notes, "crash_at": 7}, {"notes": [*notes, "rows encoded apart"]}])

    assert bench.run() == 0

    told = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert [line for line in told if "answers end" in line or "encoded" in line] == [
        "stage sft: answers end with '[x]', by EOS",
        "stage sft: rows encoded apart",
    ]


def test_a_stop_is_told_when_it_is_heard_and_at_the_end(bench: Any) -> None:
    bench.write(stages={"sft": BASE, "reward": BASE})
    bench.go(sft=[SLOW, {}], reward=[SLOW, {}])
    runner = bench.spawn()
    bench.wait(lambda: min(bench.step("sft"), bench.step("reward")) >= 3)
    runner.send_signal(signal.SIGINT)
    assert runner.wait(PATIENCE) == 130
    stop, last = (line for line in bench.log.splitlines() if "stop" in line or "suspend" in line)
    assert "stopping: each stage writes a checkpoint first" in stop
    assert last.startswith("rlhf: reviews was stopped; the same command again goes on")
    (bench.folder / "run.log").unlink()
    assert bench.spawn().wait(PATIENCE) == 0
    told = [line.split(" ", 1)[1] for line in bench.log.splitlines()]
    again = [line for line in told if "starts" in line or "resume" in line]
    assert sorted(again) == [f"stage {name}: attempt 2 starts" for name in ("reward", "sft")]


def test_independent_stages_and_the_failure_of_one(bench: Any) -> None:
    bench.write(stages={"sft": BASE, "reward": BASE})
    bench.go(sft=[SLOW], reward=[{"crash_at": 3, "code": 78, "seconds": 0.5}])
    assert bench.run() == 78
    assert (bench.stage("sft").state, bench.stage("sft").reason) == ("Suspended", "Stopped")
    assert bench.alive() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_with_a_checkpoint_and_the_next_run_goes_on(
    bench: Any, number: signal.Signals, code: int
) -> None:
    bench.go(sft=[SLOW])
    runner = bench.spawn()
    bench.wait(lambda: bench.step() >= 3)
    runner.send_signal(number)
    assert runner.wait(PATIENCE) == code
    stopped = bench.stage()
    assert bench.log.strip().splitlines()[-1] == (
        "rlhf: reviews was stopped; the same command again goes on: stage sft from the checkpoint "
        f"of step {stopped.progress.step}"
    )
    assert (bench.job.status.phase, stopped.state, stopped.disruptions, stopped.restarts) == (
        "Suspended",
        "Suspended",
        1,
        0,
    )
    assert bench.alive() == []
    bench.go(sft=[{}])
    assert bench.run() == 0
    assert bench.stage().attempt == 2
    first = json.loads((bench.attempt(2) / "events.jsonl").read_text().splitlines()[0])
    assert first["step"] == stopped.progress.step


def test_a_second_signal_kills(bench: Any) -> None:
    bench.go(sft=[SLOW | {"deaf": True, "rank": True}])
    runner = bench.spawn()
    bench.wait(lambda: bench.step() >= 1)
    runner.send_signal(signal.SIGINT)
    time.sleep(0.05)
    runner.send_signal(signal.SIGINT)  # as a wrapper forwards it: too early to be meant
    bench.wait(lambda: bench.stage().state == "Stopping")
    time.sleep(1.5)
    assert runner.poll() is None
    runner.send_signal(signal.SIGINT)
    assert runner.wait(PATIENCE) == 130
    assert bench.stage().state == "Suspended"
    assert bench.alive() == []


@pytest.mark.parametrize("recorded", [True, False])
def test_a_launcher_that_outlives_its_runner_is_taken_over(bench: Any, recorded: bool) -> None:
    bench.go(sft=[{"seconds": 0.1, "steps": 40}])
    runner = bench.spawn()
    bench.wait(lambda: bench.step() >= 2)
    runner.kill()
    runner.wait(PATIENCE)
    (launcher,) = bench.alive()
    if not recorded:
        # As if the runner had been killed before it wrote the process down.
        (bench.attempt(1) / "launcher.json").unlink()
    assert launcher.is_running()
    assert bench.run() == 0
    assert (bench.attempts(), bench.stage().restarts) == (["attempt-1"], 0)
    assert (bench.attempt(1) / "launcher.log").read_text().count("stand-in") == 1


def test_a_launcher_that_was_taken_over_is_stopped_too(bench: Any) -> None:
    bench.go(sft=[SLOW])
    first = bench.spawn()
    bench.wait(lambda: bench.step() >= 2)
    first.kill()
    first.wait(PATIENCE)
    second = bench.spawn()
    step = bench.step()
    bench.wait(lambda: bench.step() > step)
    second.send_signal(signal.SIGINT)
    assert second.wait(PATIENCE) == 130
    assert (bench.stage().attempt, bench.alive()) == (1, [])


@pytest.mark.parametrize(("saved", "restarts", "disruptions"), [(True, 0, 1), (False, 1, 0)])
def test_a_machine_that_went_down_is_a_disruption(
    bench: Any, saved: bool, restarts: int, disruptions: int
) -> None:
    bench.go(sft=[SLOW | {"save_every": 2 if saved else 1000}, {}])
    runner = bench.spawn()
    bench.wait(lambda: bench.step() >= 4)
    runner.kill()
    runner.wait(PATIENCE)
    for process in bench.alive():
        process.kill()
    bench.wait(lambda: not bench.alive())
    bench.go(sft=[{}])
    assert bench.run() == 0
    stage = bench.stage()
    assert (stage.attempt, stage.restarts, stage.disruptions) == (2, restarts, disruptions)


def test_time_without_a_runner_does_not_count(bench: Any) -> None:
    bench.go(sft=[SLOW | {"save_every": 2}])
    runner = bench.spawn()
    bench.wait(lambda: bench.step() >= 2)
    runner.kill()
    runner.wait(PATIENCE)
    for process in bench.alive():
        process.kill()
    bench.wait(lambda: not bench.alive())
    hour_ago = bench.file.stat().st_mtime - 3600
    for path in bench.workdir.rglob("*"):
        os.utime(path, (hour_ago, hour_ago))
    start = bench.job.status.start_time
    bench.go(sft=[{}])
    assert bench.run() == 0
    assert bench.job.status.start_time == start
    assert bench.job.status.idle_seconds == pytest.approx(3600, abs=60)
    summary = json.loads((bench.workdir / "summary.json").read_text())
    assert summary["secondsTotal"] < 60


def test_ranks_do_not_outlive_their_launcher(bench: Any) -> None:
    bench.go(sft=[SLOW | {"rank": True}, {}])
    runner = bench.spawn()
    bench.wait(lambda: bench.step() >= 6)
    launcher = json.loads((bench.attempt(1) / "launcher.json").read_text())["pid"]
    assert len(bench.alive()) == 2
    psutil.Process(launcher).kill()
    assert runner.wait(PATIENCE) == 0
    assert (bench.stage().restarts, bench.alive()) == (1, [])


def test_another_job_in_the_workdir_is_left_alone(bench: Any) -> None:
    bench.write(runPolicy={"maxRestarts": 1})
    assert bench.run() == 0
    before = snapshot(bench.workdir)
    sft = {"model": {"uri": "hf://org/base"}, "dataset": {"uri": "file://rows.jsonl"}}
    bench.write(stages={"sft": sft | {"learningRate": 2e-4}})
    with pytest.raises(UsageError) as caught:
        bench.run()
    message = str(caught.value)
    assert str(bench.workdir) in message
    assert "spec.stages.sft.learningRate is 1e-05 there and 0.0002 in" in message
    begun = re.escape(bench.stage().config_digest)
    now = rf"stage sft was begun with configDigest {begun}, and that is now sha256:\w{{64}};"
    assert re.search(now, message)
    assert "choose another --workdir" in message
    assert snapshot(bench.workdir) == before


def test_limits_and_written_out_defaults_make_no_other_job(bench: Any) -> None:
    bench.go(sft=[{"crash_at": 2, "code": 65}])
    assert bench.run() == 65
    sft = {"model": {"uri": "hf://org/base"}, "dataset": {"uri": "file://rows.jsonl"}}
    bench.write(stages={"sft": sft | {"seed": 42}}, runPolicy={"maxRestarts": 9})
    assert bench.run() == 65


def test_what_is_cosmetic_may_change_and_the_run_goes_on(bench: Any) -> None:
    bench.go(ppo=[{"crash_at": 7, "code": 65}, {}])
    base = {"uri": "hf://org/base"}
    ppo = {"model": base, "rewardModel": base, "dataset": {"uri": "file://rows.jsonl"}}
    bench.write(stages={"ppo": ppo})
    assert bench.run() == 65
    begun = bench.stage("ppo").config_digest
    changed = {"checkpoint": {"everySteps": 1}, "samplesEverySteps": 1, "priorityClassName": "low"}
    environment = [{"name": "NCCL_DEBUG", "value": "INFO"}]
    bench.write(
        stages={"ppo": ppo | changed | {"env": environment}},
        storage={"uri": "pvc://runs/reviews"},
        template={"env": environment, "nodeSelector": {"pool": "a"}},
    )
    assert bench.run(retry=True) == 0
    stage = bench.stage("ppo")
    assert (stage.attempt, stage.config_digest) == (2, begun)
    events = (bench.attempt(2, "ppo") / "events.jsonl").read_text().splitlines()
    assert json.loads(events[0])["step"] == 5
    given = json.loads((bench.attempt(2, "ppo") / "stage.json").read_text())
    assert (given["configDigest"], given["ppo"]["samplesEverySteps"]) == (begun, 1)


def test_more_ranks_are_another_job(bench: Any) -> None:
    assert bench.run() == 0
    bench.write(template={"processesPerNode": 2})
    with pytest.raises(UsageError, match=r"sft\.nodes \* processesPerNode is 1 there and 2 in"):
        bench.run()


def test_a_folder_of_somebody_else_is_left_alone(bench: Any) -> None:
    bench.workdir.mkdir(parents=True)
    (bench.workdir / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match=r"is not empty \(thesis.tex\)"):
        bench.run()
    assert [path.name for path in bench.workdir.iterdir()] == ["thesis.tex"]


def test_a_second_runner_is_refused(bench: Any) -> None:
    bench.go(sft=[SLOW])
    runner = bench.spawn()
    bench.wait(lambda: bench.step() >= 1)
    with pytest.raises(UsageError, match=rf"another rlhf run \(process {runner.pid}\) works here"):
        bench.run()
    runner.send_signal(signal.SIGINT)
    runner.wait(PATIENCE)


def test_a_job_that_is_suspended_in_its_file(
    bench: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.write(suspend=True)
    assert bench.run() == 75
    assert "spec.suspend is true" in last_line(capsys)
    assert bench.attempts() == []
    bench.write()
    assert bench.run() == 0


def test_all_nodes_are_this_one(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bench.write(template={"nodes": 2, "processesPerNode": 2, "env": [{"name": "A", "value": "b"}]})
    assert bench.run() == 0
    config = StageConfig.from_json((bench.attempt(1) / "stage.json").read_text())
    assert (config.nodes, config.processes_per_node) == (1, 4)
    assert "nodes is 2; here all 4 ranks run on this machine" in capsys.readouterr().err


def test_missing_files_are_named_before_anything_is_made(bench: Any) -> None:
    (bench.folder / "rows.jsonl").unlink()
    with pytest.raises(InputError, match=r"spec.stages.sft.dataset.uri: .*rows.jsonl does not"):
        bench.run()
    assert not bench.root.exists()


def test_a_full_disk_leaves_no_launcher_behind(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.go(sft=[SLOW])
    save = Workdir.save

    def refuse(self: Workdir, job: Any) -> None:
        if job.status.stages.sft.progress is not None:
            raise OSError(errno.ENOSPC, "No space left on device", "status.yaml")
        save(self, job)

    monkeypatch.setattr(Workdir, "save", refuse)
    with pytest.raises(OSError, match="No space left"):
        bench.run()
    assert bench.alive() == []
    monkeypatch.undo()
    bench.go(sft=[{}])
    assert bench.run() == 0
