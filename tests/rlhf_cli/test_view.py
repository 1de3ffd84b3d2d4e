"""What people see: a table on a terminal, lines elsewhere."""

import io
from typing import Any

import pytest
from rich.console import Console

from rlhf_api.names import Reason, StageName, StageState
from rlhf_api.v1alpha1 import Progress, RLHFJob, RLHFJobStatus, StageStatus, StageStatuses
from rlhf_cli.view import Evaluations, LineView, LiveView, View, duration, make_view
from rlhf_operator.planning.events import Event


def make_job(step: int = 42, **stage: Any) -> RLHFJob:
    base = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://a/b"}}
    ppo = base | {"model": {"fromStage": "sft"}, "rewardModel": {"uri": "hf://a/b"}}
    job = RLHFJob.from_document(
        {
            "apiVersion": "rlhf.dev/v1alpha1",
            "kind": "RLHFJob",
            "metadata": {"name": "reviews"},
            "spec": {"stages": {"sft": base, "ppo": ppo}},
        }
    )
    progress = Progress(step=step, total_steps=100, percent=step, eta_seconds=125)
    running: dict[str, Any] = {
        "state": StageState.RUNNING,
        "attempt": 2,
        "progress": progress,
        "metrics": {"reward": 1.308, "kl": 4.2, "critic_loss": 0.0831},
    }
    stages = StageStatuses(
        sft=StageStatus(state=StageState.SUCCEEDED, attempt=1),
        ppo=StageStatus(**(running | stage)),
    )
    return job.model_copy(update={"status": RLHFJobStatus(stages=stages)})


def terminal() -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=True, width=120, color_system=None), text


def test_the_table_on_a_terminal() -> None:
    console, text = terminal()
    view = make_view(console, quiet=False)
    assert isinstance(view, LiveView)
    with view:
        view.show(make_job())
        view.tell(Event("Warning", Reason.CRASHED, "stage ppo: boom [x]"))
        view.tell(Event("Normal", Reason.CREATED, "stage ppo: attempt 2 starts"))
        view.note("stage ppo: answers end with '[x]'")
        view.show(make_job(), stopping=True)
    out = text.getvalue()
    assert "RLHFJob reviews" in out
    assert "Running #2" in out
    assert "42/100" in out
    assert "42 %" in out
    assert "2 min 05 s" in out
    assert "reward 1.308, KL 4.2, critic loss 0.0831" in out
    assert "stage ppo: boom [x]" in out
    assert "attempt 2 starts" not in out
    assert "answers end with '[x]'" in out
    assert "once more to kill it" in out


def test_lines_come_every_ten_seconds_or_ten_percent() -> None:
    text = io.StringIO()
    seconds = [0.0]
    view = LineView(Console(file=text, width=20), clock=lambda: seconds[0])

    def lines(after: float, step: int) -> int:
        seconds[0] += after
        text.seek(0)
        text.truncate()
        view.show(make_job(step))
        return len(text.getvalue().splitlines())

    assert lines(0, 1) == 1
    assert "stage ppo: step 1/100 (1 %), 2 min 05 s left, reward 1.308, KL 4.2" in text.getvalue()
    assert lines(1, 2) == 0
    assert lines(9, 3) == 1
    assert lines(1, 13) == 1
    assert lines(1, 13) == 0
    # Nothing new is nothing to tell.
    assert lines(60, 13) == 0
    # A new attempt starts from an earlier step.
    assert lines(1, 5) == 1


def test_held_out_metrics_name_the_step_that_they_are_of() -> None:
    metrics = {"reward": 1.5, "eval_reward": 1.25}
    said, drawn = io.StringIO(), terminal()
    LineView(Console(file=said, width=200)).show(
        make_job(10, metrics=metrics), evaluations=Evaluations({StageName.PPO: 5, StageName.SFT: 7})
    )
    assert "step 10/100 (10 %), 2 min 05 s left, reward 1.5, held-out reward 1.25 (step 5)" in (
        said.getvalue()
    )
    with LiveView(drawn[0]) as view:
        view.show(make_job(10, metrics=metrics), evaluations=Evaluations({StageName.PPO: 5}))
    assert "held-out reward 1.25 (step 5)" in drawn[1].getvalue()
    # What an earlier runner saw is not known any more.
    LineView(Console(file=said, width=200)).show(make_job(10, metrics=metrics))
    assert said.getvalue().rstrip().endswith("held-out reward 1.25")


SFT, PPO = StageName.SFT, StageName.PPO


@pytest.mark.parametrize(
    ("evaluating", "state", "metrics", "line", "cell"),
    [
        ({PPO}, "Running", {}, "2 min 05 s left, evaluating", "evaluating"),
        ({PPO}, "Running", {"kl": 2.0}, "left, evaluating, KL 2", "evaluating, KL 2"),
        ({SFT, PPO}, "Running", {"kl": 2.0}, "left, evaluating, KL 2", "evaluating, KL 2"),
        ({SFT}, "Running", {"kl": 2.0}, "left, KL 2", "KL 2"),
        ((), "Running", {"kl": 2.0}, "left, KL 2", "KL 2"),
        ({PPO}, "Stopping", {"kl": 2.0}, "", "KL 2"),
        ({PPO}, "Restarting", {"kl": 2.0}, "", "KL 2"),
    ],
)
def test_an_evaluation_that_runs_is_shown(
    evaluating: Any, state: str, metrics: dict[str, float], line: str, cell: str
) -> None:
    job = make_job(10, state=StageState(state), metrics=metrics)
    said, drawn = io.StringIO(), terminal()
    LineView(Console(file=said, width=200)).show(job, evaluations=Evaluations(running=evaluating))
    assert said.getvalue().rstrip().endswith(line)
    assert ("evaluating" in said.getvalue()) == ("evaluating" in line)
    with LiveView(drawn[0]) as view:
        view.show(job, evaluations=Evaluations(running=evaluating))
    rows = [text.rstrip() for text in drawn[1].getvalue().splitlines()]
    assert any(text.endswith(f"  {cell}") for text in rows)
    assert ("evaluating" in drawn[1].getvalue()) == ("evaluating" in cell)


def test_an_evaluation_makes_a_new_line_after_ten_seconds() -> None:
    text, seconds = io.StringIO(), [0.0]
    view = LineView(Console(file=text, width=200), clock=lambda: seconds[0])
    view.show(make_job(10))
    for seconds[0] in (5.0, 10.0, 25.0):
        view.show(make_job(10), evaluations=Evaluations(running={PPO}))
    assert ["evaluating" in line for line in text.getvalue().splitlines()] == [False, True]


def test_lines_tell_events_and_a_stop_once() -> None:
    text = io.StringIO()
    view = LineView(Console(file=text, width=20))
    view.tell(Event("Normal", Reason.CREATED, "stage sft: attempt 1 starts [x] and goes on"))
    view.note("stage sft: answers end with '[x]', by EOS")
    view.show(make_job(state=StageState.STOPPING), stopping=True)
    view.show(make_job(state=StageState.STOPPING), stopping=True)
    lines = text.getvalue().splitlines()
    assert lines[0].endswith("stage sft: attempt 1 starts [x] and goes on")
    assert lines[1].endswith("stage sft: answers end with '[x]', by EOS")
    assert len(lines) == 3
    assert "at most 300 s" in lines[2]


def test_quiet_shows_nothing() -> None:
    console, text = terminal()
    with make_view(console, quiet=True) as view:
        assert type(view) is View
        view.show(make_job())
        view.tell(Event("Warning", Reason.CRASHED, "boom"))
        view.note("stage sft: answers end with '[x]'")
    assert text.getvalue() == ""
    assert isinstance(make_view(Console(file=io.StringIO()), quiet=False), LineView)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (7260, "2 h 01 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
