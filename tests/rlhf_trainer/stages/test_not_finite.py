"""Numbers that are NaN or infinite end every stage for good, and nothing of them is kept."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import metrics_pages
import pytest
import stage_runs
import tiny
import torch
import worlds
from transformers import PreTrainedModel

from rlhf_api.metrics import Metric
from rlhf_api.names import ExitCode, GuardrailAction, GuardrailRule, Reason, StageName
from rlhf_api.v1alpha1 import CheckpointPolicy, Guardrail, ModelSource, StageConfig
from rlhf_trainer.errors import Failure, NonFiniteError, failure_of
from rlhf_trainer.models import response_loss
from rlhf_trainer.models.engine import TrainedModel
from rlhf_trainer.run.loop import TrainingLoop
from rlhf_trainer.run.report import Reporter
from rlhf_trainer.stages import ppo, reward

EVERY = CheckpointPolicy(every_steps=1, keep=4, keep_finished=True)
LAST = {"sft": "model", "reward": "model", "ppo": "critic"}
"""The model of each stage whose optimizer steps last."""


@contextmanager
def served_last() -> Iterator[list[str]]:
    """What Prometheus could read when a stage was about to leave."""
    pages: list[str] = []
    plain = Reporter.close

    def closed(reporter: Reporter) -> None:
        if not pages:
            pages.append(metrics_pages.fetched(reporter.metrics_port))
        plain(reporter)

    with patch.object(Reporter, "close", closed):
        yield pages


def failure(config: StageConfig) -> Failure:
    """How the stage ends; of what it wrote every line is JSON, and nothing is published.

    That a number is not finite is a verdict like any other: an event, metrics, in the result.
    """
    with served_last() as pages, pytest.raises(NonFiniteError) as caught:
        stage_runs.run(config)
    found = failure_of(caught.value)
    assert (found.exit_code, found.reason) == (ExitCode.NUMERICS, Reason.NON_FINITE)
    assert found.message.startswith(f"spec.stages.{config.stage}: NaN or infinite at step ")
    assert "lower learningRate" in found.message
    verdict = found.verdicts[0]
    assert (verdict.rule, verdict.action) == (GuardrailRule.NON_FINITE, GuardrailAction.FAIL)
    told = stage_runs.events(config)[-1]
    assert (told["type"], told["rule"], told["broken"]) == ("verdict", "NonFinite", True)
    assert (told["action"], told["step"], told["value"]) == ("Fail", found.step, verdict.value)
    named = found.message.partition(f"at step {found.step}: ")[2].partition(";")[0]
    assert told["evidence"].startswith(f"NaN or infinite: {named}; ")
    series = (
        f'{{attempt="{config.attempt}",rlhfjob="tiny",rule="NonFinite",stage="{config.stage}"}}'
    )
    for family, value in (("verdict", 1.0), ("value", verdict.value), ("threshold", 0.0)):
        assert f"rlhf_train_health_{family}{series} {value}\n" in pages[0]
    folder = Path(config.attempt_folder)
    assert not (folder / "artifact").exists()
    for path in folder.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=refuse)
    for path in folder.rglob("*.jsonl"):
        for line in path.read_text().splitlines():
            json.loads(line, parse_constant=refuse)
    return found


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def guarded(config: StageConfig, action: str) -> StageConfig:
    """NonFinite, and another rule that is always broken, with an action each."""
    never = Guardrail(
        rule=GuardrailRule.KL_ABOVE_LIMIT,
        action=GuardrailAction(action),
        threshold=-1000.0,
        consecutive_updates=2,
    )
    rule = Guardrail(rule=GuardrailRule.NON_FINITE, action=GuardrailAction(action))
    return config.model_copy(update={"guardrails": (rule, never)})


@contextmanager
def spoilt_step(model: str, step: int, value: float, of: str) -> Iterator[None]:
    """The optimizer's n-th step on the model of that stage gives a norm of `value`, or weights."""
    plain, seen = TrainedModel.step, 0

    def stepped(self: TrainedModel, learning_rate: float) -> float:
        nonlocal seen
        norm = plain(self, learning_rate)
        scalar = type(self.module).__name__ != "Actor"
        if scalar != (model in ("critic", "reward")):
            return norm
        seen += 1
        if seen != step:
            return norm
        if of == "gradient":
            return value
        with torch.no_grad():
            next(self.module.parameters())[0, 0] = value
        return norm

    with patch.object(TrainedModel, "step", stepped):
        yield


@pytest.mark.parametrize("stage", StageName)
@pytest.mark.parametrize(("of", "value"), [("gradient", math.inf), ("weights", math.nan)])
def test_a_step_that_spoils_ends_the_stage(
    tmp_path: Path, stage: str, of: str, value: float
) -> None:
    config = tiny.stage_config(stage, tmp_path, checkpoint=EVERY)
    if stage == "ppo":
        config = guarded(config, "Fail" if of == "gradient" else "Suspend")
    with spoilt_step("critic" if stage == "ppo" else stage, 2, value, of):
        found = failure(config)
    assert (found.step, found.last_checkpoint_step) == (2, 1)
    assert stage_runs.checkpoints(config) == ["latest", "step-1"]
    # Nor does another rule that the same step breaks go untold.
    rules = ["NonFinite", "KLAboveLimit"] if stage == "ppo" else ["NonFinite"]
    assert [(each.rule, each.step) for each in found.verdicts] == [(rule, 2) for rule in rules]
    told = stage_runs.events(config, "verdict")
    assert [each["rule"] for each in told] == rules[::-1]
    norm = "critic_gradient_norm" if stage == "ppo" else "gradient_norm"
    named = f"{norm};" if of == "gradient" else f"{LAST[stage]}'s model.model.embed_tokens.weight;"
    assert f"at step 2: {named} the last checkpoint is of step 1" in found.message
    # The step is told before the stage ends.
    assert len(stage_runs.steps(config)) == 2
    assert (stage_runs.steps(config)[1][norm] is None) == (of == "gradient")


def with_huge_logits(model: PreTrainedModel) -> PreTrainedModel:
    """Finite weights with which every score and probability overflows."""
    with torch.no_grad():
        model.get_parameter("model.norm.weight").fill_(3e38)
    return model


def changed(folder: Path, stage: str, kind: str, change: Any) -> ModelSource:
    """A model like that of the stage, with other weights."""
    words = tiny.tokenizer_folder(folder / "tokenizer")
    make = {"causal": tiny.causal_model, "scalar": tiny.scalar_model}[kind]
    return tiny.file_source(tiny.saved(change(make(words)), folder / f"{stage}-{kind}", words))


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_a_loss_that_is_not_finite_ends_the_stage(tmp_path: Path, stage: str) -> None:
    model = changed(tmp_path, stage, "causal", with_huge_logits)
    packing: Any = {"packing": False} if stage == "sft" else {}
    config = tiny.stage_config(stage, tmp_path, model=model, checkpoint=EVERY, **packing)
    found = failure(config)
    assert (found.step, found.last_checkpoint_step) == (1, None)
    assert "at step 1: loss, " in found.message
    assert "; there is no checkpoint, " in found.message
    assert stage_runs.checkpoints(config) == []
    assert stage_runs.steps(config)[0]["loss"] is None


def test_a_policy_that_gives_no_probabilities_ends_before_it_is_learned_from(
    tmp_path: Path,
) -> None:
    """Sampling from NaN raises, on one rank alone or on a whole device."""
    config = tiny.stage_config(
        "ppo", tmp_path, model=changed(tmp_path, "ppo", "causal", with_huge_logits)
    )
    with patch.object(ppo, "_checked", lambda collector, prompts: collector):
        found = failure(guarded(config, "Observe"))
    assert found.step == 1
    assert "actor's log-probabilities, reference's log-probabilities" in found.message


def with_a_hole(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        model.get_parameter("model.norm.weight")[1] = math.nan
    return model


@pytest.mark.parametrize(
    ("stage", "field", "kind"),
    [
        ("sft", "model", "causal"),
        ("reward", "model", "causal"),
        ("ppo", "model", "causal"),
        ("ppo", "criticModel", "scalar"),
        ("ppo", "rewardModel", "scalar"),
    ],
)
def test_a_weight_that_is_no_number_is_refused_before_anything_is_learned(
    tmp_path: Path, stage: str, field: str, kind: str
) -> None:
    source = changed(tmp_path, stage, kind, with_a_hole)
    name = {"criticModel": "critic_model", "rewardModel": "reward_model"}.get(field, field)
    with pytest.raises(NonFiniteError) as caught:
        stage_runs.run(tiny.stage_config(stage, tmp_path, **{name: source}))
    assert str(caught.value).startswith(f"spec.stages.{stage}.{field}: cannot use {tmp_path}")
    assert "its model.norm.weight holds NaN or infinity; name a model" in str(caught.value)


def test_a_checkpoint_that_is_no_number_is_not_gone_on_with(tmp_path: Path) -> None:
    """One that an earlier release has written."""
    first = tiny.stage_config("sft", tmp_path, checkpoint=EVERY)
    whole = patch.object(TrainingLoop, "require_finite", lambda *given: None)
    with spoilt_step("sft", 4, math.nan, "weights"), whole:
        stage_runs.run(first)
    second = stage_runs.attempt(first, 2)
    shutil.rmtree(Path(first.attempt_folder) / "artifact")
    found = failure(second)
    assert (found.step, found.last_checkpoint_step) == (4, 4)
    assert "at step 4: model's model.model.embed_tokens.weight;" in found.message


@pytest.mark.parametrize(
    ("stage", "name"),
    [("sft", ""), ("reward", ""), ("ppo", "ref_logprobs"), ("ppo", "scores")],
)
def test_an_evaluation_that_is_not_finite_publishes_nothing(
    tmp_path: Path, stage: str, name: str
) -> None:
    config = tiny.stage_config(stage, tmp_path, eval_dataset=True, max_steps=1)
    spoilt: Any
    if stage == "sft":
        spoilt = patch.object(
            response_loss, "sft_loss", not_finite_after(response_loss.sft_loss, 2)
        )
    elif stage == "reward":
        spoilt = patch.object(reward, "score_pairs", not_finite_after(reward.score_pairs, 2))
    else:
        spoilt = stage_runs.spoilt_rollout(name, update=3)
    with spoilt:
        found = failure(config)
    # What was learned is kept.
    assert (found.step, found.last_checkpoint_step) == (1, 1)
    (event,) = stage_runs.events(config, "evaluation")
    assert None in event["metrics"].values()


def test_so_does_one_of_the_reference(tmp_path: Path) -> None:
    """Its figures are in no series, and in what is published."""
    config = tiny.stage_config("ppo", tmp_path, eval_dataset=True, max_steps=1)
    with stage_runs.spoilt_rollout("scores", update=2):
        found = failure(config)
    assert (found.step, found.last_checkpoint_step) == (1, 1)
    assert "reference's eval_reward" in found.message


def not_finite_after(call: Any, calls: int) -> Any:
    """`call`, whose tensors are NaN from then on."""
    seen = 0

    def called(*given: Any, **settings: Any) -> Any:
        nonlocal seen
        seen += 1
        found = call(*given, **settings)
        if seen <= calls:
            return found
        spoilt = (each * math.nan for each in found)
        return type(found)(*spoilt) if hasattr(found, "_fields") else tuple(spoilt)

    return called


def with_large_values(model: PreTrainedModel) -> PreTrainedModel:
    """Their squares overflow."""
    with torch.no_grad():
        model.get_parameter("score.weight").mul_(1e22)
    return model


def test_a_critic_whose_loss_overflows_ends_the_stage(tmp_path: Path) -> None:
    critic = changed(tmp_path, "ppo", "scalar", with_large_values)
    config = tiny.stage_config("ppo", tmp_path, critic_model=critic, checkpoint=EVERY)
    found = failure(config)
    assert (found.step, found.last_checkpoint_step) == (1, None)
    assert "critic_loss" in found.message
    assert stage_runs.checkpoints(config) == []
    assert [step["critic_loss"] for step in stage_runs.steps(config)] == [None]


def require_refused_step(config: StageConfig) -> None:
    """The second step was told, and nothing was learned in it."""
    first, second = stage_runs.steps(config)
    assert None not in first.values()
    assert second[Metric.RETURNS_MEAN] is None
    assert "policy_loss" not in second


@pytest.mark.parametrize("name", ["old_logprobs", "ref_logprobs", "values"])
@pytest.mark.parametrize("action", ["Observe", "Suspend"])
def test_no_guardrail_comes_before_it(tmp_path: Path, name: str, action: str) -> None:
    """Another rule is broken by the same update."""
    config = guarded(tiny.stage_config("ppo", tmp_path, checkpoint=EVERY), action)
    with stage_runs.spoilt_rollout(name, update=2):
        found = failure(config)
    assert (found.step, found.last_checkpoint_step) == (2, 1)
    assert stage_runs.checkpoints(config) == ["latest", "step-1"]
    require_refused_step(config)


@pytest.mark.parametrize(
    ("settings", "logprob"), [({"kl_estimator": "K2"}, -1e20), ({"kl_coef": 100.0}, -1e37)]
)
def test_a_penalty_that_overflows_is_not_learned_from(
    tmp_path: Path, settings: dict[str, Any], logprob: float
) -> None:
    """The log-probabilities are finite, and what is made of them is not."""
    config = tiny.stage_config("ppo", tmp_path, checkpoint=EVERY, **settings)
    with stage_runs.spoilt_rollout("ref_logprobs", update=2, value=logprob):
        found = failure(config)
    assert "at step 2: KL penalty;" in found.message
    assert (found.step, found.last_checkpoint_step) == (2, 1)
    require_refused_step(config)


def test_returns_that_overflow_are_not_learned_from(tmp_path: Path) -> None:
    """Each value and each reward is finite, and their differences are not."""
    config = tiny.stage_config(
        "ppo", tmp_path, checkpoint=EVERY, kl_coef=1.0, reward_scaling="None"
    )
    spoilt = stage_runs.spoilt_rollout
    with spoilt("values", 2, value=3.4e38), spoilt("ref_logprobs", 2, value=-1e37):
        found = failure(config)
    assert "at step 2: advantages" in found.message
    assert (found.step, found.last_checkpoint_step) == (2, 1)
    require_refused_step(config)


@pytest.mark.parametrize("name", ["values", "old_logprobs"])
def test_all_ranks_end_alike(tmp_path: Path, name: str) -> None:
    """One of them found it."""
    config = tiny.stage_config("ppo", tmp_path, world_size=2, checkpoint=EVERY)
    both = worlds.pair()(stage_runs.ON_RANK, "run_spoilt", config=config, name=name, update=2)
    first, second = (found["error"] for found in both)
    assert first == second
    assert (first.exit_code, first.step) == (ExitCode.NUMERICS, 2)
    assert first.last_checkpoint_step == 1


def test_moments_are_refused_by_all_ranks_at_once() -> None:
    """The others would wait for one that raised alone."""
    first, second = worlds.pair()(stage_runs.ON_RANK, "refused_moments")
    assert first == second
    assert "not finite" in first
