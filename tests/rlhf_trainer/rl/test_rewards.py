"""Where the score and the KL penalty land."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_trainer.rl.masking import response_mask
from rlhf_trainer.rl.rewards import clip_scores, penalise_missing_eos, token_rewards

assert_close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
NAN = float("nan")


def f64(*rows: object) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_token_rewards_by_hand() -> None:
    # β = 0.1. Row 0 has two actions: −0.1·1, −0.1·2 + 5. Row 1 fills the width, a negative KL pays.
    kl = f64([1.0, 2.0, NAN], [3.0, -4.0, 6.0])
    rewards = token_rewards(f64(5.0, -7.0), kl, torch.tensor([2, 3]), 0.1)
    assert_close(rewards, f64([-0.1, 4.8, 0.0], [-0.3, 0.4, -7.6]))


@given(
    st.integers(1, 5).flatmap(
        lambda batch: st.tuples(
            st.lists(st.integers(1, 6), min_size=batch, max_size=batch),
            st.lists(st.floats(-9, 9), min_size=batch, max_size=batch),
        )
    ),
    st.floats(0, 2),
    st.integers(0, 1_000),
)
@settings(derandomize=True)
def test_token_rewards_equal_a_loop_and_the_identity(
    rows: tuple[list[int], list[float]], kl_coef: float, seed: int
) -> None:
    lengths, scores = rows
    kl = torch.randn(
        len(lengths), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    rewards = token_rewards(f64(*scores), kl, torch.tensor(lengths), kl_coef)
    loop = torch.zeros_like(kl)
    placed = torch.zeros_like(kl)
    for b, length in enumerate(lengths):
        placed[b, length - 1] = scores[b]
        for t in range(length):
            loop[b, t] = -kl_coef * kl[b, t] + (scores[b] if t == length - 1 else 0.0)
    assert_close(rewards, loop)
    penalty = torch.where(response_mask(torch.tensor(lengths), 6), -kl_coef * kl, 0.0)
    assert_close(rewards - placed, penalty)


def test_rewards_of_a_response_sum_to_its_score_less_its_kl() -> None:
    # 2 − 0.5 · (1 + 1 + 1) = 0.5, whatever the padding behind it.
    for width in (3, 4, 9):
        kl = torch.full((1, width), 1.0, dtype=torch.float64)
        assert token_rewards(f64(2.0), kl, torch.tensor([3]), 0.5).sum().item() == 0.5


@pytest.mark.parametrize("length", [0, 4])
def test_token_rewards_refuse_lengths(length: int) -> None:
    with pytest.raises(ValueError, match="length"):
        token_rewards(torch.zeros(1), torch.zeros(1, 3), torch.tensor([length]), 0.1)


def test_token_rewards_refuse_batches_of_other_size() -> None:
    with pytest.raises(ValueError, match="response_lengths has shape"):
        token_rewards(torch.zeros(2), torch.zeros(2, 3), torch.tensor([1]), 0.1)
    with pytest.raises(ValueError, match=r"kl \[1, 3\]"):
        token_rewards(torch.zeros(2), torch.zeros(1, 3), torch.tensor([1, 1]), 0.1)


def test_clip_scores_by_hand() -> None:
    assert clip_scores(f64(-7.0, -2.0, 0.0, 5.0, 5.5), 5.0).tolist() == [-5.0, -2.0, 0.0, 5.0, 5.0]
    with pytest.raises(ValueError, match="limit is 0"):
        clip_scores(torch.zeros(1), 0.0)


def test_missing_eos_costs_the_penalty_and_eos_costs_nothing() -> None:
    ended = torch.tensor([True, False])
    assert penalise_missing_eos(f64(3.0, 3.0), ended, 1.5).tolist() == [3.0, 1.5]
    assert penalise_missing_eos(f64(-3.0, -3.0), ended, 0.0).tolist() == [-3.0, -3.0]


def test_the_penalty_may_stand_in_for_a_score() -> None:
    ended = torch.tensor([True, False, False])
    found = penalise_missing_eos(f64(3.0, 3.0, -9.0), ended, 1.5, replaces=True)
    assert found.tolist() == [3.0, -1.5, -1.5]


def test_penalise_missing_eos_refuses() -> None:
    with pytest.raises(ValueError, match="penalty is -1"):
        penalise_missing_eos(torch.zeros(1), torch.tensor([True]), -1.0)
    with pytest.raises(ValueError, match=r"must be torch\.bool"):
        penalise_missing_eos(torch.zeros(1), torch.tensor([1]), 1.0)
    with pytest.raises(ValueError, match="ended has shape"):
        penalise_missing_eos(torch.zeros(2), torch.tensor([True]), 1.0)
