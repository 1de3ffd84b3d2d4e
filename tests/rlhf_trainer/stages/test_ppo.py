"""The PPO stage from its configuration to the artifact, on one rank."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import ppo_runs
import pytest
import stage_runs
import tiny
from transformers import AutoTokenizer, GenerationConfig

from rlhf_api.names import FileName, StageName
from rlhf_api.v1alpha1 import Dataset, ModelSource, StageConfig
from rlhf_trainer.process.outcome import StageOutcome

LIKED = "a"
MAX_RESPONSE = 8
UPDATES = 12


def spelled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The samples whose text holds all of their tokens: special ones are not shown."""
    return [
        row for row in rows if len(row["response"]) + (row["stopReason"] == "stop") == row["length"]
    ]


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
        assert set(step) == ppo_runs.METRICS
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
        lengths = [row["length"] for row in own]
        assert step["response_tokens"] == np.mean(lengths)
        quantiles = [step[f"response_tokens_p{at}"] for at in ("05", "50", "95")]
        assert quantiles == list(np.quantile(lengths, [0.05, 0.5, 0.95]))
        assert step["eos_rate"] == np.mean([row["stopReason"] == "stop" for row in own])
    assert {row["stopReason"] for row in rows} == {"stop", "length"}
    assert all(row["length"] == MAX_RESPONSE for row in rows if row["stopReason"] == "length")
    # The score is read at the last action: EOS where there is one.
    judge = ppo_runs.judge(ppo_runs.local(reward_model))
    shown = spelled(rows)[:60]
    assert len(shown) == 60
    for row in shown:
        ids = ppo_runs.ids_of(row["prompt"] + row["response"]) + [1] * (row["stopReason"] == "stop")
        assert row["score"] == pytest.approx(ppo_runs.score(judge, ids), rel=1e-4, abs=1e-4)


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
    assert told[-1]["metrics"]["eval_kl"] == figures["after"]["kl"]
    assert outcome.metrics["eval_reward"] == figures["after"]["score"]


def test_the_artifact_is_the_policy_that_was_judged(tmp_path: Path) -> None:
    """Score and KL of known answers, computed again from what lies on disk."""
    config = tiny.stage_config("ppo", tmp_path, eval_dataset=True)
    outcome = stage_runs.run_with_fixed_answers(config)
    folder = stage_runs.artifact(config, outcome)
    assert config.ppo is not None
    actor, reference = ppo_runs.causal(folder), ppo_runs.causal(ppo_runs.local(config.ppo.model))
    judge = ppo_runs.judge(ppo_runs.local(config.ppo.reward_model))
    kls, scores = [], []
    for row in tiny.prompt_rows(seed=2):
        prompt = ppo_runs.ids_of(row["prompt"])
        answer = stage_runs.fixed_answer(prompt)
        kls.append(
            ppo_runs.logprob(actor, prompt, answer) - ppo_runs.logprob(reference, prompt, answer)
        )
        scores.append(ppo_runs.score(judge, prompt + answer))
    figures = stage_runs.document(folder, FileName.EVALUATION)
    assert figures["after"]["kl"] == pytest.approx(np.mean(kls), rel=1e-4, abs=1e-5)
    assert abs(np.mean(kls)) > 0.05
    for when in ("before", "after"):
        assert figures[when]["score"] == pytest.approx(np.mean(scores), rel=1e-5)
    rows = stage_runs.read_lines(folder / FileName.EVALUATION_SAMPLES)
    assert [row["scoreAfter"] for row in rows] == pytest.approx(scores, rel=1e-4, abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("abc")["input_ids"] == ppo_runs.ids_of("abc")
    assert GenerationConfig.from_pretrained(folder).eos_token_id == [1]


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
