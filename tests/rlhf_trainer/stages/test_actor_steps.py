"""Other texts in the actor's updates, and an average of its weights as what PPO leaves."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import stage_runs
import tiny
import torch
import worlds

from rlhf_api.errors import DataError
from rlhf_api.names import FileName
from rlhf_api.v1alpha1 import CheckpointPolicy, Dataset, StageConfig
from rlhf_trainer.process.outcome import StageOutcome

DECAY = 0.75
Weights = dict[str, torch.Tensor]


def weights(folder: Path) -> Weights:
    return safetensors.torch.load_file(folder / "model.safetensors")


def left(config: StageConfig, outcome: StageOutcome) -> Weights:
    return weights(stage_runs.artifact(config, outcome))


def initial(config: StageConfig) -> Weights:
    assert config.ppo is not None
    return weights(Path(str(config.ppo.model.uri).removeprefix("file://")))


@pytest.mark.field("PPOStage.ema_decay")
def test_what_is_left_is_the_average_and_the_checkpoint_has_the_last_weights(
    tmp_path: Path,
) -> None:
    """Two steps by hand. The checkpoint is not due, and still there when the average takes over."""
    never = CheckpointPolicy(every_steps=100, keep_finished=True)
    always = CheckpointPolicy(every_steps=1, keep_finished=True)
    plain = tiny.stage_config("ppo", tmp_path / "plain", max_steps=2, checkpoint=never)
    last = left(plain, stage_runs.run(plain))
    config = tiny.stage_config(
        "ppo", tmp_path / "ema", max_steps=2, checkpoint=never, ema_decay=DECAY
    )
    found = left(config, stage_runs.run(config))
    once = tiny.stage_config("ppo", tmp_path / "once", max_steps=2, checkpoint=always)
    stage_runs.run(once)
    first, second = stage_runs.kept_weights(once, 1), stage_runs.kept_weights(once, 2)
    for name, weight in initial(config).items():
        average = DECAY * weight + (1 - DECAY) * first[name]
        average = DECAY * average + (1 - DECAY) * second[name]
        torch.testing.assert_close(found[name], average, rtol=1e-6, atol=1e-6)
        assert torch.equal(stage_runs.kept_weights(config, 2)[name], last[name]), name
    assert any(not torch.equal(found[name], last[name]) for name in found)


def test_what_is_judged_is_what_is_left(tmp_path: Path) -> None:
    """An average that never moves is the reference: nothing may differ, after any training."""
    settings: dict[str, Any] = {"max_steps": 3, "eval_dataset": True, "learning_rate": 0.1}
    # The largest number below 1: the weights move by less than fp32 shows.
    config = tiny.stage_config("ppo", tmp_path / "ema", ema_decay=1 - 2**-53, **settings)
    outcome = stage_runs.run(config)
    figures = stage_runs.document(stage_runs.artifact(config, outcome), FileName.EVALUATION)
    assert figures["after"]["kl"] == pytest.approx(0.0, abs=1e-5)
    for name, weight in left(config, outcome).items():
        torch.testing.assert_close(weight, initial(config)[name], rtol=1e-6, atol=1e-6)
    plain = tiny.stage_config("ppo", tmp_path / "plain", **settings)
    outcome = stage_runs.run(plain)
    figures = stage_runs.document(stage_runs.artifact(plain, outcome), FileName.EVALUATION)
    assert abs(figures["after"]["kl"]) > 0.01


def test_while_the_critic_warms_up_nothing_is_averaged_or_mixed_in(tmp_path: Path) -> None:
    config = tiny.stage_config(
        "ppo",
        tmp_path,
        max_steps=3,
        critic_warmup_steps=2,
        ema_decay=DECAY,
        ptx_dataset=True,
        checkpoint=CheckpointPolicy(every_steps=1, keep=3, keep_finished=True),
    )
    found = left(config, stage_runs.run(config))
    assert [("ptx_loss" in step) for step in stage_runs.steps(config)] == [False, False, True]
    last = stage_runs.kept_weights(config, 3)
    for name, weight in initial(config).items():
        average = DECAY * weight + (1 - DECAY) * last[name]
        torch.testing.assert_close(found[name], average, rtol=1e-6, atol=1e-6)


def test_texts_without_weight_change_nothing_and_with_it_are_learned(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 8, "minibatch_size": 2, "update_epochs": 2}
    plain, weightless, weighty = (
        tiny.stage_config("ppo", tmp_path / name, **settings, **more)
        for name, more in {
            "plain": {},
            "weightless": {"ptx_dataset": True, "ptx_coef": 0.0},
            "weighty": {"ptx_dataset": True},
        }.items()
    )
    expected = left(plain, stage_runs.run(plain))
    found = left(weightless, stage_runs.run(weightless))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    stage_runs.run(weighty)
    without, with_weight = (
        [step["ptx_loss"] for step in stage_runs.steps(config)] for config in (weightless, weighty)
    )
    assert with_weight[-1] < with_weight[0] - 0.5
    assert with_weight[-1] < without[-1] - 0.5
    assert not any("ptx_loss" in step for step in stage_runs.steps(plain))


def test_two_ranks_mix_in_as_one(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "batch_size": 8,
        "update_epochs": 2,
        "max_steps": 2,
        "adam_eps": 1e-3,
        "ptx_dataset": True,
        "ptx_coef": 2.0,
    }
    alone = tiny.stage_config("ppo", tmp_path / "one", **settings)
    stage_runs.run_with_fixed_answers(alone)
    pair = tiny.stage_config("ppo", tmp_path / "two", world_size=2, **settings)
    worlds.pair()(stage_runs.ON_RANK, "run_with_fixed_answers", config=pair)
    for mine, theirs in zip(stage_runs.steps(alone), stage_runs.steps(pair), strict=True):
        for name in ("ptx_loss", "gradient_norm", "policy_loss"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-3, abs=1e-5), name


def test_texts_are_checked_before_any_weights(tmp_path: Path) -> None:
    """The reward model's weights are missing, and that is not what is told."""
    rows = tiny.write_rows(tmp_path / "texts.jsonl", [{"prompt": "a"}])
    config = tiny.stage_config("ppo", tmp_path, ptx_dataset=Dataset(uri=f"file://{rows}"))
    assert config.ppo is not None
    assert config.ppo.reward_model is not None
    folder = Path(str(config.ppo.reward_model.uri).removeprefix("file://"))
    safetensors.torch.save_file({}, folder / "model.safetensors")
    with pytest.raises(DataError, match=r"texts\.jsonl: line 1: response: is missing"):
        stage_runs.run(config)
