"""The PPO stage's own part of a checkpoint.

Held by the PPO stage; `TrainingLoop` writes it and gives it back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_trainer.ppo.health import Health
from rlhf_trainer.ppo.popart import ReturnScale
from rlhf_trainer.rl import Moments


@dataclass
class State:
    """What PPO carries from update to update beside weights."""

    kl_coef: float
    score_moments: Moments
    """Of the scores, or of the whole rewards of responses, as `rewardScaling` says."""
    returns: ReturnScale
    """What the critic's values are in units of."""
    health: Health
    """What was seen so far that verdicts rest on."""
    sampled_logprobs: bool | None = None
    """Whether log-probabilities of sampling serve as old ones; None until that was measured."""

    def to_document(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "klCoef": self.kl_coef,
            "scoreMoments": self.score_moments.to_dict(),
            "returns": self.returns.to_dict(),
            "health": self.health.to_document(),
            "sampledLogprobs": self.sampled_logprobs,
        }

    def load(self, document: Mapping[str, Any]) -> None:
        """Take over what a checkpoint kept."""
        if document:
            self.kl_coef = document["klCoef"]
            self.score_moments = Moments.from_dict(document["scoreMoments"])
            self.returns = ReturnScale.from_dict(document["returns"])
            self.health.load(document["health"])
            # A run goes on as it began, whatever is measured now.
            self.sampled_logprobs = document.get("sampledLogprobs", False)
