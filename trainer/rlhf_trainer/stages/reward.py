"""The reward model: one score at a sequence's last real token, trained on preferences.

Loss: -log sigmoid(chosen - rejected - margin) in fp32, with optional centering (see `rl.losses`).
The score is read by length, never by searching for padding. The artifact is an
`AutoModelForSequenceClassification` with one label that other tools load with equal scores; beside
it stand mean and standard deviation of the scores of held-out rows.

Run by `python -m rlhf_trainer.launch stage.json`.
"""

import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlhf_api.metrics import Metric, Phase
from rlhf_api.v1alpha1 import RewardStage, StageConfig
from rlhf_trainer.data.budget import token_budget
from rlhf_trainer.data.cursor import rank_slice
from rlhf_trainer.data.loading import load_preferences
from rlhf_trainer.data.packing import on_device
from rlhf_trainer.data.pairs import PairBatch, PairCollator, longer
from rlhf_trainer.data.tokenize.tokenized import PreferencePair
from rlhf_trainer.models.activations import (
    MicroBatch,
    allowance,
    attends_eagerly,
)
from rlhf_trainer.models.adapters import add_adapters, trained_size
from rlhf_trainer.models.engine import TrainedModel, train, whole_parameters
from rlhf_trainer.models.heads import ScalarModel, switch_off_dropout
from rlhf_trainer.models.layouts import check_model, forget_probes, packed_or_padded
from rlhf_trainer.models.load import ModelSettings, load_reward_base, save_model
from rlhf_trainer.models.memory import (
    check_memory,
)
from rlhf_trainer.models.placed import PlacedModel
from rlhf_trainer.models.recomputation import check_checkpointing
from rlhf_trainer.models.score_statistics import ScoreStatistics
from rlhf_trainer.models.source import Base, open_base
from rlhf_trainer.process.outcome import StageOutcome
from rlhf_trainer.process.stopping import StopFlag
from rlhf_trainer.rl import Moments, RewardLoss, reward_loss
from rlhf_trainer.run.artifact import write_artifact, write_figures
from rlhf_trainer.run.distributed import Ranks, filled, gather_objects, reduce_sum
from rlhf_trainer.run.inputs import Inputs
from rlhf_trainer.run.loop import TrainingLoop
from rlhf_trainer.run.report import Reporter
from rlhf_trainer.run.stage import run_unless_finished

FIELD = "spec.stages.reward"

# DeepSpeed-Chat prints its running means after every 500 rows.
EVALUATION_BLOCK = 500


def run(config: StageConfig, ranks: Ranks, stop: StopFlag) -> StageOutcome:
    """Train, evaluate and leave a reward model, or say at once that an earlier attempt did."""
    return run_unless_finished(_train, config.reward, config, ranks, stop)


def _train(
    spec: RewardStage, config: StageConfig, ranks: Ranks, stop: StopFlag, reporter: Reporter
) -> StageOutcome:
    """The stage from its data to its artifact."""
    # 1. Data first: a bad row is told before any weights are loaded.
    base = open_base(spec.model, config, ranks, f"{FIELD}.model")
    inputs = Inputs(config, ranks, reporter)
    for note in base.notes:
        reporter.note(note)
    with reporter.phase(Phase.DATA):
        pairs, held_out = inputs.read_train_and_eval(
            load_preferences, base.tokenizer, max_length=spec.max_length, seed=spec.seed
        )
    # 2. The model.
    longest = _longest(pairs)
    base.require_positions(max(longest, _longest(held_out or ())), f"{FIELD}.maxLength")
    # A score is read behind the whole text, so that its tokens may all see each other.
    settings = ModelSettings.of(spec, ranks, reporter.note)
    check_model(base, settings, causal=False)
    layout = packed_or_padded(base, settings, ranks.device)
    if spec.gradient_checkpointing:
        check_checkpointing(base, settings, f"{FIELD}.gradientCheckpointing")
    rows = 2 * spec.batch_size // config.world_size
    eager = attends_eagerly(base.config, spec.attention_implementation, scores=True)
    work = MicroBatch.fullest(token_budget(spec), rows, longest, eager=eager)
    check_memory(
        config,
        ranks,
        [trained_size(base, "model", spec.lora, f"{FIELD}.lora", settings.note, scores=True)],
        allowance(base.config, work, spec.precision, checkpointing=spec.gradient_checkpointing),
    )
    forget_probes()
    model = _load(base, settings, spec, ranks)
    loop = TrainingLoop(
        config, ranks, stop, reporter, models={"model": model}, rows=len(pairs), data=inputs.digests
    )
    loop.resume()
    # 3. Learn.
    collate = PairCollator(base.pad_id, layout)
    _learn(loop, model, pairs, held_out, collate, spec)
    # 4. Judge and keep; what fails there costs no step.
    if held_out is not None:
        loop.save_unless_saved()
    scores = None if held_out is None else _evaluated(loop, model, held_out, collate)
    return _keep(loop, model, base, scores)


def _longest(pairs: Sequence[PreferencePair]) -> int:
    """Tokens of the longest sequence."""
    return max(map(longer, pairs), default=0)


def _load(base: Base, settings: ModelSettings, spec: RewardStage, ranks: Ranks) -> TrainedModel:
    model = load_reward_base(base.location, base.tokenizer, settings, base.field)
    add_adapters(model, spec.lora, spec.seed, f"{FIELD}.lora", settings.dtype)
    # Two passes over the same text must agree on its score.
    switch_off_dropout(model)
    return train(ScalarModel(model), spec, ranks, learning_rate=spec.learning_rate)


def _learn(
    loop: TrainingLoop,
    model: TrainedModel,
    pairs: Sequence[PreferencePair],
    held_out: Sequence[PreferencePair] | None,
    collate: PairCollator,
    spec: RewardStage,
) -> None:
    """All steps that are left, and the evaluations between them."""
    while loop.step < loop.total_steps:
        if held_out is not None and loop.evaluation_due():
            _evaluated(loop, model, held_out, collate)
        _step(loop, model, pairs, collate, spec)
    loop.stop_if_asked()


def _step(
    loop: TrainingLoop,
    model: TrainedModel,
    pairs: Sequence[PreferencePair],
    collate: PairCollator,
    spec: RewardStage,
) -> None:
    learning_rate = loop.learning_rate(spec.learning_rate)
    batch = loop.next_batch()
    mine = rank_slice(batch, loop.ranks.rank, loop.ranks.world_size)
    rows = [pairs[row] for row in mine]
    own = collate.micro_batches(rows, token_budget(spec), lambda pair: pair, loop.ranks.device)
    parts = filled(own, [min(rows, key=longer)], loop.ranks)
    sums = torch.zeros(4, dtype=torch.float64, device=loop.ranks.device)
    with loop.reporter.phase(Phase.LEARNING):
        for index, (part, counts) in enumerate(parts):
            if index > 0:
                loop.stop_if_asked(inside_step=True)
            with loop.reporter.phase(Phase.DATA):
                together = collate(part)
            loss = _loss(model, together, part, spec, len(batch), loop.ranks)
            model.accumulate(counts * loss.loss, last=index == len(parts) - 1)
            sums += counts * torch.stack([loss.loss.detach().double(), *loss[1:4]])
        norm = model.step(learning_rate)
        total, chosen_sum, rejected_sum, correct = reduce_sum(sums.tolist(), loop.ranks)
    metrics = {
        Metric.LOSS: total,
        Metric.ACCURACY: correct / len(batch),
        Metric.CHOSEN_SCORE: chosen_sum / len(batch),
        Metric.REJECTED_SCORE: rejected_sum / len(batch),
        Metric.SCORE_MARGIN: (chosen_sum - rejected_sum) / len(batch),
        Metric.GRADIENT_NORM: norm,
        Metric.LEARNING_RATE: learning_rate,
    }
    tokens = sum(len(pairs[row].chosen) + len(pairs[row].rejected) for row in batch)
    loop.finish_step(metrics, tokens)


def _loss(
    model: TrainedModel,
    together: PairBatch,
    pairs: Sequence[PreferencePair],
    spec: RewardStage,
    normalizer: int,
    ranks: Ranks,
) -> RewardLoss:
    chosen, rejected = score_pairs(model, together, ranks)
    margins = torch.tensor([spec.margin if pair.margin is None else pair.margin for pair in pairs])
    return reward_loss(
        chosen,
        rejected,
        on_device(margins, ranks.device),
        spec.centering_coef,
        normalizer=normalizer,
    )


def score_pairs(model: PlacedModel, batch: PairBatch, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Scores of the chosen and of the rejected answers in one pass: 2 x Float[pairs]."""
    dtype = next(model.module.parameters()).dtype
    numbers: Tensor = model(*batch.sequences.inputs(batch.layout, dtype, ranks.device))
    rows, columns = (on_device(each, ranks.device) for each in (batch.rows, batch.columns))
    scores = numbers[rows, columns]
    pairs = len(scores) // 2
    return scores[:pairs], scores[pairs:]


class EvaluationScores(NamedTuple):
    """Scores of held-out pairs, in the order of their rows: 2 x Float[rows], fp32."""

    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of pairs whose chosen score is the higher one."""
        return float((self.chosen > self.rejected).mean())

    @property
    def moments(self) -> Moments:
        """Of all scores, chosen and rejected alike."""
        return Moments.from_values(torch.from_numpy(np.concatenate(self)))

    def line(self, rows: int) -> str:
        """Running means over the first `rows`, in the words of DeepSpeed-Chat's evaluation."""
        chosen = self.chosen[:rows].mean(dtype=np.float32)
        rejected = self.rejected[:rows].mean(dtype=np.float32)
        accuracy = np.float32((self.chosen[:rows] > self.rejected[:rows]).mean())
        return (
            f"chosen_last_scores (higher is better) : {chosen.item()},"
            f"reject_last_scores (lower is better) : {rejected.item()}, "
            f"acc (higher is better) : {accuracy.item()}"
        )


@torch.no_grad()
def evaluate(
    loop: TrainingLoop,
    model: TrainedModel,
    pairs: Sequence[PreferencePair],
    collate: PairCollator,
) -> EvaluationScores:
    """Score held-out pairs, telling the running means as DeepSpeed-Chat does."""
    ranks, tokens = loop.ranks, token_budget(loop.config.spec)
    epoch, epochs = loop.epochs
    _say(ranks, f"***** Evaluating reward, Epoch {epoch}/{epochs} *****")
    rows = len(pairs)
    scores = EvaluationScores(np.zeros(rows, np.float32), np.zeros(rows, np.float32))
    for start in range(0, rows, EVALUATION_BLOCK):
        block = list(range(start, min(start + EVALUATION_BLOCK, rows)))
        mine = rank_slice(block, ranks.rank, ranks.world_size)
        scored: list[tuple[list[int], Tensor, Tensor]] = []
        own = collate.micro_batches(mine, tokens, pairs.__getitem__, ranks.device)
        # A row that is scored again for another rank's sake has the same score but for rounding.
        for part, _ in filled(own, block[:1], ranks):
            loop.stop_if_asked()
            together = collate([pairs[row] for row in part])
            chosen, rejected = score_pairs(model, together, ranks)
            scored.append((part, chosen, rejected))
        # Asked for here, since a device is still at work on them.
        rows_scored = [
            (part, chosen.tolist(), rejected.tolist()) for part, chosen, rejected in scored
        ]
        for part, chosen_scores, rejected_scores in chain(*gather_objects(ranks, rows_scored)):
            scores.chosen[part], scores.rejected[part] = chosen_scores, rejected_scores
        if len(block) == EVALUATION_BLOCK:
            _say(ranks, f"step: {block[-1]}/{rows}, {scores.line(block[-1] + 1)}")
    _say(ranks, scores.line(rows))
    return scores


def _say(ranks: Ranks, line: str) -> None:
    # Without a logger's prefix: scripts that read DeepSpeed-Chat's output read this one too.
    if ranks.rank == 0:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def _evaluated(
    loop: TrainingLoop,
    model: TrainedModel,
    pairs: Sequence[PreferencePair],
    collate: PairCollator,
) -> EvaluationScores:
    """Evaluate and tell."""
    with loop.reporter.evaluating():
        scores = evaluate(loop, model, pairs, collate)
    chosen, rejected = float(scores.chosen.mean()), float(scores.rejected.mean())
    loop.evaluated(
        {
            Metric.EVAL_ACCURACY: scores.accuracy,
            Metric.EVAL_CHOSEN_SCORE: chosen,
            Metric.EVAL_REJECTED_SCORE: rejected,
            Metric.EVAL_SCORE_MARGIN: chosen - rejected,
        },
    )
    return scores


def _keep(
    loop: TrainingLoop, model: TrainedModel, base: Base, scores: EvaluationScores | None
) -> StageOutcome:
    def write(folder: Path) -> None:
        with whole_parameters(model, here=loop.ranks.rank == 0):
            if loop.ranks.rank == 0:
                reward_model = model.module
                assert isinstance(reward_model, ScalarModel)
                save_model(reward_model.model, base.tokenizer, folder, base.generation.stop_ids)
                if scores is not None:
                    _write_scores(folder, scores)

    return loop.outcome(write_artifact(loop.config, loop.ranks, loop.step, write))


def _write_scores(folder: Path, scores: EvaluationScores) -> None:
    moments = scores.moments
    ScoreStatistics(moments.mean, moments.std, moments.count).write(folder)
    write_figures(
        folder,
        {
            "accuracy": scores.accuracy,
            "chosenScore": float(scores.chosen.mean()),
            "rejectedScore": float(scores.rejected.mean()),
            "scoreMean": moments.mean,
            "scoreStd": moments.std,
        },
    )
