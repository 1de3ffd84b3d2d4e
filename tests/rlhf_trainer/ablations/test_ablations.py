"""Each mistake that spoils PPO silently is caught: by a self-check, an identity or a bound.

Every test takes the right code through the same measure first, so that the measure can tell.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stage_runs
import tiny
import torch
import worlds

from rlhf_api.names import Reason
from rlhf_api.v1alpha1 import CheckpointPolicy, StageConfig
from rlhf_trainer.errors import StopRequested
from rlhf_trainer.ppo.experience import targets_of
from rlhf_trainer.ppo.rollout import Rollout
from rlhf_trainer.stages import ppo

PROGRAM = Path(__file__).parent / "ablated.py"
ablations: Any = worlds.load(PROGRAM)
cases: Any = worlds.load(Path(__file__).parents[1] / "programs_engine" / "rollout_cases.py")

PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11], [12, 13]]
KL_COEF = 0.3


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def failures(config: StageConfig, ablation: str | None) -> list[Any]:
    """How the stage failed on each rank; None where it ended well."""
    if config.world_size == 1:
        return [ablations.run(tiny.ranks(), config, ablation)]
    found: list[Any] = worlds.pair()(PROGRAM, "run", config=config, ablation=ablation)
    return found


# A self-check: the probability ratio of unchanged weights is 1


def gpt2_config(folder: Path, world_size: int, **changed: Any) -> StageConfig:
    words = tiny.tokenizer_folder(folder / "tokenizer")
    actor = folder / "gpt2"
    if not actor.exists():
        tiny.saved(tiny.causal_model(words, "gpt2"), actor, words)
    return tiny.stage_config(
        "ppo", folder, world_size=world_size, model=tiny.file_source(actor), max_steps=1, **changed
    )


@pytest.mark.parametrize(
    ("world_size", "zero_stage", "precision"),
    [
        (1, 0, "FP32"),
        (1, 0, "BF16"),
        (1, 3, "BF16"),
        (2, 2, "FP32"),
        (2, 2, "BF16"),
        (2, 3, "FP32"),
    ],
)
def test_dropout_makes_the_ratio_noise(
    tmp_path: Path, world_size: int, zero_stage: int, precision: str
) -> None:
    for name in (None, "dropout on"):
        config = gpt2_config(
            tmp_path / str(name), world_size, zero_stage=zero_stage, precision=precision
        )
        found = failures(config, name)
        for failure in found:
            if name is None:
                assert failure is None
                continue
            assert (failure.exit_code, failure.reason) == (70, Reason.SELF_CHECK_FAILED)
            assert "spec.stages.ppo.model: self-check ratio" in failure.message
            assert failure.message == found[0].message


@pytest.mark.parametrize(
    ("world_size", "zero_stage", "precision"), [(1, 0, "FP32"), (1, 0, "BF16"), (2, 3, "FP32")]
)
def test_noise_in_the_update_alone_ends_before_anything_is_learned(
    tmp_path: Path, world_size: int, zero_stage: int, precision: str
) -> None:
    """The short answers of the start are evaluated as the rollout is, which is right."""
    for name in (None, "noise in the update"):
        config = tiny.stage_config(
            "ppo",
            tmp_path / str(name),
            world_size=world_size,
            zero_stage=zero_stage,
            precision=precision,
            checkpoint=CheckpointPolicy(every_steps=1),
        )
        found = failures(config, name)
        for failure in found:
            if name is None:
                assert failure is None
                continue
            assert (failure.exit_code, failure.reason) == (70, Reason.SELF_CHECK_FAILED)
            told = re.match(
                r"spec\.stages\.ppo\.model: self-check first minibatch: mean \|log pi - "
                r"log pi_old\| .* is (0\.\d+), not below (1e-05|0\.02) in (FP32|BF16); ",
                failure.message,
            )
            # The mean of a normal variable's absolute value.
            assert told is not None
            assert float(told[1]) == pytest.approx(0.5 * (2 / np.pi) ** 0.5, rel=0.5)
            assert failure.message == found[0].message
        learned = stage_runs.steps(config), stage_runs.checkpoints(config)
        assert (learned == ([], [])) == (name is not None)


# An identity: what ends an answer is its last action


def stops_among_actions(rollout: Rollout) -> list[tuple[int, bool]]:
    """For each answer that ended: stop tokens among its actions, and whether its last is one."""
    found = []
    for row in rollout.ended.nonzero().flatten().tolist():
        actions = rollout.responses[row][rollout.response_mask[row]]
        stops = actions == cases.EOS
        found.append((int(stops.sum()), bool(stops[-1:].any())))
    return found


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("EOS not counted", (0, False)),
        ("EOS taken for padding", (0, False)),
        # What fills up the shorter rows counts too.
        ("EOS mask off", (1, False)),
    ],
)
def test_the_end_of_an_answer_is_its_last_action(
    tmp_path: Path, name: str, wrong: tuple[int, bool]
) -> None:
    model = tiny.causal_model(tiny.tokenizer_folder(tmp_path / "tokenizer")).eval()
    measured = {}
    for ablation in (None, name):
        torch.manual_seed(4)
        with ablations.ablated(ablation):
            rollout = cases.sampler(model).sample(PROMPTS * 8)
            measured[ablation] = stops_among_actions(rollout)
    assert len(measured[None]) > 3
    assert set(measured[None]) == {(1, True)}
    assert wrong in measured[name]


# An identity: rewards and the penalty's opposite add up to the score, at the last action


def scores_alone(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards without their KL penalty, and what they ought to be. Float[batch, response]."""
    found = cases.experience(rows=12)
    spec: Any = tiny.stage_spec("ppo", folder)
    rewards = targets_of(found, found.scores, spec, KL_COEF).rewards
    k1 = torch.where(found.mask, found.old_logprobs - found.ref_logprobs, 0.0)
    lengths = found.rollout.response_lengths
    last = torch.arange(found.mask.shape[1]) == (lengths - 1).unsqueeze(1)
    return rewards + KL_COEF * k1, torch.where(last, found.scores.unsqueeze(1), 0.0)


@pytest.mark.parametrize(
    "name", [name for name in ablations.ABLATIONS if name.startswith("score ")] + ["KL rewarded"]
)
def test_the_score_is_the_last_actions_alone(tmp_path: Path, name: str) -> None:
    torch.testing.assert_close(*scores_alone(tmp_path), rtol=0, atol=1e-5)
    with ablations.ablated(name):
        found, expected = scores_alone(tmp_path)
    assert float((found - expected).abs().max()) > 0.1


def test_the_stage_places_the_score_so(tmp_path: Path) -> None:
    """At the first update there is no KL: with gamma 1/2 returns are halved scores."""
    for name in (None, "score a token early", "score on every token"):
        config = tiny.stage_config(
            "ppo",
            tmp_path / str(name),
            reward_scaling="None",
            gamma=0.5,
            gae_lambda=1.0,
            max_steps=1,
            batch_size=16,
            samples_every_steps=1,
        )
        assert ablations.run(tiny.ranks(), config, name) is None
        (step,) = stage_runs.steps(config)
        expected = [
            row["score"] * 0.5**left
            for row in stage_runs.samples(config)
            for left in range(row["length"])
        ]
        close = step["returns_mean"] == pytest.approx(np.mean(expected), rel=1e-4)
        assert close == (name is None), name


# A bound: the mean of k1 over samples of the actor estimates a KL divergence


def kl_of_samples(folder: Path, name: str | None, **changed: Any) -> np.ndarray:
    """Nats an answer, of answers that an actor gave that had left its reference."""
    settings: dict[str, Any] = {
        "batch_size": 16,
        "micro_batch_size": 16,
        "rollout_micro_batch_size": 16,
        "max_steps": 8,
        "samples_every_steps": 1,
    }
    config = tiny.stage_config("ppo", folder / str(name), **settings | changed)
    assert ablations.run(tiny.ranks(), config, name) is None
    return np.array([row["kl"] for row in stage_runs.samples(config) if row["step"] > 3])


def test_a_kl_below_0_is_no_kl(tmp_path: Path) -> None:
    for name, sign in ((None, 1), ("KL sign flipped", -1)):
        found = kl_of_samples(tmp_path, name, kl_coef=0.01)
        error = found.std(ddof=1) / len(found) ** 0.5
        assert sign * found.mean() > 3 * error, name


def test_a_penalty_holds_the_actor_near_its_reference(tmp_path: Path) -> None:
    """Where a nat costs as much as a score can bring, no answer is worth many."""
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    base = tiny.saved(tiny.causal_model(words), tmp_path / "base", words)
    settings: dict[str, Any] = {
        # A critic that starts at 0, and rewards as they are.
        "critic_model": tiny.file_source(base),
        "advantage_normalization": "None",
        "reward_scaling": "None",
        "gae_lambda": 1.0,
        "kl_coef": 1.0,
        "score_clip": 1.0,
        "max_steps": 12,
        "seed": 5,
    }
    for name in (None, "KL rewarded"):
        held = kl_of_samples(tmp_path, name, **settings).mean() < 2
        assert held == (name is None), name


# An identity: whitening is one line through all ranks' advantages


def test_whitening_is_one_line_for_all_ranks() -> None:
    """Means of 0 and variances of 1 on each rank are so overall: these alone would not tell."""
    for name in (None, "whitening per rank"):
        parts = worlds.pair()(PROGRAM, "whitened", ablation=name)
        raw, white = (torch.cat([part[at] for part in parts]) for at in range(2))
        assert float(white.mean()) == pytest.approx(0, abs=1e-5)
        assert float(white.var()) == pytest.approx(1, rel=0.1)
        line = (raw - raw.mean()) / raw.std()
        off = float((white - line).abs().max())
        own_means = [abs(float(part[1].mean())) for part in parts]
        if name is None:
            assert off < 1e-5
            assert min(own_means) > 0.1
        else:
            assert off > 0.1
            assert max(own_means) < 1e-5


def test_two_ranks_learn_otherwise_when_each_whitens_its_own(tmp_path: Path) -> None:
    """The first update's gradients of one rank and of two, from the same rollouts."""
    settings: dict[str, Any] = {"batch_size": 8, "max_steps": 1}
    alone = tiny.stage_config("ppo", tmp_path / "one", **settings)
    stage_runs.run_with_fixed_answers(alone)
    expected = stage_runs.steps(alone)[0]["gradient_norm"]
    for name in (None, "whitening per rank"):
        pair = tiny.stage_config("ppo", tmp_path / str(name), world_size=2, **settings)
        worlds.pair()(PROGRAM, "run_with_fixed_answers", config=pair, ablation=name)
        same = stage_runs.steps(pair)[0]["gradient_norm"] == pytest.approx(expected, rel=1e-4)
        assert same == (name is None), name


# The checks change nothing


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_run_is_the_same_without_checks(
    tmp_path: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []
    for name in ("with", "without"):
        config = tiny.stage_config("ppo", tmp_path / name, temperature=temperature)
        stage_runs.run(config)
        told.append([stage_runs.learned(step) for step in stage_runs.steps(config)])
        monkeypatch.setattr(ppo, "run_self_checks", lambda *arguments: None)
        monkeypatch.setattr(ppo, "sound_layout", lambda subjects, rollout, layout, *rest: layout)
    assert told[0] == told[1]


def test_the_reference_is_compared_before_the_first_step_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[bool] = []
    run_self_checks = ppo.run_self_checks

    def watched(subjects: Any, *rest: Any) -> Rollout:
        compared.append(subjects.reference is not None)
        return run_self_checks(subjects, *rest)

    monkeypatch.setattr(ppo, "run_self_checks", watched)
    config = tiny.stage_config("ppo", tmp_path)
    with pytest.raises(StopRequested):
        stage_runs.run(config, stage_runs.StopAt(30))
    assert stage_runs.checkpoints(config)[-1] != "step-0"
    stage_runs.run(stage_runs.attempt(config, 2))
    assert compared == [True, False]
