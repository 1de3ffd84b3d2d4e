"""Training as the stages use it: one engine for each trained model, losses as global sums.

Called by the stages. The engine is DeepSpeed's under ZeRO 1 to 3, and `ReplicatedEngine` under
ZeRO 0. Both average gradients over ranks, and DeepSpeed by default over accumulation steps; here a
loss is already divided by a global count, so both averages are undone. That is what makes a step's
gradient the same for 1 rank and 8, micro-batches of 2 and of 64. Learning rates are set from
outside at every step: a resumed run needs its step number and no scheduler state.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils import (
    fragment_address,
    safe_get_full_fp32_param,
    safe_get_local_fp32_param,
    safe_set_full_fp32_param,
    safe_set_local_fp32_param,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_api.v1alpha1 import StageSpec
from rlhf_trainer.models.finite import spoilt_weights
from rlhf_trainer.models.memory import BUCKET_NUMBERS, LIVE_NUMBERS
from rlhf_trainer.models.placed import OffloadedModel, PlacedModel, move_buffers
from rlhf_trainer.models.replicated import ReplicatedEngine
from rlhf_trainer.run.distributed import Ranks
from rlhf_trainer.run.files import load_tensors

# DeepSpeed logs its whole configuration at INFO and every step of a save.
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

_KEPT_CLASSES = (LossScaler, ZeroStageEnum, fragment_address)
"""Of DeepSpeed, in its checkpoints."""

_MACHINE = {"device": "cpu", "pin_memory": False}
"""DeepSpeed's words for the machine's memory. PyTorch rounds what is pinned up to a power of two,
which may be twice of what the estimate asks for."""

DTYPES: dict[str, torch.dtype] = {"BF16": torch.bfloat16, "FP32": torch.float32}


@dataclass
class TrainedModel(PlacedModel):
    """A model under training.

    Attributes:
        world_size: number of ranks, by which DeepSpeed divides gradients.
        checkpointing: whether its layers are computed anew in the backward pass.
    """

    world_size: int
    checkpointing: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The forward pass; with gradients, a backward pass follows before the model samples."""
        if self.checkpointing:
            # transformers checkpoints layers in training mode alone, and gives none of them a cache
            # then: a model that samples must not be in it.
            self.module.train(torch.is_grad_enabled())
        return super().__call__(*args, **kwargs)

    def accumulate(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of one micro-batch; `loss` is its part of the step's global loss.

        Every rank calls this equally often in a step, with `last` true in the last call.
        """
        self.engine.set_gradient_accumulation_boundary(is_boundary=last)
        self.engine.backward(loss * self.world_size, scale_wrt_gas=False)
        if self.checkpointing:
            self.module.eval()
        if not last:
            self.engine.step()

    def step(self, learning_rate: float) -> float:
        """Clip the accumulated gradient and apply it; returns its global norm before clipping."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()
        return float(self.engine.get_global_grad_norm() or 0.0)

    def spoilt_weights(self) -> list[str]:
        """Names of the weights that hold a NaN or an infinity, as far as this rank has them."""
        return spoilt_weights(dict(self.module.named_parameters()))

    @torch.no_grad()
    def rewrite(
        self, parameter: nn.Parameter, change: Callable[[Tensor], Tensor]
    ) -> Callable[[], None]:
        """Replace each element x of a parameter by change(x), in fp32; all ranks take part.

        What is returned takes it back to the last bit, on all ranks together.

        Written are the optimizer's fp32 copy, which the next step writes over the weight, and the
        weight, which holds until then.

        Args:
            parameter: of the module, and trained.
            change: of the element alone; it is given flat parts of the parameter, and padding.
        """
        before: list[Tensor] = []

        def recorded(part: Tensor) -> Tensor:
            before.append(part.clone())
            return change(part)

        whole = self._rewrite_copy(parameter, recorded)
        gathered = deepspeed.zero.GatheredParameters(
            [parameter], modifier_rank=0, enabled=self.zero_stage == 3
        )
        with gathered:
            parameter.copy_(whole.view_as(parameter))

        def undo() -> None:
            self.rewrite(parameter, lambda _: before[0])

        return undo

    def _rewrite_copy(self, parameter: nn.Parameter, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Change what the optimizer steps on; returns all of it."""
        if self.zero_stage == 3:
            # By partition: DeepSpeed can set a whole parameter only if the ranks divide its size.
            safe_set_local_fp32_param(parameter, change(safe_get_local_fp32_param(parameter)))
            whole: Tensor = safe_get_full_fp32_param(parameter)
            return whole
        if self.zero_stage > 0:
            whole = change(safe_get_full_fp32_param(parameter))
            safe_set_full_fp32_param(parameter, whole)
            return whole
        copy: Tensor = self.engine.fp32_copy(parameter)
        return copy.copy_(change(copy))

    def save(self, folder: Path, tag: str) -> None:
        """Write weights and optimizer state below `folder`/`tag`; all ranks take part.

        What goes wrong on this rank is raised after the last collective, so that no rank waits
        for one that could not write.
        """
        writer = self.engine.checkpoint_engine
        write, failures = writer.save, []

        def save(*arguments: Any, **settings: Any) -> None:
            try:
                write(*arguments, **settings)
            except Exception as error:  # noqa: BLE001 - raised below
                failures.append(error)

        writer.save = save
        try:
            self.engine.save_checkpoint(str(folder), tag=tag, save_latest=False)
        finally:
            writer.save = write
        if failures:
            raise failures[0]

    def load(self, folder: Path, tag: str) -> None:
        """Restore what `save` wrote.

        Raises:
            InputError: a file of it is damaged, or would run code.
        """
        reader = self.engine.checkpoint_engine
        read = reader.load

        def load(path: str, map_location: Any = None) -> Any:
            return load_tensors(Path(path), _KEPT_CLASSES, map_location)

        # DeepSpeed's own runs whatever the file names.
        reader.load = load
        try:
            with _quiet():
                self.engine.load_checkpoint(str(folder), tag=tag, load_lr_scheduler_states=False)
        finally:
            reader.load = read


def train(
    module: nn.Module,
    spec: StageSpec,
    ranks: Ranks,
    *,
    learning_rate: float,
) -> TrainedModel:
    """Train a module, in the machine's memory and in its precision, with AdamW."""
    if spec.gradient_checkpointing:
        checkpoint_layers(module)
    optimizer = torch.optim.AdamW(
        _parameter_groups(module, spec.weight_decay),
        lr=learning_rate,
        betas=(spec.adam_betas[0], spec.adam_betas[1]),
        eps=spec.adam_eps,
        # One pass over weights and moments, without a copy of each intermediate result.
        fused=True,
    )
    engine: Any = None
    if spec.zero_stage == 0:
        engine = ReplicatedEngine(module.to(ranks.device), optimizer, spec.gradient_clipping)
    else:
        config = deepspeed_config(spec, spec.zero_stage)
        if spec.offload_optimizer:
            config["zero_optimization"]["offload_optimizer"] = dict(_MACHINE)
            # PyTorch's own needs no compiler where the stage runs.
            config["zero_force_ds_cpu_optimizer"] = False
        engine = _initialize(module, config, ranks, optimizer=optimizer)
    return TrainedModel(
        module, engine, spec.zero_stage, ranks.world_size, spec.gradient_checkpointing
    )


def checkpoint_layers(module: nn.Module) -> None:
    """Make the layers of the model in a module keep only their inputs while they are in training
    mode (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016)."""
    model = next(part for part in module.modules() if isinstance(part, PreTrainedModel))
    # Dropout is off, so that no random state needs to be kept to compute the same again.
    model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})


def freeze(
    module: nn.Module, spec: StageSpec, ranks: Ranks, *, offload: bool = False
) -> PlacedModel:
    """A module that is only evaluated: sharded over the ranks under ZeRO 3, else whole on each.

    With `offload` its weights, whole or sharded, are on the device while it is asked alone.
    """
    module.requires_grad_(False).eval()
    if not shards_weights(spec.zero_stage, ranks):
        if offload:
            return OffloadedModel(module, ranks.device)
        return PlacedModel(module.to(ranks.device), module, zero_stage=0)
    config = deepspeed_config(spec, 3)
    if offload:
        config["zero_optimization"]["offload_param"] = dict(_MACHINE)
    engine = _initialize(module, config, ranks)
    engine.eval()
    return PlacedModel(module, engine, zero_stage=3)


def _initialize(module: nn.Module, config: dict[str, Any], ranks: Ranks, **more: Any) -> Any:
    # On CPU DeepSpeed would compile a shared-memory collective first: a minute, a compiler that an
    # image need not have, and nothing that training uses (it serves inference_all_reduce alone).
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    with _quiet():
        if shards_weights(config["zero_optimization"]["stage"], ranks):
            _shard(module, config, ranks)
        else:
            module.to(ranks.device)
        engine, *_ = deepspeed.initialize(model=module, config=config, **more)
    return engine


def shards_weights(zero_stage: int, ranks: Ranks) -> bool:
    """Whether each rank keeps a share of a model's weights alone."""
    return zero_stage == 3 and ranks.world_size > 1


def _shard(module: nn.Module, config: dict[str, Any], ranks: Ranks) -> None:
    """Bring one weight after the other to the device and leave a share of it there, so that a model
    loads that is larger than the memory of any device."""
    dtype = torch.bfloat16 if config["bf16"]["enabled"] else torch.float32
    deepspeed.zero.Init(module=_InPrecision(module, dtype), config_dict_or_path=config)
    move_buffers(module, ranks.device)


class _InPrecision(nn.Module):
    """The weights of a module, each in a data type of its own until it is asked for.

    Not before: a weight that lies in its file has no memory of its own.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._module, self._dtype = module, dtype

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Each of them in the data type, and in memory that ranks may write to."""
        for weight in self._module.parameters(recurse):
            weight.data = weight.data.to(self._dtype, copy=True)
            yield weight


@contextmanager
def _quiet() -> Iterator[None]:
    """Its optimizer of BF16 under ZeRO 1 prints how much memory there is, and what it loads."""
    with redirect_stdout(StringIO()):
        yield


def deepspeed_config(spec: StageSpec, zero_stage: int) -> dict[str, Any]:
    """DeepSpeed's configuration; accumulation is ours (see `TrainedModel.accumulate`).

    Gradients are added up in fp32, over micro-batches and over ranks: in bf16 a small one is lost
    beside a large sum.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": spec.gradient_clipping,
        # With the update at once, ZeRO 1 keeps no bf16 gradient beside the fp32 one.
        "bf16": {"enabled": spec.precision == "BF16", "immediate_grad_update": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": zero_stage,
            # Overlap and buckets trade memory for speed on links that CPU tests do not have.
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_bucket_size": BUCKET_NUMBERS,
            "stage3_gather_16bit_weights_on_model_save": False,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31 - 1,
        "wall_clock_breakdown": False,
    }


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


@contextmanager
def whole_parameters(model: PlacedModel, *, here: bool = True) -> Iterator[None]:
    """Inside, every parameter is whole on the ranks that say `here`; for reading, not for training.

    All ranks enter together. One parameter after the other comes to the device and goes to the
    machine's memory, since no device need have room for all.
    """
    if model.zero_stage < 3:
        yield
        return
    kept = []
    for parameter in model.module.parameters():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=None):
            whole = parameter.data.to("cpu", copy=True) if here else None
        kept.append((parameter, parameter.data, whole))
    try:
        for parameter, _, whole in kept:
            if whole is not None:
                parameter.data = whole
        yield
    finally:
        for parameter, data, _ in kept:
            parameter.data = data


def may_gather(model: PlacedModel) -> bool:
    """Whether a model is sharded and may be whole for as long as it samples.

    ZeRO 3 keeps so many weights whole in a backward pass too, and the estimate of memory counts
    them: no rank has less room than another.
    """
    if model.zero_stage < 3:
        return False
    # DeepSpeed's own attribute: a sharded parameter is empty.
    parameters: list[Any] = list(model.module.parameters())
    return sum(int(parameter.ds_numel) for parameter in parameters) <= LIVE_NUMBERS


@contextmanager
def gathered_once(model: PlacedModel) -> Iterator[None]:
    """Inside, a sharded model computes with whole weights, without learning and without waiting
    for other ranks: else each layer is gathered for each token."""
    with deepspeed.zero.unwrap_model_for_generation(model.engine):
        yield
