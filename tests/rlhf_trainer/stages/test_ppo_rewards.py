"""PPO with rewards of one's own: what they add up to, where they are told, how they fail."""

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stage_runs
import tiny
import torch
import worlds
from transformers import AutoModelForSequenceClassification

from rlhf_api.errors import RLHFError
from rlhf_api.names import ExitCode, FileName
from rlhf_api.v1alpha1 import EndpointReward, FunctionReward, Reward, StageConfig
from rlhf_trainer.errors import Failure, StopRequested, failure_of
from rlhf_trainer.process.stopping import StopFlag
from rlhf_trainer.stages import ppo

MODULE = """
import os

def lengths(prompts, responses):
    return [len(response) + 0.01 * len(prompt) for prompt, response in zip(prompts, responses)]

def letters(prompts, responses):
    return [sum(map(response.count, "abcdefgh")) / 8 for response in responses]

def fails_on_the_last_rank(prompts, responses):
    if os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1):
        return [float("nan")] * len(responses)
    return [0.0] * len(responses)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a module whose name no other test has: ranks stay between tests."""
    (tmp_path / f"{module_of(tmp_path)}.py").write_text(MODULE)
    return tmp_path


def module_of(folder: Path) -> str:
    return f"rewards_of_{folder.name}"


@pytest.fixture(autouse=True)
def path_of_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stage puts there in this process is gone after the test."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def function(folder: Path, name: str, reward: str = "mine", weight: float = 1.0) -> Reward:
    spec = FunctionReward(name=f"{module_of(folder)}:{name}", uri=f"file://{folder}")
    return Reward(name=reward, type="Function", function=spec, weight=weight)


def stage(
    folder: Path, rewards: tuple[Reward, ...], *, place: str = "run", **settings: Any
) -> StageConfig:
    if not any(reward.type == "RewardModel" for reward in rewards):
        settings["reward_model"] = None
    return tiny.stage_config(
        "ppo", folder / place, rewards=rewards, **{"batch_size": 16, "max_steps": 2} | settings
    )


def expected(config: StageConfig) -> dict[str, float]:
    """Both rewards of the fixed answers to all 16 prompts, row by row."""
    assert config.ppo is not None
    assert config.ppo.reward_model is not None
    path = str(config.ppo.reward_model.uri).removeprefix("file://")
    judge = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
    scores, lengths = [], []
    for row in tiny.prompt_rows():
        prompt = [3 + tiny.CHARACTERS.index(character) for character in row["prompt"]]
        answer = stage_runs.fixed_answer(prompt)
        with torch.no_grad():
            scores.append(float(judge(input_ids=torch.tensor([prompt + answer])).logits[0, 0]))
        lengths.append(len(answer) - (answer[-1] == 1) + 0.01 * len(prompt))
    return {"model": float(np.mean(scores)), "length": float(np.mean(lengths))}


FIELDS = (
    pytest.mark.field("PPOStage.rewards"),
    pytest.mark.field("Reward.name", instead="other"),
    pytest.mark.field("Reward.weight"),
    pytest.mark.field("Reward.function"),
)


@pytest.mark.parametrize("world_size", [pytest.param(1, marks=FIELDS), 2])
def test_rewards_are_told_one_by_one_and_summed(folder: Path, world_size: int) -> None:
    rewards = (
        Reward(name="model", type="RewardModel", weight=2.0),
        function(folder, "lengths", "length", weight=-0.5),
    )
    config = stage(folder, rewards, world_size=world_size, eval_dataset=True, samples_every_steps=1)
    if world_size == 1:
        stage_runs.run_with_fixed_answers(config)
    else:
        worlds.pair()(stage_runs.ON_RANK, "run_with_fixed_answers", config=config)
    means = expected(config)
    told = stage_runs.events(config, "step")
    assert len(told) == 2
    for event in told:
        assert event["rewards"] == pytest.approx(means, rel=1e-5)
        total = 2 * means["model"] - 0.5 * means["length"]
        assert event["metrics"]["reward"] == pytest.approx(total, rel=1e-5)
    for row in stage_runs.samples(config):
        total = 2 * row["rewards"]["model"] - 0.5 * row["rewards"]["length"]
        assert row["score"] == pytest.approx(total, rel=1e-5)
    (evaluation,) = stage_runs.events(config, "evaluation")
    assert set(evaluation["rewards"]) == {"model", "length"}


def test_a_stage_that_names_no_rewards_tells_of_none(folder: Path) -> None:
    config = stage(folder, (Reward(name="model", type="RewardModel"),), max_steps=1)
    alone = tiny.stage_config("ppo", folder / "alone", batch_size=16, max_steps=1)
    for each in (config, alone):
        stage_runs.run_with_fixed_answers(each)
    (named,), (unnamed,) = (stage_runs.events(each, "step") for each in (config, alone))
    assert named.pop("rewards") == {"model": pytest.approx(named["metrics"]["reward"])}
    assert set(named) == set(unnamed)
    learned = [stage_runs.learned(each["metrics"]) for each in (named, unnamed)]
    assert learned[0] == learned[1]


def test_ppo_learns_from_a_function_alone(folder: Path) -> None:
    config = stage(
        folder,
        (function(folder, "letters"),),
        eval_dataset=True,
        batch_size=32,
        micro_batch_size=16,
        rollout_micro_batch_size=32,
        max_steps=12,
        learning_rate=0.02,
        critic_learning_rate=0.02,
        update_epochs=2,
    )
    outcome = stage_runs.run(config)
    folder = stage_runs.artifact(config, outcome)
    found = stage_runs.document(folder, FileName.EVALUATION)
    before, after = (found[when]["rewards"]["mine"] for when in ("before", "after"))
    assert after > before + 0.2
    rows = stage_runs.read_lines(folder / FileName.EVALUATION_SAMPLES)
    for row in rows:
        liked = sum(map(row["responseAfter"].count, "abcdefgh"))
        assert row["rewardsAfter"] == {"mine": liked / 8}
    assert np.mean([row["rewardsBefore"]["mine"] for row in rows]) == pytest.approx(before)


def test_without_a_reward_model_the_critic_starts_from_the_model_at_zero(folder: Path) -> None:
    rewards = (function(folder, "lengths"),)
    config = stage(
        folder,
        rewards,
        max_steps=1,
        gae_lambda=1.0,
        samples_every_steps=1,
        reward_scaling="None",
    )
    stage_runs.run(config)
    (step,) = stage_runs.steps(config)
    returns = [
        row["score"] for row in stage_runs.samples(config) for _ in range(row["length"])
    ]  # gamma is 1 and the reference equals the actor
    assert step["critic_loss"] == pytest.approx(np.square(returns).mean() / 2, rel=1e-5)
    assert step["explained_variance"] == pytest.approx(0.0, abs=1e-9)


def failure(config: StageConfig) -> Failure:
    with pytest.raises(RLHFError) as caught:
        stage_runs.run(config)
    return failure_of(caught.value)


def test_memory_is_estimated_without_a_reward_model(folder: Path) -> None:
    words = tiny.tokenizer_folder(folder / "run" / "tokenizer")
    huge = tiny.scratch_source(words, hidden_size=65536, layers=256, heads=512)
    found = failure(stage(folder, (function(folder, "lengths"),), model=huge))
    assert found.exit_code == ExitCode.CONFIG
    assert [name for name in ("actor", "critic", "reference") if name not in found.message] == []
    assert "reward model" not in found.message


def test_a_function_is_missed_before_any_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppo, "load_models", None)
    found = failure(stage(folder, (function(folder, "nothing"),)))
    assert found.exit_code == ExitCode.INPUT
    assert f"spec.stages.ppo.rewards[0].function.name: {module_of(folder)}:nothing" in found.message


def test_a_token_is_missed_before_any_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppo, "load_models", None)
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    found = failure(stage(folder, (endpoint("http://127.0.0.1:9", token_env="NO_SUCH_TOKEN"),)))
    assert found.exit_code == ExitCode.CONFIG
    assert "spec.stages.ppo.rewards[0].endpoint.tokenEnv: " in found.message


def endpoint(url: str, **settings: Any) -> Reward:
    return Reward(name="far", type="Endpoint", endpoint=EndpointReward(url=url, **settings))


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on and nobody else gets."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def test_an_endpoint_that_stays_away_ends_all_ranks(folder: Path, closed_port: int) -> None:
    rewards = (endpoint(f"http://127.0.0.1:{closed_port}", retries=0),)
    told = [
        found["error"] for found in stage_runs.run_on_pair(stage(folder, rewards, world_size=2))
    ]
    assert [each.exit_code for each in told] == [ExitCode.UNAVAILABLE] * 2
    assert told[0].message == told[1].message
    assert "spec.stages.ppo.rewards[0].endpoint.url: http://127.0.0.1:" in told[0].message


def test_a_score_that_is_none_on_one_rank_ends_all(folder: Path) -> None:
    config = stage(folder, (function(folder, "fails_on_the_last_rank"),), world_size=2)
    told = [found["error"] for found in stage_runs.run_on_pair(config)]
    assert [each.exit_code for each in told] == [ExitCode.INPUT] * 2
    assert told[0].message == told[1].message
    assert "gave nan for row 0" in told[0].message
    assert stage_runs.steps(config) == []


class Service(ThreadingHTTPServer):
    """Scores by length, but asks the flag to stop and wants a long pause at the n-th question."""

    daemon_threads = True

    def __init__(self, flag: StopFlag, n: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.flag, self.left = flag, n


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        service = self.server
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        service.left -= 1
        if service.left == 0:
            service.flag.ask()
            self.send_response(503)
            self.send_header("Retry-After", "100")
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        scores = [len(response) for response in question["responses"]]
        self.wfile.write(json.dumps({"scores": scores}).encode())

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.mark.field("Reward.endpoint")
def test_a_request_to_stop_is_heard_while_an_endpoint_is_asked(folder: Path) -> None:
    """What is saved is the state before the step, so that the next attempt does all of it."""
    flag = StopFlag()
    with Service(flag, 2) as service:
        threading.Thread(target=service.serve_forever, daemon=True).start()
        rewards = (endpoint(f"http://127.0.0.1:{service.server_address[1]}"),)
        config, straight = stage(folder, rewards), stage(folder, rewards, place="straight")
        began = time.monotonic()
        with pytest.raises(StopRequested) as caught:
            stage_runs.run(config, flag)
        assert time.monotonic() - began < 60
        again = stage_runs.attempt(config, 2)
        for each in (again, straight):
            stage_runs.run(each)
        service.shutdown()
    assert (caught.value.step, caught.value.last_checkpoint_step) == (1, 1)
    (resumed,) = stage_runs.steps(again)
    assert stage_runs.learned(resumed) == stage_runs.learned(stage_runs.steps(straight)[1])
