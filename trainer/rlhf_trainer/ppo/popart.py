"""PopArt: the critic learns returns in units of their own running mean and deviation.

Called by the PPO stage once an update, between rollout and learning. The critic gives n = f + b in
normalised units; a value is V = σ n + μ. When (μ, σ) follow the returns, the last layer is
rewritten so that no value changes. μ and σ are the stage's state; the critic's module holds w and
b. H. van Hasselt et al., "Learning values across many orders of magnitude", 2016.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from torch import Tensor

from rlhf_api.metrics import Metric
from rlhf_trainer.models.engine import TrainedModel
from rlhf_trainer.models.heads import Critic, score_head
from rlhf_trainer.ppo.experience import global_moments
from rlhf_trainer.rl import Moments
from rlhf_trainer.rl.moments import SMALLEST_VARIANCE
from rlhf_trainer.run.distributed import Ranks

BETA = 0.1
"""Share of the newest rollout. Half of the weight lies on the last 7 updates: returns may grow
fivefold in a hundred, and moments over all of them would stay behind by half of that growth. A
rollout has thousands of tokens, so that its own moments carry little noise."""
SMALLEST_SCALE = 1e-2
"""Returns that hardly vary must not blow up the critic's rounding errors: above 1, bf16 weights
lie 1/128 apart."""


@dataclass(frozen=True)
class ReturnScale:
    """Exponentially weighted moments of the returns; before the first, values are as they are.

    Attributes:
        weight: 1 − (1 − β)^updates, which corrects the bias towards the start.
        mean: μ.
        variance: of the returns about μ, not yet bounded.
    """

    weight: float = 0.0
    mean: float = 0.0
    variance: float = 0.0

    @classmethod
    def from_dict(cls, state: Mapping[str, float]) -> "ReturnScale":
        """What `to_dict` gave."""
        return cls(float(state["weight"]), float(state["mean"]), float(state["variance"]))

    def to_dict(self) -> dict[str, float]:
        """`weight`, `mean` and `variance`, for JSON."""
        return asdict(self)

    @property
    def std(self) -> float:
        """σ, at least 0.01; 1 while returns have not varied (variance below 1e-12)."""
        if self.variance < SMALLEST_VARIANCE:
            return 1.0
        return max(math.sqrt(self.variance), SMALLEST_SCALE)

    def updated(self, seen: Moments) -> "ReturnScale":
        """With a rollout's: means of R and R² with weights β (1 − β)^age, over the weights' sum.

        Written as Chan's merge with those weights, since mean(R²) − μ² cancels where returns are
        far from 0. A rollout without tokens changes nothing.
        """
        if seen.count == 0:
            return self
        before = (1 - BETA) * self.weight
        weight = before + BETA
        share = BETA / weight
        delta = seen.mean - self.mean
        variance = (
            (1 - share) * self.variance
            + share * seen.m2 / seen.count
            + share * (1 - share) * delta * delta
        )
        return ReturnScale(weight, self.mean + share * delta, variance)

    def normalized(self, values: Tensor) -> Tensor:
        """(V − μ) / σ. Shapes: Float[...] -> Float[...]."""
        return (values - self.mean) / self.std

    def denormalized(self, numbers: Tensor) -> Tensor:
        """σ n + μ. Shapes: Float[...] -> Float[...]."""
        return self.std * numbers + self.mean

    def metrics(self) -> dict[Metric, float]:
        """What is told of it."""
        return {Metric.VALUE_MEAN: self.mean, Metric.VALUE_SCALE: self.std}


def follow(
    critic: TrainedModel, scale: ReturnScale, returns: Tensor, mask: Tensor, ranks: Ranks
) -> tuple[ReturnScale, Callable[[], None]]:
    """Take in the returns of all ranks' real tokens, and keep the critic's values what they are.

    The second takes back what was done to the critic, on all ranks together.
    """
    new = scale.updated(global_moments(returns, mask, ranks))
    return new, rescale(critic, scale, new)


def rescale(critic: TrainedModel, old: ReturnScale, new: ReturnScale) -> Callable[[], None]:
    """w' = w σ/σ', b' = (σ b + μ − μ') / σ', so that σ' (w' h + b') + μ' = σ (w h + b) + μ.

    Adam's moments stay as they are. A step is their quotient m / √v, from which a common factor
    falls out; what is left is that gradients before and after differ by σ/σ', which is near 1 once
    some updates are averaged. The layers below see their gradients change likewise, and their
    moments could not be corrected by one factor.

    What is returned takes it back to the last bit, on all ranks together.
    """
    module = critic.module
    assert isinstance(module, Critic)
    ratio = old.std / new.std
    # A head with a bias of its own is linear in it as well.
    undo = [
        critic.rewrite(parameter, lambda weight: weight * ratio)
        for parameter in score_head(module.model).parameters()
    ]
    undo.append(
        critic.rewrite(
            module.shift, lambda shift: (old.std * shift + old.mean - new.mean) / new.std
        )
    )

    def undo_all() -> None:
        for each in undo:
            each()

    return undo_all
