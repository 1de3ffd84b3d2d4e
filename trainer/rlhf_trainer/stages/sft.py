"""Supervised fine-tuning: the model learns responses to prompts.

The loss is on responses and the end of their turns only: a sum over the step's tokens, divided by
their number over all ranks and micro-batches, so that a token weighs the same in whatever row it
stands. With packing a sequence holds several rows, which never see each other. Packed or not, the
logits of a row are those that the model gives it alone; see `models.layouts`.

Run by `python -m rlhf_trainer.launch stage.json`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf_api.metrics import Metric, Phase
from rlhf_api.v1alpha1 import SFTStage, StageConfig
from rlhf_trainer.data.budget import micro_batches, token_budget
from rlhf_trainer.data.cursor import rank_slice
from rlhf_trainer.data.loading import load_sft
from rlhf_trainer.data.packing import PackedBatch, RowLayout, collate_packed, pack
from rlhf_trainer.data.tokenize.tokenized import SFTExample
from rlhf_trainer.models.activations import (
    MicroBatch,
    allowance,
    attends_eagerly,
    scoring_allowance,
)
from rlhf_trainer.models.adapters import add_adapters, trained_size
from rlhf_trainer.models.chosen_logits import fewest_logits
from rlhf_trainer.models.engine import TrainedModel, train, whole_parameters
from rlhf_trainer.models.heads import Actor, Logits, switch_off_dropout
from rlhf_trainer.models.layouts import forget_probes, row_layout
from rlhf_trainer.models.load import ModelSettings, load_causal_model, save_model
from rlhf_trainer.models.memory import (
    check_memory,
)
from rlhf_trainer.models.recomputation import check_checkpointing
from rlhf_trainer.models.response_loss import response_loss
from rlhf_trainer.models.source import Base, open_base
from rlhf_trainer.process.outcome import StageOutcome
from rlhf_trainer.process.stopping import StopFlag
from rlhf_trainer.run.artifact import write_artifact, write_figures
from rlhf_trainer.run.distributed import Ranks, filled, reduce_sum
from rlhf_trainer.run.inputs import Inputs
from rlhf_trainer.run.loop import TrainingLoop
from rlhf_trainer.run.report import Reporter
from rlhf_trainer.run.stage import run_unless_finished

FIELD = "spec.stages.sft"


def run(config: StageConfig, ranks: Ranks, stop: StopFlag) -> StageOutcome:
    """Train, evaluate and leave a model, or say at once that an earlier attempt did."""
    return run_unless_finished(_train, config.sft, config, ranks, stop)


def _train(
    spec: SFTStage, config: StageConfig, ranks: Ranks, stop: StopFlag, reporter: Reporter
) -> StageOutcome:
    """The stage from its data to its artifact."""
    # 1. Data first: a bad row is told before any weights are loaded.
    base = open_base(spec.model, config, ranks, f"{FIELD}.model")
    settings = ModelSettings.of(spec, ranks, reporter.note)
    layout = row_layout(base, settings, ranks.device, f"{FIELD}.packing", packing=spec.packing)
    if spec.gradient_checkpointing:
        check_checkpointing(base, settings, f"{FIELD}.gradientCheckpointing")
    inputs = Inputs(config, ranks, reporter)
    for note in base.notes:
        reporter.note(note)
    with reporter.phase(Phase.DATA):
        examples, eval_examples = inputs.read_train_and_eval(
            load_sft, base.tokenizer, max_length=spec.max_length
        )
        sequences = _sequences(examples, base, layout, spec)
        held_out = None if eval_examples is None else _sequences(eval_examples, base, layout, spec)
    # 2. The model.
    _require_fit(base, spec, sequences, held_out)
    logits = fewest_logits(base, settings)
    check_memory(
        config,
        ranks,
        [trained_size(base, "model", spec.lora, f"{FIELD}.lora", settings.note)],
        _activations(base, config, sequences, held_out, logits),
    )
    forget_probes()
    model = _load(base, settings, spec, ranks, logits)
    loop = TrainingLoop(
        config,
        ranks,
        stop,
        reporter,
        models={"model": model},
        rows=len(sequences),
        data=inputs.digests,
    )
    loop.resume()
    # 3. Learn.
    _learn(loop, model, sequences, held_out, spec)
    # 4. Judge and keep; what fails there costs no step.
    if held_out is not None:
        loop.save_unless_saved()
    figures = {} if held_out is None else _evaluated(loop, model, held_out, spec)
    return _keep(loop, model, base, figures)


@dataclass(frozen=True)
class Sequences:
    """Rows as they are trained on: one a sequence, or several when packed."""

    examples: Sequence[SFTExample]
    members: Sequence[Sequence[int]]
    pad_id: int
    layout: RowLayout
    lengths: NDArray[np.int64]
    """Int64[sequences], numbers of tokens."""
    losses: NDArray[np.int64]
    """Int64[sequences], numbers of tokens that carry a loss."""

    def __len__(self) -> int:
        return len(self.members)

    @property
    def longest(self) -> int:
        """Tokens of the fullest sequence."""
        return int(self.lengths.max())

    @property
    def most_loss_tokens(self) -> int:
        """Tokens that carry a loss in the sequence with most of them."""
        return int(self.losses.max())

    def length(self, sequence: int) -> int:
        """Number of tokens in `sequence`."""
        return int(self.lengths[sequence])

    def tokens(self, sequences: Sequence[int]) -> int:
        """Number of tokens in `sequences`."""
        return int(self.lengths[sequences].sum())

    def loss_tokens(self, sequences: Sequence[int]) -> int:
        """Number of tokens in `sequences` that carry a loss."""
        return int(self.losses[sequences].sum())

    def batch(self, sequences: Sequence[int]) -> PackedBatch:
        """The sequences as the model reads them; see `RowLayout`."""
        groups = [[self.examples[row] for row in self.members[at]] for at in sequences]
        return collate_packed(groups, self.pad_id, self.layout)


def _sequences(
    examples: Sequence[SFTExample], base: Base, layout: RowLayout, spec: SFTStage
) -> Sequences:
    lengths = [len(example.tokens) for example in examples]
    members = pack(lengths, spec.max_length) if spec.packing else [[i] for i in range(len(lengths))]
    losses = [int(example.response_mask.sum()) for example in examples]

    def totals(counts: Sequence[int]) -> NDArray[np.int64]:
        return np.array([sum(counts[row] for row in rows) for rows in members], dtype=np.int64)

    return Sequences(examples, members, base.pad_id, layout, totals(lengths), totals(losses))


def _require_fit(
    base: Base, spec: SFTStage, sequences: Sequences, held_out: Sequences | None
) -> None:
    """Raise ConfigError if a sequence has more tokens than the model takes."""
    limit = f"{FIELD}.maxLength ({spec.max_length})"
    if spec.packing:
        limit += ", up to which rows are packed into one sequence"
    for read in filter(None, (sequences, held_out)):
        base.require_positions(read.longest, limit)


def _activations(
    base: Base,
    config: StageConfig,
    sequences: Sequences,
    held_out: Sequences | None,
    logits: Logits,
) -> int:
    """Bytes of the largest pass, be it over rows to learn or over held-out ones."""

    spec = config.spec
    eager = attends_eagerly(base.config, spec.attention_implementation)

    def work(read: Sequences, rows: int) -> MicroBatch:
        return MicroBatch.fullest(
            token_budget(spec),
            rows,
            read.longest,
            read.longest if logits is Logits.ALL else read.most_loss_tokens,
            in_chunks=logits is Logits.HEAD,
            eager=eager,
        )

    rows = spec.batch_size // config.world_size
    learning = allowance(
        base.config,
        work(sequences, rows),
        spec.precision,
        checkpointing=spec.gradient_checkpointing,
    )
    if held_out is None:
        return learning
    scored = work(held_out, len(held_out))
    return max(learning, scoring_allowance(base.config, scored, spec.precision))


def _load(
    base: Base, settings: ModelSettings, spec: SFTStage, ranks: Ranks, logits: Logits
) -> TrainedModel:
    model = load_causal_model(base.location, base.tokenizer, settings, base.field)
    add_adapters(model, spec.lora, spec.seed, f"{FIELD}.lora", settings.dtype)
    # An interrupted run must end like an uninterrupted one, and ranks alike: nothing is dropped.
    switch_off_dropout(model)
    actor = Actor(model, logits=logits)
    return train(actor, spec, ranks, learning_rate=spec.learning_rate)


def _learn(
    loop: TrainingLoop,
    model: TrainedModel,
    sequences: Sequences,
    held_out: Sequences | None,
    spec: SFTStage,
) -> None:
    """All steps that are left, and the evaluations between them."""
    while loop.step < loop.total_steps:
        if held_out is not None and loop.evaluation_due():
            _evaluated(loop, model, held_out, spec)
        _step(loop, model, sequences, spec)
    loop.stop_if_asked()


def _step(loop: TrainingLoop, model: TrainedModel, sequences: Sequences, spec: SFTStage) -> None:
    learning_rate = loop.learning_rate(spec.learning_rate)
    batch = loop.next_batch()
    # Every rank knows the whole batch, so the global count needs no communication.
    tokens = sequences.loss_tokens(batch)
    mine = rank_slice(batch, loop.ranks.rank, loop.ranks.world_size)
    own = micro_batches(mine, token_budget(spec), sequences.length, loop.ranks.device)
    parts = filled(own, own[0][:1], loop.ranks)
    nll = torch.zeros((), dtype=torch.float64, device=loop.ranks.device)
    with loop.reporter.phase(Phase.LEARNING):
        for index, (part, counts) in enumerate(parts):
            if index > 0:
                loop.stop_if_asked(inside_step=True)
            with loop.reporter.phase(Phase.DATA):
                packed = sequences.batch(part)
            loss = response_loss(model, packed, sequences.layout, tokens, loop.ranks)
            model.accumulate(counts * loss.loss, last=index == len(parts) - 1)
            nll += counts * loss.nll_sum
        norm = model.step(learning_rate)
        (total,) = reduce_sum([float(nll)], loop.ranks)
    metrics = {
        Metric.LOSS: total / tokens,
        Metric.GRADIENT_NORM: norm,
        Metric.LEARNING_RATE: learning_rate,
    }
    loop.finish_step(metrics, sequences.tokens(batch))


@torch.no_grad()
def evaluate(
    loop: TrainingLoop, model: TrainedModel, held_out: Sequences, spec: SFTStage
) -> dict[Metric, float]:
    """Mean negative log-likelihood of held-out response tokens, and its exponential."""
    ranks = loop.ranks
    everything = list(range(len(held_out)))
    mine = rank_slice(everything, ranks.rank, ranks.world_size)
    own = micro_batches(mine, token_budget(spec), held_out.length, ranks.device)
    nll = torch.zeros((), dtype=torch.float64, device=ranks.device)
    for part, counts in filled(own, everything[:1], ranks):
        loop.stop_if_asked()
        nll += (
            counts * response_loss(model, held_out.batch(part), held_out.layout, 1, ranks).nll_sum
        )
    (total,) = reduce_sum([float(nll)], ranks)
    mean = total / held_out.loss_tokens(everything)
    return {Metric.EVAL_LOSS: mean, Metric.PERPLEXITY: math.exp(min(mean, 700.0))}


def _evaluated(
    loop: TrainingLoop, model: TrainedModel, held_out: Sequences, spec: SFTStage
) -> dict[Metric, float]:
    """Evaluate and tell."""
    with loop.reporter.evaluating():
        figures = evaluate(loop, model, held_out, spec)
    loop.evaluated(figures)
    return figures


def _keep(
    loop: TrainingLoop, model: TrainedModel, base: Base, figures: dict[Metric, float]
) -> StageOutcome:
    def write(folder: Path) -> None:
        with whole_parameters(model, here=loop.ranks.rank == 0):
            if loop.ranks.rank == 0:
                actor = model.module
                assert isinstance(actor, Actor)
                ends = base.generation
                save_model(actor.model, base.tokenizer, folder, ends.stop_ids, ends.sampling)
                write_figures(
                    folder,
                    {
                        "loss": figures[Metric.EVAL_LOSS],
                        "perplexity": figures[Metric.PERPLEXITY],
                    }
                    if figures
                    else {},
                )

    return loop.outcome(write_artifact(loop.config, loop.ranks, loop.step, write))
