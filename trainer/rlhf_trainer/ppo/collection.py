"""The first two steps of an update of PPO: roll out, and evaluate all models on the rollout.

Called by the PPO stage, for training and for held-out prompts.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from transformers import PreTrainedModel

from rlhf_api.metrics import Phase
from rlhf_api.v1alpha1 import PPOStage
from rlhf_trainer.data.budget import scoring_budget
from rlhf_trainer.generation.counter import RowSeeds
from rlhf_trainer.generation.sampling import Sampling
from rlhf_trainer.models.engine import gathered_once, may_gather
from rlhf_trainer.models.heads import Actor
from rlhf_trainer.models.placed import PlacedModel
from rlhf_trainer.ppo.experience import Experience, collect, spoilt_on_any
from rlhf_trainer.ppo.first_ratio import FirstRatio
from rlhf_trainer.ppo.models import FIELD, Models
from rlhf_trainer.ppo.old_logprobs import may_serve_as_old, worst_drift
from rlhf_trainer.ppo.rewards import Rewards
from rlhf_trainer.ppo.rollout import Rollout
from rlhf_trainer.ppo.samplers import DecodingSampler, GenerateSampler, Policy, Sampler
from rlhf_trainer.ppo.state import State
from rlhf_trainer.run.distributed import Ranks
from rlhf_trainer.run.loop import TrainingLoop

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collector:
    """The models, the rewards and how answers are sampled.

    Attributes:
        first_ratio: whether this attempt has seen that the ratio begins at 1.
        decodes: whether our own decode loop samples, and not `generate`.
    """

    spec: PPOStage
    ranks: Ranks
    loop: TrainingLoop
    models: Models
    state: State
    rewards: Rewards
    sampling: Sampling
    first_ratio: FirstRatio
    decodes: bool = True

    def collect(self, prompts: Sequence[Sequence[int]]) -> tuple[Experience, list[str]]:
        """One rank's experience of an update, and what of it is not finite on any rank.

        Raises:
            StopRequested: on all ranks, from the state before the update.
        """
        loop = self.loop
        with loop.reporter.phase(Phase.ROLLOUT):
            ranks = self.ranks
            # As `rank_slice` deals them out.
            rows = range(ranks.rank, len(prompts) * ranks.world_size, ranks.world_size)
            seeds = RowSeeds(self.spec.seed, rows, update=loop.step)
            rollout = self.sampler(self.models.actor).sample(prompts, seeds)
            loop.stop_if_asked(inside_step=True)
        with loop.reporter.phase(Phase.SCORING):
            experience = self._evaluated(
                rollout,
                self.models.actor,
                sampled=self._takes_sampled,
                recomputed=self._recomputes,
            )
            if self._takes_sampled and experience.recomputed is not None:
                experience = self._with_sound_old(experience)
            # A request to stop cuts rewards short as well.
            loop.stop_if_asked(inside_step=True)
            # Asked for here, since a device is still at work on it.
            numbers = experience.numbers(self.spec.kl_estimator, self.state.kl_coef)
            return experience, spoilt_on_any(self.ranks, numbers)

    def _with_sound_old(self, experience: Experience) -> Experience:
        """With old log-probabilities of the actor, from now on, where sampling has drifted."""
        assert experience.recomputed is not None
        drift = worst_drift(experience, self.ranks)
        if may_serve_as_old(self.spec, drift):
            return experience
        logger.warning(
            "%s.model: log-probabilities of sampling are up to %.1e nats a token from those of "
            "training in an answer; from now on old ones are computed anew",
            FIELD,
            drift,
        )
        self.state.sampled_logprobs = False
        return replace(experience, old_logprobs=experience.recomputed)

    @property
    def _takes_sampled(self) -> bool:
        return self.decodes and bool(self.state.sampled_logprobs)

    @property
    def _recomputes(self) -> bool:
        """Whether the actor evaluates the next rollout: always, if it has to; and where nothing
        else would show the sampler's drift, or that the ratio of an attempt begins at 1."""
        warm_up = self.loop.step < self.spec.critic_warmup_steps
        return not self._takes_sampled or warm_up or not self.first_ratio.passed

    def evaluated(self, rollout: Rollout, actor: PlacedModel) -> Experience:
        """What all models say of a rollout, `actor` in the place of the policy."""
        return self._evaluated(rollout, actor, sampled=False, recomputed=True)

    def _evaluated(
        self, rollout: Rollout, actor: PlacedModel, *, sampled: bool, recomputed: bool
    ) -> Experience:
        scale, models = self.state.returns, self.models
        with models.resident():
            experience = collect(
                rollout,
                actor=actor if recomputed else None,
                reference=models.reference,
                critic=lambda *inputs: scale.denormalized(models.critic(*inputs)),
                reward_model=models.reward_model,
                temperature=self.spec.temperature,
                tokens=scoring_budget(self.spec),
                ranks=self.ranks,
                sampled=sampled,
                score_end=models.score_end,
                layout=models.layout,
            )
        return self.rewards.scored(experience)

    def sampler(self, policy: PlacedModel, short: Sampling | None = None) -> Sampler:
        """Hears a request to stop, unless it samples but a few tokens in seconds."""
        sharded = policy.zero_stage == 3
        whole = sharded and may_gather(policy)
        answering = Policy(
            policy_model(policy),
            self.ranks,
            asked_to_stop=lambda: short is None and self.loop.stop.is_set,
            in_step=sharded and not whole and self.ranks.world_size > 1,
        )
        if whole:
            answering = replace(answering, prepared=partial(gathered_once, policy))
        sampler = DecodingSampler if self.decodes else GenerateSampler
        return sampler(answering, short or self.sampling)


def policy_model(policy: PlacedModel) -> PreTrainedModel:
    """The causal model of an actor or a reference."""
    assert isinstance(policy.module, Actor)
    return policy.module.model
