"""Learning-rate schedules as pure functions of the step.

Called by the stages before each optimizer step. A resumed run needs nothing but its step to go on.
"""

import math
from fractions import Fraction
from typing import Literal

Schedule = Literal["Constant", "Linear", "Cosine"]


def warmup_steps(total: int, ratio: float) -> int:
    """⌈total · ratio⌉, of the ratio as it was written: 7 % of 100 steps are 7, though 100 · 0.07 in
    binary floating point lies above 7.

    Raises ValueError when total is negative or ratio is outside [0, 1].
    """
    if total < 0 or not 0 <= ratio <= 1:
        raise ValueError(f"total is {total} and ratio {ratio}: want total >= 0, ratio in [0, 1]")
    return math.ceil(total * Fraction(str(ratio)))


def learning_rate_factor(
    step: int, total_steps: int, warmup_steps: int, schedule: Schedule, floor: float = 0.0
) -> float:
    """What the learning rate is multiplied by at optimizer step 0, 1, …, total_steps − 1.

    Warm-up: (step + 1) / warmup_steps, so that no step is spent on a rate of 0. After it, with
    p = (step − warmup_steps) / (total_steps − warmup_steps), floor + (1 − floor) · d with
    d = 1 (Constant), 1 − p (Linear) or (1 + cos πp) / 2 (Cosine). From total_steps on the floor
    holds, except where constant. Cosine: I. Loshchilov, F. Hutter, "SGDR", 2016, eq. 5.

    Raises ValueError when step is negative, warmup_steps is outside [0, total_steps], floor is
    outside [0, 1] or the schedule has another name.
    """
    if schedule not in ("Constant", "Linear", "Cosine"):
        raise ValueError(f"schedule is {schedule!r}: it must be Constant, Linear or Cosine")
    if step < 0 or not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"step is {step}, warmup_steps {warmup_steps}, total_steps {total_steps}: "
            "want step >= 0 and 0 <= warmup_steps <= total_steps"
        )
    if not 0 <= floor <= 1:
        raise ValueError(f"floor is {floor}: it must be in [0, 1]")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "Constant":
        return 1.0
    rest = max(1, total_steps - warmup_steps)
    progress = min(1.0, (step - warmup_steps) / rest)
    decay = 1 - progress if schedule == "Linear" else (1 + math.cos(math.pi * progress)) / 2
    return floor + (1 - floor) * decay
