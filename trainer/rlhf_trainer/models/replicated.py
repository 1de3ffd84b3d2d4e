"""Training with all weights on every rank: what ZeRO 0 asks for.

Called by `engine`, through the methods that DeepSpeed's engine has for ZeRO 1 to 3. DeepSpeed's own
for this case cannot add up bf16 gradients in fp32, and begins with a step of Adam that nobody asked
for.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from torch import Tensor, nn

FILE = "mp_rank_00_model_states.pt"
"""DeepSpeed's name of the file with the module's weights."""


class ReplicatedEngine:
    """A module whose gradients are added up and applied in fp32, whatever its weights are.

    Attributes:
        optimizer: steps on the fp32 weights: the module's own, or copies of those that are not.
        checkpoint_engine: writes and reads the checkpoint's file.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, clip: float) -> None:
        """Take over an optimizer of the module's parameters that has not stepped yet.

        Args:
            module: equal on all ranks.
            optimizer: without state.
            clip: the largest norm of a step's gradient; 0 is no bound.
        """
        self.optimizer = optimizer
        self.checkpoint_engine: Any = TorchCheckpointEngine()
        self.checkpoint_engine.zipfile_serialization = True
        self._module = module
        self._clip = clip
        self._last = True
        self._norm = 0.0
        self._weights: list[Tensor] = []
        self._copies: list[Tensor] = []
        for group in optimizer.param_groups:
            copies = [_fp32_copy(weight) for weight in group["params"]]
            self._weights += group["params"]
            self._copies += copies
            group["params"] = copies

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward pass."""
        return self._module(*args, **kwargs)

    def fp32_copy(self, parameter: nn.Parameter) -> Tensor:
        """What the optimizer steps on: a copy, or the parameter itself where it is fp32."""
        (master,) = (
            copy
            for weight, copy in zip(self._weights, self._copies, strict=True)
            if weight is parameter
        )
        return master

    @torch.no_grad()
    def write_weights(self) -> None:
        """Round the fp32 copies to the module's weights."""
        for weight, copy in zip(self._weights, self._copies, strict=True):
            if copy is not weight:
                weight.copy_(copy)

    def set_gradient_accumulation_boundary(self, *, is_boundary: bool) -> None:
        """Whether the next backward pass is the last of the step."""
        self._last = is_boundary

    def backward(self, loss: Tensor, *, scale_wrt_gas: bool) -> None:
        """Add the loss's gradient; after the last one of the step, the mean over the ranks."""
        assert not scale_wrt_gas
        loss.backward()
        if self._last:
            self._average()

    @torch.no_grad()
    def _average(self) -> None:
        for copy in self._copies:
            if copy.grad is None:
                # A weight that no row used decays all the same, as it does under ZeRO.
                copy.grad = torch.zeros_like(copy)
        size = dist.get_world_size()
        if size == 1:
            return
        gradients = [copy.grad for copy in self._copies if copy.grad is not None]
        sums = [dist.all_reduce(gradient, async_op=True) for gradient in gradients]
        for pending in sums:
            pending.wait()
        for gradient in gradients:
            gradient.div_(size)

    def step(self) -> None:
        """Clip and apply the step's gradient, after its last backward pass."""
        if not self._last:
            return
        norm = torch.nn.utils.clip_grad_norm_(self._copies, self._clip or float("inf"))
        self._norm = float(norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.write_weights()

    def get_global_grad_norm(self) -> float:
        """Norm of the last step's gradient before clipping."""
        return self._norm

    def save_checkpoint(self, folder: str, *, tag: str, save_latest: bool) -> None:
        """Write all of it below `folder`/`tag`, by rank 0."""
        assert not save_latest
        if dist.get_rank() != 0:
            return
        path = Path(folder) / tag / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "module": self._module.state_dict(),
            "fp32": self._copies,
            "optimizer": self.optimizer.state_dict(),
        }
        self.checkpoint_engine.save(state, str(path))

    @torch.no_grad()
    def load_checkpoint(self, folder: str, *, tag: str, load_lr_scheduler_states: bool) -> None:
        """Restore what rank 0 wrote."""
        assert not load_lr_scheduler_states
        path = Path(folder) / tag / FILE
        state = self.checkpoint_engine.load(str(path), map_location="cpu")
        self._module.load_state_dict(state["module"])
        for copy, kept in zip(self._copies, state["fp32"], strict=True):
            copy.copy_(kept)
        self.optimizer.load_state_dict(state["optimizer"])


def _fp32_copy(weight: nn.Parameter) -> Tensor:
    """The weight itself if it is fp32; else a copy in which its gradients are added up."""
    if weight.dtype == torch.float32:
        return weight
    copy = weight.detach().float().requires_grad_()

    def move(weight: Tensor) -> None:
        """Called as soon as a backward pass has the whole gradient of the weight."""
        assert weight.grad is not None
        if copy.grad is None:
            copy.grad = weight.grad.float()
        else:
            copy.grad.add_(weight.grad)
        weight.grad = None

    weight.register_post_accumulate_grad_hook(move)
    return copy
