"""What each rank does in `test_ema`, `test_gradients` and `test_ptx`, on one rank and on two."""

from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import tiny
import torch
import worlds
from torch import Tensor

from rlhf_api.v1alpha1 import SFTStage
from rlhf_trainer.data.cursor import Cursor, rank_slice
from rlhf_trainer.data.packing import RowLayout
from rlhf_trainer.data.tokenize.tokenized import SFTExample
from rlhf_trainer.models.ema import MovingAverage
from rlhf_trainer.models.engine import DTYPES, TrainedModel, train, whole_parameters
from rlhf_trainer.models.heads import Actor, Logits
from rlhf_trainer.ppo.ptx import PTX
from rlhf_trainer.run.distributed import Ranks, barrier

cases: Any = worlds.load(Path(__file__).with_name("engine_cases.py"))

DECAY = 0.6
RATES = [0.02, 0.005, 0.01]
LATER = [0.01, 0.02]
RATE = 100.0
"""So large that weights add no rounding to a step."""


def actor(folder: Path, ranks: Ranks, **settings: Any) -> TrainedModel:
    """A tiny model under DeepSpeed."""
    spec: SFTStage = cases.spec(folder, **settings)
    module = cases.actor(folder, DTYPES[spec.precision])
    return train(module, spec, ranks, learning_rate=1e-2)


def exact(model: TrainedModel) -> dict[str, Tensor]:
    """The fp32 weights, whole: DeepSpeed's own where it keeps copies."""
    with whole_parameters(model):
        plain = {
            name: parameter.detach().float().clone()
            for name, parameter in model.module.named_parameters()
        }
    copies = {
        name: model.engine.fp32_copy(parameter)
        if model.zero_stage == 0
        else deepspeed.utils.safe_get_full_fp32_param(parameter)
        for name, parameter in model.module.named_parameters()
    }
    return {
        name: weight if copies[name] is None else copies[name].detach().clone().view_as(weight)
        for name, weight in plain.items()
    }


def moved(average: dict[str, Tensor], model: TrainedModel) -> dict[str, Tensor]:
    """The formula, on whole weights."""
    return {
        name: DECAY * average[name] + (1 - DECAY) * weight for name, weight in exact(model).items()
    }


def averages(
    ranks: Ranks, folder: Path, zero_stage: int, precision: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """What the average was by hand, what the module has after `take_over`, and the last weights.

    After the first steps all is saved and goes on in another model.
    """
    settings = {"zero_stage": zero_stage, "precision": precision}
    model = actor(folder, ranks, **settings)
    average = MovingAverage(model, DECAY, ranks.rank)
    by_hand = exact(model)
    for rate in RATES:
        cases.one_step(model, ranks, 4, rate)
        average.update()
        by_hand = moved(by_hand, model)
    kept = folder / f"kept-{zero_stage}-{precision}-{ranks.world_size}"
    model.save(kept, "actor")
    average.save(kept, "average")
    barrier(ranks)
    model = actor(folder, ranks, **settings)
    average = MovingAverage(model, DECAY, ranks.rank)
    model.load(kept, "actor")
    average.load(kept, "average")
    for rate in LATER:
        cases.one_step(model, ranks, 4, rate)
        average.update()
        by_hand = moved(by_hand, model)
    last = exact(model)
    average.take_over()
    return by_hand, cases.weights_of(model), last


def many_rows() -> list[np.ndarray]:
    """As many sequences as micro-batches are asked for in one step."""
    draw = np.random.default_rng(11)
    return [draw.integers(3, 20, size=int(length)) for length in draw.integers(4, 12, size=256)]


def tokens_of(rows: list[np.ndarray]) -> int:
    return sum(len(row) - cases.PROMPT for row in rows)


def gradients(
    ranks: Ranks, folder: Path, zero_stages: list[int], micro_batches: list[int]
) -> dict[tuple[int, int], dict[str, Tensor]]:
    """What the optimizer sees of one BF16 step over `many_rows`, by ZeRO stage and the number of
    micro-batches: without decay and with epsilon 1 Adam's first step is g / (|g| + 1)."""
    everything = many_rows()
    mine = rank_slice(everything, ranks.rank, ranks.world_size)
    settings: Any = {"precision": "BF16", "gradient_clipping": 0.0, "adam_eps": 1.0}
    found = {}
    for zero_stage in zero_stages:
        for count in micro_batches:
            spec = tiny.stage_spec("sft", folder, zero_stage=zero_stage, **settings)
            module = cases.actor(folder, torch.bfloat16)
            model = train(module, spec, ranks, learning_rate=1.0)
            before = exact(model)
            size = len(everything) // count // ranks.world_size or 1
            parts = cases.micro_batches(mine, size)
            for index, part in enumerate(parts):
                loss = cases.loss_of(model, part, tokens_of(everything)).loss
                model.accumulate(loss, last=index == len(parts) - 1)
            model.step(RATE)
            steps = {name: (before[name] - weight) / RATE for name, weight in exact(model).items()}
            found[zero_stage, count] = {n: step / (1 - step.abs()) for n, step in steps.items()}
    return found


def exact_gradient(folder: Path) -> dict[str, Tensor]:
    """The same gradient by plain PyTorch in fp32, from the same weights."""
    model = cases.actor(folder, torch.bfloat16, Logits.ALL).float()
    everything = many_rows()
    cases.loss_of(model, everything, tokens_of(everything)).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def ptx(ranks: Ranks, examples: list[SFTExample], coef: float, rows: int, tokens: int) -> PTX:
    """Batches of `rows` examples, in micro-batches of `tokens`."""
    return PTX(examples, 0, coef, tokens, Cursor(len(examples), rows, 3), ranks)


def ptx_gradients(
    ranks: Ranks,
    folder: Path,
    examples: list[SFTExample],
    coef: float,
    tokens: int,
    layout: RowLayout,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradient of two batches that make one step, and what is told of them.

    A first batch goes in as the stage's own part of the step would: it is not the last.
    """
    model = actor(folder, ranks, zero_stage=0)
    texts = ptx(ranks, examples, coef, rows=4, tokens=tokens)
    before = cases.loss_of(model, cases.rows()[:2], 1.0)
    model.accumulate(0.0 * before.loss, last=False)
    texts.accumulate(model, layout=layout)
    gradients = {
        name: parameter.grad.detach().clone()
        for name, parameter in model.module.named_parameters()
        if parameter.grad is not None
    }
    return gradients, {metric.value: value for metric, value in texts.metrics().items()}


def plain(folder: Path) -> Actor:
    """The same model without DeepSpeed."""
    found: Actor = cases.actor(folder, torch.float32, Logits.ALL)
    return found
