"""PPO: the actor learns to answer so that the reward model likes it, held near its reference.

Each update: 1. roll out, 2. evaluate actor, reference, critic and reward model on it, 3. rewards a
token, 4. advantages and returns, 5. learn, 6. tell and keep. (Ziegler et al. 2019; Ouyang et al.
2022; the formulas stand in `rl`.)

Departures from the published systems, each a defect found in one of them (docs/ppo.md names them):
responses end at EOS and are never forced to the maximum; EOS is an action that carries the score, a
policy loss and a value loss; masks come from lengths; dropout is off; old log-probabilities are
recomputed by the training engine; advantages are normalised over the real tokens of all ranks;
losses are sums over global token counts; a rank never drops a row.

Run by `python -m rlhf_trainer.launch stage.json`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf_api.errors import ConfigError
from rlhf_api.names import Metric
from rlhf_api.v1alpha1 import Dataset, PPOStage, StageConfig
from rlhf_trainer.artifact import write_artifact
from rlhf_trainer.data.cursor import Cursor, rank_slice
from rlhf_trainer.data.loading import load_prompts
from rlhf_trainer.data.tokenized import Prompt
from rlhf_trainer.distributed import Ranks, reduce_sum
from rlhf_trainer.engine import whole_parameters
from rlhf_trainer.evaluation import Answer, answer_all, answers_of, figures, write_samples
from rlhf_trainer.experience import (
    Experience,
    Lesson,
    collect,
    lesson,
    minibatches,
    normalized,
    response_values,
    selected,
    shaped_scores,
)
from rlhf_trainer.loop import TrainingLoop, total_steps
from rlhf_trainer.models import save_model
from rlhf_trainer.outcome import StageOutcome
from rlhf_trainer.ppo_models import FIELD, Bases, Models, load_models
from rlhf_trainer.preparation import Base, finished_outcome, read_data, write_figures
from rlhf_trainer.report import Reporter, Sample
from rlhf_trainer.rl import (
    Moments,
    adapted_kl_coef,
    entropy_bonus,
    policy_loss,
    value_loss,
)
from rlhf_trainer.rollout import GenerateSampler, Sampler, Sampling
from rlhf_trainer.stopping import StopFlag
from rlhf_trainer.tokenizers import stop_token_ids
from rlhf_trainer.update_metrics import UpdateSums, rollout_metrics


@dataclass
class State:
    """What PPO carries from update to update beside weights: the stage's part of a checkpoint."""

    kl_coef: float
    score_moments: Moments

    def to_document(self) -> dict[str, Any]:
        """JSON values."""
        return {"klCoef": self.kl_coef, "scoreMoments": self.score_moments.to_dict()}

    def load(self, document: Mapping[str, Any]) -> None:
        """Take over what a checkpoint kept."""
        if document:
            self.kl_coef = document["klCoef"]
            self.score_moments = Moments.from_dict(document["scoreMoments"])


def run(config: StageConfig, ranks: Ranks, stop: StopFlag) -> StageOutcome:
    """Train, evaluate and leave a policy, or say at once that an earlier attempt did."""
    spec = config.ppo
    if spec is None:
        raise ConfigError("stage.json: stage ppo has no specification")
    done = finished_outcome(config)
    if done is not None:
        return done
    with Reporter(config, ranks) as reporter:
        # 1. Data first: a bad row is told before any weights are loaded.
        bases = Bases.open(spec, config, ranks)
        sampling = _sampling(spec, bases.actor)
        prompts = _read(spec.dataset, "dataset", bases.actor, config, ranks)
        held_out = (
            _read(spec.eval_dataset, "evalDataset", bases.actor, config, ranks)
            if spec.eval_dataset is not None
            else None
        )
        # 2. The models.
        longest = max(len(prompt.tokens) for prompt in prompts)
        models = load_models(bases, spec, config, ranks, longest + spec.max_response_length)
        state = State(spec.kl_coef, Moments())
        loop = TrainingLoop(
            config,
            ranks,
            stop,
            reporter,
            models={"actor": models.actor, "critic": models.critic},
            cursor=Cursor(len(prompts), spec.batch_size, spec.seed),
            total_steps=total_steps(config, len(prompts)),
            own_state=state.to_document,
        )
        state.load(loop.resume())
        ppo = PPO(spec, ranks, loop, models, state, bases.actor, sampling)
        # 3. Learn.
        while loop.step < loop.total_steps:
            ppo.update(prompts)
            if held_out is not None and loop.evaluation_due():
                ppo.tell_evaluation(ppo.answer(held_out))
        loop.stop_if_asked()
        # 4. Judge and keep.
        return ppo.keep(held_out)


def _sampling(spec: PPOStage, base: Base) -> Sampling:
    stops = stop_token_ids(base.tokenizer, spec.stop_tokens, f"{FIELD}.stopTokens")
    return Sampling(
        max_response_length=spec.max_response_length,
        temperature=spec.temperature,
        stop_ids=tuple(dict.fromkeys((int(base.tokenizer.eos_token_id), *stops))),
        pad_id=base.pad_id,
        wave=spec.rollout_micro_batch_size,
    )


def _read(
    dataset: Dataset, name: str, base: Base, config: StageConfig, ranks: Ranks
) -> list[Prompt]:
    spec = config.ppo
    assert spec is not None
    prompts, _ = read_data(
        dataset,
        ranks,
        lambda: load_prompts(
            dataset,
            base.tokenizer,
            max_length=spec.max_prompt_length,
            claims=config.claims,
            field=f"{FIELD}.{name}",
        ),
    )
    return prompts


@dataclass
class PPO:
    """The models and what it takes to update them."""

    spec: PPOStage
    ranks: Ranks
    loop: TrainingLoop
    models: Models
    state: State
    base: Base
    sampling: Sampling

    def update(self, prompts: Sequence[Prompt]) -> None:
        """One rollout and the learning from it."""
        spec, loop, ranks = self.spec, self.loop, self.ranks
        batch = loop.next_batch()
        mine = rank_slice(batch, ranks.rank, ranks.world_size)
        # 1. Roll out, 2. evaluate all models on it.
        rollout = self._actor_sampler().sample([prompts[row].tokens.tolist() for row in mine])
        loop.stop_if_asked(inside_step=True)
        experience = self._collect(rollout)
        # 3. Rewards a token, 4. advantages and returns.
        kl_coef = self.state.kl_coef
        scores, self.state.score_moments = shaped_scores(
            experience, spec, self.state.score_moments, ranks
        )
        taught = lesson(experience, scores, spec, kl_coef)
        metrics = rollout_metrics(experience, taught, ranks) | {Metric.KL_COEF: kl_coef}
        if spec.reward_scaling != "None":
            metrics[Metric.REWARD_SCALE] = self.state.score_moments.std
        # 5. Learn.
        metrics |= self._learn(experience, taught)
        if spec.kl_controller == "Adaptive":
            assert spec.kl_target is not None
            self.state.kl_coef = adapted_kl_coef(
                kl_coef, metrics[Metric.KL], spec.kl_target, spec.kl_horizon, spec.batch_size
            )
        # 6. Tell and keep.
        responses = metrics[Metric.RESPONSE_TOKENS] * spec.batch_size
        loop.finish_step(metrics, sum(len(prompts[row].tokens) for row in batch) + responses)
        if loop.step % spec.samples_every_steps == 0 or loop.step == loop.total_steps:
            self._tell_samples(prompts, mine, experience)

    def answer(self, prompts: Sequence[Prompt], *, before: bool = False) -> list[Answer]:
        """Answers to held-out prompts, by the actor or, `before` PPO, by the reference."""
        sampler = self._sampler(self._reference_model() if before else self._actor_model())
        actor = self.models.reference if before else self.models.actor
        answers = answer_all(
            prompts,
            lambda tokens: self._collect(sampler.sample(tokens), actor),
            self.base.tokenizer,
            self.ranks,
            self.spec.seed,
        )
        # A request to stop cuts answers short: they must not be told as what the policy says.
        self.loop.stop_if_asked()
        return answers

    def tell_evaluation(self, answers: Sequence[Answer]) -> None:
        """Report an evaluation under the names of the training metrics."""
        found = figures(answers)
        self.loop.reporter.evaluation(
            self.loop.step,
            {
                Metric.REWARD: found["score"],
                Metric.REWARD_STD: found["scoreStd"],
                Metric.KL: found["kl"],
                Metric.EOS_RATE: found["eosRate"],
                Metric.DISTINCT_2: found["distinct2"],
            },
        )

    def keep(self, held_out: Sequence[Prompt] | None) -> StageOutcome:
        """Evaluate reference and actor, and leave the actor as the stage's artifact."""
        before = self.answer(held_out, before=True) if held_out is not None else []
        after = self.answer(held_out) if held_out is not None else []
        if after:
            self.tell_evaluation(after)

        def write(folder: Path) -> None:
            with whole_parameters(self.models.actor):
                if self.ranks.rank == 0:
                    stop_ids = list(self.sampling.stop_ids)
                    save_model(self._actor_model(), self.base.tokenizer, folder, stop_ids)
                    if held_out is not None:
                        write_figures(folder, {"before": figures(before), "after": figures(after)})
                        write_samples(folder, held_out, before, after)

        return self.loop.outcome(
            write_artifact(self.loop.config, self.ranks, self.loop.step, write)
        )

    def _learn(self, experience: Experience, taught: Lesson) -> dict[Metric, float]:
        """Pass over the experience; the means of what happened, over all ranks and minibatches."""
        spec, ranks = self.spec, self.ranks
        if spec.advantage_normalization == "Batch":
            advantages = normalized(taught.advantages, experience.mask, ranks)
            taught = replace(taught, advantages=advantages)
        size = (spec.minibatch_size or spec.batch_size) // ranks.world_size
        sums = UpdateSums()
        for epoch in range(spec.update_epochs):
            generator = torch.Generator().manual_seed(
                int(np.random.SeedSequence([spec.seed, self.loop.step, epoch]).generate_state(1)[0])
            )
            for part, part_taught in minibatches(experience, taught, size, generator):
                self._learn_minibatch(part, part_taught, sums)
        return sums.means(ranks) | {
            Metric.LEARNING_RATE: self._learning_rate(),
            Metric.CRITIC_LEARNING_RATE: self.loop.learning_rate(spec.critic_learning_rate),
        }

    def _learn_minibatch(self, part: Experience, taught: Lesson, sums: "UpdateSums") -> None:
        spec, ranks = self.spec, self.ranks
        if spec.advantage_normalization == "Minibatch":
            advantages = normalized(taught.advantages, part.mask, ranks)
            taught = replace(taught, advantages=advantages)
        (tokens,) = reduce_sum([float(part.mask.sum())], ranks)
        rows = torch.arange(len(part.scores), device=part.scores.device)
        splits = rows.split(spec.micro_batch_size)
        for index, at in enumerate(splits):
            micro, micro_taught = selected(part, taught, at)
            last = index == len(splits) - 1
            if self._actor_learns():
                self._accumulate_actor(micro, micro_taught, tokens, last, sums)
            self._accumulate_critic(micro, micro_taught, tokens, last, sums)
        if self._actor_learns():
            sums.actor_norms.append(self.models.actor.step(self._learning_rate()))
        critic_rate = self.loop.learning_rate(spec.critic_learning_rate)
        sums.critic_norms.append(self.models.critic.step(critic_rate))

    def _accumulate_actor(
        self, micro: Experience, taught: Lesson, tokens: float, last: bool, sums: "UpdateSums"
    ) -> None:
        spec = self.spec
        width = micro.rollout.responses.shape[1]
        statistics = self.models.actor(*micro.rollout.sequences, width, spec.temperature)
        policy = policy_loss(
            statistics.logprobs,
            micro.old_logprobs,
            taught.advantages,
            micro.mask,
            spec.clip_range,
            tokens,
        )
        entropy = entropy_bonus(statistics.entropy, micro.mask, spec.entropy_coef, tokens)
        self.models.actor.accumulate(policy.loss + entropy.loss, last=last)
        sums.actor += np.array(
            [
                float(x)
                for x in (
                    policy.tokens,
                    policy.loss.detach() * tokens,
                    policy.clipped,
                    policy.approx_kl_sum,
                    policy.ratio_sum,
                    entropy.entropy_sum,
                )
            ]
        )

    def _accumulate_critic(
        self, micro: Experience, taught: Lesson, tokens: float, last: bool, sums: "UpdateSums"
    ) -> None:
        value = value_loss(
            response_values(self.models.critic, micro.rollout),
            micro.values,
            taught.returns,
            micro.mask,
            self.spec.value_clip_range,
            tokens,
        )
        self.models.critic.accumulate(self.spec.value_coef * value.loss, last=last)
        sums.critic += np.array([float(value.tokens), float(value.loss.detach()) * tokens])

    def _actor_learns(self) -> bool:
        return self.loop.step >= self.spec.critic_warmup_steps

    def _learning_rate(self) -> float:
        return self.loop.learning_rate(self.spec.learning_rate) if self._actor_learns() else 0.0

    def _collect(self, rollout: Any, actor: Any = None) -> Experience:
        return collect(
            rollout,
            actor=self.models.actor if actor is None else actor,
            reference=self.models.reference,
            critic=self.models.critic,
            reward_model=self.models.reward_model,
            temperature=self.spec.temperature,
            micro_batch_size=self.spec.rollout_micro_batch_size,
        )

    def _actor_model(self) -> Any:
        return self.models.actor.module.model

    def _reference_model(self) -> Any:
        reference = self.models.reference
        return getattr(reference, "module", reference).model

    def _actor_sampler(self) -> Sampler:
        return self._sampler(self._actor_model())

    def _sampler(self, model: Any) -> Sampler:
        return GenerateSampler(
            model,
            self.sampling,
            self.ranks.device,
            asked_to_stop=lambda: self.loop.stop.is_set,
            synced=self.spec.zero_stage == 3 and self.ranks.world_size > 1,
        )

    def _tell_samples(
        self, prompts: Sequence[Prompt], rows: Sequence[int], experience: Experience
    ) -> None:
        found = answers_of(experience, rows, self.base.tokenizer)
        self.loop.reporter.samples(
            self.loop.step,
            [
                Sample(
                    prompt=prompts[answer.row].text,
                    response=answer.text,
                    score=answer.score,
                    kl=answer.kl,
                    length=len(answer.tokens) + int(answer.ended),
                    stop_reason="stop" if answer.ended else "length",
                )
                for answer in found
            ],
        )
