"""Where a model lies and how it is asked: on the device, sharded over ranks, or in the machine's
memory until somebody asks.

Called by `engine`, and by whoever asks models.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class PlacedModel:
    """A model on the ranks' devices, whole on each or sharded over them; called like its module.

    Attributes:
        module: its parameters are only whole inside of `whole_parameters`.
        engine: calling it runs the module's forward pass: DeepSpeed's, or the module itself where
            it is frozen and whole.
        zero_stage: how it is sharded.
    """

    module: nn.Module
    engine: Any
    zero_stage: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.engine(*args, **kwargs)

    def chosen(self) -> AbstractContextManager[None]:
        """Inside, its module computes what the model does, for whoever asks the module itself."""
        return nullcontext()

    def resident(self) -> AbstractContextManager[None]:
        """Inside, its weights are where it computes, for as many passes as ask for it."""
        return nullcontext()


class OffloadedModel(PlacedModel):
    """A frozen model whose weights lie in the machine's memory while nobody asks for it.

    They stay there: what is on the device meanwhile are copies, which are thrown away. Buffers are
    small and always there, since a model may write to them.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        """Take over a module that is in the machine's memory."""
        super().__init__(module, module, zero_stage=0)
        self._device = device
        self._inside = 0
        self._kept = [
            (part, name, weight)
            for part in module.modules()
            for name, weight in part.named_parameters(recurse=False)
        ]
        move_buffers(module, device)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass."""
        with self.resident():
            return super().__call__(*args, **kwargs)

    def chosen(self) -> AbstractContextManager[None]:
        """Inside, its module can be asked."""
        return self.resident()

    @contextmanager
    def resident(self) -> Iterator[None]:
        """Inside, its weights are on the device."""
        if self._inside == 0:
            self._place(self._device)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            if self._inside == 0:
                self._place(None)

    def _place(self, device: torch.device | None) -> None:
        """Put copies on a device in the place of all weights, or these back."""
        copies: dict[int, nn.Parameter] = {}
        for part, name, kept in self._kept:
            if device is not None and id(kept) not in copies:
                # Weights may be tied.
                copies[id(kept)] = nn.Parameter(kept.detach().to(device), requires_grad=False)
            setattr(part, name, copies.get(id(kept), kept))


def move_buffers(module: nn.Module, device: torch.device) -> None:
    """Bring what a module keeps beside weights to a device."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(device))
