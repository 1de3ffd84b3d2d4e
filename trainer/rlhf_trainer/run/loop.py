"""What every stage's loop needs beside its story: resume, stop on request, save, tell.

Called by the stages. A step is whole or was not: a request to stop is heard between steps, inside
of evaluations, and inside of a step until an optimizer has stepped; what was done of the step is
then thrown away, and what is saved is the state after a whole one.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from rlhf_api.errors import InputError
from rlhf_api.metrics import Metric, Phase
from rlhf_api.v1alpha1 import Artifact, HealthVerdict, StageConfig
from rlhf_trainer.data.cursor import Cursor
from rlhf_trainer.data.cursor import total_steps as steps_of_epochs
from rlhf_trainer.errors import StopRequested
from rlhf_trainer.process.outcome import StageOutcome
from rlhf_trainer.process.stopping import StopFlag
from rlhf_trainer.rl import learning_rate_factor, warmup_steps
from rlhf_trainer.run.checkpoint import (
    Checkpoint,
    CheckpointStore,
    remove_of_finished,
    restore_rng_state,
    rng_state,
)
from rlhf_trainer.run.distributed import Ranks, any_rank, gather_objects, seed_everything
from rlhf_trainer.run.non_finite import non_finite_error, non_finite_reading, spoilt_metrics
from rlhf_trainer.run.readings import Reading, fired_verdicts
from rlhf_trainer.run.report import Reporter, evaluation_reported


class Kept(Protocol):
    """What a checkpoint holds below a folder of its own; all ranks call together."""

    def save(self, folder: Path, tag: str) -> None:
        """Write below `folder`/`tag`."""

    def load(self, folder: Path, tag: str) -> None:
        """Restore what `save` wrote."""

    def spoilt_weights(self) -> list[str]:
        """Names of weights that hold a NaN or an infinity, as far as this rank has them."""


@dataclass
class TrainingLoop:
    """Counts steps and keeps them.

    Attributes:
        models: the engines under training and what goes with their weights, by the name of their
            folder in a checkpoint.
        rows: number of rows, or packed sequences, that are learned.
        cursor: position in them.
        total_steps: as `total_steps` counts them.
        data: sha256 of the token arrays of each dataset, by its field.
        own_state: JSON values that the stage wants back after a resume.
        step: steps done.
        verdicts: rules of health that are broken now.
        resumed_attempt: the attempt whose checkpoint this one goes on from; None if from none.
    """

    config: StageConfig
    ranks: Ranks
    stop: StopFlag
    reporter: Reporter
    models: Mapping[str, Kept]
    rows: int
    cursor: Cursor = field(init=False)
    total_steps: int = field(init=False)
    data: Mapping[str, str] = field(default_factory=dict)
    own_state: Callable[[], Mapping[str, Any]] = dict
    verdicts: Callable[[], tuple[HealthVerdict, ...]] = tuple
    step: int = 0
    last_checkpoint_step: int | None = None
    resumed_attempt: int | None = None
    _store: CheckpointStore = field(init=False)
    _may_save: bool = field(init=False, default=True)
    _evaluated_step: int | None = field(init=False, default=None)
    _before_step: dict[str, Any] = field(init=False, default_factory=dict)
    _began: float = field(init=False, default_factory=time.monotonic)
    _saved: float = field(init=False, default=0.0)
    _metrics: dict[str, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        spec = self.config.spec
        self.cursor = Cursor(self.rows, spec.batch_size, spec.seed)
        self.total_steps = total_steps(self.config, self.rows)
        self._store = CheckpointStore(self.config, self.ranks)

    def resume(self) -> Mapping[str, Any]:
        """Go back to the newest good checkpoint of this stage; gives the stage's own state.

        Raises:
            NonFiniteError: on all ranks, if a weight is no number before anything was learned.
        """
        # Loading models left every rank with the same stream, and equal prompts would get equal
        # answers.
        seed_everything(self.config.spec.seed, self.ranks.rank)
        with self.reporter.phase(Phase.CHECKPOINT):
            checkpoint = self._store.newest()
            own: Mapping[str, Any] = {} if checkpoint is None else self._restore(checkpoint)
        self._saved = time.monotonic()
        self.reporter.start(
            self.total_steps,
            self.step,
            None if checkpoint is None else checkpoint.time,
            self.cursor.epoch,
        )
        self.require_finite(_spoilt_weights(self.models))
        return own

    def _restore(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        self._check_data(checkpoint)
        for name, model in self.models.items():
            model.load(checkpoint.folder, name)
        self.step = checkpoint.step
        self.cursor.load_state_dict(checkpoint.state["cursor"])
        # A run that was stopped after its last step has no step of its own to tell of.
        self._metrics = dict(checkpoint.state["metrics"])
        restore_rng_state(self._store.load_rank_state(checkpoint))
        self.last_checkpoint_step = checkpoint.step
        self.resumed_attempt = checkpoint.attempt
        self._recall_evaluation(checkpoint)
        own: Mapping[str, Any] = checkpoint.state["own"]
        return own

    def _recall_evaluation(self, checkpoint: Checkpoint) -> None:
        """Know whether the step of `checkpoint` was evaluated before the attempts since it ended.

        A checkpoint cannot tell: it is complete before the evaluation begins.
        """
        if not self.evaluation_due():
            return
        attempts = range(checkpoint.attempt, self.config.attempt + 1)
        first = self.ranks.rank == 0
        if any_rank(self.ranks, first and evaluation_reported(self.config, attempts, self.step)):
            self._evaluated_step = self.step

    def _check_data(self, checkpoint: Checkpoint) -> None:
        """Raise InputError, on all ranks alike, if the checkpoint was made with other rows."""
        # An earlier release wrote none.
        kept = checkpoint.state.get("data", {})
        for name, digest in self.data.items():
            if kept.get(name, digest) != digest:
                raise InputError(
                    f"spec.stages.{self.config.stage}.{name}: its rows have digest "
                    f"{digest}, but checkpoint {checkpoint.folder} was made with {kept[name]}; "
                    "restore the rows and the release that it was made with, or start another job"
                )

    def learning_rate(self, peak: float) -> float:
        """The rate of the step that comes next, for a peak from the specification."""
        spec = self.config.spec
        warmup = warmup_steps(self.total_steps, spec.warmup_ratio)
        return peak * learning_rate_factor(self.step, self.total_steps, warmup, spec.schedule)

    def next_batch(self) -> list[int]:
        """The global batch of the next step; hears a request to stop before it takes them.

        Raises:
            StopRequested: on all ranks, after a checkpoint was written if the state may be kept.
        """
        self.stop_if_asked()
        # A step that is cut short must leave no trace: a rollout draws random numbers.
        self._before_step = {
            "cursor": self.cursor.state_dict(),
            "rng": rng_state(),
            "own": dict(self.own_state()),
        }
        self._began = time.monotonic()
        with self.reporter.phase(Phase.DATA):
            return self.cursor.next_batch()

    def stop_if_asked(
        self, *, inside_step: bool = False, undo: Callable[[], None] | None = None
    ) -> None:
        """Save and leave if any rank was asked to stop.

        Where the state may not be kept, the newest checkpoint stays what the next attempt has.

        With `inside_step` the state before the step is what is saved, and gradients are dropped:
        no optimizer may have stepped since. What else of the models has changed `undo` takes back.
        """
        if not any_rank(self.ranks, self.stop.is_set):
            return
        own = None
        if inside_step:
            before = self._before_step
            self.cursor.load_state_dict(before["cursor"])
            restore_rng_state(before["rng"])
            own = before["own"]
            if undo is not None:
                undo()
        self.save_unless_saved(own)
        raise StopRequested(self.step, self.last_checkpoint_step, self.verdicts())

    def finish_step(
        self,
        metrics: Mapping[Metric, float],
        tokens: int,
        rewards: Mapping[str, float] | None = None,
        *,
        keep: bool = True,
        spoilt: Sequence[str] | None = None,
        readings: Sequence[Reading] = (),
    ) -> None:
        """Count the step, tell its metrics, speed and health, and save if it is time.

        Args:
            metrics: of the step.
            tokens: real tokens that all ranks trained on.
            rewards: the mean of each reward that the stage names.
            keep: whether the state after the step may be saved; until the next step nothing else
                saves it either.
            spoilt: what is NaN or infinite and ends the stage, where nothing was learned; else that
                is found in the metrics.
            readings: what the rules of health say of the step.

        Raises:
            NonFiniteError: on all ranks, after the step and its health were told and before it is
                saved, if a metric or a weight is NaN or infinite.
        """
        self.step += 1
        self._may_save = keep
        seconds = max(time.monotonic() - self._began, 1e-9)
        speed = {
            Metric.STEP_SECONDS: seconds,
            Metric.SAMPLES_PER_SECOND: self.config.spec.batch_size / seconds,
            Metric.TOKENS_PER_SECOND: tokens / seconds,
        }
        self.reporter.trained_on(tokens, self.config.spec.batch_size)
        self.reporter.step(self.step, self.cursor.epoch, {**metrics, **speed}, rewards)
        names = spoilt_metrics(metrics) if spoilt is None else spoilt
        self.require_finite([*names, *_spoilt_weights(self.models)], readings)
        self.reporter.health(self.step, readings)
        if keep and self._save_due():
            self.save()

    def _save_due(self) -> bool:
        """Whether the step just done ends with a checkpoint; all ranks get the same answer."""
        policy = self.config.spec.checkpoint
        if self.step % policy.every_steps == 0:
            return True
        if policy.every_seconds is None:
            return False
        # By the clock of rank 0 alone: ranks that disagree would wait for each other.
        late = time.monotonic() - self._saved >= policy.every_seconds
        return any_rank(self.ranks, self.ranks.rank == 0 and late)

    def evaluated(
        self, metrics: Mapping[Metric, float], rewards: Mapping[str, float] | None = None
    ) -> None:
        """Tell what held-out rows say of the state after this step.

        Raises:
            NonFiniteError: on all ranks, if any of it is NaN or infinite.
        """
        self.reporter.evaluation(self.step, metrics, rewards)
        self._evaluated_step = self.step
        self.require_finite(spoilt_metrics(metrics))

    def require_finite(self, spoilt: Sequence[str], readings: Sequence[Reading] = ()) -> None:
        """End the stage for good if any rank found something to be NaN or infinite.

        That is told as a verdict before, with `readings` of the other rules of health.

        Raises:
            NonFiniteError: on all ranks.
        """
        on_any = list(dict.fromkeys(chain(*gather_objects(self.ranks, list(spoilt)))))
        if on_any:
            verdict = non_finite_reading(on_any)
            others = [reading for reading in readings if reading.rule != verdict.rule]
            self.reporter.health(self.step, [*others, verdict])
            verdicts = [*fired_verdicts(others, self.step), *self.verdicts()]
            raise non_finite_error(
                self.config.stage, on_any, self.step, self.last_checkpoint_step, verdicts
            )

    def save_unless_saved(self, own: Mapping[str, Any] | None = None) -> None:
        """Write the full state as of this step where no checkpoint has it and it may be kept."""
        if self._may_save and self.last_checkpoint_step != self.step:
            self.save(own)

    def save(self, own: Mapping[str, Any] | None = None) -> None:
        """Write the full state as of this step, `own` in the place of the stage's own state."""

        def write(folder: Path) -> None:
            for name, model in self.models.items():
                model.save(folder, name)

        with self.reporter.phase(Phase.CHECKPOINT):
            self._store.save(
                self.step,
                write,
                state={
                    "cursor": self.cursor.state_dict(),
                    "data": dict(self.data),
                    "own": dict(self.own_state() if own is None else own),
                    "metrics": self._last_metrics,
                },
                rank_state=rng_state(),
            )
        self.last_checkpoint_step = self.step
        self._saved = time.monotonic()
        self.reporter.checkpoint(self.step)

    def evaluation_due(self) -> bool:
        """Whether the specification wants an evaluation of the state now, and none was told yet.

        To be asked before each step, the first of an attempt too: the attempt before it may have
        been stopped in an evaluation. That of the last step is the stage's own.
        """
        every = self.config.spec.eval_every_steps
        if every is None or self.step % every != 0 or self._evaluated_step == self.step:
            return False
        return 0 < self.step < self.total_steps

    @property
    def epochs(self) -> tuple[int, int]:
        """Number of the current pass over the data, from 1, and the number of all.

        A last batch that is filled up with rows of the next pass does not begin another one.
        """
        spec = self.config.spec
        passes = spec.epochs or 1
        if spec.max_steps is not None:
            passes = math.ceil(spec.max_steps * self.cursor.batch_size / self.cursor.n_rows)
        return min(max(1, math.ceil(self.cursor.epoch)), passes), passes

    @property
    def _last_metrics(self) -> dict[str, float]:
        return self._metrics | self.reporter.last_metrics

    def outcome(self, artifact: Artifact) -> StageOutcome:
        """What the stage has reached; nobody will go on from its checkpoints."""
        self.reporter.end(self.step)
        remove_of_finished(self.config, self.ranks)
        return StageOutcome(
            artifact=artifact,
            step=self.step,
            total_steps=self.total_steps,
            last_checkpoint_step=self.last_checkpoint_step,
            metrics=self._last_metrics,
            verdicts=self.verdicts(),
            rows=self.reporter.rows,
        )


def total_steps(config: StageConfig, rows: int) -> int:
    """Steps of the stage: maxSteps, or as many as the epochs need, the last one rounded up."""
    spec = config.spec
    if spec.max_steps is not None:
        return spec.max_steps
    return steps_of_epochs(rows, spec.batch_size, spec.epochs or 1)


def _spoilt_weights(models: Mapping[str, Kept]) -> list[str]:
    return [
        f"{name}'s {weight}" for name, each in models.items() for weight in each.spoilt_weights()
    ]
