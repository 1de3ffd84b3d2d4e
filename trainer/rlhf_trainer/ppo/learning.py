"""The fifth step of an update of PPO: passes over the experience in minibatches.

Called by the PPO stage. What a minibatch adds up to does not depend on ranks and micro-batches:
losses are sums over its tokens on all ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from rlhf_api.metrics import Metric
from rlhf_api.v1alpha1 import PPOStage
from rlhf_trainer.data.budget import token_budget
from rlhf_trainer.data.packing import RowLayout
from rlhf_trainer.models.engine import TrainedModel
from rlhf_trainer.ppo.actor_steps import ActorSteps
from rlhf_trainer.ppo.experience import (
    Experience,
    Targets,
    minibatches,
    normalized,
    response_statistics,
    response_values,
)
from rlhf_trainer.ppo.first_ratio import FirstRatio
from rlhf_trainer.ppo.metrics import UpdateSums
from rlhf_trainer.ppo.ptx import StopCheck
from rlhf_trainer.ppo.state import State
from rlhf_trainer.rl import entropy_bonus, policy_loss, value_loss
from rlhf_trainer.run.distributed import Ranks, filled, reduce_sum
from rlhf_trainer.run.loop import TrainingLoop


@dataclass(frozen=True)
class _Pass:
    """A micro-batch in its optimizer step.

    Attributes:
        tokens: of the whole step on all ranks.
        counts: whether it is learned from; else other ranks have one more.
        last: whether it is the last one of the step.
    """

    tokens: float
    counts: bool
    last: bool


@dataclass(frozen=True)
class Learner:
    """Actor and critic with what it takes to train them.

    Attributes:
        layout: whether several rows of a micro-batch, or texts mixed in, share a sequence.
    """

    spec: PPOStage
    ranks: Ranks
    loop: TrainingLoop
    critic: TrainedModel
    steps: ActorSteps
    state: State
    first_ratio: FirstRatio
    layout: RowLayout = RowLayout.PADDED

    def learn(
        self, experience: Experience, targets: Targets, undo: Callable[[], None] | None = None
    ) -> dict[Metric, float]:
        """Pass over the experience; the means of what happened, over all ranks and minibatches.

        Until the first optimizer step a request to stop is heard, with `undo` of the loop's
        `stop_if_asked`.
        """
        spec, ranks = self.spec, self.ranks
        if spec.advantage_normalization == "Batch":
            advantages = normalized(targets.advantages, experience.mask, ranks)
            targets = replace(targets, advantages=advantages)
        size = (spec.minibatch_size or spec.batch_size) // ranks.world_size
        sums = UpdateSums()
        check_stop: StopCheck | None = partial(self.loop.stop_if_asked, inside_step=True, undo=undo)
        for epoch in range(spec.update_epochs):
            generator = torch.Generator().manual_seed(
                int(np.random.SeedSequence([spec.seed, self.loop.step, epoch]).generate_state(1)[0])
            )
            for part, part_targets in minibatches(experience, targets, size, generator):
                self._learn_minibatch(part, part_targets, sums, check_stop)
                check_stop = None
        return (
            sums.means(ranks)
            | self.steps.metrics()
            | {
                Metric.LEARNING_RATE: self._learning_rate(),
                Metric.CRITIC_LEARNING_RATE: self.loop.learning_rate(spec.critic_learning_rate),
            }
        )

    def _learn_minibatch(
        self, part: Experience, targets: Targets, sums: UpdateSums, check_stop: StopCheck | None
    ) -> None:
        spec, ranks = self.spec, self.ranks
        if spec.advantage_normalization == "Minibatch":
            advantages = normalized(targets.advantages, part.mask, ranks)
            targets = replace(targets, advantages=advantages)
        (tokens,) = reduce_sum([float(part.mask.sum())], ranks)
        own = part.within(token_budget(spec), self.layout)
        first, of_first = own[0]
        parts = filled(own, (first[:1], of_first[first.new_zeros(1)]), ranks)
        for index, ((rows, micro), counts) in enumerate(parts):
            if check_stop is not None:
                check_stop()
            micro_targets = targets[rows].narrowed(micro.mask.shape[1])
            at = _Pass(tokens, counts=counts, last=index == len(parts) - 1)
            if self._actor_learns():
                self._accumulate_actor(micro, micro_targets, at, sums)
            self._accumulate_critic(micro, micro_targets, at, sums)
        if self._actor_learns():
            if not self.first_ratio.require_one(tokens, spec.precision, ranks):
                self.state.sampled_logprobs = False
            norm = self.steps.step(self._learning_rate(), check_stop, self.layout)
            sums.actor_norms.append(norm)
        critic_rate = self.loop.learning_rate(spec.critic_learning_rate)
        sums.critic_norms.append(self.critic.step(critic_rate))

    def _accumulate_actor(
        self, micro: Experience, targets: Targets, at: "_Pass", sums: UpdateSums
    ) -> None:
        spec = self.spec
        statistics = response_statistics(
            self.steps.actor,
            micro.rollout,
            spec.temperature,
            entropy=True,
            entropy_gradient=spec.entropy_coef > 0,
        )
        assert statistics.entropy is not None
        if at.counts:
            self.first_ratio.see(statistics.logprobs, micro)
            sums.add_drift(statistics.logprobs, micro)
        policy = policy_loss(
            statistics.logprobs,
            micro.old_logprobs,
            targets.advantages,
            micro.mask,
            spec.clip_range,
            at.tokens,
        )
        entropy = entropy_bonus(statistics.entropy, micro.mask, spec.entropy_coef, at.tokens)
        self.steps.actor.accumulate(
            at.counts * (policy.loss + entropy.loss), last=at.last and self.steps.ptx is None
        )
        if at.counts:
            sums.add_actor(policy, entropy, at.tokens)

    def _accumulate_critic(
        self, micro: Experience, targets: Targets, at: "_Pass", sums: UpdateSums
    ) -> None:
        value = value_loss(
            response_values(self.critic, micro.rollout),
            self.state.returns.normalized(micro.values),
            self.state.returns.normalized(targets.returns),
            micro.mask,
            self.spec.value_clip_range,
            at.tokens,
        )
        self.critic.accumulate(at.counts * self.spec.value_coef * value.loss, last=at.last)
        if at.counts:
            sums.add_critic(value, at.tokens)

    def _actor_learns(self) -> bool:
        return self.loop.step >= self.spec.critic_warmup_steps

    def _learning_rate(self) -> float:
        return self.loop.learning_rate(self.spec.learning_rate) if self._actor_learns() else 0.0
