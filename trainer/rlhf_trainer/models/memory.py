"""Whether a stage's models fit, estimated before any weights are read.

Called by the stages, on all ranks together. The arithmetic is pure; what it leaves out (buffers of
collectives, fragmentation, the framework itself) makes it a lower bound, so that a job that is
refused would not have run.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from rlhf_api.v1alpha1 import PPOStage, StageConfig, StageSpec
from rlhf_api.v1alpha1.stages import Precision
from rlhf_trainer.errors import MemoryEstimateError
from rlhf_trainer.models.sizes import WEIGHT_BYTES
from rlhf_trainer.process.cgroup import free_memory
from rlhf_trainer.run.distributed import Ranks, agree_on_failure

logger = logging.getLogger(__name__)

GIB = 2**30
_GRADIENT = 4
_MOMENTS = 2 * 4
_MASTER = 4
BUCKET_NUMBERS = 50_000_000
"""Gradients that DeepSpeed sends at once."""
LIVE_NUMBERS = 1_000_000_000
"""Weights that ZeRO 3 keeps whole at once, DeepSpeed's stage3_max_live_parameters."""


@dataclass(frozen=True)
class ModelSize:
    """One model that a stage holds.

    Attributes:
        name: what the message calls it, for example `actor`.
        parameters: how many numbers it has.
        trained: whether it has gradients and an optimizer; a frozen model has weights alone.
        averaged: whether a moving average of its weights is kept.
        adapters: how many of its numbers are trained where not all of them are.
        answers: whether it samples, with all its weights on the device.
    """

    name: str
    parameters: int
    trained: bool
    averaged: bool = False
    adapters: int | None = None
    answers: bool = False

    @property
    def learning(self) -> int:
        """How many numbers have gradients and an optimizer."""
        if not self.trained:
            return 0
        return self.parameters if self.adapters is None else self.adapters


@dataclass(frozen=True)
class Footprint:
    """Bytes that one model takes on one rank."""

    weights: int
    gradients: int = 0
    optimizer: int = 0
    average: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.average


def footprint(
    model: ModelSize, *, precision: Precision, zero_stage: int, world_size: int
) -> Footprint:
    """Bytes on one rank under ZeRO (Rajbhandari et al., "ZeRO", 2020, section 5).

    Weights have the precision's width. Gradients are added up in fp32; Adam's two moments are fp32,
    and so is the master copy, which BF16 always has and FP32 only where ZeRO cuts it out of the
    weights. ZeRO 1 shards the optimizer over the ranks, 2 the gradients too, 3 the weights too. A
    moving average is fp32 and sharded like the optimizer.
    """
    width = WEIGHT_BYTES[precision]
    shards = [world_size if zero_stage >= stage else 1 for stage in (3, 2, 1)]
    weights = _share(model.parameters * width, shards[0])
    if not model.trained:
        return Footprint(weights)
    master = _MASTER if precision == "BF16" or zero_stage >= 1 else 0
    return Footprint(
        weights,
        _share(model.learning * _GRADIENT, shards[1]),
        _share(model.learning * (master + _MOMENTS), shards[2]),
        _share(model.learning * _MASTER, shards[2]) if model.averaged else 0,
    )


def sharding_bytes(
    model: ModelSize, *, precision: Precision, zero_stage: int, offload: bool = False
) -> int:
    """What ZeRO takes in a backward pass: gradients on their way, in fp32 when they are sent, and
    under ZeRO 3 what comes back, and the weights while they are whole."""
    if zero_stage < 1 or not model.trained:
        return 0
    if zero_stage == 1 and precision == "BF16" and not offload:
        return model.learning * _GRADIENT
    width = WEIGHT_BYTES[precision]
    sent = width + (_GRADIENT if precision == "BF16" else 0)
    bucket = min(model.learning, BUCKET_NUMBERS)
    if zero_stage < 3:
        return bucket * sent
    return bucket * (sent + _GRADIENT) + min(model.parameters, LIVE_NUMBERS) * width


def weightless_model(config: PretrainedConfig, *, scores: bool = False) -> PreTrainedModel:
    """The model that `config` describes, without memory for weights; with `scores` it has a score
    in place of the vocabulary head, where transformers has such one."""
    factory: Any = AutoModelForCausalLM
    # Loading what is no scorer will say so.
    if scores and type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        config = copy.deepcopy(config)
        config.num_labels = 1
        factory = AutoModelForSequenceClassification
    with torch.device("meta"):
        model: PreTrainedModel = factory.from_config(config, trust_remote_code=False)
    return model


def count_parameters(config: PretrainedConfig, *, scores: bool = False) -> int:
    """Parameters of `weightless_model`; shared ones once."""
    return sum(each.numel() for each in weightless_model(config, scores=scores).parameters())


def available_bytes(ranks: Ranks) -> tuple[int, str]:
    """Bytes that this rank may take where it computes, and what sets that limit."""
    if ranks.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(ranks.device)
        return free, f"free on {ranks.device}"
    return machine_bytes(ranks)


def machine_bytes(ranks: Ranks) -> tuple[int, str]:
    """The same in the machine's memory, of which each process has its share."""
    free, origin = psutil.virtual_memory().available, "the machine's free memory"
    limit = free_memory()
    if limit is not None and limit < free:
        free, origin = limit, "the container's memory limit"
    return free // ranks.local_world_size, f"{origin} over {ranks.local_world_size} processes"


def check_memory(
    config: StageConfig,
    ranks: Ranks,
    models: Sequence[ModelSize],
    activations: int = 0,
    scoring: int = 0,
    *,
    available: Callable[[Ranks], tuple[int, str]] = available_bytes,
    machine: Callable[[Ranks], tuple[int, str]] = machine_bytes,
) -> None:
    """Refuse a stage whose models do not fit, on every rank, before any of them loads.

    Args:
        config: the stage, for precision, ZeRO stage and ranks.
        ranks: every rank must call.
        models: all models held at the same time.
        activations: bytes for the largest micro-batch that learns, from `allowance`.
        scoring: bytes for the largest that does not, when frozen models are asked.
        available: what a rank may take where it computes.
        machine: what it may take of the machine's memory, where that is another one.

    Raises:
        MemoryEstimateError: on every rank, if any has too little.
    """
    needs = [(model, _need(model, config)) for model in models]
    kept = _kept_apart(config, ranks, needs)
    work = _work(config, needs, kept, activations, scoring)
    outside = sum(kept.values())
    free, origin = available(ranks)
    needed = sum(need.total for _, need in needs) - outside + work
    logger.info(
        "memory estimate: %s needed on rank %d, %s available (%s)",
        _gib(needed),
        ranks.rank,
        _gib(free),
        origin,
        extra={"bytes_needed": needed},
    )
    failure = None
    if needed > free:
        failure = MemoryEstimateError(_refusal(config, ranks, needs, outside, work, free, origin))
    elif outside:
        free, origin = machine(ranks)
        held = sum(_held_apart(model, need, config) for model, need in needs)
        if held > free:
            failure = MemoryEstimateError(_machine_refusal(config, held, free, origin))
    agree_on_failure(ranks, failure)


def _offloads_frozen(spec: StageSpec) -> bool:
    return isinstance(spec, PPOStage) and spec.offload_frozen_models


def _kept_apart(
    config: StageConfig, ranks: Ranks, needs: Sequence[tuple[ModelSize, Footprint]]
) -> dict[ModelSize, int]:
    """Bytes of each model's footprint that are not where it computes while it is not asked.

    Of a trained model these are the fp32 weights, moments and average. DeepSpeed adds up gradients
    on the GPU until a step, but under ZeRO 3, and in FP32 under ZeRO 2.
    """
    spec = config.spec
    if ranks.device.type == "cpu":
        return {}
    apart = {}
    gradients = spec.zero_stage == 3 or (spec.zero_stage == 2 and spec.precision == "FP32")
    for model, need in needs:
        if model.trained and spec.offload_optimizer:
            apart[model] = need.optimizer + need.average + (need.gradients if gradients else 0)
            if spec.zero_stage == 1 and spec.precision == "BF16":
                # When a step begins a partition's gradients are there once more.
                apart[model] -= _share(model.learning * _GRADIENT, config.world_size)
        elif not model.trained and _offloads_frozen(spec):
            apart[model] = need.weights
    return apart


def _held_apart(model: ModelSize, need: Footprint, config: StageConfig) -> int:
    """Bytes of the machine's memory that DeepSpeed, or a frozen model, takes on one rank at least.

    A partition's gradients are there too, under ZeRO 3 twice, and below it a copy of its weights in
    their own precision.
    """
    spec = config.spec
    if not model.trained:
        return need.weights if _offloads_frozen(spec) else 0
    if not spec.offload_optimizer:
        return 0
    width = 4 if spec.zero_stage == 3 else WEIGHT_BYTES[spec.precision]
    partition = _share(model.learning * (_GRADIENT + width), config.world_size)
    return need.optimizer + need.average + partition


def _work(
    config: StageConfig,
    needs: Sequence[tuple[ModelSize, Footprint]],
    kept: Mapping[ModelSize, int],
    activations: int,
    scoring: int,
) -> int:
    """Bytes of what a rank does that takes most, beside what it always holds: one model learns, all
    score, or one answers."""
    spec = config.spec
    learning = activations + max(
        sharding_bytes(
            model,
            precision=spec.precision,
            zero_stage=spec.zero_stage,
            offload=spec.offload_optimizer,
        )
        for model, _ in needs
    )
    # Frozen models that are sharded come layer by layer to score.
    whole = spec.zero_stage < 3 or config.world_size == 1
    brought = {model: size for model, size in kept.items() if whole and not model.trained}
    answering = 0
    for model, _ in needs:
        if model.answers:
            weights = brought.get(model, 0)
            sharded = spec.zero_stage == 3 and (model.trained or config.world_size > 1)
            if sharded and model.parameters <= LIVE_NUMBERS:
                weights = model.parameters * WEIGHT_BYTES[spec.precision]
            # Answers fill what any of the other passes takes.
            answering = max(answering, max(activations, scoring) + weights)
    return max(learning, scoring + sum(brought.values()), answering)


def _share(number: int, shards: int) -> int:
    return -(-number // shards)


def _gib(number: int) -> str:
    return f"{number / GIB:.2f} GiB"


def _need(model: ModelSize, config: StageConfig) -> Footprint:
    spec = config.spec
    return footprint(
        model,
        precision=spec.precision,
        zero_stage=spec.zero_stage,
        world_size=config.world_size,
    )


def _refusal(
    config: StageConfig,
    ranks: Ranks,
    needs: Sequence[tuple[ModelSize, Footprint]],
    kept: int,
    work: int,
    free: int,
    origin: str,
) -> str:
    spec = config.spec
    needed = sum(need.total for _, need in needs) - kept + work
    parts = [
        f"{model.name} with {model.parameters:,} parameters {_trained_share(model)}"
        f"{_gib(need.total)} (weights "
        f"{_gib(need.weights)}, gradients {_gib(need.gradients)}, optimizer {_gib(need.optimizer)}"
        f"{f', moving average {_gib(need.average)}' if need.average else ''})"
        for model, need in needs
    ]
    if kept:
        parts.append(f"of which {_gib(kept)} lie in the machine's memory")
    parts.append(f"activations and other work {_gib(work)}")
    field = f"spec.stages.{config.stage}"
    budget = (
        f"microBatchSize ({spec.micro_batch_size})"
        if spec.micro_batch_tokens is None
        else f"microBatchTokens ({spec.micro_batch_tokens})"
    )
    remedies = [f"lower {field}.{budget}", "take a smaller model"]
    if spec.lora is None:
        remedies.insert(1, f"train adapters alone ({field}.lora)")
    if config.world_size > 1 and spec.zero_stage < 3:
        remedies.insert(0, f"raise {field}.zeroStage ({spec.zero_stage})")
    if not spec.gradient_checkpointing:
        remedies.insert(0, f"set {field}.gradientCheckpointing to true")
    if ranks.device.type != "cpu":
        remedies[:0] = _offloads(spec, field, [model for model, _ in needs])
    if any(need.average for _, need in needs):
        remedies.insert(0, f"leave out {field}.emaDecay")
    if spec.precision == "FP32":
        remedies.insert(0, f"set {field}.precision to BF16")
    remedies.append(_ranks_remedy(config, origin))
    return (
        f"{field}: not enough memory: one rank needs at least {_gib(needed)}, and {_gib(free)} are "
        f"there ({origin}). Needed: {'; '.join(parts)}. {_sentence(remedies)}"
    )


def _offloads(spec: StageSpec, field: str, models: Sequence[ModelSize]) -> list[str]:
    """What could lie in the machine's memory and does not."""
    remedies = []
    if spec.zero_stage > 0 and not spec.offload_optimizer:
        remedies.append(f"set {field}.offloadOptimizer to true")
    frozen = not all(model.trained for model in models)
    if frozen and isinstance(spec, PPOStage) and not spec.offload_frozen_models:
        remedies.append(f"set {field}.offloadFrozenModels to true")
    return remedies


def _machine_refusal(config: StageConfig, held: int, free: int, origin: str) -> str:
    spec, field = config.spec, f"spec.stages.{config.stage}"
    named = ["offloadOptimizer"] * spec.offload_optimizer
    named += ["offloadFrozenModels"] * _offloads_frozen(spec)
    return (
        f"{field}: not enough memory: one rank keeps at least {_gib(held)} in the machine's memory "
        f"({' and '.join(named)}), and {_gib(free)} are there ({origin}). Give the pod or the "
        f"machine more memory, or leave more of it on the GPUs."
    )


def _trained_share(model: ModelSize) -> str:
    return "" if model.adapters is None else f"of which {model.adapters:,} are trained "


def _ranks_remedy(config: StageConfig, origin: str) -> str:
    field = f"spec.stages.{config.stage}.processesPerNode ({config.processes_per_node})"
    if "processes" not in origin:
        return f"raise {field} so that ZeRO shards over more GPUs"
    if config.processes_per_node > 1:
        return f"lower {field}, whose processes share the machine"
    return "give the pod or the machine more memory"


def _sentence(remedies: Sequence[str]) -> str:
    text = ", ".join(remedies[:-1]) + f", or {remedies[-1]}."
    return text[0].upper() + text[1:]
