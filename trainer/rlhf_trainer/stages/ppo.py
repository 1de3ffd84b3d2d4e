"""PPO: the actor learns to answer so that its rewards are high, held near its reference.

Each update: 1. roll out, 2. evaluate actor, reference, critic and rewards on it, 3. rewards a
token, 4. advantages and returns, 5. learn, 6. judge, tell and keep. (Ziegler et al. 2019; Ouyang
et al. 2022; the formulas stand in `rl`.)

Departures from the published systems, each a defect found in one of them (docs/ppo.md names them):
responses end at EOS and are never forced to the maximum; EOS is an action that carries the score, a
policy loss and a value loss; masks come from lengths; dropout is off; old log-probabilities are
recomputed by the training engine, unless the sampler's are measured to be the same; advantages are
normalised over the real tokens of all ranks; losses are sums over global token counts; a rank never
drops a row.

Run by `python -m rlhf_trainer.launch stage.json`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rlhf_api.metrics import Metric, Phase
from rlhf_api.v1alpha1 import PPOStage, StageConfig
from rlhf_trainer.data.cursor import rank_slice
from rlhf_trainer.data.loading import load_prompts
from rlhf_trainer.data.tokenize.tokenized import Prompt
from rlhf_trainer.generation.counter import RowSeeds
from rlhf_trainer.generation.sampling import Sampling
from rlhf_trainer.models.engine import whole_parameters
from rlhf_trainer.models.load import ModelSettings, save_model
from rlhf_trainer.models.placed import PlacedModel
from rlhf_trainer.models.score_statistics import ScoreStatistics, model_statistics
from rlhf_trainer.models.source import Base
from rlhf_trainer.models.tokenizers import stop_token_ids
from rlhf_trainer.ppo.actor_steps import ActorSteps
from rlhf_trainer.ppo.collection import Collector, policy_model
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
from rlhf_trainer.ppo.experience import SCORES, Experience, shaped_scores, spoilt_on_any, targets_of
from rlhf_trainer.ppo.first_ratio import FirstRatio
from rlhf_trainer.ppo.guardrails import heed, obey
from rlhf_trainer.ppo.health import Health
from rlhf_trainer.ppo.learning import Learner
from rlhf_trainer.ppo.metrics import refused_metrics, rollout_metrics
from rlhf_trainer.ppo.models import FIELD, Bases, Workload, load_models, wave_room
from rlhf_trainer.ppo.packing_check import sound_layout
from rlhf_trainer.ppo.popart import ReturnScale, follow
from rlhf_trainer.ppo.ptx import PTX
from rlhf_trainer.ppo.rewards import Rewards, mean_rewards
from rlhf_trainer.ppo.sampler_check import with_exact_sampler
from rlhf_trainer.ppo.self_checks import Subjects, run_self_checks, short_sampling
from rlhf_trainer.ppo.state import State
from rlhf_trainer.process.outcome import StageOutcome
from rlhf_trainer.process.stopping import StopFlag
from rlhf_trainer.rl import Moments, adapted_kl_coef
from rlhf_trainer.run.artifact import write_artifact, write_figures
from rlhf_trainer.run.distributed import Ranks
from rlhf_trainer.run.inputs import Inputs
from rlhf_trainer.run.loop import TrainingLoop
from rlhf_trainer.run.non_finite import spoilt_metrics
from rlhf_trainer.run.report import Reporter
from rlhf_trainer.run.stage import run_unless_finished


def run(config: StageConfig, ranks: Ranks, stop: StopFlag) -> StageOutcome:
    """Train, evaluate and leave a policy, or say at once that an earlier attempt did."""
    return run_unless_finished(_train, config.ppo, config, ranks, stop)


def _train(
    spec: PPOStage, config: StageConfig, ranks: Ranks, stop: StopFlag, reporter: Reporter
) -> StageOutcome:
    """The stage from its data to its artifact."""
    # 1. Data first: a bad row is told before any weights are loaded.
    bases = Bases.open(spec, config, ranks)
    for note in bases.notes:
        reporter.note(note)
    statistics = model_statistics(spec, bases.reward_model)
    sampling = _sampling(spec, bases.actor)
    rewards = Rewards.open(spec, config, ranks, bases.actor.tokenizer, FIELD, lambda: stop.is_set)
    inputs = Inputs(config, ranks, reporter)
    with reporter.phase(Phase.DATA):
        prompts, held_out = inputs.read_train_and_eval(
            load_prompts,
            bases.actor.tokenizer,
            max_length=spec.max_prompt_length,
            refused=bases.refused,
        )
        ptx = PTX.read(spec, bases.actor, inputs)
    # 2. The models.
    workload = _workload(spec, config, prompts, held_out or (), ptx)
    models = load_models(
        bases, spec, config, ranks, workload, ModelSettings.of(spec, ranks, reporter.note)
    )
    room = wave_room(bases.actor, spec, config.world_size, workload, models.logits)
    sampling = replace(sampling, room=room)
    steps = ActorSteps.of(models.actor, spec, ptx, ranks)
    state = State(spec.kl_coef, Moments(), ReturnScale(), Health(config.guardrails))
    loop = TrainingLoop(
        config,
        ranks,
        stop,
        reporter,
        # The average last: what fails there leaves no rank waiting for another.
        models={"critic": models.critic, **steps.models},
        rows=len(prompts),
        data=inputs.digests,
        own_state=lambda: state.to_document() | steps.to_document(),
        verdicts=lambda: state.health.verdicts,
    )
    _resume(loop, state, steps)
    first_ratio = FirstRatio()
    collector = Collector(spec, ranks, loop, models, state, rewards, sampling, first_ratio)
    collector = _checked(collector, prompts)
    layout = collector.models.layout
    learner = Learner(spec, ranks, loop, models.critic, steps, state, first_ratio, layout)
    # 3. Learn.
    _updates(collector, learner, prompts, held_out, statistics)
    # 4. Judge and keep; what fails there costs no step.
    if held_out is not None:
        loop.save_unless_saved()
    steps.settle(loop)
    return _keep(collector, held_out)


def _resume(loop: TrainingLoop, state: State, steps: ActorSteps) -> None:
    """Go on from the newest checkpoint, unless its verdicts end the stage."""
    kept = loop.resume()
    state.load(kept)
    steps.load(kept)
    if loop.resumed_attempt is not None:
        loop.reporter.resumed_health(loop.step, state.health.standing, state.health.verdicts)
    heed(state.health, loop)


def _sampling(spec: PPOStage, base: Base) -> Sampling:
    stops = stop_token_ids(base.tokenizer, spec.stop_tokens, f"{FIELD}.stopTokens")
    return Sampling(
        max_response_length=spec.max_response_length,
        temperature=spec.temperature,
        stop_ids=tuple(dict.fromkeys((*base.generation.stop_ids, *stops))),
        pad_id=base.pad_id,
        wave=spec.rollout_micro_batch_size,
        absent_ids=base.absent_ids,
        top_k=spec.top_k,
        top_p=spec.top_p,
    )


def _workload(
    spec: PPOStage,
    config: StageConfig,
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt],
    ptx: PTX | None,
) -> Workload:
    """The longest prompt with the longest response, and how many of them there are at once."""
    longest = max(len(prompt.tokens) for prompt in (*prompts, *held_out))
    return Workload(
        longest + spec.max_response_length,
        -(-max(spec.batch_size, len(held_out)) // config.world_size),
        *((0, 0) if ptx is None else (ptx.longest, ptx.most_loss_tokens)),
    )


def _checked(collector: Collector, prompts: Sequence[Prompt]) -> Collector:
    """Make sure that the arithmetic holds on this machine (see `self_checks`), and sample by what
    does."""
    collector = with_exact_sampler(collector, prompts)
    models = collector.models
    reference = models.reference if collector.loop.step == 0 else None
    subjects = Subjects(
        models.actor, reference, models.reward_model, models.score_end, models.critic
    )
    sampler = collector.sampler(models.actor, short_sampling(collector.sampling))
    spec, ranks = collector.spec, collector.ranks
    with models.resident():
        rollout = run_self_checks(subjects, sampler, prompts, spec, ranks)
        layout = sound_layout(subjects, rollout, models.layout, spec, ranks)
    return replace(collector, models=replace(models, layout=layout))


def _updates(
    collector: Collector,
    learner: Learner,
    prompts: Sequence[Prompt],
    held_out: Sequence[Prompt] | None,
    statistics: ScoreStatistics | None,
) -> None:
    """All updates that are left, and the evaluations between them."""
    loop = collector.loop
    while loop.step < loop.total_steps:
        if held_out is not None and loop.evaluation_due():
            _report(loop, _answers(collector, held_out, collector.models.actor))
        _update(collector, learner, prompts, statistics)
    loop.stop_if_asked()


def _update(
    collector: Collector,
    learner: Learner,
    prompts: Sequence[Prompt],
    statistics: ScoreStatistics | None,
) -> None:
    """One rollout and the learning from it."""
    spec, loop, ranks, state = collector.spec, collector.loop, collector.ranks, collector.state
    batch = loop.next_batch()
    rows = rank_slice(batch, ranks.rank, ranks.world_size)
    # 1. Roll out, 2. evaluate.
    experience, spoilt = collector.collect([prompts[row].tokens.tolist() for row in rows])
    with loop.reporter.phase(Phase.LEARNING):
        # Numbers that are not finite change nothing.
        if not spoilt:
            metrics, spoilt = _learned(collector, learner, experience, statistics)
        else:
            metrics = refused_metrics(experience, ranks)
    # 6. Judge, tell and keep.
    responses = round(metrics[Metric.RESPONSE_TOKENS] * spec.batch_size)
    judgement = state.health.judge(loop.step + 1, metrics)
    loop.finish_step(
        metrics | judgement.metrics,
        sum(len(prompts[row].tokens) for row in batch) + responses,
        mean_rewards(experience, ranks),
        keep=not judgement.spoilt,
        # Scores alone are the rewards' fault, and a guardrail's matter.
        spoilt=[name for name in spoilt if name != SCORES] if spoilt else None,
        readings=judgement.readings,
    )
    if loop.step % spec.samples_every_steps == 0 or loop.step == loop.total_steps:
        answers = answers_of(experience, rows, collector.rewards.tokenizer)
        loop.reporter.samples(loop.step, samples_of(prompts, answers))
    obey(judgement, loop)


def _learned(
    collector: Collector,
    learner: Learner,
    experience: Experience,
    statistics: ScoreStatistics | None,
) -> tuple[dict[Metric, float], list[str]]:
    """As `_learn`, and what sums and moments refuse: it ends the stage like a loss that is not
    finite."""
    try:
        return _learn(collector, learner, experience, statistics), []
    except FloatingPointError as error:
        return refused_metrics(experience, collector.ranks), [str(error)]


def _learn(
    collector: Collector,
    learner: Learner,
    experience: Experience,
    statistics: ScoreStatistics | None,
) -> dict[Metric, float]:
    """Steps 3 to 5, from finite numbers; the metrics of the update."""
    spec, ranks, state = collector.spec, collector.ranks, collector.state
    kl_coef = state.kl_coef
    # 3. Rewards a token, 4. advantages and returns.
    shaped = shaped_scores(experience, spec, kl_coef, state.score_moments, ranks, statistics)
    state.score_moments = shaped.moments
    targets = targets_of(experience, shaped.scores, spec, shaped.kl_coef)
    spoilt = spoilt_on_any(ranks, targets.numbers)
    if spoilt:
        raise FloatingPointError(" and ".join(spoilt))
    metrics = rollout_metrics(experience, targets, ranks) | {Metric.KL_COEF: kl_coef}
    if spec.reward_scaling != "None":
        metrics[Metric.REWARD_SCALE] = shaped.scale
    undo = None
    if spec.value_normalization == "PopArt":
        state.returns, undo = follow(
            learner.critic, state.returns, targets.returns, experience.mask, ranks
        )
        metrics |= state.returns.metrics()
    spread = metrics[Metric.RETURNS_STD] / state.returns.std
    metrics[Metric.CRITIC_LOSS_OF_MEAN] = 0.5 * spread**2
    # 5. Learn.
    metrics |= learner.learn(experience, targets, undo)
    if spec.kl_controller == "Adaptive":
        assert spec.kl_target is not None
        state.kl_coef = adapted_kl_coef(
            kl_coef, metrics[Metric.KL], spec.kl_target, spec.kl_horizon, spec.batch_size
        )
    return metrics


def _answers(collector: Collector, prompts: Sequence[Prompt], policy: PlacedModel) -> list[Answer]:
    """Answers of `policy`, the actor or the reference, to held-out prompts."""
    sampler = collector.sampler(policy)

    def answered(tokens: Sequence[Sequence[int]], seeds: RowSeeds) -> Experience:
        with policy.chosen():
            rollout = sampler.sample(tokens, seeds)
        return collector.evaluated(rollout, policy)

    with collector.loop.reporter.evaluating():
        answers = answer_all(
            prompts,
            answered,
            collector.rewards.tokenizer,
            collector.ranks,
            collector.spec.seed,
        )
    # A request to stop cuts answers short: they must not be told as what the policy says.
    collector.loop.stop_if_asked()
    return answers


def _report(loop: TrainingLoop, answers: Sequence[Answer]) -> None:
    """Tell of an evaluation."""
    loop.evaluated(_measured(answers), mean_answer_rewards(answers))


def _measured(answers: Sequence[Answer]) -> dict[Metric, float]:
    measured = figures(answers)
    return {
        Metric.EVAL_REWARD: measured["score"],
        Metric.EVAL_REWARD_STD: measured["scoreStd"],
        Metric.EVAL_KL: measured["kl"],
        Metric.EVAL_EOS_RATE: measured["eosRate"],
        Metric.EVAL_DISTINCT_2: measured["distinct2"],
    }


def _keep(collector: Collector, held_out: Sequence[Prompt] | None) -> StageOutcome:
    """Evaluate reference and actor, or the average of its weights, and leave it as artifact."""
    loop, models, tokenizer = collector.loop, collector.models, collector.rewards.tokenizer
    before = _answers(collector, held_out, models.reference) if held_out is not None else []
    if before:
        # They are in no series, and in the artifact's figures.
        loop.require_finite([f"reference's {name}" for name in spoilt_metrics(_measured(before))])
    after = _answers(collector, held_out, models.actor) if held_out is not None else []
    if after:
        _report(loop, after)

    def write(folder: Path) -> None:
        with whole_parameters(models.actor, here=loop.ranks.rank == 0):
            if loop.ranks.rank == 0:
                sampling = collector.sampling
                save_model(
                    policy_model(models.actor),
                    tokenizer,
                    folder,
                    sampling.stop_ids,
                    # As the policy has learned to be sampled, whatever its base asked for.
                    {
                        "do_sample": True,
                        "temperature": sampling.temperature,
                        "top_k": sampling.top_k,
                        "top_p": sampling.top_p,
                    },
                )
                if held_out is not None:
                    answers = {"before": before, "after": after}
                    write_figures(
                        folder, {name: evaluation_document(a) for name, a in answers.items()}
                    )
                    write_samples(folder, held_out, before, after)

    return loop.outcome(
        write_artifact(loop.config, loop.ranks, loop.step, write, collector.state.health.verdicts)
    )
