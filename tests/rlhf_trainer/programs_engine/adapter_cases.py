"""What each rank does in `test_adapters`, on one rank and on two."""

from pathlib import Path

import tiny
import torch
from torch import Tensor

from rlhf_api.v1alpha1 import LoRA
from rlhf_trainer.models.adapters import WithoutAdapters, add_adapters
from rlhf_trainer.models.engine import DTYPES, TrainedModel, train, whole_parameters
from rlhf_trainer.models.heads import Actor, Logits
from rlhf_trainer.run.distributed import Ranks

IDS = torch.tensor([[3, 9, 4, 12, 7], [5, 5, 8, 3, 10]])


def actor(folder: Path, precision: str, *, adapted: bool = True) -> Actor:
    words = tiny.tokenizer_folder(folder / "tokenizer")
    model = tiny.causal_model(words).to(DTYPES[precision]).eval()
    add_adapters(model, LoRA(rank=2, alpha=4) if adapted else None, 1, "lora")
    return tiny.in_chunks(Actor(model, logits=Logits.HEAD if adapted else Logits.ALL))


def inputs() -> tuple[Tensor, Tensor, Tensor, int]:
    return IDS, torch.ones_like(IDS), torch.arange(5).expand(2, 5), 4


def learn(model: TrainedModel, steps: int) -> list[float]:
    """Make some tokens likelier; the loss of each step, in two passes."""
    losses = []
    for _ in range(steps):
        loss = torch.zeros(())
        for last in (False, True):
            loss = -model(*inputs()).logprobs.mean() / 2
            model.accumulate(loss / model.world_size, last=last)
        model.step(0.05)
        losses.append(float(loss.detach()))
    return losses


def weights(model: TrainedModel) -> dict[str, Tensor]:
    with whole_parameters(model):
        return {name: each.detach().clone() for name, each in model.module.named_parameters()}


def check_reference(ranks: Ranks, folder: Path, zero_stages: list[int], precision: str) -> None:
    """The reference says what the plain model says, however much the actor has learned."""
    with torch.no_grad():
        expected = actor(folder, precision, adapted=False)(*inputs()).logprobs
    for zero_stage in zero_stages:
        spec = tiny.stage_spec("sft", folder, zero_stage=zero_stage, precision=precision)
        model = train(actor(folder, precision), spec, ranks, learning_rate=0.1)
        reference = WithoutAdapters.of(model)
        before = weights(model)
        losses = []
        for _ in range(3):
            losses += learn(model, 2)
            with torch.no_grad():
                learned = model(*inputs()).logprobs
            found = reference(*inputs()).logprobs
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
            assert not found.requires_grad
            assert float((learned - found).abs().max()) > 0.05, zero_stage
            with torch.no_grad():
                assert torch.equal(model(*inputs()).logprobs, learned)
        assert losses[-1] < losses[0] - 0.1, (zero_stage, losses)
        after = weights(model)
        for name, weight in before.items():
            assert torch.equal(after[name], weight) != ("lora_" in name), (zero_stage, name)
