"""Stages that train adapters: what learns, what is left, and that a stopped one goes on."""

from pathlib import Path
from typing import Any

import pytest
import stage_runs
import tiny
import torch
import worlds
from ppo_runs import causal, ids_of, judge, score
from stage_runs import require_same, weights

from rlhf_api.errors import ConfigError
from rlhf_api.names import ExitCode
from rlhf_api.v1alpha1 import CheckpointPolicy, LoRA, StageConfig
from rlhf_trainer.errors import StopRequested, failure_of
from rlhf_trainer.ppo import models as ppo_models
from rlhf_trainer.stages import sft

STAGES = ("sft", "reward", "ppo")
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"packing": False},
    "reward": {},
    "ppo": {
        "update_epochs": 2,
        "value_normalization": "PopArt",
        "ptx_dataset": True,
        "ema_decay": 0.7,
    },
}
TWO = LoRA(rank=2, alpha=4)


def config_of(stage: str, folder: Path, **changed: Any) -> StageConfig:
    settings = {"max_steps": 3, "eval_dataset": True, "lora": TWO}
    return tiny.stage_config(stage, folder, **settings | SETTINGS[stage] | changed)


READ = pytest.mark.field("StageSpec.lora")


@pytest.mark.parametrize("stage", [pytest.param(stage, marks=READ) for stage in STAGES])
def test_only_adapters_learn(tmp_path: Path, stage: str) -> None:
    """And a score head with its shift; in what is left they are weights like others."""
    policy = CheckpointPolicy(every_steps=1, keep=9, keep_finished=True)
    config = config_of(stage, tmp_path, checkpoint=policy)
    outcome = stage_runs.run(config)
    notes = " ".join(stage_runs.events(config, "start")[0]["notes"])
    for name in ("actor", "critic") if stage == "ppo" else ("model",):
        first, last = (stage_runs.kept_weights(config, step, name) for step in (1, 3))
        learned = {key for key, weight in first.items() if not torch.equal(last[key], weight)}
        adapters = {key for key in first if "lora_" in key}
        # Two for each of the layer's seven matrices.
        assert len(adapters) == 14
        assert f"parameters of the {name} are trained, with adapters beside 7 layers" in notes
        heads = {"shift", "score.weight"} if name == "critic" else {"score.weight"}
        assert learned == adapters | (heads & first.keys()), name
    names = {name for name in weights(config, outcome) if "lora" in name or "base_layer" in name}
    assert not names


def test_the_loss_falls(tmp_path: Path) -> None:
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    base = tiny.saved(tiny.causal_model(words), tmp_path / "base", words)
    config = config_of("sft", tmp_path, max_steps=20, model=tiny.file_source(base))
    stage_runs.run(config)
    losses = [step["loss"] for step in stage_runs.steps(config)]
    assert sum(losses[-3:]) / 3 < sum(losses[:3]) / 3 - 0.3


def test_the_reference_is_the_actor_without_adapters(tmp_path: Path) -> None:
    settings = {"ema_decay": None, "ptx_dataset": None, "old_logprobs": "Recompute"}
    config = config_of("ppo", tmp_path / "adapters", **settings)
    outcome = stage_runs.run(config)
    kl = [step["kl"] for step in stage_runs.steps(config)]
    assert kl[0] == 0.0
    assert abs(kl[-1]) > 1e-3
    assert all(step["sampler_drift"] < 1e-5 for step in stage_runs.steps(config))
    # Once all is learned it still answers as the stage's model does.
    whole = config_of("ppo", tmp_path / "whole", lora=None, **settings)
    expected = stage_runs.run(whole)
    found, plain = (
        stage_runs.document(stage_runs.artifact(each, ended), "evaluation.json")
        for each, ended in ((config, outcome), (whole, expected))
    )
    assert found["before"] == plain["before"]
    assert found["after"] != plain["before"]


def test_there_is_one_copy_of_the_actors_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate of memory counts no other, and none is loaded."""
    counted: list[str] = []
    loaded: list[str] = []
    check, load = ppo_models.check_memory, ppo_models.load_causal_model

    def look(config: Any, ranks: Any, sizes: Any, *rest: Any) -> None:
        counted.extend(f"{each.name} {each.adapters is not None}" for each in sizes)
        check(config, ranks, sizes, *rest)

    monkeypatch.setattr(ppo_models, "check_memory", look)
    monkeypatch.setattr(
        ppo_models, "load_causal_model", lambda *args: loaded.append("actor") or load(*args)
    )
    stage_runs.run(config_of("ppo", tmp_path, max_steps=1))
    assert counted == ["actor True", "critic True", "reward model False"]
    assert loaded == ["actor"]


@pytest.mark.parametrize(("zero_stage", "precision"), [(0, "FP32"), (2, "BF16"), (3, "FP32")])
@pytest.mark.parametrize("stage", STAGES)
def test_stopped_it_ends_as_if_it_never_was(
    tmp_path: Path, stage: str, zero_stage: int, precision: str
) -> None:
    settings = {"zero_stage": zero_stage, "precision": precision}
    straight = config_of(stage, tmp_path / "straight", **settings)
    expected = stage_runs.run(straight)
    config = config_of(stage, tmp_path / "cut", **settings)
    with pytest.raises(StopRequested):
        stage_runs.run(config, stage_runs.StopAfter(config, 2))
    again = stage_runs.attempt(config, 2)
    outcome = stage_runs.run(again)
    assert stage_runs.events(again)[0]["step"] == 2
    assert stage_runs.told(config, again) == stage_runs.told(straight)
    require_same(weights(again, outcome), weights(straight, expected))


@pytest.mark.parametrize("zero_stage", [0, 3])
@pytest.mark.parametrize("stage", STAGES)
def test_gradient_checkpointing_changes_nothing(
    tmp_path: Path, stage: str, zero_stage: int
) -> None:
    """Inputs of the first layer have no gradient, since the embeddings are frozen."""
    found = []
    for checkpointing in (False, True):
        config = config_of(
            stage,
            tmp_path / str(checkpointing),
            zero_stage=zero_stage,
            gradient_checkpointing=checkpointing,
        )
        found.append((weights(config, stage_runs.run(config)), stage_runs.told(config)))
    (straight, told), (others, again) = found
    assert again == told
    require_same(straight, others)


def test_an_average_is_of_what_is_trained(tmp_path: Path) -> None:
    """One that forgets at once is the last weights."""
    found = []
    for decay in (None, 0.0):
        config = config_of("ppo", tmp_path / str(decay), ema_decay=decay)
        found.append(weights(config, stage_runs.run(config)))
    require_same(*found)


def test_a_later_stage_reads_what_is_left(tmp_path: Path) -> None:
    """SFT's and the reward model's weights are those of plain models, as transformers scores."""
    policy = config_of("sft", tmp_path / "sft")
    actor = stage_runs.artifact(policy, stage_runs.run(policy))
    taste = config_of("reward", tmp_path / "reward", learning_rate=0.05)
    scorer = stage_runs.artifact(taste, stage_runs.run(taste))
    config = config_of(
        "ppo",
        tmp_path / "ppo",
        model=tiny.file_source(actor),
        reward_model=tiny.file_source(scorer),
        samples_every_steps=1,
        batch_size=16,
        max_steps=1,
        old_logprobs="Recompute",
    )
    outcome = stage_runs.run(config)
    assert stage_runs.steps(config)[0]["kl"] == 0.0
    plain, compared = judge(scorer), 0
    for row in stage_runs.samples(config):
        # A text has no letter for the tokens of padding and of the unknown.
        end = [1] * (row["stopReason"] == "stop")
        if row["length"] == len(row["response"]) + len(end):
            ids = ids_of(row["prompt"] + row["response"]) + end
            assert row["score"] == pytest.approx(score(plain, ids), abs=1e-5)
            compared += 1
    assert compared
    assert all(
        bool(weight.isfinite().all())
        for weight in causal(stage_runs.artifact(config, outcome)).parameters()
    )


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_two_ranks_learn_what_one_learns(tmp_path: Path, zero_stage: int) -> None:
    alone = config_of("ppo", tmp_path / "alone")
    stage_runs.run_with_fixed_answers(alone)
    both = config_of("ppo", tmp_path / "both", world_size=2, zero_stage=zero_stage)
    worlds.pair()(stage_runs.ON_RANK, "run_with_fixed_answers", config=both)
    names = ("kl", "policy_loss", "critic_loss", "gradient_norm", "critic_gradient_norm")
    for one, two in zip(stage_runs.steps(alone), stage_runs.steps(both), strict=True):
        for name in names:
            assert two[name] == pytest.approx(one[name], rel=2e-3, abs=1e-4), name


def test_two_ranks_go_on_where_they_were(tmp_path: Path) -> None:
    """Each has its own part of the adapters' fp32 weights, of Adam's moments and of the average."""
    settings = {"world_size": 2, "zero_stage": 3, "precision": "BF16"}
    straight = config_of("ppo", tmp_path / "straight", **settings)
    (expected, _) = stage_runs.run_on_pair(straight)
    config = config_of("ppo", tmp_path / "cut", **settings)
    (stopped, _) = stage_runs.run_on_pair(config, looks=20)
    assert 0 < stopped["error"].step < 3
    again = stage_runs.attempt(config, 2)
    (outcome, _) = stage_runs.run_on_pair(again)
    assert stage_runs.told(config, again) == stage_runs.told(straight)
    require_same(
        weights(again, outcome["outcome"]),
        weights(straight, expected["outcome"]),
    )


def test_a_layer_that_is_not_there_is_refused_before_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(sft, "load_causal_model")
    lora = LoRA(rank=2, alpha=4, target_modules=("c_attn",))
    config = config_of("sft", tmp_path, lora=lora)
    with pytest.raises(ConfigError) as caught:
        stage_runs.run(config)
    failure = failure_of(caught.value)
    assert failure.exit_code == ExitCode.CONFIG
    assert failure.message.startswith("spec.stages.sft.lora.targetModules[0]: LlamaForCausalLM has")
    assert not stage_runs.events(config)
