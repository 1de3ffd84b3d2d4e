"""Whether the probability ratio is 1 where PPO first learns: on the first minibatch of an attempt.

Called by `learning`. No optimizer has stepped since the rollout, so that the log-probabilities that
the update itself computes are those that the training engine had for the rollout, and the old ones
that it holds them against, where these are of sampling. The test of Huang et al., "The 37
Implementation Details of Proximal Policy Optimization", 2022. Nothing here is done in later
minibatches.
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
    "dropout of its own), or try another attentionImplementation or zeroStage",
)


@dataclass
class FirstRatio:
    """Sums |log ratio| over the first minibatch that the actor learns from.

    Attributes:
        passed: whether it was found to be 1, and nothing is summed any more.
    """

    passed: bool = False
    _sums: Tensor | None = None

    def see(self, logprobs: Tensor, micro: Experience) -> None:
        """Take in what the update has computed for a micro-batch; waits for no device.

        Shapes: logprobs Float[batch, response].
        """
        if self.passed:
            return
        old = micro.old_logprobs
        engines = old if micro.recomputed is None else micro.recomputed
        changes = torch.stack([old, engines]).sub_(logprobs.detach()).abs_()
        sums = torch.where(micro.mask, changes, 0.0).sum(dim=(1, 2), dtype=torch.float64)
        self._sums = sums if self._sums is None else self._sums + sums

    def require_one(self, tokens: float, precision: str, ranks: Ranks) -> bool:
        """Before the optimizer's step, `tokens` of the minibatch on all ranks; they call together.

        Returns:
            Whether it is 1 by the old log-probabilities that the update learns from. It may be 1 by
            those of the training engine alone, where these are of sampling and round otherwise.

        Raises:
            SelfCheckError: on every rank, if the ratio is not 1 by those of the training engine.
        """
        if self.passed or self._sums is None:
            return True
        by_old, by_engine = (total / tokens for total in reduce_sum(self._sums.tolist(), ranks))
        require_passed(
            {FIRST_MINIBATCH: by_engine if math.isfinite(by_engine) else math.inf}, precision
        )
        logger.info("self-check passed: %s %.1e", FIRST_MINIBATCH.name, by_engine)
        self.passed, self._sums = True, None
        if by_old < LOG_RATIO_BOUND[precision]:
            return True
        logger.warning(
            "%s.model: by log-probabilities of sampling the first ratio is %.1e nats a token from "
            "1, and by those of training %.1e; from now on old ones are computed anew",
            FIELD,
            by_old,
            by_engine,
        )
        return False
