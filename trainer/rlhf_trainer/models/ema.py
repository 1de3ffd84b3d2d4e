"""A moving average of a model's weights, which wander less than the weights themselves.

Called by the PPO stage. Kept in fp32 beside the optimizer's own fp32 weights and cut like them: a
rank holds the part that it updates, and nothing is sent until the average is asked for.
"""

from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import Tensor

from rlhf_trainer.models.engine import TrainedModel
from rlhf_trainer.models.finite import spoilt_weights
from rlhf_trainer.run.files import load_tensors

_PARTITIONS = (
    "fp32_groups_flat_partition",  # ZeRO 1 of BF16
    "single_partition_of_fp32_groups",  # ZeRO 1 of FP32, and 2
    "fp32_partitioned_groups_flat",  # ZeRO 3
)
"""Where DeepSpeed's optimizers keep this rank's part of the fp32 weights."""


class MovingAverage:
    """average <- decay * average + (1 - decay) * weights after each step; the first is the weights.

    Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; with fixed
    decay as in DeepSpeed-Chat (0.992 there).
    """

    def __init__(self, model: TrainedModel, decay: float, rank: int) -> None:
        """Start from the weights of `model`, whose steps `update` follows."""
        self._model = model
        self._decay = decay
        self._rank = rank
        self._averages = [part.detach().float().clone() for part in _weights(model)]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step."""
        for average, part in zip(self._averages, _weights(self._model), strict=True):
            average.lerp_(part.float(), 1 - self._decay)

    def spoilt_weights(self) -> list[str]:
        """Numbers of this rank's parts that hold a NaN or an infinity."""
        return spoilt_weights({str(at): part for at, part in enumerate(self._averages)})

    def save(self, folder: Path, tag: str) -> None:
        """Write this rank's part below `folder`/`tag`."""
        path = self._path(folder, tag)
        if self._owner == self._rank:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(self._averages, path)

    def load(self, folder: Path, tag: str) -> None:
        """Restore what `save` wrote; InputError where it is damaged or would run code."""
        saved = load_tensors(self._path(folder, tag))
        for average, kept in zip(self._averages, saved, strict=True):
            average.copy_(kept)

    @torch.no_grad()
    def take_over(self) -> None:
        """Make the average the module's weights, on all ranks together; training ends here.

        The optimizer's weights are overwritten: keep them in a checkpoint before.
        """
        for part, average in zip(_weights(self._model), self._averages, strict=True):
            part.copy_(average)
        if self._is_whole:
            self._model.engine.write_weights()
        else:
            _assemble(self._model)

    @property
    def _is_whole(self) -> bool:
        """Whether every rank has all weights: without ZeRO."""
        return _partitions(self._model) is None

    @property
    def _owner(self) -> int:
        """The rank whose file this one reads."""
        return 0 if self._is_whole else self._rank

    def _path(self, folder: Path, tag: str) -> Path:
        return folder / tag / f"average-{self._owner}.pt"


def _assemble(model: TrainedModel) -> None:
    """Write the fp32 weights of all ranks into the module."""
    for parameter in model.module.parameters():
        if not parameter.requires_grad:
            continue
        whole = deepspeed.utils.safe_get_full_fp32_param(parameter)
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(whole.view_as(parameter))


def _weights(model: TrainedModel) -> list[Tensor]:
    """The fp32 weights that this rank's optimizer updates."""
    parts = _partitions(model)
    if parts is not None:
        return parts
    return [part for group in model.engine.optimizer.param_groups for part in group["params"]]


def _partitions(model: TrainedModel) -> list[Tensor] | None:
    """This rank's part of the weights, flat; None without ZeRO."""
    optimizer: Any = model.engine.optimizer
    for name in _PARTITIONS:
        parts: list[Tensor] | None = getattr(optimizer, name, None)
        if parts is not None:
            return parts
    return None
