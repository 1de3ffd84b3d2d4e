"""What each rank does in `test_popart`: a critic whose head is rewritten between its steps."""

from pathlib import Path
from typing import Any

import tiny
import torch
from engine_cases import rows, spec
from right_padding import pad_right
from torch import Tensor

from rlhf_trainer.data.cursor import rank_slice
from rlhf_trainer.models.engine import DTYPES, TrainedModel, train
from rlhf_trainer.models.heads import Critic, score_head, switch_off_dropout
from rlhf_trainer.ppo.popart import ReturnScale, follow, rescale
from rlhf_trainer.run.distributed import Ranks, barrier

OLD, NEW = ReturnScale(1.0, 2.0, 4.0), ReturnScale(1.0, -30.0, 100.0)
RATE, LAST_RATE = 0.05, 0.5
# With a tiny one Adam takes whole steps for rounding errors.
EPS = 0.1


def critic(folder: Path, precision: str, seed: int = 7) -> Critic:
    words = tiny.tokenizer_folder(folder / "tokenizer")
    # One head of 15 and a shift of 1: two ranks divide neither.
    model = tiny.scalar_model(words, "gpt2", hidden_size=15, heads=3)
    switch_off_dropout(model)
    found = tiny.shake(Critic(model), seed=seed, scale=0.2)
    return found.to(DTYPES[precision])


def numbers(model: Any, at: list[int]) -> tuple[Tensor, Tensor]:
    """Normalised values of these rows' tokens, and the mask of the real ones."""
    batch = pad_right([rows()[row] for row in at], pad_id=0)
    found: Tensor = model(batch.input_ids, batch.attention_mask, batch.position_ids)
    return found, torch.arange(found.shape[1]) < batch.lengths.unsqueeze(1)


def loss_of(model: Any, at: list[int], scale: ReturnScale) -> Tensor:
    """Half the squared error in normalised units; the return of row n is n, to be learned."""
    found, mask = numbers(model, at)
    returns = torch.tensor(at, dtype=torch.float32).unsqueeze(1).expand_as(found)
    error = torch.where(mask, found - scale.normalized(returns), 0.0)
    return error.square().sum() / (2 * sum(len(row) for row in rows()))


@torch.no_grad()
def values(model: Any, scale: ReturnScale) -> Tensor:
    """Values of all rows, in the units of the returns."""
    found, mask = numbers(model, list(range(len(rows()))))
    return scale.denormalized(found)[mask]


def one_step(model: TrainedModel, ranks: Ranks, scale: ReturnScale, rate: float) -> None:
    at = rank_slice(list(range(len(rows()))), ranks.rank, ranks.world_size)
    model.accumulate(loss_of(model, at, scale), last=True)
    model.step(rate)


def by_hand(folder: Path) -> list[Tensor]:
    """Values after a step, after the rewrite, after a step of rate 0 and after one more."""
    model = critic(folder, "FP32")
    settings = spec(folder, adam_eps=EPS)
    trained = list(model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
        ],
        betas=(settings.adam_betas[0], settings.adam_betas[1]),
        eps=settings.adam_eps,
    )

    def step(scale: ReturnScale, rate: float) -> Tensor:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss_of(model, list(range(len(rows()))), scale).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return values(model, scale)

    found = [step(OLD, RATE)]
    with torch.no_grad():
        # sigma 2, mu 2 become sigma 10, mu -30.
        score_head(model.model).weight.mul_(0.2)
        model.shift.mul_(0.2).add_(3.2)
    found.append(values(model, NEW))
    return [*found, step(NEW, 0.0), step(NEW, LAST_RATE)]


def rewritten(
    ranks: Ranks, folder: Path, zero_stages: list[int], precisions: list[str]
) -> dict[tuple[int, str], Any]:
    """The same in the engine; and the last step again by an engine that loads what was saved."""
    found = {}
    for precision in precisions:
        for zero_stage in zero_stages:
            settings = spec(folder, zero_stage=zero_stage, precision=precision, adam_eps=EPS)
            model = train(critic(folder, precision), settings, ranks, learning_rate=1.0)
            one_step(model, ranks, OLD, RATE)
            told = [values(model, OLD)]
            rescale(model, OLD, NEW)
            told.append(values(model, NEW))
            kept = folder / f"kept-{precision}-{ranks.world_size}-{zero_stage}"
            if ranks.rank == 0:
                kept.mkdir()
            barrier(ranks)
            model.save(kept, "critic")
            barrier(ranks)
            for rate in (0.0, LAST_RATE):
                one_step(model, ranks, NEW, rate)
                told.append(values(model, NEW))

            second = train(critic(folder, precision, seed=99), settings, ranks, learning_rate=1.0)
            second.load(kept, "critic")
            for rate in (0.0, LAST_RATE):
                one_step(second, ranks, NEW, rate)
            found[zero_stage, precision] = told, values(second, NEW)
    return found


def followed(ranks: Ranks, folder: Path) -> Any:
    """Scales that follow returns which lie on the ranks in unequal numbers, and a critic's values
    before and after."""
    model = train(critic(folder, "FP32"), spec(folder, zero_stage=2), ranks, learning_rate=1.0)
    draw = torch.Generator().manual_seed(3)
    scale, scales = ReturnScale(), []
    before = values(model, scale)
    for update in range(4):
        returns = 5.0 * update + torch.randn(6, 5, generator=draw)
        mask = torch.arange(5) < torch.tensor([[5], [1], [2], [4], [3], [1]])
        mine = slice(0, 4) if ranks.rank == 0 else slice(4, 6)
        mine = slice(0, 6) if ranks.world_size == 1 else mine
        scale, _ = follow(model, scale, returns[mine], mask[mine], ranks)
        scales.append(scale)
    return scales, before, values(model, scale)
