"""All rewards of a stage together.

Called by the PPO stage on every rank: each scores its own rows, and a failure of one rank ends all
of them alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_api.v1alpha1 import PPOStage, Reward, StageConfig
from rlhf_trainer.ppo.experience import Experience
from rlhf_trainer.ppo.rewards.answers import Judge, Texts
from rlhf_trainer.ppo.rewards.endpoint import Endpoint
from rlhf_trainer.ppo.rewards.function import Function
from rlhf_trainer.run.distributed import Ranks, agree_on_failure, patient_group, reduce_sum


@dataclass(frozen=True)
class Rewards:
    """The rewards that a stage names, ready to score.

    Attributes:
        specs: as the stage names them; empty where the reward model alone scores.
        judges: functions and endpoints by the name of their reward.
        tokenizer: decodes what they are asked.
        group: ranks wait in it for the slowest judge, which may take longer than a collective.
    """

    specs: tuple[Reward, ...]
    judges: Mapping[str, Judge]
    tokenizer: PreTrainedTokenizerBase
    ranks: Ranks
    group: Any = None

    @classmethod
    def open(
        cls,
        spec: PPOStage,
        config: StageConfig,
        ranks: Ranks,
        tokenizer: PreTrainedTokenizerBase,
        field: str,
        asked_to_stop: Callable[[], bool],
    ) -> "Rewards":
        """Import functions and make endpoints ready; no service is asked.

        Args:
            spec: the stage.
            config: where claims are mounted.
            ranks: every rank must call.
            tokenizer: of the actor.
            field: path of the stage, for messages.
            asked_to_stop: whether this rank was.

        Raises:
            InputError: a function that cannot be imported, on every rank.
            ConfigError: a token or a place that is not there, on every rank.
        """
        judges: dict[str, Judge] = {}
        failure: Exception | None = None
        try:
            for at, reward in enumerate(spec.rewards):
                path = f"{field}.rewards[{at}]"
                if reward.function is not None:
                    opened: Judge = Function.open(
                        reward.function, config.claims, f"{path}.function"
                    )
                    judges[reward.name] = opened
                elif reward.endpoint is not None:
                    judges[reward.name] = Endpoint.open(
                        reward.endpoint, f"{path}.endpoint", asked_to_stop
                    )
        except Exception as error:  # noqa: BLE001 - raised again, on every rank
            failure = error
        agree_on_failure(ranks, failure)
        group = patient_group(ranks) if judges else None
        return cls(spec.rewards, judges, tokenizer, ranks, group)

    def scored(self, experience: Experience) -> Experience:
        """The experience with the weighted sum as its scores, and each reward by name.

        Its scores so far are those of the reward model. A rank that is asked to stop meanwhile gets
        scores that are worth nothing: the caller must look whether any rank was.

        Raises:
            InputError: a reward gave no score that can be used, on every rank.
            ServiceUnavailable: an endpoint does not answer, on every rank.
        """
        if not self.specs:
            return experience
        scores_by_name: dict[str, list[float]] = {}
        failure: Exception | None = None
        try:
            texts = Texts.of(experience.rollout, self.tokenizer)
            scores_by_name = {name: judge(texts) for name, judge in self.judges.items()}
        except Exception as error:  # noqa: BLE001 - raised again, on every rank
            failure = error
        agree_on_failure(self.ranks, failure, self.group)
        of_model = experience.scores
        rewards = {
            spec.name: of_model.new_tensor(scores_by_name[spec.name])
            if spec.name in scores_by_name
            else of_model
            for spec in self.specs
        }
        total = torch.zeros_like(of_model)
        for spec in self.specs:
            total += spec.weight * rewards[spec.name]
        return replace(experience, scores=total, rewards=rewards)


def mean_rewards(experience: Experience, ranks: Ranks) -> dict[str, float]:
    """The mean of each reward that is named, before its weight, over the rows of all ranks."""
    if not experience.rewards:
        return {}
    sums = [float(scores.double().sum()) for scores in experience.rewards.values()]
    *totals, rows = reduce_sum([*sums, float(len(experience.scores))], ranks)
    return {name: total / rows for name, total in zip(experience.rewards, totals, strict=True)}
