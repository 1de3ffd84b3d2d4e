"""What an update of the PPO stage computes: rewards, returns, advantages, losses, the KL weight."""

import itertools
from pathlib import Path

import numpy as np
import ppo_runs
import pytest
import stage_runs
import tiny
import torch
from transformers import GenerationConfig


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_first_update_starts_from_the_reference(tmp_path: Path, temperature: float) -> None:
    # Sampling rounds otherwise than the reference.
    settings = {"temperature": temperature, "old_logprobs": "Recompute"}
    config = tiny.stage_config("ppo", tmp_path, max_steps=2, **settings)
    stage_runs.run(config)
    first, second = stage_runs.steps(config)
    assert first["ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert first["approx_kl"] < 1e-10
    assert first["clip_share"] == 0.0
    assert first["kl"] == 0.0
    assert first["sampler_drift"] < 1e-5
    # On policy the ratio is 1 at every update, while the actor has left its reference.
    assert second["ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert abs(second["kl"]) > 1e-4


@pytest.mark.parametrize(
    ("estimator", "scaling"),
    [
        ("K1", "None"),
        ("K2", "None"),
        ("K3", "None"),
        ("K1", "RunningStd"),
        ("K1", "RunningStdTotal"),
    ],
)
def test_rewards_are_score_less_kl(tmp_path: Path, estimator: str, scaling: str) -> None:
    """With gamma 0 a token's return is its reward: their sum is scores less weighted KL.

    RunningStd divides the scores alone, RunningStdTotal the KL as well, by the deviation of both.
    """
    config = tiny.stage_config(
        "ppo",
        tmp_path,
        gamma=0.0,
        kl_coef=0.5,
        kl_estimator=estimator,
        reward_scaling=scaling,
        missing_eos_penalty=0.25,
        score_clip=0.5,
        samples_every_steps=1,
        batch_size=8,
        learning_rate=0.05,
    )
    stage_runs.run(config)
    shaped: list[float] = []
    for at, step in enumerate(stage_runs.steps(config), 1):
        rows = [row for row in stage_runs.samples(config) if row["step"] == at]
        scores = [
            float(np.clip(row["score"], -0.5, 0.5)) - 0.25 * (row["stopReason"] == "length")
            for row in rows
        ]
        total = scaling == "RunningStdTotal"
        shaped += [score - 0.5 * row["kl"] * total for score, row in zip(scores, rows, strict=True)]
        scale = 1.0 if scaling == "None" else np.std(shaped, ddof=1)
        tokens = sum(row["length"] for row in rows)
        weighted = sum(scores) / scale - step["returns_mean"] * tokens
        kl = sum(row["kl"] for row in rows)
        if estimator == "K1":
            assert weighted == pytest.approx(0.5 * kl / (scale if total else 1.0), abs=1e-4)
        elif at > 1:
            # Neither can be negative, and both are as far from 0 as the actor is.
            assert weighted > 1e-3
    assert any(row["stopReason"] == "stop" for row in stage_runs.samples(config))
    assert abs(step["kl"]) > 0.05


def test_the_score_stands_at_the_last_action(tmp_path: Path) -> None:
    """At the first update there is no KL: returns are discounted scores, values are zero."""
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    base = tiny.saved(tiny.causal_model(words), tmp_path / "base", words)
    config = tiny.stage_config(
        "ppo",
        tmp_path,
        critic_model=tiny.file_source(base),
        reward_scaling="None",
        gamma=0.5,
        gae_lambda=1.0,
        max_steps=1,
        batch_size=16,
        micro_batch_size=16,
        samples_every_steps=1,
    )
    stage_runs.run(config)
    (step,) = stage_runs.steps(config)
    returns = np.array(
        [
            row["score"] * 0.5**left
            for row in stage_runs.samples(config)
            for left in range(row["length"])
        ]
    )
    assert step["returns_mean"] == pytest.approx(returns.mean(), rel=1e-5)
    assert step["returns_std"] == pytest.approx(returns.std(ddof=1), rel=1e-5)
    assert step["advantages_std"] == pytest.approx(returns.std(ddof=1), rel=1e-5)
    # A critic without a head of its own starts at 0.
    assert step["explained_variance"] == pytest.approx(0.0, abs=1e-9)
    assert step["critic_loss"] == pytest.approx((returns**2).mean() / 2, rel=1e-5)


def test_a_critic_from_the_reward_model_has_its_head(tmp_path: Path) -> None:
    """Its values are the reward model's numbers at the states before each action."""
    config = tiny.stage_config(
        "ppo",
        tmp_path,
        max_steps=1,
        batch_size=16,
        micro_batch_size=8,
        gae_lambda=1.0,
        reward_scaling="None",
    )
    stage_runs.run_with_fixed_answers(config)
    assert config.ppo is not None
    judge = ppo_runs.judge(ppo_runs.local(config.ppo.reward_model))
    values, returns = [], []
    for row in tiny.prompt_rows():
        prompt = ppo_runs.ids_of(row["prompt"])
        ids = torch.tensor([prompt + stage_runs.fixed_answer(prompt)])
        with torch.no_grad():
            numbers = judge.score(judge.base_model(input_ids=ids).last_hidden_state)[0, :, 0]
        values += numbers[len(prompt) - 1 : -1].tolist()
        returns += [float(numbers[-1])] * (ids.shape[1] - len(prompt))
    (step,) = stage_runs.steps(config)
    residuals = np.array(returns) - np.array(values)
    explained = 1 - residuals.var(ddof=1) / np.var(returns, ddof=1)
    assert step["explained_variance"] == pytest.approx(explained, rel=1e-3, abs=1e-5)
    assert step["critic_loss"] == pytest.approx((residuals**2).mean() / 2, rel=1e-4)


def test_while_the_critic_warms_up_the_actor_stays(tmp_path: Path) -> None:
    config = tiny.stage_config("ppo", tmp_path, max_steps=2, critic_warmup_steps=2)
    outcome = stage_runs.run(config)
    assert config.ppo is not None
    before = ppo_runs.causal(ppo_runs.local(config.ppo.model)).state_dict()
    after = ppo_runs.causal(stage_runs.artifact(config, outcome)).state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    for step in stage_runs.steps(config):
        assert step["learning_rate"] == 0.0
        assert not {"policy_loss", "gradient_norm", "ratio_mean"} & set(step)
        assert step["critic_gradient_norm"] > 0
    # The same run learns once it is longer.
    longer = tiny.stage_config("ppo", tmp_path / "more", max_steps=3, critic_warmup_steps=2)
    outcome = stage_runs.run(longer)
    after = ppo_runs.causal(stage_runs.artifact(longer, outcome)).state_dict()
    assert not all(torch.equal(after[name], weight) for name, weight in before.items())
    assert stage_runs.steps(longer)[-1]["learning_rate"] > 0


def test_the_kl_coefficient_adapts(tmp_path: Path) -> None:
    config = tiny.stage_config(
        "ppo",
        tmp_path,
        kl_controller="Adaptive",
        kl_target=0.05,
        kl_horizon=8,
        kl_coef=0.1,
        learning_rate=0.03,
    )
    stage_runs.run(config)
    coefficient = 0.1
    for step in stage_runs.steps(config):
        assert step["kl_coef"] == pytest.approx(coefficient, rel=1e-9)
        error = min(max(step["kl"] / 0.05 - 1, -0.2), 0.2)
        coefficient *= 1 + error * 4 / 8
    assert len({step["kl_coef"] for step in stage_runs.steps(config)}) == 4


def test_advantages_are_normalised_as_asked(tmp_path: Path) -> None:
    found: dict[str, list[float]] = {}
    for name in ("None", "Minibatch", "Batch"):
        config = tiny.stage_config(
            "ppo",
            tmp_path / name,
            advantage_normalization=name,
            batch_size=8,
            minibatch_size=4,
            max_steps=2,
        )
        stage_runs.run(config)
        found[name] = [step["policy_loss"] for step in stage_runs.steps(config)]
    for one, other in itertools.combinations(found, 2):
        assert abs(found[one][0] - found[other][0]) > 1e-5
    # While the ratio is 1 the loss is the mean advantage; without normalisation it is not 0.
    for name, loss in (("Minibatch", 0.0), ("Batch", 0.0), ("None", None)):
        config = tiny.stage_config(
            "ppo", tmp_path / f"{name}-whole", advantage_normalization=name, max_steps=1
        )
        stage_runs.run(config)
        (step,) = stage_runs.steps(config)
        if loss is None:
            assert abs(step["policy_loss"]) > 1e-3
        else:
            assert step["policy_loss"] == pytest.approx(loss, abs=1e-6)


@pytest.mark.field("PPOStage.stop_tokens")
def test_a_stop_token_ends_a_response(tmp_path: Path) -> None:
    config = tiny.stage_config(
        "ppo", tmp_path, stop_tokens=("a", "e"), samples_every_steps=1, batch_size=16
    )
    outcome = stage_runs.run(config)
    rows = stage_runs.samples(config)
    assert not any("a" in row["response"] or "e" in row["response"] for row in rows)
    assert {row["stopReason"] for row in rows} == {"stop", "length"}
    generation = GenerationConfig.from_pretrained(stage_runs.artifact(config, outcome))
    assert sorted(generation.eos_token_id) == sorted([1, *ppo_runs.ids_of("ae")])


def test_an_entropy_bonus_keeps_entropy_up(tmp_path: Path) -> None:
    last = {}
    for bonus in (0.0, 3.0):
        config = tiny.stage_config(
            "ppo", tmp_path / str(bonus), entropy_coef=bonus, max_steps=6, learning_rate=0.03
        )
        stage_runs.run(config)
        last[bonus] = stage_runs.steps(config)[-1]["entropy"]
    assert last[3.0] > last[0.0] + 0.1
