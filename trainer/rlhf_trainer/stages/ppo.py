"""PPO: the actor learns to answer so that its rewards are high, held near its reference.

Each update: 1. roll out, 2. evaluate actor, reference, critic and rewards on it, 3. rewards a
token, 4. advantages and returns, 5. learn, 6. judge, tell and keep. (Ziegler et al. 2019; Ouyang
et al. 2022; the formulas stand in `rl`.)

Departures from the published systems, each a defect found in one of them (docs/ppo.md names them):
responses end at EOS and are never forced to the maximum; EOS is an action that carries the score, a
policy loss and a value loss; masks come from lengths; dropout is off; old log-probabilities are
recomputed by the training engine; advantages are normalised over the real tokens of all ranks;
losses are sums over global token counts; a rank never drops a row.

Run by `python -m rlhf_trainer.launch stage.json`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_api.errors import ConfigError
from rlhf_api.metrics import Metric, Phase
from rlhf_api.v1alpha1 import Dataset, PPOStage, StageConfig
from rlhf_trainer.data.cursor import Cursor, rank_slice
from rlhf_trainer.data.loading import load_prompts
from rlhf_trainer.data.tokenize.tokenized import Prompt
from rlhf_trainer.models.engine import whole_parameters
from rlhf_trainer.models.load import save_model
from rlhf_trainer.models.score_statistics import ScoreStatistics, model_statistics
from rlhf_trainer.models.source import (
    Base,
)
from rlhf_trainer.models.tokenizers import stop_token_ids
from rlhf_trainer.ppo.actor_steps import ActorSteps
from rlhf_trainer.ppo.evaluation import (
    Answer,
    answer_all,
    answers_of,
    evaluation_document,
    figures,
    mean_answer_rewards,
    samples_of,
    write_samples,
)
from rlhf_trainer.ppo.experience import (
    Experience,
    collect,
    finite_on_all,
    lesson,
    shaped_scores,
)
from rlhf_trainer.ppo.guardrails import heed, obey
from rlhf_trainer.ppo.health import Health
from rlhf_trainer.ppo.learning import Learner
from rlhf_trainer.ppo.metrics import refused_metrics, rollout_metrics
from rlhf_trainer.ppo.models import FIELD, Bases, Models, load_models
from rlhf_trainer.ppo.popart import ReturnScale, follow
from rlhf_trainer.ppo.ptx import PTX
from rlhf_trainer.ppo.rewards import Rewards, mean_rewards
from rlhf_trainer.ppo.rollout import GenerateSampler, Sampler, Sampling
from rlhf_trainer.ppo.self_checks import Subjects, run_self_checks, short_sampling
from rlhf_trainer.ppo.state import State
from rlhf_trainer.process.outcome import StageOutcome
from rlhf_trainer.process.stopping import StopFlag
from rlhf_trainer.rl import (
    Moments,
    adapted_kl_coef,
)
from rlhf_trainer.run.artifact import (
    finished_outcome,
    write_artifact,
    write_figures,
)
from rlhf_trainer.run.distributed import Ranks
from rlhf_trainer.run.inputs import (
    read_data,
)
from rlhf_trainer.run.loop import TrainingLoop, total_steps
from rlhf_trainer.run.report import Reporter


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
        statistics = model_statistics(spec, bases.reward_model)
        sampling = _sampling(spec, bases.actor)
        rewards = Rewards.open(
            spec, config, ranks, bases.actor.tokenizer, FIELD, lambda: stop.is_set
        )
        with reporter.phase(Phase.DATA):
            prompts = _read(spec.dataset, "dataset", bases.actor, config, ranks)
            held_out = (
                _read(spec.eval_dataset, "evalDataset", bases.actor, config, ranks)
                if spec.eval_dataset is not None
                else None
            )
            ptx = PTX.read(spec, bases.actor, config, ranks, FIELD)
        # 2. The models.
        longest = max(len(prompt.tokens) for prompt in prompts) + spec.max_response_length
        longest = max(longest, ptx.longest if ptx is not None else 0)
        models = load_models(bases, spec, config, ranks, longest)
        steps = ActorSteps.of(models.actor, spec, ptx, ranks)
        state = State(spec.kl_coef, Moments(), ReturnScale(), Health(config.guardrails))
        loop = TrainingLoop(
            config,
            ranks,
            stop,
            reporter,
            # The average last: what fails there leaves no rank waiting for another.
            models={"critic": models.critic, **steps.models},
            cursor=Cursor(len(prompts), spec.batch_size, spec.seed),
            total_steps=total_steps(config, len(prompts)),
            own_state=lambda: state.to_document() | steps.to_document(),
            verdicts=lambda: state.health.verdicts,
        )
        kept = loop.resume()
        state.load(kept)
        steps.load(kept)
        if loop.resumed_attempt is not None:
            reporter.resumed_health(loop.step, state.health.standing, state.health.verdicts)
        heed(state.health, loop)
        learner = Learner(spec, ranks, loop, models.critic, steps, state)
        ppo = PPO(
            spec, ranks, loop, models, learner, state, bases.actor, sampling, rewards, statistics
        )
        ppo.check(prompts)
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
    learner: Learner
    state: State
    base: Base
    sampling: Sampling
    rewards: Rewards
    statistics: ScoreStatistics | None

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Make sure that the arithmetic holds on this machine (see `self_checks`)."""
        models = self.models
        reference = models.reference if self.loop.step == 0 else None
        subjects = Subjects(models.actor, reference, models.reward_model)
        sampler = self._sampler(self._actor_model(), short_sampling(self.sampling))
        run_self_checks(subjects, sampler, prompts, self.spec, self.ranks)

    def update(self, prompts: Sequence[Prompt]) -> None:
        """One rollout and the learning from it."""
        spec, loop, ranks = self.spec, self.loop, self.ranks
        batch = loop.next_batch()
        mine = rank_slice(batch, ranks.rank, ranks.world_size)
        experience, usable = self._experience([prompts[row].tokens.tolist() for row in mine])
        with loop.reporter.phase(Phase.LEARNING):
            # Numbers that are not finite change nothing.
            metrics = self._learn(experience) if usable else refused_metrics(experience, ranks)
        # 6. Judge, tell and keep.
        responses = round(metrics[Metric.RESPONSE_TOKENS] * spec.batch_size)
        judgement = self.state.health.judge(loop.step + 1, metrics)
        tokens = sum(len(prompts[row].tokens) for row in batch) + responses
        loop.finish_step(
            metrics | judgement.metrics,
            tokens,
            mean_rewards(experience, ranks),
            keep=not judgement.spoilt,
        )
        loop.reporter.health(loop.step, judgement.readings)
        if loop.step % spec.samples_every_steps == 0 or loop.step == loop.total_steps:
            self._tell_samples(prompts, mine, experience)
        obey(judgement, loop)

    def _experience(self, prompts: Sequence[Sequence[int]]) -> tuple[Experience, bool]:
        """Steps 1 and 2; what was found, and whether all of it is finite on all ranks."""
        loop = self.loop
        with loop.reporter.phase(Phase.ROLLOUT):
            rollout = self._sampler(self._actor_model()).sample(prompts)
            loop.stop_if_asked(inside_step=True)
        with loop.reporter.phase(Phase.SCORING):
            experience = self._collect(rollout)
            # A request to stop cuts rewards short as well.
            loop.stop_if_asked(inside_step=True)
            # Asked for here, since a device is still at work on it.
            numbers = experience.read(self.spec.kl_estimator, self.state.kl_coef)
            return experience, finite_on_all(self.ranks, *numbers)

    def _learn(self, experience: Experience) -> dict[Metric, float]:
        """Steps 3 to 5, from finite numbers; the metrics of the update."""
        spec, ranks, kl_coef = self.spec, self.ranks, self.state.kl_coef
        # 3. Rewards a token, 4. advantages and returns.
        shaped = shaped_scores(
            experience, spec, kl_coef, self.state.score_moments, ranks, self.statistics
        )
        self.state.score_moments = shaped.moments
        taught = lesson(experience, shaped.scores, spec, shaped.kl_coef)
        metrics = rollout_metrics(experience, taught, ranks) | {Metric.KL_COEF: kl_coef}
        if spec.reward_scaling != "None":
            metrics[Metric.REWARD_SCALE] = shaped.scale
        if spec.value_normalization == "PopArt":
            self.state.returns = follow(
                self.models.critic, self.state.returns, taught.returns, experience.mask, ranks
            )
            metrics |= self.state.returns.metrics()
        spread = metrics[Metric.RETURNS_STD] / self.state.returns.std
        metrics[Metric.CRITIC_LOSS_OF_MEAN] = 0.5 * spread**2
        # 5. Learn.
        metrics |= self.learner.learn(experience, taught)
        if spec.kl_controller == "Adaptive":
            assert spec.kl_target is not None
            self.state.kl_coef = adapted_kl_coef(
                kl_coef, metrics[Metric.KL], spec.kl_target, spec.kl_horizon, spec.batch_size
            )
        return metrics

    def answer(self, prompts: Sequence[Prompt], *, before: bool = False) -> list[Answer]:
        """Answers to held-out prompts, by the actor or, `before` PPO, by the reference."""
        sampler = self._sampler(self._reference_model() if before else self._actor_model())
        actor = self.models.reference if before else self.models.actor
        with self.loop.reporter.phase(Phase.EVALUATION):
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
            mean_answer_rewards(answers),
        )

    def keep(self, held_out: Sequence[Prompt] | None) -> StageOutcome:
        """Evaluate reference and actor, or the average of its weights, and leave it as artifact."""
        self.learner.steps.settle(self.loop)
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
                        found = {"before": before, "after": after}
                        write_figures(
                            folder, {name: evaluation_document(a) for name, a in found.items()}
                        )
                        write_samples(folder, held_out, before, after)

        return self.loop.outcome(
            write_artifact(
                self.loop.config, self.ranks, self.loop.step, write, self.state.health.verdicts
            )
        )

    def _collect(self, rollout: Any, actor: Any = None) -> Experience:
        experience = collect(
            rollout,
            actor=self.models.actor if actor is None else actor,
            reference=self.models.reference,
            critic=lambda *at: self.state.returns.denormalized(self.models.critic(*at)),
            reward_model=self.models.reward_model,
            temperature=self.spec.temperature,
            micro_batch_size=self.spec.rollout_micro_batch_size,
        )
        return self.rewards.scored(experience)

    def _actor_model(self) -> Any:
        return self.models.actor.module.model

    def _reference_model(self) -> Any:
        reference = self.models.reference
        return getattr(reference, "module", reference).model

    def _sampler(self, model: Any, short: Sampling | None = None) -> Sampler:
        """Hears a request to stop, unless it samples but a few tokens in seconds."""
        return GenerateSampler(
            model,
            short or self.sampling,
            self.ranks.device,
            asked_to_stop=lambda: short is None and self.loop.stop.is_set,
            synced=self.spec.zero_stage == 3 and self.ranks.world_size > 1,
        )

    def _tell_samples(
        self, prompts: Sequence[Prompt], rows: Sequence[int], experience: Experience
    ) -> None:
        found = answers_of(experience, rows, self.base.tokenizer)
        self.loop.reporter.samples(self.loop.step, samples_of(prompts, found))
