"""The ratio of the first minibatch is looked at once an attempt, before the actor steps."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stage_runs
import tiny
import torch
import worlds

from rlhf_api.metrics import Metric
from rlhf_api.v1alpha1 import CheckpointPolicy
from rlhf_trainer.errors import SelfCheckError
from rlhf_trainer.ppo import first_ratio, learning
from rlhf_trainer.ppo.experience import Experience
from rlhf_trainer.ppo.first_ratio import FirstRatio
from rlhf_trainer.ppo.metrics import UpdateSums

cases: Any = worlds.load(Path(__file__).parents[1] / "programs_engine" / "rollout_cases.py")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The sums that it waited for a device and for other ranks with."""
    found: list[float] = []

    def watched(values: list[float], *rest: Any) -> list[float]:
        found.append(values[-1])
        return values

    monkeypatch.setattr(first_ratio, "reduce_sum", watched)
    return found


def test_one_wait_an_attempt(tmp_path: Path, waits: list[float]) -> None:
    """Of several updates, epochs, minibatches and micro-batches."""
    config = tiny.stage_config(
        "ppo",
        tmp_path,
        update_epochs=2,
        minibatch_size=2,
        micro_batch_size=1,
        checkpoint=CheckpointPolicy(every_steps=1),
    )
    with pytest.raises(Exception, match="stopped on request"):
        stage_runs.run(config, stage_runs.StopAfter(config, 2))
    assert len(waits) == 1
    stage_runs.run(stage_runs.attempt(config, 2))
    assert len(waits) == 2


def test_where_the_critic_alone_learns_there_is_no_ratio(
    tmp_path: Path, waits: list[float]
) -> None:
    config = tiny.stage_config("ppo", tmp_path, critic_warmup_steps=2, max_steps=2)
    stage_runs.run(config)
    assert waits == []
    later = tiny.stage_config("ppo", tmp_path / "later", critic_warmup_steps=2, max_steps=3)
    stage_runs.run(later)
    assert len(waits) == 1


def test_a_pass_that_only_other_ranks_need_is_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean is over the tokens of the minibatch, each of them once."""
    seen: list[float] = []
    asked: list[float] = []

    def see(ratio: FirstRatio, logprobs: torch.Tensor, micro: Experience) -> None:
        seen.append(float(micro.mask.sum()))

    def require_one(ratio: FirstRatio, tokens: float, *rest: Any) -> None:
        asked.append(tokens)

    def one_more(own: list[Any], spare: Any, ranks: Any) -> list[Any]:
        return [*((part, True) for part in own), (spare, False)]

    monkeypatch.setattr(FirstRatio, "see", see)
    monkeypatch.setattr(FirstRatio, "require_one", require_one)
    monkeypatch.setattr(learning, "filled", one_more)
    stage_runs.run(tiny.stage_config("ppo", tmp_path, max_steps=2))
    assert asked
    assert sum(seen) == sum(asked)


@pytest.mark.parametrize(("off", "passes"), [(0.9e-5, True), (1.1e-5, False), (math.nan, False)])
def test_the_mean_is_over_the_tokens_of_all_micro_batches(off: float, passes: bool) -> None:
    """What the columns after an answer's end hold means nothing."""
    experience, ratio = cases.experience(rows=4), FirstRatio()
    experience = replace(experience, recomputed=None)
    tokens = float(experience.mask.sum())
    for row in range(4):
        part = experience[torch.tensor([row])]
        logprobs = part.old_logprobs + (-1) ** row * off
        ratio.see(torch.where(part.mask, logprobs, 1e6), part)
    if passes:
        ratio.require_one(tokens, "FP32", tiny.ranks())
        assert ratio.passed
    else:
        with pytest.raises(SelfCheckError, match="first minibatch"):
            ratio.require_one(tokens, "FP32", tiny.ranks())


@pytest.mark.parametrize(("off", "sound"), [(0.1e-5, True), (0.3e-5, False)])
def test_old_ones_of_sampling_are_held_against_the_update_too(
    off: float, sound: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Their rounding and the update's may add up."""
    experience, ratio = cases.experience(rows=4), FirstRatio()
    engine = experience.old_logprobs - off
    ratio.see(engine - 0.8e-5, replace(experience, recomputed=engine))
    tokens = float(experience.mask.sum())
    assert ratio.require_one(tokens, "FP32", tiny.ranks()) is sound
    assert ("from now on old ones are computed anew" in caplog.text) is not sound
    assert ratio.passed


def test_an_update_whose_old_ones_are_off_is_the_last_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FirstRatio, "require_one", lambda *given: False)
    policy = CheckpointPolicy(every_steps=1, keep_finished=True)
    config = tiny.stage_config("ppo", tmp_path, max_steps=1, checkpoint=policy)
    stage_runs.run(config)
    assert stage_runs.kept_state(config, 1)["sampledLogprobs"] is False


def test_the_drift_of_the_sampler_is_that_of_an_updates_first_minibatch() -> None:
    """Later ones have learned; what the columns after an answer's end hold means nothing."""
    experience, sums = cases.experience(rows=4), UpdateSums()
    for off, learned in ((0.25, False), (0.75, False), (9.0, True)):
        if learned:
            sums.actor_norms.append(1.0)
        for rows in (torch.tensor([0]), torch.tensor([1, 2, 3])):
            part = experience[rows]
            logprobs = part.rollout.sampled_logprobs - off
            sums.add_drift(torch.where(part.mask, logprobs, 1e6), part)
    sums.critic, sums.critic_norms = torch.ones(2), [1.0]
    assert sums.means(tiny.ranks())[Metric.SAMPLER_DRIFT] == pytest.approx(0.5)
