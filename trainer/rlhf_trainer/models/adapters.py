"""LoRA: low-rank adapters beside frozen linear layers, trained in place of all weights.

Called by the stages. PEFT puts the adapters into the transformers model itself, whose class,
forward pass and `generate` stay what they are. E. Hu et al., "LoRA: Low-Rank Adaptation of Large
Language Models", 2021.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_api.errors import ConfigError
from rlhf_api.v1alpha1 import LoRA
from rlhf_trainer.models.engine import TrainedModel
from rlhf_trainer.models.memory import ModelSize, weightless_model
from rlhf_trainer.models.opening import one_line
from rlhf_trainer.models.placed import PlacedModel
from rlhf_trainer.models.source import Base

_SHOWN_NAMES = 12


class WithoutAdapters(PlacedModel):
    """A model under training as it was before: its adapters are off while it is asked."""

    @classmethod
    def of(cls, model: TrainedModel) -> "WithoutAdapters":
        """The frozen weights that `model` shares."""
        return cls(model.module, model.engine, model.zero_stage)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass; nothing is learned from it."""
        with self.chosen():
            return super().__call__(*args, **kwargs)

    @contextmanager
    def chosen(self) -> Iterator[None]:
        """Inside, the module computes without adapters."""
        layers = _adapted(self.module)
        for _, layer in layers:
            layer.enable_adapters(False)
        try:
            with torch.no_grad():
                yield
        finally:
            for _, layer in layers:
                layer.enable_adapters(True)


def add_adapters(
    model: PreTrainedModel,
    lora: LoRA | None,
    seed: int,
    field: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Freeze a model but for its score head, and put adapters beside its linear layers.

    An adapter begins as 0, so that the model computes what it did. Where `lora` is None nothing is
    done.

    Args:
        model: a model without any.
        lora: what the stage's specification says.
        seed: of the adapters' first matrices.
        field: path of `lora` in the spec, for messages.
        dtype: of the adapters and the score head; that of the model when None.

    Raises:
        ConfigError: the model has no such layers, or PEFT takes none of them.
    """
    if lora is None:
        return
    settings = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=_targets(model, lora, field)
    )
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT says of each layer of GPT-2 that its weights are transposed, which it heeds.
            warnings.simplefilter("ignore")
            inject_adapter_in_model(settings, model)
    except ValueError as error:
        raise ConfigError(
            f"{field}: {one_line(error)}; name other layers in {field}.targetModules"
        ) from error
    head = getattr(model, "score", None)
    if isinstance(head, nn.Module):
        head.requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype or model.dtype)
    generator = torch.Generator().manual_seed(seed)
    for _, layer in _adapted(model):
        for first in layer.lora_A.parameters():
            # As PEFT draws them, but never in the data type of the weights beside them.
            drawn = torch.empty(first.shape, device="cpu").uniform_(-1, 1, generator=generator)
            first.data = (drawn * first.shape[1] ** -0.5).to(first)


def merge_adapters(model: PreTrainedModel) -> None:
    """Add what adapters learned to the weights beside them, and take the adapters away."""
    layers = _adapted(model)
    for name, layer in layers:
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    if layers:
        # PEFT leaves its settings there.
        del model.peft_config


def trained_size(
    base: Base,
    name: str,
    lora: LoRA | None,
    field: str,
    note: Callable[[str], None],
    *,
    scores: bool = False,
) -> ModelSize:
    """How large a model is that learns, with its adapters, for the estimate of memory.

    Args:
        base: the model.
        name: what messages call it.
        lora: what the stage's specification says.
        field: path of `lora` in the spec, for messages.
        note: takes how much of the model is trained where not all of it is, for people to read.
        scores: whether it has a score head in place of one for the vocabulary.

    Raises:
        ConfigError: as `add_adapters`, before any weights are read.
    """
    size = base.size(name, trained=True, scores=scores)
    if lora is None:
        return size
    model = weightless_model(base.config, scores=scores)
    with torch.device("meta"):
        add_adapters(model, lora, 0, field)
    numbers = [(each.numel(), each.requires_grad) for each in model.parameters()]
    parameters = sum(count for count, _ in numbers)
    adapters = sum(count for count, learns in numbers if learns)
    note(
        f"{field}: {adapters:,} of {parameters:,} parameters of the {name} are trained, with "
        f"adapters beside {len(_adapted(model))} layers"
    )
    return replace(size, parameters=parameters, adapters=adapters)


def _adapted(module: nn.Module) -> list[tuple[str, Any]]:
    """The layers with adapters, by name."""
    return [
        (name, each) for name, each in module.named_modules() if isinstance(each, BaseTunerLayer)
    ]


def _targets(model: PreTrainedModel, lora: LoRA, field: str) -> list[str]:
    """Names of the layers that get an adapter."""
    heads = (model.get_output_embeddings(), getattr(model, "score", None))
    names = [
        name
        for name, each in model.named_modules()
        if isinstance(each, nn.Linear | Conv1D) and not any(each is head for head in heads)
    ]
    if not names:
        raise ConfigError(
            f"{field}: {type(model).__name__} has no linear layer beside its head; leave it out, "
            "or name another model"
        )
    chosen = set()
    for index, target in enumerate(lora.target_modules):
        matching = {name for name in names if f".{name}".endswith(f".{target}")}
        if not matching:
            known = sorted({name.rpartition(".")[2] for name in names})
            raise ConfigError(
                f"{field}.targetModules[{index}]: {type(model).__name__} has no linear layer "
                f"{target!r} beside its head; name some of {', '.join(known[:_SHOWN_NAMES])}"
            )
        chosen |= matching
    return sorted(chosen or names)
