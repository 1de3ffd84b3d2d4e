"""What is compared with computes the same numbers and gradients, and is what PPO loads inside."""

from pathlib import Path

import pytest
import tiny
import torch
from plain_actor import PlainActor, actors_are_plain

from rlhf_trainer.data.collate import pad_left
from rlhf_trainer.models.heads import Actor, Logits
from rlhf_trainer.ppo import models


@pytest.mark.parametrize("entropy_gradient", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_it_computes_what_the_actor_computes(
    tmp_path: Path, temperature: float, entropy_gradient: bool
) -> None:
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    batch = pad_left([[3, 4, 5, 6, 7], [8, 9, 10]], 0)
    found = []
    for kind in (Actor, PlainActor):
        model = tiny.causal_model(words)
        actor = kind(model, (2,), logits=Logits.HEAD)
        statistics = actor(
            *batch[:3], 2, temperature, entropy=True, entropy_gradient=entropy_gradient
        )
        assert statistics.entropy is not None
        assert statistics.entropy.requires_grad == entropy_gradient
        (statistics.logprobs.sum() + statistics.entropy.sum()).backward()
        found.append((*statistics, model.get_input_embeddings().weight.grad))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_ppo_loads_it_inside_alone() -> None:
    with actors_are_plain():
        assert models.Actor is PlainActor
    assert models.Actor is Actor
