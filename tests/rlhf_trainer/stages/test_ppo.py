"""The PPO stage from its configuration to the artifact, on one rank and two."""

import itertools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stage_runs
import tiny
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)

from rlhf_api.names import FileName, StageName
from rlhf_api.v1alpha1 import Dataset, ModelSource, StageConfig
from rlhf_trainer.outcome import StageOutcome

LIKED = "a"
MAX_RESPONSE = 8
UPDATES = 12

METRICS = {
    "advantages_std",
    "approx_kl",
    "clip_share",
    "critic_gradient_norm",
    "critic_learning_rate",
    "critic_loss",
    "distinct_2",
    "entropy",
    "eos_rate",
    "explained_variance",
    "gradient_norm",
    "kl",
    "kl_coef",
    "learning_rate",
    "policy_loss",
    "ratio_mean",
    "response_tokens",
    "returns_mean",
    "returns_std",
    "reward",
    "reward_std",
    "sampler_drift",
} | stage_runs.SPEED


def ids_of(text: str) -> list[int]:
    """Token ids, by hand."""
    return [3 + tiny.CHARACTERS.index(character) for character in text]


def spelled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The samples whose text holds all of their tokens: special ones are not shown."""
    return [
        row for row in rows if len(row["response"]) + (row["stopReason"] == "stop") == row["length"]
    ]


@torch.no_grad()
def logprob(model: PreTrainedModel, prompt: list[int], response: list[int]) -> float:
    """log p of a response at temperature 1, token by token."""
    logits = model(input_ids=torch.tensor([prompt + response])).logits[0]
    found = torch.log_softmax(logits, dim=-1)
    return math.fsum(float(found[at - 1, token]) for at, token in enumerate(response, len(prompt)))


@torch.no_grad()
def score(model: PreTrainedModel, ids: list[int]) -> float:
    return float(model(input_ids=torch.tensor([ids])).logits[0, 0])


def causal(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def local(source: ModelSource) -> Path:
    return Path(str(source.uri).removeprefix("file://"))


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """A reward model that was trained to like one letter."""
    folder = tmp_path_factory.mktemp("liking")
    draw = random.Random(1)
    rows = []
    for row in tiny.preference_rows(64):
        text = draw.choices(tiny.CHARACTERS[1:], k=draw.randint(2, 8))
        liked = [LIKED if draw.random() < 0.5 else letter for letter in text[:-1]] + [LIKED]
        rows.append({"query": row["query"], "chosen": "".join(liked), "rejected": "".join(text)})
    path = tiny.write_rows(folder / "liking.jsonl", rows)
    config = tiny.stage_config(
        "reward",
        folder,
        dataset=Dataset(uri=f"file://{path}"),
        batch_size=32,
        micro_batch_size=32,
        max_steps=20,
        learning_rate=0.02,
    )
    return tiny.file_source(stage_runs.artifact(config, stage_runs.run(config)))


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, reward_model: ModelSource
) -> tuple[StageConfig, StageOutcome]:
    """One run that learns, read by several tests."""
    config = tiny.stage_config(
        "ppo",
        tmp_path_factory.mktemp("ppo"),
        reward_model=reward_model,
        eval_dataset=True,
        eval_every_steps=6,
        batch_size=32,
        micro_batch_size=16,
        rollout_micro_batch_size=24,
        minibatch_size=16,
        update_epochs=2,
        max_steps=UPDATES,
        learning_rate=0.02,
        critic_learning_rate=0.02,
        kl_coef=0.02,
        samples_every_steps=1,
        reward_scaling="RunningStd",
    )
    return config, stage_runs.run(config)


def test_the_score_rises(finished: tuple[StageConfig, StageOutcome]) -> None:
    steps = stage_runs.steps(finished[0])
    first, last = (np.mean([step["reward"] for step in part]) for part in (steps[:2], steps[-2:]))
    assert last > first + steps[0]["reward_std"]
    figures = stage_runs.document(stage_runs.artifact(*finished), FileName.EVALUATION)
    assert figures["after"]["score"] > figures["before"]["score"] + figures["before"]["scoreStd"]


def test_every_update_tells_everything(finished: tuple[StageConfig, StageOutcome]) -> None:
    steps = stage_runs.steps(finished[0])
    assert len(steps) == UPDATES
    for step in steps:
        assert set(step) == METRICS | {"reward_scale"}
        assert all(math.isfinite(value) for value in step.values())
        assert step["clip_share"] < 1
        assert step["entropy"] > 0
        assert abs(step["sampler_drift"]) < 1e-5


def test_scores_are_divided_by_their_running_deviation(
    finished: tuple[StageConfig, StageOutcome],
) -> None:
    config, _ = finished
    rows = stage_runs.samples(config)
    scores = np.array([row["score"] for row in rows])
    for at, step in enumerate(stage_runs.steps(config), 1):
        assert step["reward_scale"] == pytest.approx(scores[: 32 * at].std(ddof=1), rel=1e-6)


def test_samples_are_what_was_rewarded(
    finished: tuple[StageConfig, StageOutcome], reward_model: ModelSource
) -> None:
    config, _ = finished
    rows = stage_runs.samples(config)
    assert len(rows) == UPDATES * 32
    assert all(
        sorted(row) == ["kl", "length", "prompt", "response", "score", "step", "stopReason"]
        for row in rows
    )
    for at, step in enumerate(stage_runs.steps(config), 1):
        own = [row for row in rows if row["step"] == at]
        assert step["reward"] == pytest.approx(np.mean([row["score"] for row in own]), rel=1e-6)
        assert step["kl"] == pytest.approx(np.mean([row["kl"] for row in own]), rel=1e-5, abs=1e-6)
        assert step["response_tokens"] == np.mean([row["length"] for row in own])
        assert step["eos_rate"] == np.mean([row["stopReason"] == "stop" for row in own])
    assert {row["stopReason"] for row in rows} == {"stop", "length"}
    assert all(row["length"] == MAX_RESPONSE for row in rows if row["stopReason"] == "length")
    # The score is read at the last action: EOS where there is one.
    judge = AutoModelForSequenceClassification.from_pretrained(
        local(reward_model), dtype=torch.float32
    )
    shown = spelled(rows)[:60]
    assert len(shown) == 60
    for row in shown:
        ids = ids_of(row["prompt"] + row["response"]) + [1] * (row["stopReason"] == "stop")
        assert row["score"] == pytest.approx(score(judge, ids), rel=1e-4, abs=1e-4)


def test_before_and_after(
    finished: tuple[StageConfig, StageOutcome], reward_model: ModelSource
) -> None:
    config, outcome = finished
    folder = stage_runs.artifact(config, outcome)
    figures = stage_runs.document(folder, FileName.EVALUATION)
    assert sorted(figures) == ["after", "before"]
    names = ["distinct2", "eosRate", "kl", "meanLength", "score", "scoreStd"]
    assert sorted(figures["before"]) == sorted(figures["after"]) == names
    assert figures["before"]["kl"] == 0.0
    rows = stage_runs.read_lines(folder / FileName.EVALUATION_SAMPLES)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in tiny.prompt_rows(seed=2)]
    for when, name in (("before", "Before"), ("after", "After")):
        scores = [row[f"score{name}"] for row in rows]
        assert figures[when]["score"] == pytest.approx(np.mean(scores))
        assert figures[when]["scoreStd"] == pytest.approx(np.std(scores, ddof=1))
        lengths = [len(row[f"response{name}"]) for row in rows]
        assert figures[when]["meanLength"] == pytest.approx(np.mean(lengths))
    told = stage_runs.events(config, "evaluation")
    assert [event["step"] for event in told] == [6, UPDATES]
    assert told[-1]["metrics"]["kl"] == figures["after"]["kl"]
    assert outcome.metrics["reward"] == figures["after"]["score"]


def test_the_artifact_is_the_policy_that_was_judged(tmp_path: Path) -> None:
    """Score and KL of known answers, computed again from what lies on disk."""
    config = tiny.stage_config("ppo", tmp_path, eval_dataset=True)
    outcome = stage_runs.run_with_fixed_answers(config)
    folder = stage_runs.artifact(config, outcome)
    assert config.ppo is not None
    actor, reference = causal(folder), causal(local(config.ppo.model))
    judge = AutoModelForSequenceClassification.from_pretrained(
        local(config.ppo.reward_model), dtype=torch.float32
    )
    kls, scores = [], []
    for row in tiny.prompt_rows(seed=2):
        prompt = ids_of(row["prompt"])
        answer = stage_runs.fixed_answer(prompt)
        kls.append(logprob(actor, prompt, answer) - logprob(reference, prompt, answer))
        scores.append(score(judge, prompt + answer))
    figures = stage_runs.document(folder, FileName.EVALUATION)
    assert figures["after"]["kl"] == pytest.approx(np.mean(kls), rel=1e-4, abs=1e-5)
    assert abs(np.mean(kls)) > 0.05
    for when in ("before", "after"):
        assert figures[when]["score"] == pytest.approx(np.mean(scores), rel=1e-5)
    rows = stage_runs.read_lines(folder / FileName.EVALUATION_SAMPLES)
    assert [row["scoreAfter"] for row in rows] == pytest.approx(scores, rel=1e-4, abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("abc")["input_ids"] == ids_of("abc")
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [1]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_first_update_starts_from_the_reference(tmp_path: Path, temperature: float) -> None:
    config = tiny.stage_config("ppo", tmp_path, max_steps=2, temperature=temperature)
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
    [("K1", "None"), ("K2", "None"), ("K3", "None"), ("K1", "RunningStd")],
)
def test_rewards_are_score_less_kl(tmp_path: Path, estimator: str, scaling: str) -> None:
    """With gamma 0 a token's return is its reward: their sum is scores less weighted KL."""
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
        shaped += scores
        scale = np.std(shaped, ddof=1) if scaling == "RunningStd" else 1.0
        tokens = sum(row["length"] for row in rows)
        weighted = sum(scores) / scale - step["returns_mean"] * tokens
        kl = sum(row["kl"] for row in rows)
        if estimator == "K1":
            assert weighted == pytest.approx(0.5 * kl, abs=1e-4)
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
        "ppo", tmp_path, max_steps=1, batch_size=16, micro_batch_size=8, gae_lambda=1.0
    )
    stage_runs.run_with_fixed_answers(config)
    assert config.ppo is not None
    judge = AutoModelForSequenceClassification.from_pretrained(
        local(config.ppo.reward_model), dtype=torch.float32
    )
    values, returns = [], []
    for row in tiny.prompt_rows():
        prompt = ids_of(row["prompt"])
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
    before = causal(local(config.ppo.model)).state_dict()
    after = causal(stage_runs.artifact(config, outcome)).state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    for step in stage_runs.steps(config):
        assert step["learning_rate"] == 0.0
        assert not {"policy_loss", "gradient_norm", "ratio_mean"} & set(step)
        assert step["critic_gradient_norm"] > 0
    # The same run learns once it is longer.
    longer = tiny.stage_config("ppo", tmp_path / "more", max_steps=3, critic_warmup_steps=2)
    outcome = stage_runs.run(longer)
    after = causal(stage_runs.artifact(longer, outcome)).state_dict()
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


def test_a_stop_token_ends_a_response(tmp_path: Path) -> None:
    config = tiny.stage_config(
        "ppo", tmp_path, stop_tokens=("a", "e"), samples_every_steps=1, batch_size=16
    )
    outcome = stage_runs.run(config)
    rows = stage_runs.samples(config)
    assert not any("a" in row["response"] or "e" in row["response"] for row in rows)
    assert {row["stopReason"] for row in rows} == {"stop", "length"}
    generation = GenerationConfig.from_pretrained(stage_runs.artifact(config, outcome))
    assert sorted(generation.eos_token_id) == sorted([1, *ids_of("ae")])


def test_an_entropy_bonus_keeps_entropy_up(tmp_path: Path) -> None:
    last = {}
    for bonus in (0.0, 3.0):
        config = tiny.stage_config(
            "ppo", tmp_path / str(bonus), entropy_coef=bonus, max_steps=6, learning_rate=0.03
        )
        stage_runs.run(config)
        last[bonus] = stage_runs.steps(config)[-1]["entropy"]
    assert last[3.0] > last[0.0] + 0.1


SAME_FOR_ANY_RANKS = METRICS - stage_runs.SPEED


def test_two_ranks_learn_as_one_from_the_same_rollouts(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "batch_size": 8,
        "adam_eps": 1e-3,
        "entropy_coef": 0.01,
        "reward_scaling": "RunningStd",
        "value_clip_range": 0.2,
        "kl_controller": "Adaptive",
        "kl_target": 0.1,
        "kl_horizon": 100,
    }
    alone = tiny.stage_config("ppo", tmp_path / "one", **settings)
    stage_runs.run_with_fixed_answers(alone)
    pair = tiny.stage_config("ppo", tmp_path / "two", world_size=2, **settings)
    tiny.pair()(stage_runs.ON_RANK, "run_with_fixed_answers", config=pair)
    for at, (mine, theirs) in enumerate(
        zip(stage_runs.steps(alone), stage_runs.steps(pair), strict=True)
    ):
        for name in SAME_FOR_ANY_RANKS | {"reward_scale"}:
            tolerance = 1e-5 if at == 0 else 1e-3
            assert theirs[name] == pytest.approx(mine[name], rel=tolerance, abs=1e-5), name


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_stage": 3},
        {"zero_stage": 2, "precision": "BF16"},
        {"zero_stage": 3, "precision": "BF16", "minibatch_size": 2, "update_epochs": 2},
    ],
    ids=str,
)
def test_two_ranks_run_to_the_end(tmp_path: Path, settings: dict[str, Any]) -> None:
    config = tiny.stage_config(
        "ppo",
        tmp_path,
        world_size=2,
        eval_dataset=True,
        samples_every_steps=1,
        max_steps=2,
        # Waves of different number a rank would hang the collectives of ZeRO 3.
        rollout_micro_batch_size=1,
        **settings,
    )
    first, second = stage_runs.run_on_pair(config)
    assert first["outcome"].artifact == second["outcome"].artifact
    folder = stage_runs.artifact(config, first["outcome"])
    for step in stage_runs.steps(config):
        assert set(step) == METRICS
        assert all(math.isfinite(value) for value in step.values())
        if config.ppo.minibatch_size is None:
            assert step["ratio_mean"] == pytest.approx(1.0, abs=1e-3)
        assert step["sampler_drift"] < (1e-5 if config.ppo.precision == "FP32" else 0.1)
    assert stage_runs.steps(config)[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    rows = stage_runs.read_lines(folder / FileName.EVALUATION_SAMPLES)
    assert len(rows) == 16
    assert sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters()) > 1000


def test_ranks_draw_different_answers_to_one_prompt(tmp_path: Path) -> None:
    path = tiny.write_rows(tmp_path / "one.jsonl", [{"prompt": "abc"}])
    config = tiny.stage_config(
        "ppo",
        tmp_path,
        world_size=2,
        dataset=Dataset(uri=f"file://{path}"),
        batch_size=2,
        max_steps=2,
    )
    stage_runs.run_on_pair(config)
    assert all(step["reward_std"] > 1e-3 for step in stage_runs.steps(config))


def test_all_three_stages_hand_on_their_artifacts(tmp_path: Path) -> None:
    sft = tiny.stage_config("sft", tmp_path, max_steps=2)
    sft_outcome = stage_runs.run(sft)
    source = ModelSource(from_stage="sft")
    reward = tiny.stage_config("reward", tmp_path, model=source, max_steps=2).model_copy(
        update={"artifacts": {StageName.SFT: sft_outcome.artifact}}
    )
    reward_outcome = stage_runs.run(reward)
    ppo = tiny.stage_config(
        "ppo", tmp_path, model=source, reward_model=ModelSource(from_stage="reward"), max_steps=2
    ).model_copy(
        update={
            "artifacts": {
                StageName.SFT: sft_outcome.artifact,
                StageName.REWARD: reward_outcome.artifact,
            }
        }
    )
    assert stage_runs.run(ppo).step == 2
