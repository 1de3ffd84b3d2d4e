"""The three estimators of KL, and the controller of its coefficient."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_trainer.rl.kl import adapted_kl_coef, token_kl

assert_close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


def log(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_estimators_by_hand() -> None:
    # π(a) = 0.5 and 0.25, π_ref(a) = 0.25 and 0.5, so k1 = ln 2 and −ln 2, with ln 2 = 0.693147...
    # k2 = 0.480453.../2 = 0.240227... both times.
    # k3 = 1/2 − 1 + 0.693147 = 0.193147 and 2 − 1 − 0.693147 = 0.306853.
    actor, reference = log(0.5, 0.25), log(0.25, 0.5)
    k1 = torch.tensor([[0.6931471805599453, -0.6931471805599453]], dtype=torch.float64)
    k2 = torch.tensor([[0.2402265069591007, 0.2402265069591007]], dtype=torch.float64)
    k3 = torch.tensor([[0.1931471805599453, 0.3068528194400547]], dtype=torch.float64)
    assert_close(token_kl(actor, reference, "K1"), k1)
    assert_close(token_kl(actor, reference, "K2"), k2)
    assert_close(token_kl(actor, reference, "K3"), k3)


@given(st.lists(st.tuples(st.floats(-15, 0), st.floats(-15, 0)), min_size=1, max_size=8))
@settings(derandomize=True)
def test_estimators_equal_a_loop(pairs: list[tuple[float, float]]) -> None:
    actor = torch.tensor([[a for a, _ in pairs]], dtype=torch.float64)
    reference = torch.tensor([[r for _, r in pairs]], dtype=torch.float64)
    for name, formula in (
        ("K1", lambda a, r: a - r),
        ("K2", lambda a, r: 0.5 * (a - r) ** 2),
        ("K3", lambda a, r: math.exp(r - a) - 1 - (r - a)),
    ):
        loop = torch.tensor([[formula(a, r) for a, r in pairs]], dtype=torch.float64)
        assert_close(token_kl(actor, reference, name), loop)


@pytest.mark.parametrize("estimator", ["K1", "K3"])
def test_k1_and_k3_are_unbiased(estimator: str) -> None:
    # Under π the estimators have the mean KL(π ‖ π_ref) = Σ π (log π − log π_ref), exactly, since
    # every token of a vocabulary of four is enumerated and weighed by its probability.
    actor, reference = log(0.1, 0.2, 0.3, 0.4), log(0.4, 0.3, 0.2, 0.1)
    # 0.1 ln(1/4) + 0.2 ln(2/3) + 0.3 ln(3/2) + 0.4 ln 4 = 0.3 ln 4 + 0.1 ln 1.5
    exact = torch.tensor(0.3 * math.log(4) + 0.1 * math.log(1.5), dtype=torch.float64)
    assert_close((actor.exp() * token_kl(actor, reference, estimator)).sum(), exact)


@given(st.floats(-200, 200))
@settings(derandomize=True)
def test_k3_is_never_negative_and_always_finite(log_ratio: float) -> None:
    k3 = token_kl(torch.tensor([[log_ratio]]), torch.zeros(1, 1), "K3")
    assert k3.item() >= 0
    assert math.isfinite(k3.item())


def test_k3_keeps_its_digits_near_zero() -> None:
    # For small k1, k3 = k1²/2 − k1³/6 + …; taking 1 off an exponential in fp32 would give 0.
    assert token_kl(
        torch.full((1, 1), 1e-5, dtype=torch.float64), torch.zeros(1, 1), "K3"
    ).item() == pytest.approx(0.5e-10, rel=1e-5)


def test_equal_models_are_at_distance_zero() -> None:
    logprobs = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    for estimator in ("K1", "K2", "K3"):
        assert torch.equal(token_kl(logprobs, logprobs, estimator), torch.zeros(2, 3))


def test_result_is_fp32_for_bf16() -> None:
    half = torch.zeros(1, 2, dtype=torch.bfloat16)
    assert token_kl(half, half, "K1").dtype == torch.float32


def test_unknown_estimator_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'k4'.*K1, K2 or K3"):
        token_kl(torch.zeros(1, 1), torch.zeros(1, 1), "k4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ref_logprobs has shape"):
        token_kl(torch.zeros(2, 1), torch.zeros(1, 1), "K1")


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        # target 6, horizon 10000, 500 samples: samples / horizon = 0.05
        (6.0, 0.1),  # on target: unchanged
        (6.6, 0.1005),  # error 0.1: 0.1 · (1 + 0.1 · 0.05)
        (5.4, 0.0995),  # error −0.1
        (60.0, 0.101),  # error 9, clipped to 0.2: 0.1 · 1.01
        (-3.0, 0.099),  # error −1.5, clipped to −0.2
    ],
)
def test_adapted_kl_coef_by_hand(kl: float, expected: float) -> None:
    assert adapted_kl_coef(0.1, kl, 6.0, 10_000, 500) == pytest.approx(expected, rel=1e-12)


def test_adapted_kl_coef_drives_a_response_to_its_target() -> None:
    # A policy whose KL answers kl = 1 / coef settles at the target, from above and from below.
    for kl_coef in (0.01, 10.0):
        for _ in range(2_000):
            kl_coef = adapted_kl_coef(kl_coef, 1 / kl_coef, 5.0, 1_000, 100)
        assert 1 / kl_coef == pytest.approx(5.0, rel=1e-6)


@pytest.mark.parametrize(
    ("target", "horizon", "samples", "named"),
    [(0.0, 10.0, 1, "target"), (6.0, 0.0, 1, "horizon"), (6.0, -1.0, 1, "horizon"),
     (6.0, 10.0, 0, "samples"), (6.0, 10.0, 50, "5 \\* horizon")],
)  # fmt: skip
def test_adapted_kl_coef_refuses(target: float, horizon: float, samples: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        adapted_kl_coef(0.1, 1.0, target, horizon, samples)


def test_adapted_kl_coef_stays_positive_up_to_its_limit() -> None:
    assert adapted_kl_coef(0.1, 0.0, 6.0, 10, 49) == pytest.approx(0.002)


@pytest.mark.parametrize("kl", [float("nan"), float("inf")])
def test_adapted_kl_coef_does_not_follow_nan(kl: float) -> None:
    with pytest.raises(FloatingPointError, match="kl is"):
        adapted_kl_coef(0.1, kl, 6.0, 10_000, 500)
