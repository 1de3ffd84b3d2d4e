"""What each rank does in `test_ema` and `test_ptx`, on one rank and on two."""

from pathlib import Path
from typing import Any

import deepspeed
import torch
import worlds
from torch import Tensor

from rlhf_api.v1alpha1 import SFTStage
from rlhf_trainer.data.cursor import Cursor
from rlhf_trainer.data.tokenize.tokenized import SFTExample
from rlhf_trainer.models.ema import MovingAverage
from rlhf_trainer.models.engine import DTYPES, TrainedModel, train, whole_parameters
from rlhf_trainer.models.heads import Actor
from rlhf_trainer.ppo.ptx import PTX
from rlhf_trainer.run.distributed import Ranks, barrier

cases: Any = worlds.load(Path(__file__).with_name("engine_cases.py"))

DECAY = 0.6
RATES = [0.02, 0.005, 0.01]
LATER = [0.01, 0.02]


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
        name: deepspeed.utils.safe_get_full_fp32_param(parameter)
        for name, parameter in model.module.named_parameters()
    }
    if model.zero_stage == 0 and next(model.module.parameters()).dtype == torch.bfloat16:
        # Copies of which DeepSpeed's function knows nothing.
        optimizer = model.engine.optimizer
        whole = {
            id(parameter): copy
            for group, their_copies in zip(
                optimizer.fp16_groups, optimizer.fp32_groups, strict=True
            )
            for parameter, copy in zip(group, their_copies, strict=True)
        }
        copies = {name: whole[id(each)] for name, each in model.module.named_parameters()}
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


def ptx(ranks: Ranks, examples: list[SFTExample], coef: float, rows: int, micro: int) -> PTX:
    """Batches of `rows` examples."""
    return PTX(examples, 0, coef, micro, Cursor(len(examples), rows, 3), ranks)


def ptx_gradients(
    ranks: Ranks, folder: Path, examples: list[SFTExample], coef: float, micro: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradient of two batches that make one step, and what is told of them.

    A first batch goes in as the stage's own part of the step would: it is not the last.
    """
    model = actor(folder, ranks, zero_stage=0)
    texts = ptx(ranks, examples, coef, rows=4, micro=micro)
    before = cases.loss_of(model, cases.rows()[:2], 1.0)
    model.accumulate(0.0 * before.loss, last=False)
    texts.accumulate(model)
    gradients = {
        name: parameter.grad.detach().clone()
        for name, parameter in model.module.named_parameters()
        if parameter.grad is not None
    }
    return gradients, {metric.value: value for metric, value in texts.metrics().items()}


def plain(folder: Path) -> Actor:
    """The same model without DeepSpeed."""
    found: Actor = cases.actor(folder, torch.float32)
    return found
