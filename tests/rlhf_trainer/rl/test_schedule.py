"""Learning-rate factors, step by step."""

import math

import pytest

from rlhf_trainer.rl.schedule import Schedule, learning_rate_factor, warmup_steps


@pytest.mark.parametrize(
    ("schedule", "floor", "expected"),
    [
        # Two steps of warm-up, then four: p = 0, 1/4, 1/2, 3/4, and 1 from step 6 on.
        ("Constant", 0.0, [0.5, 1, 1, 1, 1, 1, 1, 1]),
        ("Linear", 0.0, [0.5, 1, 1, 0.75, 0.5, 0.25, 0, 0]),
        # 0.2 + 0.8 · (1 − p)
        ("Linear", 0.2, [0.5, 1, 1, 0.8, 0.6, 0.4, 0.2, 0.2]),
        # (1 + cos πp) / 2 with cos 45° = 0.70710678: 0.85355339 and 0.14644661
        ("Cosine", 0.0, [0.5, 1, 1, 0.85355339, 0.5, 0.14644661, 0, 0]),
        # 0.5 + 0.5 · the row above
        ("Cosine", 0.5, [0.5, 1, 1, 0.92677670, 0.75, 0.57322330, 0.5, 0.5]),
    ],
)
def test_factors_by_hand(schedule: Schedule, floor: float, expected: list[float]) -> None:
    factors = [learning_rate_factor(step, 6, 2, schedule, floor) for step in range(8)]
    assert factors == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("schedule", ["Constant", "Linear", "Cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 7, 30])
def test_factors_rise_then_never_rise_again(schedule: Schedule, warmup: int) -> None:
    factors = [learning_rate_factor(step, 30, warmup, schedule) for step in range(30)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert max(factors) == 1.0


def test_linear_and_cosine_meet_at_half_way_and_mirror() -> None:
    for step in range(21):
        mirrored = learning_rate_factor(20 - step, 20, 0, "Cosine")
        assert learning_rate_factor(step, 20, 0, "Cosine") + mirrored == pytest.approx(1.0)
        line = learning_rate_factor(step, 20, 0, "Linear")
        assert math.cos(math.pi * (1 - line)) / 2 + 0.5 == pytest.approx(
            learning_rate_factor(step, 20, 0, "Cosine"), abs=1e-12
        )


@pytest.mark.parametrize(
    ("total", "ratio", "steps"),
    [(100, 0.0, 0), (100, 0.07, 7), (100, 0.29, 29), (10, 0.01, 1), (7, 0.5, 4), (5, 1.0, 5),
     (0, 0.5, 0)],
)  # fmt: skip
def test_warmup_steps_by_hand(total: int, ratio: float, steps: int) -> None:
    assert warmup_steps(total, ratio) == steps


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'Polynomial'.*Constant, Linear or Cosine"):
        learning_rate_factor(0, 1, 0, "Polynomial")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="step is -1"):
        learning_rate_factor(-1, 1, 0, "Linear")
    with pytest.raises(ValueError, match="warmup_steps 2, total_steps 1"):
        learning_rate_factor(0, 1, 2, "Linear")
    with pytest.raises(ValueError, match=r"floor is 1\.5"):
        learning_rate_factor(0, 1, 0, "Linear", 1.5)
    with pytest.raises(ValueError, match=r"ratio 1\.1"):
        warmup_steps(10, 1.1)
    with pytest.raises(ValueError, match="total is -1"):
        warmup_steps(-1, 0.1)
