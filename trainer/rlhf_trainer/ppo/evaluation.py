"""Judging a policy on held-out prompts: before PPO (the reference) and after (the actor).

Called by the PPO stage. Both answer the same prompts from the same seeds, so that they differ by
what was learned.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_api.names import FileName
from rlhf_trainer.data.tokenize.tokenized import Prompt
from rlhf_trainer.generation.counter import Purpose, RowSeeds
from rlhf_trainer.ppo.experience import Experience
from rlhf_trainer.rl import distinct_n
from rlhf_trainer.run.distributed import Ranks, gather_objects
from rlhf_trainer.run.files import json_text, write_atomically
from rlhf_trainer.run.report import Sample


@dataclass(frozen=True)
class Answer:
    """One response and what was measured of it.

    Attributes:
        row: index of the prompt.
        tokens: of the response, its stop token left out.
        text: the response as people read it.
        score: of the reward model, or the weighted sum of the rewards that the stage names.
        kl: actor against reference, nats an answer.
        ended: whether it ended by EOS or a stop token.
        rewards: each reward before its weight, by name; empty where the stage names none.
    """

    row: int
    tokens: tuple[int, ...]
    text: str
    score: float
    kl: float
    ended: bool
    rewards: Mapping[str, float] = field(default_factory=dict)


def answers_of(
    experience: Experience, rows: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> list[Answer]:
    """The answers in an experience, for people and statistics."""
    rollout = experience.rollout
    kl = experience.answer_kl().tolist()
    answers = []
    for at, row in enumerate(rows):
        length = int(rollout.response_lengths[at]) - int(rollout.ended[at])
        tokens = tuple(rollout.responses[at, :length].tolist())
        text = str(tokenizer.decode(list(tokens), skip_special_tokens=True))
        score = float(experience.scores[at])
        rewards = {name: float(scores[at]) for name, scores in experience.rewards.items()}
        answers.append(Answer(row, tokens, text, score, kl[at], bool(rollout.ended[at]), rewards))
    return answers


def answer_all(
    prompts: Sequence[Prompt],
    answer: Callable[[list[Sequence[int]], RowSeeds], Experience],
    tokenizer: PreTrainedTokenizerBase,
    ranks: Ranks,
    seed: int,
) -> list[Answer]:
    """One answer for each held-out prompt, in order, the same list on every rank.

    Each prompt draws from its own random numbers, always the same; the random state of training,
    which a reward may draw from, is left as it was.
    """
    mine = list(range(ranks.rank, len(prompts), ranks.world_size))
    # Ranks sample equally many, which ZeRO 3's collectives need; the surplus is thrown away.
    share = -(-len(prompts) // ranks.world_size)
    padded = mine + [0] * (share - len(mine))
    devices = [ranks.device] if ranks.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed + ranks.rank)
        experience = answer(
            [prompts[row].tokens.tolist() for row in padded],
            RowSeeds(seed, padded, purpose=Purpose.EVALUATION),
        )
    own = answers_of(experience, padded, tokenizer)[: len(mine)]
    all_answers = [answer for part in gather_objects(ranks, own) for answer in part]
    return sorted(all_answers, key=lambda answer: answer.row)


def figures(answers: Sequence[Answer]) -> dict[str, float]:
    """Mean score and its standard deviation, KL (nats an answer), share ended by EOS, mean length
    (characters), distinct bigrams of tokens."""
    scores = [answer.score for answer in answers]
    return {
        "score": _mean(scores),
        "scoreStd": _deviation(scores),
        "kl": _mean([answer.kl for answer in answers]),
        "eosRate": fmean(answer.ended for answer in answers),
        "meanLength": fmean(len(answer.text) for answer in answers),
        "distinct2": distinct_n([answer.tokens for answer in answers], 2),
    }


# The library raises where numbers are not finite, or infinities have two signs.
def _mean(numbers: Sequence[float]) -> float:
    return fmean(numbers) if all(map(math.isfinite, numbers)) else math.nan


def _deviation(scores: Sequence[float]) -> float:
    if not all(map(math.isfinite, scores)):
        return math.nan
    return stdev(scores) if len(scores) > 1 else 0.0


def evaluation_document(answers: Sequence[Answer]) -> dict[str, Any]:
    """`figures`, and under `rewards` the means of those that the stage names."""
    rewards = mean_answer_rewards(answers)
    return figures(answers) | ({"rewards": rewards} if rewards else {})


def samples_of(prompts: Sequence[Prompt], answers: Sequence[Answer]) -> list[Sample]:
    """The answers as samples.jsonl tells them."""
    return [
        Sample(
            prompt=prompts[answer.row].text,
            response=answer.text,
            score=answer.score,
            kl=answer.kl,
            length=len(answer.tokens) + int(answer.ended),
            stop_reason="stop" if answer.ended else "length",
            rewards=answer.rewards,
        )
        for answer in answers
    ]


def mean_answer_rewards(answers: Sequence[Answer]) -> dict[str, float]:
    """The mean of each reward that the stage names, before its weight."""
    return {
        name: _mean([answer.rewards[name] for answer in answers]) for name in answers[0].rewards
    }


def write_samples(
    folder: Path, prompts: Sequence[Prompt], before: Sequence[Answer], after: Sequence[Answer]
) -> None:
    """Leave every held-out prompt with both answers beside the model."""
    lines: list[dict[str, Any]] = [
        {
            "prompt": prompt.text,
            "responseBefore": old.text,
            "responseAfter": new.text,
            "scoreBefore": old.score,
            "scoreAfter": new.score,
        }
        | (
            {"rewardsBefore": dict(old.rewards), "rewardsAfter": dict(new.rewards)}
            if new.rewards
            else {}
        )
        for prompt, old, new in zip(prompts, before, after, strict=True)
    ]
    text = "".join(json_text(line) for line in lines)
    write_atomically(folder / FileName.EVALUATION_SAMPLES, text)
