"""A stage that is stopped anywhere, and tried again, ends as one that never stopped."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import stage_runs
import tiny
import torch
from stage_runs import told

from rlhf_api.errors import InputError
from rlhf_api.names import ExitCode, Reason
from rlhf_api.v1alpha1 import CheckpointPolicy, StageConfig
from rlhf_trainer.errors import StopRequested, failure_of
from rlhf_trainer.models.engine import TrainedModel
from rlhf_trainer.ppo import ptx
from rlhf_trainer.ppo.learning import Learner
from rlhf_trainer.process.outcome import StageOutcome
from rlhf_trainer.process.stopping import StopFlag
from rlhf_trainer.stages import ppo

NEVER = 10**9

# Everything that a checkpoint has to keep beside weights is on, so that losing it shows.
SETTINGS: dict[str, dict[str, Any]] = {
    # Four steps see each row once: two more begin another epoch.
    "sft": {"packing": False, "max_steps": 6, "schedule": "Linear", "eval_every_steps": 2},
    "reward": {
        "max_steps": 6,
        "schedule": "Cosine",
        "warmup_ratio": 0.5,
        "eval_every_steps": 3,
    },
    "ppo": {
        "max_steps": 5,
        "kl_controller": "Adaptive",
        "kl_target": 0.05,
        "kl_horizon": 8,
        "reward_scaling": "RunningStd",
        "critic_warmup_steps": 1,
        "minibatch_size": 2,
        "update_epochs": 2,
        "eval_every_steps": 2,
        "schedule": "Linear",
        "max_response_length": 16,
        "ptx_dataset": True,
        "ptx_coef": 0.5,
        "ema_decay": 0.7,
    },
}


def config_of(stage: str, folder: Path, **changed: Any) -> StageConfig:
    settings = {"eval_dataset": True, "checkpoint": CheckpointPolicy(every_steps=100)}
    return tiny.stage_config(stage, folder, **settings | SETTINGS[stage] | changed)


def weights(config: StageConfig, outcome: StageOutcome) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(stage_runs.artifact(config, outcome) / "model.safetensors")


def stopped(config: StageConfig, stop: int | StopFlag) -> StopRequested:
    """Run until the n-th look at the flag, or until a flag of its own is set."""
    flag = stage_runs.StopAt(stop) if isinstance(stop, int) else stop
    with pytest.raises(StopRequested) as caught:
        stage_runs.run(config, flag)
    return caught.value


def stopped_after(config: StageConfig, step: int) -> StopRequested:
    """Run until it has told of a step."""
    return stopped(config, stage_runs.StopAfter(config, step))


Whole = tuple[StageConfig, StageOutcome, int]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """Each stage once without a stop, and how often it looks at the flag."""
    found: dict[str, Whole] = {}

    def run(stage: str) -> Whole:
        if stage not in found:
            config = config_of(stage, tmp_path_factory.mktemp(stage))
            flag = stage_runs.StopAt(NEVER)
            found[stage] = config, stage_runs.run(config, flag), NEVER - flag.left
        return found[stage]

    return run


# Shares of all looks: the first, some in between, the last. SFT and reward look before every
# micro-batch, evaluations included; PPO looks at every token that it samples as well.
STOPS = {
    "sft": [at / 12 for at in range(1, 13)],
    "reward": [0.0, 0.15, 0.3, 0.55, 0.8, 1.0],
    "ppo": [0.0, 0.1, 0.25, 0.45, 0.6, 0.7, 0.9, 1.0],
}


@pytest.mark.parametrize(
    ("stage", "share"), [(stage, share) for stage, shares in STOPS.items() for share in shares]
)
def test_stopped_anywhere_it_ends_as_if_it_never_was(
    tmp_path: Path, whole: Callable[[str], Whole], stage: str, share: float
) -> None:
    straight, expected, looks = whole(stage)
    config = config_of(stage, tmp_path)
    error = stopped(config, max(1, round(share * looks)))
    assert failure_of(error).exit_code == ExitCode.STOPPED_WITH_CHECKPOINT
    assert error.last_checkpoint_step == error.step
    assert f"step-{error.step}" in stage_runs.checkpoints(config)
    again = stage_runs.attempt(config, 2)
    outcome = stage_runs.run(again)
    assert stage_runs.events(again)[0]["step"] == error.step
    assert outcome.step == expected.step
    # On a CPU not a bit differs.
    assert stage_runs.learned(dict(outcome.metrics)) == stage_runs.learned(dict(expected.metrics))
    assert told(config, again) == told(straight)
    for name, weight in weights(straight, expected).items():
        assert torch.equal(weights(again, outcome)[name], weight), name


def test_a_rollout_that_is_cut_short_is_not_told(
    tmp_path: Path, whole: Callable[[str], Whole]
) -> None:
    """Every look from the first update's first token to its last leads back to before it."""
    _, _, looks = whole("ppo")
    for number in (2, 5, 8):
        config = config_of("ppo", tmp_path / str(number))
        error = stopped(config, number)
        assert error.step == 0
        assert [event["type"] for event in stage_runs.events(config)] == ["start", "checkpoint"]
    assert looks > 20


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_two_ranks_go_on_where_they_were(tmp_path: Path, stage: str) -> None:
    """Only rank 0 is asked to stop: both do, after the same step."""
    settings = {"world_size": 2, "zero_stage": 2}
    straight = config_of(stage, tmp_path / "straight", **settings)
    (expected, _) = stage_runs.run_on_pair(straight)
    config = config_of(stage, tmp_path / "cut", **settings)
    # SFT and reward: the second look inside of a step, with half of its gradient there.
    found = stage_runs.run_on_pair(config, looks=20 if stage == "ppo" else 4)
    for rank in found:
        assert rank["error"].exit_code == ExitCode.STOPPED_WITH_CHECKPOINT
        assert rank["error"].step == found[0]["error"].step
    assert 0 < found[0]["error"].step < 5
    again = stage_runs.attempt(config, 2)
    (outcome, _) = stage_runs.run_on_pair(again)
    assert stage_runs.learned(outcome["outcome"].metrics) == stage_runs.learned(
        expected["outcome"].metrics
    )
    assert told(config, again) == told(straight)


def test_earlier_checkpoints_stay_until_there_is_an_own_one(tmp_path: Path) -> None:
    policy = CheckpointPolicy(every_steps=2, keep_finished=True)
    first = config_of("sft", tmp_path, checkpoint=policy)
    assert stopped_after(first, 3).step == 3
    assert stage_runs.checkpoints(first) == ["latest", "step-2", "step-3"]
    # Asked again before its first step, an attempt has nothing to add.
    second = stage_runs.attempt(first, 2)
    error = stopped(second, 1)
    assert (error.step, error.last_checkpoint_step) == (3, 3)
    assert stage_runs.checkpoints(second) == []
    assert "step-3" in stage_runs.checkpoints(first)
    third = stage_runs.attempt(first, 3)
    assert stage_runs.run(third).step == 6
    assert stage_runs.events(third)[0]["step"] == 3
    assert not [name for name in stage_runs.checkpoints(first) if name.startswith("step")]
    assert "step-6" in stage_runs.checkpoints(third)


def test_where_only_other_work_was_kept_a_person_decides(tmp_path: Path) -> None:
    first = config_of("sft", tmp_path)
    assert stopped_after(first, 3).step == 3
    kept = Path(first.attempt_folder) / "checkpoints" / "step-3"
    other = stage_runs.attempt(config_of("sft", tmp_path, learning_rate=0.02), 2)
    with pytest.raises(InputError) as caught:
        stage_runs.run(other)
    failure = failure_of(caught.value)
    assert (failure.exit_code, failure.reason) == (ExitCode.INPUT, Reason.INPUT_INVALID)
    for word in (first.config_digest, other.config_digest, str(kept), "remove checkpoints"):
        assert word in failure.message
    assert stage_runs.checkpoints(first) == ["latest", "step-3"]
    assert stage_runs.checkpoints(other) == []

    shutil.rmtree(kept.parent)
    assert stage_runs.run(other).step == 6
    assert stage_runs.events(other)[0]["step"] == 0


def test_two_ranks_leave_the_decision_alike(tmp_path: Path) -> None:
    first = config_of("sft", tmp_path, world_size=2, zero_stage=0)
    stage_runs.run_on_pair(first, looks=3)
    other = config_of("sft", tmp_path, world_size=2, zero_stage=0, seed=5, attempt=2)
    for rank in stage_runs.run_on_pair(other):
        assert rank["error"].exit_code == ExitCode.INPUT
        assert first.config_digest in rank["error"].message


def test_what_is_cosmetic_may_change_on_the_way(tmp_path: Path) -> None:
    first = config_of("ppo", tmp_path)
    step = stopped(first, 40).step
    assert step > 0
    policy = CheckpointPolicy(every_steps=1, keep=1, keep_finished=True)
    changed = {"checkpoint": policy, "samples_every_steps": 1}
    second = stage_runs.attempt(config_of("ppo", tmp_path, **changed), 2)
    assert stage_runs.run(second).step == 5
    assert stage_runs.events(second)[0]["step"] == step
    assert stage_runs.checkpoints(second) == ["latest", "step-5"]


def test_a_broken_checkpoint_is_passed_over(tmp_path: Path) -> None:
    first = config_of("reward", tmp_path, checkpoint=CheckpointPolicy(every_steps=2))
    assert stopped_after(first, 3).step == 3
    (state,) = Path(first.attempt_folder).glob("checkpoints/step-3/model/*model_states.pt")
    state.write_bytes(state.read_bytes()[:-100])
    second = stage_runs.attempt(first, 2)
    stage_runs.run(second)
    assert stage_runs.events(second)[0]["step"] == 2


@pytest.mark.parametrize("after", ["nothing", "a micro-batch", "a micro-batch of other texts"])
def test_a_stop_while_ppo_learns_leads_back_to_before_the_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """Before the update's first micro-batch, or between it and the second, or those of the texts
    that are mixed in: PopArt has rewritten the critic and half of a gradient is there, but no
    optimizer has stepped."""
    settings = {
        "value_normalization": "PopArt",
        "minibatch_size": 4,
        # Four texts are more than a pass holds.
        "micro_batch_tokens": 24,
        "reward_scaling": "RunningStd",
    }
    straight = config_of("ppo", tmp_path / "straight", **settings)
    expected = stage_runs.run(straight)
    config = config_of("ppo", tmp_path / "stopped", **settings)
    flag = StopFlag()
    accumulate, follow, loss = Learner._accumulate_critic, ppo.follow, ptx.response_loss
    updates = 0

    def ask(now: str) -> None:
        if updates == 3 and after == now:
            flag.ask()

    def ask_when_followed(*arguments: Any) -> Any:
        nonlocal updates
        updates += 1
        ask("nothing")
        return follow(*arguments)

    def ask_when_accumulated(*arguments: Any) -> None:
        accumulate(*arguments)
        ask("a micro-batch")

    def ask_when_read(*arguments: Any) -> Any:
        ask("a micro-batch of other texts")
        return loss(*arguments)

    monkeypatch.setattr(ptx, "response_loss", ask_when_read)
    monkeypatch.setattr(ppo, "follow", ask_when_followed)
    monkeypatch.setattr(Learner, "_accumulate_critic", ask_when_accumulated)
    error = stopped(config, flag)
    assert (error.step, error.last_checkpoint_step) == (2, 2)
    again = stage_runs.attempt(config, 2)
    outcome = stage_runs.run(again)
    assert stage_runs.learned(dict(outcome.metrics)) == stage_runs.learned(dict(expected.metrics))
    assert told(config, again) == told(straight)
    for name, weight in weights(straight, expected).items():
        assert torch.equal(weights(again, outcome)[name], weight), name


def test_an_update_whose_optimizer_has_stepped_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("ppo", tmp_path)
    flag, step = StopFlag(), TrainedModel.step

    def ask(*arguments: Any) -> float:
        flag.ask()
        return step(*arguments)

    monkeypatch.setattr(TrainedModel, "step", ask)
    error = stopped(config, flag)
    assert (error.step, error.last_checkpoint_step) == (1, 1)


FINISHED = pytest.mark.field("CheckpointPolicy.keep_finished")


@pytest.mark.parametrize("keep", [False, pytest.param(True, marks=FINISHED)])
def test_checkpoints_of_all_attempts_go_with_the_stage_that_finished(
    tmp_path: Path, keep: bool
) -> None:
    policy = CheckpointPolicy(every_steps=2, keep_finished=keep)
    first = config_of("sft", tmp_path, checkpoint=policy)
    stopped_after(first, 3)
    second = stage_runs.attempt(first, 2)
    outcome = stage_runs.run(second)
    assert outcome.artifact is not None
    left = [name for name in stage_runs.checkpoints(second) if name.startswith("step")]
    assert left == (["step-4", "step-6"] if keep else [])


def test_an_attempt_that_finds_the_work_done_removes_what_its_checkpoints_left(
    tmp_path: Path,
) -> None:
    keeping = CheckpointPolicy(every_steps=2, keep_finished=True)
    first = config_of("sft", tmp_path, checkpoint=keeping)
    stage_runs.run(first)
    assert "step-6" in stage_runs.checkpoints(first)
    second = stage_runs.attempt(config_of("sft", tmp_path), 2)
    assert stage_runs.run(second).step == 6
    assert not [name for name in stage_runs.checkpoints(first) if name.startswith("step")]


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_what_is_done_is_not_done_again(tmp_path: Path, stage: str) -> None:
    first = config_of(stage, tmp_path, max_steps=2)
    outcome = stage_runs.run(first)
    second = stage_runs.attempt(first, 2)
    again = stage_runs.run(second)
    assert again.artifact == outcome.artifact
    assert (again.step, again.total_steps) == (2, 2)
    assert not Path(second.attempt_folder).exists()
