"""Models that break one promise each, and what each rank does in `test_self_checks`."""

from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from torch import Tensor, nn

from rlhf_api.v1alpha1 import PPOStage
from rlhf_trainer.data.tokenize.tokenized import Prompt
from rlhf_trainer.errors import failure_of
from rlhf_trainer.generation.counter import RowSeeds
from rlhf_trainer.generation.sampling import Sampling
from rlhf_trainer.models.heads import Actor, ScalarModel
from rlhf_trainer.ppo.rollout import Rollout
from rlhf_trainer.ppo.samplers import DecodingSampler, Policy
from rlhf_trainer.ppo.self_checks import Subjects, run_self_checks, short_sampling, spread
from rlhf_trainer.run.checkpoint import rng_state
from rlhf_trainer.run.distributed import Ranks

SAMPLING = Sampling(max_response_length=24, temperature=0.8, stop_ids=(1,), pad_id=0, wave=4)
PROMPTS = [
    Prompt(np.array([3 + (5 * row + at) % 17 for at in range(1 + row % 9)], dtype=np.int32), "")
    for row in range(20)
]


class WithoutPositions(nn.Module):
    """Counts positions from the left edge, as a model does that is given none."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *rest: Any
    ) -> Any:
        columns = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        return self.model(input_ids, attention_mask, columns, *rest)


class ReadingPadding(WithoutPositions):
    """Attends to padding."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *rest: Any
    ) -> Any:
        return self.model(input_ids, torch.ones_like(attention_mask), position_ids, *rest)


class LessTheMeanOfTheBatch(WithoutPositions):
    """Scores a row by those that it is beside."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *rest: Any
    ) -> Any:
        scores = self.model(input_ids, attention_mask, position_ids, *rest)
        return scores - 3 * scores.mean(dim=0, keepdim=True)


class NotANumber(WithoutPositions):
    """Overflows."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *rest: Any
    ) -> Any:
        return self.model(input_ids, attention_mask, position_ids, *rest) * float("nan")


class WithDropout(WithoutPositions):
    """Drops a part of the numbers that it is asked for."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *rest: Any
    ) -> Any:
        found = self.model(input_ids, attention_mask, position_ids, *rest)
        return found._replace(logprobs=nn.functional.dropout(found.logprobs, 0.1))


def spec(folder: Path, **changed: Any) -> PPOStage:
    found = tiny.stage_spec(
        "ppo", folder, temperature=0.8, max_response_length=24, max_prompt_length=16, **changed
    )
    assert isinstance(found, PPOStage)
    return found


def subjects(folder: Path, architecture: str = "gpt2", precision: str = "FP32") -> Subjects:
    """Sound models; actor and reference are one."""
    words = tiny.tokenizer_folder(folder / "tokenizer")
    settings = {"FP32": tiny.FP32, "BF16": tiny.BF16}[precision]
    actor = Actor(tiny.causal_model(words, architecture, settings)).eval()
    reward_model = ScalarModel(tiny.scalar_model(words, architecture, settings)).eval()
    return Subjects(actor, actor, reward_model)


def sampler(model: Any) -> DecodingSampler:
    return DecodingSampler(Policy(model, tiny.ALONE), short_sampling(SAMPLING))


def rollout(found: Subjects) -> Rollout:
    actor: Any = found.actor
    prompts = [prompt.tokens.tolist() for prompt in spread(PROMPTS)]
    return sampler(actor.model).sample(prompts, RowSeeds(5, range(len(prompts))))


def broken_on_one_rank(ranks: Ranks, folder: Path) -> Any:
    """What each rank is told when the actor of rank 1 alone ignores position ids."""
    found = subjects(folder)
    actor: Any = found.actor
    if ranks.rank == 1:
        found = Subjects(WithoutPositions(actor), None, found.reward_model)
    else:
        found = Subjects(actor, None, found.reward_model)
    torch.manual_seed(ranks.rank)
    before = rng_state()
    told = None
    try:
        run_self_checks(found, sampler(actor.model), PROMPTS, spec(folder), ranks)
    except Exception as error:  # noqa: BLE001 - told to the test
        told = failure_of(error)
    return told, torch.equal(before["torch"], rng_state()["torch"])
