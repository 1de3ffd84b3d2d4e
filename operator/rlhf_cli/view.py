"""What people see while a job runs: a table that moves, plain lines, or nothing.

Called by `runner` with every status. Shows what status says and decides nothing; a terminal is
never asked for input.
"""

import time
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType, TracebackType
from typing import NamedTuple, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlhf_api.metrics import Metric
from rlhf_api.names import StageName, StageState
from rlhf_api.v1alpha1 import RLHFJob, StageStatus, stage_order
from rlhf_operator.planning.events import Event

LINE_SECONDS = 10.0
LINE_PERCENT = 10
HELD_OUT = "held-out"
EVALUATING = "evaluating"


class Evaluations(NamedTuple):
    """What is known of evaluations besides status."""

    steps: Mapping[StageName, int] = MappingProxyType({})
    """The step of each stage's held-out metrics, where it is known."""
    running: Collection[StageName] = ()
    """Stages that evaluate their held-out rows now."""


NO_EVALUATIONS = Evaluations()

SHOWN_METRICS: Mapping[StageName, Mapping[Metric, str]] = {
    StageName.SFT: {Metric.LOSS: "loss", Metric.EVAL_LOSS: f"{HELD_OUT} loss"},
    StageName.REWARD: {
        Metric.LOSS: "loss",
        Metric.ACCURACY: "accuracy",
        Metric.EVAL_ACCURACY: f"{HELD_OUT} accuracy",
    },
    StageName.PPO: {
        Metric.REWARD: "reward",
        Metric.KL: "KL",
        Metric.CRITIC_LOSS: "critic loss",
        Metric.EVAL_REWARD: f"{HELD_OUT} reward",
    },
}

_STYLES: Mapping[str, str] = {
    StageState.RUNNING: "cyan",
    StageState.SUCCEEDED: "green",
    StageState.FAILED: "red",
    StageState.RESTARTING: "yellow",
    StageState.STOPPING: "yellow",
    StageState.SUSPENDED: "yellow",
}


class View:
    """Shows nothing; the base of the others."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the terminal as it was."""

    def show(
        self, job: RLHFJob, *, stopping: bool = False, evaluations: Evaluations = NO_EVALUATIONS
    ) -> None:
        """The job stands so.

        Args:
            job: with its status.
            stopping: whether a person has asked to stop.
            evaluations: those that run, and of which steps the last ones are.
        """

    def tell(self, event: Event) -> None:
        """Something has happened once."""

    def note(self, text: str) -> None:
        """A stage has found something that people should know."""


class LineView(View):
    """Lines for a log: events, and progress every 10 seconds or 10 percent of a stage."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._said: dict[StageName, tuple[float, int, str]] = {}
        self._stopping = False

    def show(
        self, job: RLHFJob, *, stopping: bool = False, evaluations: Evaluations = NO_EVALUATIONS
    ) -> None:
        for name, stage in _stages(job).items():
            if stage.state is StageState.RUNNING and stage.progress is not None:
                seen = _seen(name, stage, evaluations)
                self._progress(name, stage, seen)
        if stopping and not self._stopping:
            self._say(stopping_text(job))
        self._stopping = stopping

    def tell(self, event: Event) -> None:
        self._say(event.message)

    def note(self, text: str) -> None:
        self._say(text)

    def _progress(self, name: StageName, stage: StageStatus, seen: str) -> None:
        assert stage.progress is not None
        left = _eta(stage)
        parts = [_steps(stage), left and f"{left} left", seen]
        text = f"stage {name}: {', '.join(part for part in parts if part)}"
        percent, now = stage.progress.percent, self._clock()
        if name in self._said:
            moment, share, before = self._said[name]
            soon = now - moment < LINE_SECONDS and 0 <= percent - share < LINE_PERCENT
            if soon or text == before:
                return
        self._said[name] = (now, percent, text)
        self._say(text)

    def _say(self, text: str) -> None:
        moment = time.strftime("%H:%M:%S")
        self._console.print(f"{moment} {text}", markup=False, highlight=False, soft_wrap=True)


class LiveView(View):
    """A table of the stages that is drawn anew with every status."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def show(
        self, job: RLHFJob, *, stopping: bool = False, evaluations: Evaluations = NO_EVALUATIONS
    ) -> None:
        caption = stopping_text(job) if stopping else None
        self._live.update(stage_table(job, caption, evaluations), refresh=True)

    def tell(self, event: Event) -> None:
        if event.type == "Warning":
            self._console.print(Text(event.message, "yellow"))

    def note(self, text: str) -> None:
        self._console.print(Text(text, "dim"))


def make_view(console: Console, *, quiet: bool) -> View:
    """The view that fits: a table on a terminal, lines elsewhere, nothing when `quiet`."""
    if quiet:
        return View()
    return LiveView(console) if console.is_terminal else LineView(console)


def stage_table(
    job: RLHFJob, caption: str | None = None, evaluations: Evaluations = NO_EVALUATIONS
) -> Table:
    """One row a stage: state with the number of a later attempt, steps, time left, metrics.

    Fits a terminal of 80 columns.
    """
    table = Table(
        title=f"RLHFJob {job.metadata.name}", caption=caption, box=SIMPLE_HEAD, pad_edge=False
    )
    for column in ("stage", "state", "", "step", "", "left"):
        table.add_column(column, no_wrap=True)
    table.add_column("metrics")
    for name, stage in _stages(job).items():
        progress = stage.progress
        state = f"{stage.state} #{stage.attempt}" if stage.attempt > 1 else stage.state
        bar: RenderableType = "" if progress is None else ProgressBar(100, progress.percent, 8)
        table.add_row(
            name.value,
            Text(state, _STYLES.get(stage.state, "")),
            bar,
            "" if progress is None else f"{progress.step}/{progress.total_steps or '?'}",
            "" if progress is None else f"{progress.percent} %",
            _eta(stage),
            _seen(name, stage, evaluations),
        )
    return table


def stopping_text(job: RLHFJob) -> str:
    """What happens after a request to stop."""
    grace = job.spec.template.termination_grace_period_seconds
    return (
        f"stopping: each stage writes a checkpoint first (at most {grace} s); "
        "once more to kill it without"
    )


def metrics_text(name: StageName, stage: StageStatus, evaluated: int | None) -> str:
    """The last values of the metrics to watch in this kind of stage.

    Those of held-out rows are of an earlier step, `evaluated`, and say so where it is known.
    """
    metrics = stage.metrics or {}
    of_step = "" if evaluated is None else f" (step {evaluated})"
    return ", ".join(
        f"{label} {metrics[metric]:.4g}{of_step if label.startswith(HELD_OUT) else ''}"
        for metric, label in SHOWN_METRICS[name].items()
        if metric in metrics
    )


def _seen(name: StageName, stage: StageStatus, evaluations: Evaluations) -> str:
    """That the held-out rows are being evaluated, where they are, and the last metrics."""
    now = name in evaluations.running and stage.state is StageState.RUNNING
    parts = [EVALUATING if now else "", metrics_text(name, stage, evaluations.steps.get(name))]
    return ", ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _stages(job: RLHFJob) -> dict[StageName, StageStatus]:
    found = {name: getattr(job.status.stages, name) for name in stage_order(job.spec.stages)}
    return {name: stage for name, stage in found.items() if stage is not None}


def _steps(stage: StageStatus) -> str:
    progress = stage.progress
    if progress is None:
        return ""
    return f"step {progress.step}/{progress.total_steps or '?'} ({progress.percent} %)"


def _eta(stage: StageStatus) -> str:
    progress = stage.progress
    if stage.state is not StageState.RUNNING or progress is None or progress.eta_seconds is None:
        return ""
    return duration(progress.eta_seconds)
