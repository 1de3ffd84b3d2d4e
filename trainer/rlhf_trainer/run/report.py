"""What a stage tells while it runs: `events.jsonl` is the truth, everything else follows it.

Every rank makes a `Reporter` and calls it alike; only rank 0 writes, serves and logs, and no call
waits for another rank.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from rlhf_api.metrics import ROW_METRICS, LabelledMetric, Metric, Phase, phases_of
from rlhf_api.names import FileName, GuardrailRule
from rlhf_api.v1alpha1 import HealthVerdict, RowCounts, StageConfig
from rlhf_trainer.run.distributed import Ranks
from rlhf_trainer.run.eta import EvaluationClock, StepClock
from rlhf_trainer.run.json_lines import JsonLines, objects_of
from rlhf_trainer.run.metrics_endpoint import MetricsEndpoint
from rlhf_trainer.run.phases import PhaseClock
from rlhf_trainer.run.readings import Reading, series_of
from rlhf_trainer.run.texts import duration, metrics_text, shown

logger = logging.getLogger(__name__)

LOG_EVERY_SECONDS = 5.0
SAMPLES_IN_LOG = 3

EventType = Literal[
    "start", "step", "checkpoint", "evaluating", "evaluation", "verdict", "verdicts", "end"
]


@dataclass(frozen=True)
class Sample:
    """One response, as people read it."""

    prompt: str
    response: str
    score: float
    kl: float
    length: int
    stop_reason: str
    rewards: Mapping[str, float] = field(default_factory=dict)


def evaluation_reported(config: StageConfig, attempts: Iterable[int], step: int) -> bool:
    """Whether one of `attempts` told how held-out rows fare after `step` steps."""
    files = (Path(config.stage_folder) / f"attempt-{k}" / FileName.EVENTS for k in attempts)
    events = chain.from_iterable(objects_of(file, '"evaluation"') for file in files)
    return any(event.get("type") == "evaluation" and event.get("step") == step for event in events)


class Reporter:
    """Tells what a stage does.

    Attributes:
        metrics_port: port of the Prometheus endpoint; None where there is none.
    """

    def __init__(
        self,
        config: StageConfig,
        ranks: Ranks,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._folder = Path(config.attempt_folder)
        self._total_steps = 0
        self._last_step = 0
        self._epoch = 0.0
        self._step_clock = StepClock(clock())
        self._evaluation_clock = EvaluationClock(config)
        self._phases = PhaseClock(phases_of(config.stage), clock=clock)
        self._logged_at = -math.inf
        self._rows: dict[str, RowCounts] = {}
        self._notes: list[str] = []
        self._last_metrics: dict[Metric, float] = {}
        self._readings: dict[GuardrailRule, Reading] = {}
        self._events: JsonLines | None = None
        self._samples: JsonLines | None = None
        self._endpoint: MetricsEndpoint | None = None
        if ranks.rank == 0:
            self._events = JsonLines(self._folder / FileName.EVENTS)
            self._samples = JsonLines(self._folder / FileName.SAMPLES)
            self._endpoint = MetricsEndpoint(config, self._phases.seconds)
        self.metrics_port = self._endpoint.port if self._endpoint else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def last_metrics(self) -> dict[str, float]:
        """The newest finite metrics."""
        return {metric.value: value for metric, value in self._last_metrics.items()}

    @property
    def rows(self) -> Mapping[str, RowCounts]:
        """What became of the rows of each dataset, by its field."""
        return self._rows

    def read_rows(self, dataset: str, counts: RowCounts) -> None:
        """The rows of a dataset were read; told when training begins, and served from now on.

        `dataset` is its field in the stage, such as `evalDataset`.
        """
        self._rows[dataset] = counts
        self._log("%s: %s", dataset, counts.text)
        if self._endpoint is not None:
            for metric, name in ROW_METRICS.items():
                by_field = {field: float(getattr(each, name)) for field, each in self._rows.items()}
                self._endpoint.set_labelled(metric, by_field)

    def phase(self, phase: Phase) -> AbstractContextManager[None]:
        """The time until the context is left is served as that of `phase`."""
        return self._phases.phase(phase)

    def note(self, text: str) -> None:
        """Something that was found before training begins, told with its start; `rlhf run` prints
        it. The same text again, as of a second copy of a model, tells nothing new."""
        if text in self._notes:
            return
        self._notes.append(text)
        self._log("%s", text)

    def start(
        self,
        total_steps: int,
        first_step: int = 0,
        checkpoint_time: float | None = None,
        epoch: float = 0.0,
    ) -> None:
        """Training begins.

        Args:
            total_steps: of the stage.
            first_step: steps that earlier attempts did.
            checkpoint_time: Unix time of the checkpoint of `first_step`; None where there is none.
            epoch: passes over the data that earlier attempts did.
        """
        self._total_steps, self._last_step, self._epoch = total_steps, first_step, epoch
        if checkpoint_time is not None:
            self._serve_checkpoint(first_step, checkpoint_time)
        self._step_clock = StepClock(self._clock())
        extra: dict[str, object] = {"notes": self._notes} if self._notes else {}
        if self.metrics_port is not None:
            extra["metricsPort"] = self.metrics_port
        if self._rows:
            extra["rows"] = {name: each.to_resolved_document() for name, each in self._rows.items()}
        self._tell("start", first_step, {}, **extra)
        self._log("training from step %d to %d", first_step, total_steps)

    def step(
        self,
        step: int,
        epoch: float,
        metrics: Mapping[Metric, float],
        rewards: Mapping[str, float] | None = None,
    ) -> None:
        """Step number `step` is done, `epoch` passes over the data in all.

        `rewards` holds the mean of each reward that the stage names; nothing where it names none.
        """
        now = self._clock()
        self._step_clock.tick(now, step - self._last_step)
        self._last_step, self._epoch = step, epoch
        self._tell("step", step, metrics, **self._rewards(rewards))
        if now - self._logged_at >= LOG_EVERY_SECONDS or step == self._total_steps:
            self._logged_at = now
            self._log("%s", self._line(step, metrics))

    def trained_on(self, tokens: int, samples: int) -> None:
        """All ranks together learned from as many real tokens and sequences, pairs or prompts."""
        if self._endpoint is not None:
            self._endpoint.count({Metric.TOKENS: tokens, Metric.SAMPLES: samples})

    def checkpoint(self, step: int) -> None:
        """A checkpoint of `step` is complete."""
        self._tell("checkpoint", step, {})
        self._serve_checkpoint(step, time.time())
        self._log("checkpoint of step %d is complete", step)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """A pass over the held-out rows; told when it begins, since it may take as long as many
        steps."""
        began = self._clock()
        self._tell("evaluating", self._last_step, {})
        with self.phase(Phase.EVALUATION):
            yield
        seconds = self._clock() - began
        self._step_clock.leave_out(seconds)
        self._evaluation_clock.tick(self._last_step, seconds)

    def evaluation(
        self,
        step: int,
        metrics: Mapping[Metric, float],
        rewards: Mapping[str, float] | None = None,
    ) -> None:
        """The held-out rows were evaluated after `step` steps; `rewards` as in `step`."""
        family = LabelledMetric.EVAL_REWARD_COMPONENT
        self._tell("evaluation", step, metrics, **self._rewards(rewards, family))
        self._log("evaluation at step %d: %s", step, metrics_text(metrics))

    def health(self, step: int, readings: Sequence[Reading]) -> None:
        """The rules of health were judged after `step` steps; changed verdicts become events."""
        self._serve_health(readings)
        for reading in readings:
            if not reading.changed:
                continue
            self._tell(
                "verdict",
                step,
                {},
                rule=reading.rule.value,
                broken=reading.broken,
                action=reading.action.value,
                value=reading.value,
                threshold=reading.threshold,
                evidence=reading.evidence,
            )
            if self._events is not None:
                word = "is broken" if reading.broken else "holds again"
                logger.warning("%s %s at step %d: %s", reading.rule, word, step, reading.evidence)

    def resumed_health(
        self, step: int, standing: Sequence[Reading], verdicts: Sequence[HealthVerdict]
    ) -> None:
        """What a checkpoint of `step` steps knows of the rules, all that is broken in one event.

        An attempt that was killed may have told of verdicts that its checkpoint does not know.
        """
        self._serve_health(standing)
        self._tell("verdicts", step, {}, verdicts=[each.to_document() for each in verdicts])

    def _serve_health(self, readings: Sequence[Reading]) -> None:
        self._readings.update((reading.rule, reading) for reading in readings)
        # A stage without rules tells of none until one is broken.
        if self._endpoint is not None and self._readings:
            for metric, series in series_of(list(self._readings.values())).items():
                self._endpoint.set_labelled(metric, series)

    def samples(self, step: int, rows: Sequence[Sample]) -> None:
        """Responses of `step`, for people to read."""
        if self._samples is None:
            return
        self._samples.write([_sample_document(step, row) for row in rows])
        for row in rows[:SAMPLES_IN_LOG]:
            logger.info(
                "sample at step %d: score %.4g, kl %.4g, %d tokens, ended by %s\n  > %s\n  < %s",
                step,
                row.score,
                row.kl,
                row.length,
                row.stop_reason,
                shown(row.prompt),
                shown(row.response),
            )

    def end(self, step: int) -> None:
        """The stage's work is done after `step` steps."""
        self._last_step = step
        self._tell("end", step, {})
        self._log("done after %d steps", step)

    def close(self) -> None:
        """Close the files and the endpoint; a second call does nothing."""
        for part in (self._events, self._samples, self._endpoint):
            if part is not None:
                part.close()
        self._events = self._samples = self._endpoint = None

    def _tell(
        self, kind: EventType, step: int, metrics: Mapping[Metric, float], **extra: object
    ) -> None:
        numbers = {metric: float(value) for metric, value in metrics.items()}
        finite = {metric: value for metric, value in numbers.items() if math.isfinite(value)}
        for metric in numbers:
            self._last_metrics.pop(metric, None)
        self._last_metrics.update(finite)
        if self._events is None or self._endpoint is None:
            return
        eta = self._eta()
        document: dict[str, Any] = {
            "time": time.time(),
            "type": kind,
            "step": step,
            "totalSteps": self._total_steps,
            "epoch": self._epoch,
            "metrics": {metric.value: finite.get(metric) for metric in numbers},
            "etaSeconds": eta,
            **extra,
        }
        self._events.write([document])
        self._endpoint.count({Metric.NONFINITE: len(numbers) - len(finite)})
        self._endpoint.set(numbers | self._progress(eta))

    def _eta(self) -> float | None:
        """Seconds to the stage's end; None before its first step."""
        steps = self._step_clock.eta(max(0, self._total_steps - self._last_step))
        if steps is None:
            return None
        return steps + self._evaluation_clock.eta(self._last_step, self._total_steps)

    def _serve_checkpoint(self, step: int, when: float) -> None:
        if self._endpoint is not None:
            self._endpoint.set(
                {Metric.LAST_CHECKPOINT_STEP: step, Metric.LAST_CHECKPOINT_TIMESTAMP: when}
            )

    def _rewards(
        self,
        rewards: Mapping[str, float] | None,
        family: LabelledMetric = LabelledMetric.REWARD_COMPONENT,
    ) -> dict[str, object]:
        """Serve the means of single rewards; what an event tells of them."""
        if not rewards:
            return {}
        if self._endpoint is not None:
            self._endpoint.set_labelled(family, rewards)
        return {"rewards": _finite_or_null(rewards)}

    def _progress(self, eta: float | None) -> dict[Metric, float]:
        metrics = {
            Metric.STEP: float(self._last_step),
            Metric.TOTAL_STEPS: float(self._total_steps),
            Metric.EPOCH: self._epoch,
        }
        if self._total_steps:
            metrics[Metric.PROGRESS] = min(1.0, self._last_step / self._total_steps)
        if eta is not None:
            metrics[Metric.ETA] = eta
        return metrics

    def _line(self, step: int, metrics: Mapping[Metric, float]) -> str:
        eta = self._eta()
        left = "" if eta is None else f", {duration(eta)} left"
        share = f" ({100 * step // self._total_steps} %)" if self._total_steps else ""
        return f"step {step}/{self._total_steps}{share}{left}: {metrics_text(metrics)}"

    def _log(self, text: str, *values: object) -> None:
        if self._events is not None:
            logger.info(text, *values)


def _sample_document(step: int, row: Sample) -> dict[str, Any]:
    return {
        "step": step,
        "prompt": row.prompt,
        "response": row.response,
        "score": row.score if math.isfinite(row.score) else None,
        "kl": row.kl if math.isfinite(row.kl) else None,
        "length": row.length,
        "stopReason": row.stop_reason,
    } | ({"rewards": _finite_or_null(row.rewards)} if row.rewards else {})


def _finite_or_null(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
