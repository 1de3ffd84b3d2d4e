"""Judging a policy: every prompt once, the same answers for the same seed, figures by hand."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import worlds

from rlhf_trainer.data.tokenize.tokenized import Prompt
from rlhf_trainer.ppo.evaluation import (
    Answer,
    answers_of,
    evaluation_document,
    figures,
    samples_of,
    write_samples,
)
from rlhf_trainer.ppo.experience import Experience
from rlhf_trainer.ppo.rollout import Rollout

PROGRAM = Path(__file__).parents[1] / "programs_engine" / "rollout_cases.py"
cases: Any = worlds.load(PROGRAM)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("prompts", [1, 7])
def test_every_prompt_is_answered_once(tmp_path: Path, world_size: int, prompts: int) -> None:
    tiny.tokenizer_folder(tmp_path / "tokenizer")
    if world_size == 1:
        found = [cases.evaluation(tiny.ALONE, tmp_path, prompts)]
    else:
        found = worlds.pair()(PROGRAM, "evaluation", folder=tmp_path, prompts=prompts)

    share = -(-prompts // world_size)
    for rank, told in enumerate(found):
        # Equal work: with an odd number the last rank repeats a prompt and nobody counts it.
        assert len(told["asked"]) == share
        mine = list(range(rank, prompts, world_size))
        assert [row[0] - 3 for row in told["asked"]] == [*mine, 0][:share]
        answers = told["answers"]
        assert [answer.row for answer in answers] == list(range(prompts))
        assert answers == found[0]["answers"]
        assert told["untouched"], "training would go on with other random numbers"
        assert told["again"], "the same seed gives other answers"
        assert told["other"]
    if prompts > 1:
        assert len({answer.tokens for answer in found[0]["answers"]}) > 1


def test_answers_leave_out_the_token_that_ended_them() -> None:
    tokenizer = tiny.tokenizer("abc")  # ids from 3
    rollout = Rollout(
        prompts=torch.tensor([[3], [3], [3]]),
        prompt_lengths=torch.tensor([1, 1, 1]),
        responses=torch.tensor([[3, 4, 1, 0], [5, 5, 5, 5], [3, 0, 4, 1]]),
        response_lengths=torch.tensor([3, 4, 4]),
        ended=torch.tensor([True, False, True]),
        sampled_logprobs=torch.zeros(3, 4),
    )
    old = torch.tensor([[1.0, 2.0, 3.0, 9.0], [0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
    experience = Experience(
        rollout, old, torch.zeros(3, 4), torch.zeros(3, 4), torch.tensor([1.5, -2.0, 0.0])
    )
    assert answers_of(experience, [4, 2, 9], tokenizer) == [
        Answer(4, (3, 4), "ab", 1.5, 6.0, True),
        Answer(2, (5, 5, 5, 5), "cccc", -2.0, 2.0, False),
        Answer(9, (3, 0, 4), "ab", 0.0, 0.0, True),
    ]


ANSWERS = [
    Answer(0, (3, 4, 3, 4), "abab", 1.0, 2.0, True),
    Answer(1, (3, 4), "ab", 4.0, 4.0, False),
    Answer(2, (), "", -2.0, 0.0, True),
]


def test_figures_by_hand() -> None:
    found = figures(ANSWERS)
    assert found == pytest.approx(
        {
            "score": 1.0,
            "scoreStd": 3.0,
            "kl": 2.0,
            "eosRate": 2 / 3,
            "meanLength": 2.0,
            # Bigrams ab, ba, ab and ab: two of four are different ones.
            "distinct2": 0.5,
        }
    )
    assert figures(ANSWERS[:1])["scoreStd"] == 0.0


REWARDED = [
    replace(ANSWERS[0], rewards={"a": 1.0, "b": 0.0}),
    replace(ANSWERS[1], rewards={"a": 0.5, "b": 3.0}),
]


def test_rewards_that_are_named_are_told(tmp_path: Path) -> None:
    found = evaluation_document(REWARDED)
    assert found.pop("rewards") == {"a": 0.75, "b": 1.5}
    assert found == evaluation_document(ANSWERS[:2]) == figures(ANSWERS[:2])
    prompt = Prompt(np.array([3]), "a")
    write_samples(tmp_path, [prompt], REWARDED[:1], REWARDED[1:])
    (path,) = tmp_path.iterdir()
    (row,) = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert row["rewardsBefore"] == {"a": 1.0, "b": 0.0}
    assert row["rewardsAfter"] == {"a": 0.5, "b": 3.0}
    assert [sample.rewards for sample in samples_of([prompt] * 2, REWARDED)] == [
        {"a": 1.0, "b": 0.0},
        {"a": 0.5, "b": 3.0},
    ]


def test_samples_stand_side_by_side(tmp_path: Path) -> None:
    prompts = [Prompt(np.array([3]), "词"), Prompt(np.array([4]), "b\n")]
    write_samples(tmp_path, prompts, ANSWERS[:2], ANSWERS[1:])
    (path,) = tmp_path.iterdir()
    lines = path.read_text(encoding="utf-8").splitlines()
    assert "词" in lines[0]
    assert [json.loads(line) for line in lines] == [
        {
            "prompt": "词",
            "responseBefore": "abab",
            "responseAfter": "ab",
            "scoreBefore": 1.0,
            "scoreAfter": 4.0,
        },
        {
            "prompt": "b\n",
            "responseBefore": "ab",
            "responseAfter": "",
            "scoreBefore": 4.0,
            "scoreAfter": -2.0,
        },
    ]
