"""Mean and variance that can be merged over ranks, minibatches and updates.

Called by PPO for the running deviation of the scores (kept in checkpoints) and for whitening over
all ranks: each rank takes the moments of its part, the caller gathers them and merges them in rank
order, so that every rank holds the same floats. State is plain Python floats, which JSON repeats
to the last bit.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from rlhf_trainer.rl._inputs import require_mask

SMALLEST_VARIANCE = 1e-12
SCALE_EPSILON = 1e-8


@dataclass(frozen=True)
class Moments:
    """Count, mean and M2 = Σ (x − mean)² of the values seen; of none by default.

    Raises ValueError when count or m2 is negative, FloatingPointError when a number is not finite:
    one NaN would stay in the running moments for good.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and math.isfinite(self.m2)):
            raise FloatingPointError(f"moments are not finite: {self}")
        if self.count < 0 or self.m2 < 0:
            raise ValueError(f"moments have a negative count or m2: {self}")

    @classmethod
    def from_values(cls, values: Tensor) -> "Moments":
        """Moments of all the values, in two passes and in fp64; no gradient.

        Shapes: values Float[...].
        Raises FloatingPointError when a value is not finite.
        """
        if values.numel() == 0:
            return cls()
        x = values.detach().double()
        mean = x.mean()
        mean_of_all, m2 = torch.stack([mean, (x - mean).square().sum()]).tolist()
        return cls(values.numel(), mean_of_all, m2)

    @classmethod
    def from_dict(cls, state: Mapping[str, float]) -> "Moments":
        """What `to_dict` gave. Raises KeyError when a name is missing, else as `Moments` does."""
        return cls(int(state["count"]), float(state["mean"]), float(state["m2"]))

    def to_dict(self) -> dict[str, float]:
        """`count`, `mean` and `m2`, for JSON."""
        return asdict(self)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets of values: with δ = mean_b − mean_a and n = n_a + n_b,

        mean = mean_a + δ n_b / n, M2 = M2_a + M2_b + δ² n_a n_b / n.
        T. Chan, G. Golub, R. LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
        Sample Variances", 1979.
        """
        if self.count == 0 or other.count == 0:
            return self if other.count == 0 else other
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * other.count / count
        m2 = self.m2 + other.m2 + delta * delta * self.count * other.count / count
        return Moments(count, mean, m2)

    @property
    def variance(self) -> float:
        """Unbiased, M2 / (n − 1); 0 where fewer than two values were seen."""
        return self.m2 / (self.count - 1) if self.count > 1 else 0.0

    @property
    def std(self) -> float:
        """√variance to divide by: 1 until two values were seen and while variance is below 1e-12.

        Scores that are all the same would otherwise be blown up by the first rounding error.
        """
        return math.sqrt(self.variance) if self.variance >= SMALLEST_VARIANCE else 1.0


def masked_moments(x: Tensor, mask: Tensor) -> Moments:
    """Moments of the values that the mask selects; of none where it selects none.

    Shapes: x Float[...], mask Bool[...].
    Raises ValueError when the shapes differ or the mask is not boolean, FloatingPointError when a
    selected value is not finite.
    """
    require_mask(mask, x=x)
    return Moments.from_values(x[mask])


def running_scale(moments: Moments) -> float:
    """σ + 1e-8, to divide rewards by; no mean is subtracted, so that a reward keeps its sign.

    The moments have seen these rewards already. As in trlX (`reward_scaling: running`); after
    L. Engstrom et al., "Implementation Matters in Deep Policy Gradients", 2020.
    """
    return moments.std + SCALE_EPSILON


def explained_variance(residuals: Moments, returns: Moments) -> float:
    """1 − Var(returns − values) / Var(returns): 1 is perfect, 0 as good as a constant, below worse.

    NaN where the returns do not vary. Takes moments, so that the caller merges those of all ranks
    first: a mean of the ranks' shares would be another number.
    """
    return 1 - residuals.variance / returns.variance if returns.variance > 0 else math.nan
