"""Whether the probability ratio is 1 where PPO first learns: on the first minibatch of an attempt.

Called by `learning`. No optimizer has stepped since the rollout, so that the log-probabilities that
the update itself computes are the old ones that it holds them against, be these of the training
engine or of sampling. The test of Huang et al., "The 37 Implementation Details of Proximal Policy
Optimization", 2022. Nothing here is done in later minibatches.
"""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_trainer.ppo.experience import Experience
from rlhf_trainer.ppo.models import FIELD
from rlhf_trainer.ppo.self_checks import LOG_RATIO_BOUND, Check, require_passed
from rlhf_trainer.run.distributed import Ranks, reduce_sum

logger = logging.getLogger(__name__)

FIRST_MINIBATCH = Check(
    "first minibatch",
    f"{FIELD}.model",
    "mean |log pi - log pi_old| over the first minibatch, before any step of an optimizer, in nats "
    "a token,",
    LOG_RATIO_BOUND,
    "the update evaluates the actor otherwise than the rollout: name a model without randomness (a "
    "dropout of its own), or try another attentionImplementation or zeroStage, or oldLogprobs: "
    "Recompute",
)


@dataclass
class FirstRatio:
    """Sums |log ratio| over the first minibatch that the actor learns from.

    Attributes:
        passed: whether it was found to be 1, and nothing is summed any more.
    """

    passed: bool = False
    _sum: Tensor | None = None

    def see(self, logprobs: Tensor, micro: Experience) -> None:
        """Take in what the update has computed for a micro-batch; waits for no device.

        Shapes: logprobs Float[batch, response].
        """
        if self.passed:
            return
        change = (logprobs.detach() - micro.old_logprobs).abs()
        total = torch.where(micro.mask, change, 0.0).sum(dtype=torch.float64)
        self._sum = total if self._sum is None else self._sum + total

    def require_one(self, tokens: float, precision: str, ranks: Ranks) -> None:
        """Before the optimizer's step, `tokens` of the minibatch on all ranks; they call together.

        Raises:
            SelfCheckError: on every rank, if the ratio is not 1.
        """
        if self.passed or self._sum is None:
            return
        (total,) = reduce_sum([float(self._sum)], ranks)
        deviation = total / tokens
        require_passed(
            {FIRST_MINIBATCH: deviation if math.isfinite(deviation) else math.inf}, precision
        )
        logger.info("self-check passed: %s %.1e", FIRST_MINIBATCH.name, deviation)
        self.passed, self._sum = True, None
