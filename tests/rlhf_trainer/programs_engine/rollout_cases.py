"""What each rank does in `test_rollout`, `test_experience` and `test_evaluation`."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tiny
import torch
from transformers import PreTrainedTokenizerFast

from rlhf_trainer.data.tokenize.tokenized import Prompt
from rlhf_trainer.generation.counter import RowSeeds
from rlhf_trainer.generation.sampling import Sampling
from rlhf_trainer.models.engine import gathered_once, may_gather, train
from rlhf_trainer.models.heads import Actor, Logits, ScalarModel
from rlhf_trainer.ppo.evaluation import answer_all
from rlhf_trainer.ppo.experience import (
    Experience,
    collect,
    global_moments,
    normalized,
    shaped_scores,
    targets_of,
)
from rlhf_trainer.ppo.rollout import Rollout
from rlhf_trainer.ppo.samplers import DecodingSampler, GenerateSampler, Policy
from rlhf_trainer.rl import Moments
from rlhf_trainer.run.checkpoint import rng_state
from rlhf_trainer.run.distributed import Ranks

EOS = 1


def sampling(**changed: Any) -> Sampling:
    settings: dict[str, Any] = {
        "max_response_length": 8,
        "temperature": 1.0,
        "stop_ids": (EOS,),
        "pad_id": 0,
        "wave": 64,
    }
    return Sampling(**settings | changed)


class Answering:
    """A sampler whose rows have numbers of their own."""

    def __init__(self, engine: Any, policy: Policy, changed: dict[str, Any]) -> None:
        self._sampler = engine(policy, sampling(**changed))

    def sample(self, prompts: Sequence[Sequence[int]], seed: int = 11) -> Rollout:
        found: Rollout = self._sampler.sample(prompts, RowSeeds(seed, range(len(prompts))))
        return found


ENGINES = {"decoding": DecodingSampler, "generate": GenerateSampler}


def sampler(
    model: Any, asked: Any = lambda: False, engine: str = "decoding", **changed: Any
) -> Answering:
    return Answering(ENGINES[engine], Policy(model, tiny.ALONE, asked_to_stop=asked), changed)


def parts(rollout: Rollout) -> list[Any]:
    """The tokens of each row: prompt, response."""
    return [
        (
            rollout.prompts[
                row, rollout.prompts.shape[1] - int(rollout.prompt_lengths[row]) :
            ].tolist(),
            rollout.responses[row, : int(rollout.response_lengths[row])].tolist(),
        )
        for row in range(len(rollout.responses))
    ]


def partitioned(ranks: Ranks, folder: Path, engine: str, whole: bool) -> Any:
    """Answers of a sharded model, with ranks that need different numbers of tokens, and what is
    learned after them."""
    words = folder / "tokenizer"
    spec = tiny.stage_spec("sft", folder, zero_stage=3)
    plain = Actor(tiny.causal_model(words))
    chunked = tiny.in_chunks(Actor(tiny.causal_model(words), logits=Logits.HEAD))
    actor = train(chunked, spec, ranks, learning_rate=1.0)
    prompts = [[3, 4], [5, 6, 7]]
    # Rank 1 stops at almost any token, rank 0 at EOS only.
    stops = (EOS,) if ranks.rank == 0 else (EOS, *range(3, 20))
    module: Any = actor.module
    assert may_gather(actor)
    policy = Policy(module.model, ranks, in_step=not whole)
    if whole:
        policy = replace(policy, prepared=partial(gathered_once, actor))
    # As many waves as rows: rank 1 has one more.
    answering = ENGINES[engine](policy, sampling(stop_ids=stops, wave=1))
    prompts += [[8, 9]] * ranks.rank
    rollout = answering.sample(prompts, RowSeeds(ranks.rank, range(len(prompts))))
    again = answering.sample(prompts, RowSeeds(ranks.rank, range(len(prompts))))
    sharded = all(parameter.numel() == 0 for parameter in actor.module.parameters())
    with torch.no_grad():
        width = rollout.responses.shape[1]
        engine = actor(*rollout.sequences, width).logprobs
        whole = plain(*rollout.sequences, width).logprobs
    mask = rollout.response_mask
    logprobs = actor(*rollout.sequences, width).logprobs
    actor.accumulate(torch.where(mask, logprobs, 0.0).sum(), last=True)
    return {
        "width": width,
        "again": torch.equal(again.responses, rollout.responses),
        "sharded": sharded,
        "norm": actor.step(0.1),
        "engine": float((rollout.sampled_logprobs - engine)[mask].abs().max()),
        "plain": float((rollout.sampled_logprobs - whole)[mask].abs().max()),
    }


def experience(
    rows: int = 6, width: int = 7, seed: int = 1, garbage: float = float("nan")
) -> Experience:
    """Made-up numbers for responses of different lengths, with garbage after each one's end."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,), generator=draw)
    lengths[0], lengths[1] = width, 1
    mask = torch.arange(width) < lengths.unsqueeze(1)

    def numbers(scale: float) -> torch.Tensor:
        found = scale * torch.randn(rows, width, generator=draw)
        return torch.where(mask, found, garbage)

    responses = torch.randint(3, 20, (rows, width), generator=draw)
    ended = torch.rand(rows, generator=draw) < 0.6
    ended[0], ended[1] = False, True
    return Experience(
        rollout=Rollout(
            prompts=torch.randint(3, 20, (rows, 4), generator=draw),
            prompt_lengths=torch.randint(1, 5, (rows,), generator=draw),
            responses=responses,
            response_lengths=lengths,
            ended=ended,
            sampled_logprobs=numbers(1.0),
        ),
        old_logprobs=numbers(1.0),
        ref_logprobs=numbers(1.0),
        values=numbers(2.0),
        scores=3.0 * torch.randn(rows, generator=draw),
        recomputed=numbers(1.0),
    )


def share(found: Experience, ranks: Ranks) -> Experience:
    """One rank's rows, of unequal numbers: rank 0 has two more."""
    if ranks.world_size == 1:
        return found
    cut = len(found.scores) // 2 + 1
    rows = torch.arange(len(found.scores))
    mine = rows[:cut] if ranks.rank == 0 else rows[cut:]
    return found[mine]


def global_numbers(ranks: Ranks, folder: Path, scaling: str) -> Any:
    """Normalised advantages, shaped scores and moments of all ranks' rows, this rank's part."""
    spec: Any = tiny.stage_spec(
        "ppo", folder, reward_scaling=scaling, score_clip=2.0, missing_eos_penalty=0.5
    )
    mine = share(experience(rows=10), ranks)
    moments = Moments()
    scores = []
    for _ in range(2):
        shaped = shaped_scores(mine, spec, 0.1, moments, ranks)
        scores.append(shaped.scores)
        moments = shaped.moments
    targets = targets_of(mine, scores[-1], spec, shaped.kl_coef)
    advantages = normalized(targets.advantages, mine.mask, ranks)
    found = global_moments(mine.values, mine.mask, ranks)
    return advantages, scores, moments, found


def evaluation(ranks: Ranks, folder: Path, prompts: int) -> Any:
    """Which prompts each rank was given, and everybody's answers."""
    words = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    rows = [
        Prompt(np.array([3 + at, *([4] * (at % 3))], dtype=np.int32), f"prompt {at}")
        for at in range(prompts)
    ]
    model: Any = tiny.causal_model(folder / "tokenizer").eval()
    scalar = ScalarModel(tiny.scalar_model(folder / "tokenizer")).eval()
    asked: list[list[int]] = []

    def answer(tokens: list[Sequence[int]], seeds: RowSeeds) -> Experience:
        asked.extend(list(row) for row in tokens)
        with torch.no_grad():
            return collect(
                DecodingSampler(Policy(model, tiny.ALONE), sampling()).sample(tokens, seeds),
                actor=Actor(model),
                reference=Actor(model),
                critic=scalar,
                reward_model=scalar,
                temperature=1.0,
                tokens=30,
                ranks=ranks,
            )

    torch.manual_seed(99)
    np.random.seed(99)
    before = rng_state()
    answers = answer_all(rows, answer, words, ranks, seed=7)
    after = rng_state()
    untouched = torch.equal(before.pop("torch"), after.pop("torch")) and before == after
    again = answer_all(rows, answer, words, ranks, seed=7)
    other = answer_all(rows, answer, words, ranks, seed=8)
    return {
        "asked": asked[: len(asked) // 3],
        "answers": answers,
        "untouched": untouched,
        "again": again == answers,
        "other": [found.tokens for found in other] != [found.tokens for found in answers],
    }
