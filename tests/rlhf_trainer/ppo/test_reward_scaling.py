"""Scores of a rollout on their way to rewards: clipped, penalised, scaled."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_trainer.models.score_statistics import ScoreStatistics
from rlhf_trainer.ppo.experience import Experience, shaped_scores, targets_of
from rlhf_trainer.ppo.rollout import Rollout
from rlhf_trainer.rl import Moments

PROGRAM = Path(__file__).parents[1] / "programs_engine" / "rollout_cases.py"
cases: Any = worlds.load(PROGRAM)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("scaling")
    tiny.tokenizer_folder(found / "tokenizer")
    return found


def ppo_spec(folder: Path, **changed: Any) -> Any:
    return tiny.stage_spec("ppo", folder, **changed)


def scored(scores: list[float], ended: list[bool]) -> Experience:
    rows = len(scores)
    numbers = torch.zeros(rows, 2)
    rollout = Rollout(
        torch.full((rows, 1), 3),
        torch.ones(rows, dtype=torch.long),
        torch.full((rows, 2), 4),
        torch.full((rows,), 2),
        torch.tensor(ended),
        numbers,
    )
    return Experience(rollout, numbers, numbers, numbers, torch.tensor(scores))


def test_scores_are_clipped_then_penalised_then_scaled(folder: Path) -> None:
    spec = ppo_spec(folder, score_clip=2.0, missing_eos_penalty=1.0, reward_scaling="RunningStd")
    found = scored([5.0, -7.0, 1.0, 2.5], [True, True, True, False])
    # Clipped 2, -2, 1, 2; penalised 2, -2, 1, 1; mean 0.5, squares 2.25 + 6.25 + 0.25 + 0.25.
    std = (9.0 / 3) ** 0.5
    scores, _, moments, _ = shaped_scores(found, spec, 0.1, Moments(), tiny.ALONE)
    assert scores.tolist() == pytest.approx([2 / std, -2 / std, 1 / std, 1 / std])
    assert (moments.count, moments.mean, moments.m2) == pytest.approx((4, 0.5, 9.0))

    # The next rollout is scaled by all scores so far, its own among them; the mean stays in.
    more = scored([1.0, 1.0], [True, True])
    everything = torch.tensor([2.0, -2, 1, 1, 1, 1], dtype=torch.float64)
    scores, _, moments, scale = shaped_scores(more, spec, 0.1, moments, tiny.ALONE)
    assert scale == pytest.approx(float(everything.std()))
    assert moments.count == 6
    assert scores.tolist() == pytest.approx([1 / float(everything.std())] * 2, rel=1e-6)


@pytest.mark.parametrize("scaling", ["RunningStd", "RunningStdTotal"])
@pytest.mark.parametrize("scores", [[3.0], [3.0, 3.0, 3.0]])
def test_sigma_is_1_until_scores_differ(folder: Path, scores: list[float], scaling: str) -> None:
    spec = ppo_spec(folder, reward_scaling=scaling)
    found = scored(scores, [True] * len(scores))
    shaped = shaped_scores(found, spec, 0.1, Moments(), tiny.ALONE)
    assert shaped.scores.tolist() == pytest.approx(scores)
    assert shaped.kl_coef == pytest.approx(0.1)


def test_without_scaling_moments_are_left_alone(folder: Path) -> None:
    spec = ppo_spec(folder, score_clip=2.0, reward_scaling="None")
    found = scored([5.0, -1.0], [True, False])
    shaped = shaped_scores(found, spec, 0.1, Moments(3, 1.0, 2.0), tiny.ALONE)
    assert shaped.scores.tolist() == [2.0, -1.0]
    assert shaped[1:] == (0.1, Moments(3, 1.0, 2.0), 1.0)


def test_what_ends_by_itself_is_not_penalised(folder: Path) -> None:
    spec = ppo_spec(folder, missing_eos_penalty=0.75, reward_scaling="None")
    found = scored([1.0, 1.0], [True, False])
    shaped = shaped_scores(found, spec, 0.1, Moments(), tiny.ALONE)
    assert shaped.scores.tolist() == [1.0, 0.25]


@pytest.mark.field("PPOStage.truncated_answers")
def test_what_was_cut_off_may_count_the_penalty_alone(folder: Path) -> None:
    spec = ppo_spec(
        folder, missing_eos_penalty=0.75, truncated_answers="Penalty", reward_scaling="None"
    )
    found = scored([1.0, 5.0, -5.0], [True, False, False])
    shaped = shaped_scores(found, spec, 0.1, Moments(), tiny.ALONE)
    assert shaped.scores.tolist() == [1.0, -0.75, -0.75]


def test_a_models_own_moments_are_taken_off_before_the_clip(folder: Path) -> None:
    spec = ppo_spec(folder, score_clip=2.0, missing_eos_penalty=1.0, reward_scaling="ModelStats")
    found = scored([16.0, 7.0, -100.0, 11.0], [True, True, True, False])
    statistics = ScoreStatistics(mean=10.0, std=2.0, count=8)
    shaped = shaped_scores(found, spec, 0.1, Moments(), tiny.ALONE, statistics)
    # (16 - 10) / 2 = 3, clipped 2; -1.5; -55, clipped -2; 0.5, penalised -0.5.
    assert shaped.scores.tolist() == [2.0, -1.5, -2.0, -0.5]
    assert shaped[1:] == (0.1, Moments(), 2.0)


def test_whole_rewards_are_scaled_by_hand(folder: Path) -> None:
    """Three responses of two tokens, kl_t = 1 for each token of the first, 0 elsewhere."""
    spec = ppo_spec(folder, score_clip=2.0, reward_scaling="RunningStdTotal")
    found = scored([5.0, -1.0, 0.0], [True] * 3)
    found = replace(found, old_logprobs=torch.tensor([[1.0, 1.0], [0, 0], [0, 0]]))
    shaped = shaped_scores(found, spec, 0.5, Moments(), tiny.ALONE)
    # G: 2 - 0.5 * 2 = 1, -1, 0: mean 0, squares 1 + 1, variance 2 / 2.
    assert (shaped.moments.count, shaped.moments.mean, shaped.moments.m2) == (3, 0.0, 2.0)
    assert shaped.scale == 1.0
    # A second rollout of one response that earns 4 - clipped to 2 - without any KL.
    alone = scored([4.0], [True])
    second = shaped_scores(alone, spec, 0.5, shaped.moments, tiny.ALONE)
    # G: 1, -1, 0, 2: mean 0.5, squares 0.25 + 2.25 + 0.25 + 2.25, variance 5 / 3.
    std = (5 / 3) ** 0.5
    assert second.scale == pytest.approx(std)
    rewards = targets_of(alone, second.scores, spec, second.kl_coef).rewards
    assert rewards[0].tolist() == pytest.approx([0.0, 2 / std])


@given(
    unit=st.floats(0.1, 100.0),
    # A product below fp32's smallest number is 0 and has no sign.
    kl_coef=st.just(0.0) | st.floats(1e-6, 2.0),
    seed=st.integers(0, 50),
    estimator=st.sampled_from(["K1", "K2", "K3"]),
)
@settings(derandomize=True, max_examples=40)
def test_scaling_the_whole_keeps_the_weight_of_the_kl(
    folder: Path, unit: float, kl_coef: float, seed: int, estimator: str
) -> None:
    """Token rewards are those without scaling over one sigma, that of the responses' sums."""
    plain = ppo_spec(folder, kl_estimator=estimator, score_clip=1e5, reward_scaling="None")
    scaled = ppo_spec(
        folder, kl_estimator=estimator, score_clip=1e5, reward_scaling="RunningStdTotal"
    )
    found = cases.experience(seed=seed)
    found = replace(found, scores=unit * found.scores)

    def rewards(spec: Any) -> tuple[Tensor, float]:
        shaped = shaped_scores(found, spec, kl_coef, Moments(), tiny.ALONE)
        targets = targets_of(found, shaped.scores, spec, shaped.kl_coef)
        return targets.rewards.double(), shaped.scale

    whole, _ = rewards(plain)
    found_rewards, scale = rewards(scaled)
    assert scale == pytest.approx(float(whole.sum(dim=1).std()), rel=1e-4)
    torch.testing.assert_close(found_rewards * scale, whole, rtol=1e-4, atol=1e-4 * unit)
    assert torch.equal(found_rewards.sign(), whole.sign())
