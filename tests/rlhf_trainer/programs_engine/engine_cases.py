"""What each rank does in `test_engine`, on one rank and on two."""

import copy
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from right_padding import pad_right
from torch import Tensor

from rlhf_api.v1alpha1 import SFTStage
from rlhf_trainer.data.cursor import rank_slice
from rlhf_trainer.models.engine import (
    DTYPES,
    TrainedModel,
    freeze,
    train,
    whole_parameters,
)
from rlhf_trainer.models.heads import Actor, Logits, ScalarModel
from rlhf_trainer.rl import sft_loss
from rlhf_trainer.run.checkpoint import CheckpointStore
from rlhf_trainer.run.distributed import Ranks, barrier, reduce_sum
from rlhf_trainer.run.files import as_storage_error

ROWS = 8
PROMPT = 2
RATES = [0.02, 0.005, 0.01]


def spec(folder: Path, **changed: Any) -> SFTStage:
    found = tiny.stage_spec("sft", folder, weight_decay=0.1, gradient_clipping=1.0, **changed)
    assert isinstance(found, SFTStage)
    return found


def rows() -> list[np.ndarray]:
    """Sequences of 4 to 18 tokens, so that means of means would be far from the mean."""
    draw = np.random.default_rng(5)
    return [draw.integers(3, 20, size=length) for length in (4, 18, 5, 12, 4, 9, 15, 6)]


def tokens() -> int:
    return sum(len(row) - PROMPT for row in rows())


def actor(folder: Path, dtype: torch.dtype = torch.float32, logits: Logits = Logits.HEAD) -> Actor:
    words = tiny.tokenizer_folder(folder / "tokenizer")
    # Qwen2 has biases beside norms and matrices.
    return tiny.in_chunks(Actor(tiny.causal_model(words, "qwen2"), logits=logits)).to(dtype)


def loss_of(model: Any, part: list[np.ndarray], normalizer: float) -> Any:
    batch = pad_right(part, pad_id=0)
    width = batch.input_ids.shape[1] - 1
    statistics = model(batch.input_ids, batch.attention_mask, batch.position_ids, width)
    columns = torch.arange(1, width + 1)
    mask = (columns >= PROMPT) & (columns < batch.lengths.unsqueeze(1))
    return sft_loss(statistics.logprobs, mask, normalizer)


def micro_batches(items: list[np.ndarray], size: int) -> list[list[np.ndarray]]:
    """By length, `size` at a time."""
    ordered = sorted(items, key=len)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def one_step(model: TrainedModel, ranks: Ranks, micro_batch_size: int, rate: float) -> list[float]:
    """Loss and gradient norm of one step over all rows."""
    mine = rank_slice(list(range(ROWS)), ranks.rank, ranks.world_size)
    parts = micro_batches([rows()[at] for at in mine], micro_batch_size)
    nll = 0.0
    for index, part in enumerate(parts):
        loss = loss_of(model, part, tokens())
        model.accumulate(loss.loss, last=index == len(parts) - 1)
        nll += float(loss.nll_sum)
    norm = model.step(rate)
    return [reduce_sum([nll], ranks)[0] / tokens(), norm]


def weights_of(model: TrainedModel) -> dict[str, Tensor]:
    with whole_parameters(model):
        return {
            name: parameter.detach().float().clone()
            for name, parameter in model.module.named_parameters()
        }


def by_hand(folder: Path, clip: float = 1.0, decay: float = 0.1) -> tuple[Any, Any]:
    """The same steps with plain PyTorch in one batch: losses and norms, and weights after them."""
    model = actor(folder, logits=Logits.ALL)
    found = spec(folder)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": decay},
            {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ],
        betas=(found.adam_betas[0], found.adam_betas[1]),
        eps=found.adam_eps,
    )
    told = []
    for rate in RATES:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = loss_of(model, rows(), tokens()).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        told.append([float(loss.detach()), float(norm)])
    return told, {name: p.detach().clone() for name, p in model.named_parameters()}


def steps(
    ranks: Ranks,
    folder: Path,
    zero_stages: list[int],
    micro_batches: list[tuple[int, Logits]],
    **settings: Any,
) -> dict[tuple[int, int, Logits], Any]:
    """Steps by ZeRO stage, micro-batch size and logits: losses, norms and weights after them."""
    found = {}
    for zero_stage in zero_stages:
        for size, logits in micro_batches:
            module = actor(folder, logits=logits)
            of_stage = spec(folder, zero_stage=zero_stage, **settings)
            model = train(module, of_stage, ranks, learning_rate=1.0)
            told = [one_step(model, ranks, size, rate) for rate in RATES]
            found[zero_stage, size, logits] = told, weights_of(model)
    return found


def checkpointed(
    ranks: Ranks, folder: Path, zero_stages: list[int], precision: str
) -> dict[int, list[tuple[Any, dict[str, Tensor], int]]]:
    """Without and with gradient checkpointing: losses and norms, weights, and how often a part of
    the layer computed."""
    found: dict[int, list[tuple[Any, dict[str, Tensor], int]]] = {}
    for zero_stage in zero_stages:
        for checkpointing in (False, True):
            settings = spec(
                folder,
                zero_stage=zero_stage,
                precision=precision,
                gradient_checkpointing=checkpointing,
            )
            module = actor(folder, DTYPES[precision])
            model = train(module, settings, ranks, learning_rate=1.0)
            calls: list[int] = []
            (part,) = (each for name, each in module.named_modules() if name.endswith(".down_proj"))
            part.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
            told = [one_step(model, ranks, 2, rate) for rate in RATES[:2]]
            assert not model.module.training or not checkpointing
            found.setdefault(zero_stage, []).append((told, weights_of(model), len(calls)))
    return found


def bf16(
    ranks: Ranks, folder: Path, zero_stages: list[int], offload: bool = False
) -> dict[int, Any]:
    """Losses and norms of training in bf16."""
    found = {}
    for zero_stage in zero_stages:
        settings = spec(folder, zero_stage=zero_stage, precision="BF16", offload_optimizer=offload)
        model = train(actor(folder, torch.bfloat16), settings, ranks, learning_rate=1.0)
        told = [one_step(model, ranks, 2, 0.01) for _ in range(8)]
        found[zero_stage] = told, {str(p.dtype) for p in model.module.parameters()}
    return found


def spoilt(
    ranks: Ranks, folder: Path, zero_stages: list[int], precision: str, value: float
) -> dict[int, Any]:
    """By ZeRO stage: norm and spoilt weights of a good step, then of one in which an element of a
    gradient of the last rank alone is `value`."""
    found = {}
    for stage in zero_stages:
        module = actor(folder, DTYPES[precision])
        settings = spec(folder, zero_stage=stage, precision=precision)
        model = train(module, settings, ranks, learning_rate=0.0)
        good = one_step(model, ranks, 8, 0.01)[1], model.spoilt_weights()
        last = ranks.rank == ranks.world_size - 1

        def spoil(gradient: Tensor, last: bool = last) -> Tensor:
            return gradient.index_fill(0, torch.tensor([3]), value) if last else gradient

        hook = dict(module.named_parameters())["model.model.embed_tokens.weight"].register_hook(
            spoil
        )
        bad = one_step(model, ranks, 8, 0.01)[1], model.spoilt_weights()
        hook.remove()
        found[stage] = good, bad
    return found


def resume(
    ranks: Ranks, folder: Path, zero_stages: list[int], precision: str, offload: bool = False
) -> dict[int, Any]:
    """Two steps, a checkpoint, two steps; and the last two again by an engine that loads it."""
    dtype = {"FP32": torch.float32, "BF16": torch.bfloat16}[precision]
    found = {}
    for zero_stage in zero_stages:
        settings = spec(
            folder, zero_stage=zero_stage, precision=precision, offload_optimizer=offload
        )
        first = train(actor(folder, dtype), settings, ranks, learning_rate=1.0)
        for rate in RATES[:2]:
            one_step(first, ranks, 2, rate)
        kept = folder / f"kept-{precision}-{ranks.world_size}-{zero_stage}-{offload}"
        if ranks.rank == 0:
            kept.mkdir()
        barrier(ranks)
        first.save(kept, "model")
        barrier(ranks)
        uninterrupted = [one_step(first, ranks, 2, rate) for rate in RATES]

        # Other weights, so that those of the checkpoint are seen to come back.
        fresh = tiny.shake(actor(folder, dtype), seed=99)
        second = train(fresh, settings, ranks, learning_rate=1.0)
        second.load(kept, "model")
        resumed = [one_step(second, ranks, 2, rate) for rate in RATES]
        same = all(
            torch.equal(a, b)
            for a, b in zip(weights_of(first).values(), weights_of(second).values(), strict=True)
        )
        found[zero_stage] = uninterrupted, resumed, same
    return found


def partitioned(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Under ZeRO 3: shapes inside and outside of `whole_parameters`, and frozen models' numbers."""
    settings = spec(folder, zero_stage=3)
    plain = actor(folder)
    before = {name: p.detach().clone() for name, p in plain.named_parameters()}
    frozen = freeze(copy.deepcopy(plain), settings, ranks)
    model = train(copy.deepcopy(plain), settings, ranks, learning_rate=1.0)
    sharded = [frozen.module, model.module]
    outside = sum(p.numel() for each in sharded for p in each.parameters())
    with whole_parameters(model):
        inside = {name: p.detach().clone() for name, p in model.module.named_parameters()}
        kept = model.module.model.state_dict()
        shapes = {name: tuple(value.shape) for name, value in kept.items()}
    after = sum(p.numel() for each in sharded for p in each.parameters())
    told = one_step(model, ranks, 2, 0.01)

    words = tiny.tokenizer_folder(folder / "tokenizer")
    reward = ScalarModel(tiny.scalar_model(words, "llama"))
    frozen_reward = freeze(copy.deepcopy(reward), settings, ranks)
    batch = pad_right(rows(), pad_id=0)
    inputs = (batch.input_ids, batch.attention_mask, batch.position_ids)
    with torch.no_grad():
        return {
            "outside": outside,
            "after": after,
            "whole": all(torch.equal(inside[name], value) for name, value in before.items()),
            "shapes": shapes,
            "step": told,
            "logprobs": (plain(*inputs, 10).logprobs, frozen(*inputs, 10).logprobs),
            "scores": (reward(*inputs), frozen_reward(*inputs)),
            "learns": any(p.requires_grad for p in frozen.module.parameters()),
        }


def one_weight_in_fp32(ranks: Ranks, folder: Path, zero_stages: list[int]) -> dict[int, set[str]]:
    """By ZeRO stage in which precisions a module learns in BF16 that was loaded with another."""
    found = {}
    for zero_stage in zero_stages:
        module = actor(folder, torch.bfloat16)
        module.model.model.norm.float()
        settings = spec(folder, zero_stage=zero_stage, precision="BF16")
        model = train(module, settings, ranks, learning_rate=1.0)
        one_step(model, ranks, 8, 0.01)
        found[zero_stage] = {str(weight.dtype) for weight in model.module.parameters()}
    return found


def moved_whole(ranks: Ranks, folder: Path, zero_stages: list[int]) -> dict[int, list[bool]]:
    """By ZeRO stage whether a trained and a frozen module come to their device at once."""
    found: dict[int, list[bool]] = {}
    for zero_stage in zero_stages:
        settings = spec(folder, zero_stage=zero_stage)
        for place in (partial(train, learning_rate=1.0), freeze):
            module, moves = actor(folder), []

            def move(device: torch.device, module: Actor = module, moves: Any = moves) -> Actor:
                moves.append(device)
                return module

            module.to = move  # type: ignore[assignment]
            place(module, settings, ranks)
            found.setdefault(zero_stage, []).append(bool(moves))
    return found


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The kernel refuses to let a file grow further, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full_disk(ranks: Ranks, folder: Path, zero_stages: list[int]) -> dict[int, Any]:
    """What a rank is told when rank 1 cannot write: by the engine, and by the store with its
    newest step."""
    found = {}
    for zero_stage in zero_stages:
        settings = {"zero_stage": zero_stage, "seed": zero_stage}
        model = train(actor(folder), spec(folder, **settings), ranks, learning_rate=1.0)
        config = tiny.stage_config("sft", folder, world_size=2, **settings)
        store = CheckpointStore(config, ranks)

        def write(place: Path, model: TrainedModel = model) -> None:
            model.save(place, "model")

        store.save(1, write, {}, {})
        direct = folder / f"direct-{zero_stage}"
        if ranks.rank == 0:
            direct.mkdir()
        barrier(ranks)
        with files_of_at_most(4096 if ranks.rank == 1 else resource.RLIM_INFINITY):
            told = raised(lambda place=direct: write(place), direct)
            stored = raised(lambda store=store: store.save(2, write, {}, {}), direct)
        newest = CheckpointStore(config, ranks).newest()
        assert newest is not None
        model.load(newest.folder, "model")
        found[zero_stage] = told, (stored, newest.step)
    return found


def raised(call: Callable[[], None], folder: Path) -> str:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - told to the test
        return type(as_storage_error(error, folder) or error).__name__
    return "nothing"
