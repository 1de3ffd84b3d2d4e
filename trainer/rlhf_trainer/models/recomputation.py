"""Whether gradient checkpointing works with a model: less is kept, and the gradient is the same.

Called by the stages that ask for it, before any weights are read: a shrunken copy of the model is
asked, since not every architecture that says so does it.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf_api.errors import ConfigError
from rlhf_trainer.models.engine import checkpoint_layers
from rlhf_trainer.models.layouts import REFUSED, Probe, ProbeError, shortened
from rlhf_trainer.models.load import ModelSettings
from rlhf_trainer.models.source import Base

_WITHIN = 1e-3
"""Largest difference of gradients, as a share of their norm."""


def check_checkpointing(base: Base, settings: ModelSettings, field: str) -> None:
    """Make sure that the layers of a model can be computed anew in the backward pass.

    Args:
        base: the model, which `layouts` has found fit for training.
        settings: how it will be loaded.
        field: path of the field that asks for it.

    Raises:
        ConfigError: they cannot, or nothing of it can be known.
    """
    # Who computes attention does not matter, and Eager is always there.
    eager = replace(settings, attention="eager")
    try:
        probe = Probe.of(base, eager, torch.device("cpu"))
    except ProbeError as error:
        raise ConfigError(
            f"{field}: whether {base.config.model_type} of {base.field} learns with it is not "
            f"known: no small copy of it computes ({error}); leave it out, or name another model"
        ) from error
    reason = _reason_against(probe)
    if reason is not None:
        raise ConfigError(
            f"{field}: {type(probe.model).__name__} of {base.field} {reason}; leave it out, or "
            "name another model"
        )


def _reason_against(probe: Probe) -> str | None:
    model = probe.model
    if not model.supports_gradient_checkpointing:
        return "has no gradient checkpointing in transformers"
    try:
        kept, expected = _backward(probe)
        checkpoint_layers(model)
        less, gradient = _backward(probe)
    except REFUSED as error:
        return f"does not learn with gradient checkpointing: it raises {shortened(error)}"
    if less >= kept:
        return "keeps as much for the backward pass with gradient checkpointing as without"
    if float((gradient - expected).norm()) > _WITHIN * float(expected.norm()):
        return "has other gradients with gradient checkpointing than without"
    return None


def _backward(probe: Probe) -> tuple[int, Tensor]:
    """How many numbers were kept for a backward pass, and the gradient of all weights, flat."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    model: Any = probe.model
    model.train()
    ids = torch.from_numpy(probe.rows[0].tokens).long().unsqueeze(0)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        logits = model(input_ids=ids, use_cache=False).logits
    logits.float().square().mean().backward()
    model.eval()
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    model.zero_grad()
    return kept, flat
