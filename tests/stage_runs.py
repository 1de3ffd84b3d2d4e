"""Whole stages under test: run in this process, on two ranks or by the launcher, and read back.

outcome = stage_runs.run(tiny.stage_config("sft", tmp_path))
stage_runs.steps(config)[0]["loss"]
"""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import safetensors.torch
import tiny
import torch
import worlds
from interpreters import import_path
from right_padding import pad_right
from waiting import eventually

from rlhf_api.metrics import Metric
from rlhf_api.names import EnvVar, FileName
from rlhf_api.v1alpha1 import StageConfig, StageResult
from rlhf_trainer.__main__ import stage_named
from rlhf_trainer.data.collate import pad_left
from rlhf_trainer.generation.counter import RowSeeds
from rlhf_trainer.generation.sampling import Sampling
from rlhf_trainer.ppo import collection
from rlhf_trainer.ppo.experience import Experience
from rlhf_trainer.ppo.rollout import Rollout
from rlhf_trainer.process.outcome import StageOutcome
from rlhf_trainer.process.stopping import StopFlag
from rlhf_trainer.run.checkpoint import STATE
from rlhf_trainer.run.distributed import Ranks
from rlhf_trainer.stages import ppo

WAIT_SECONDS = 120.0
SPEED = frozenset({Metric.STEP_SECONDS, Metric.SAMPLES_PER_SECOND, Metric.TOKENS_PER_SECOND})
"""Metrics that tell of the machine and not of the training."""

ON_RANK = Path(__file__).parent / "rlhf_trainer" / "stages" / "on_rank.py"


class StopAt(StopFlag):
    """A request to stop that arrives at the n-th look at the flag: anywhere in a stage, exactly."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.left = looks

    @property
    def is_set(self) -> bool:
        self.left -= 1
        return self.left <= 0


class StopAfter(StopFlag):
    """A request to stop that arrives when the attempt has told of a step."""

    def __init__(self, config: StageConfig, step: int) -> None:
        super().__init__()
        self._config = config
        self._step = step

    @property
    def is_set(self) -> bool:
        return any(event["step"] >= self._step for event in events(self._config, "step"))


def run(config: StageConfig, stop: StopFlag | None = None) -> StageOutcome:
    """The stage in this process, as a world of one."""
    return stage_named(config.stage)(config, tiny.ranks(), stop or StopFlag())


def run_on_pair(config: StageConfig, looks: int | None = None) -> list[dict[str, Any]]:
    """The stage on two ranks: `outcome` or `error`, and `stdout`, by rank."""
    found: list[dict[str, Any]] = worlds.pair()(ON_RANK, "run", config=config, looks=looks)
    return found


def fixed_answer(prompt: Sequence[int]) -> list[int]:
    """Token ids that depend on the prompt alone; every second answer ends by EOS."""
    number = sum((at + 2) * token for at, token in enumerate(prompt))
    letters = [3 + (number + 5 * at) % len(tiny.CHARACTERS) for at in range(2 + number % 5)]
    return letters + [tiny.tokenizer().eos_token_id] * (number % 2)


class FixedSampler:
    """Gives each prompt its fixed answer, whatever the actor and the number of ranks."""

    def __init__(self, policy: Any, sampling: Sampling) -> None:
        self._sampling = sampling

    def sample(self, prompts: Sequence[Sequence[int]], seeds: RowSeeds | None = None) -> Rollout:
        pad, stop = self._sampling.pad_id, self._sampling.stop_ids[0]
        answers = [fixed_answer(prompt) for prompt in prompts]
        left, right = pad_left(prompts, pad), pad_right(answers, pad)
        return Rollout(
            prompts=left.input_ids,
            prompt_lengths=left.lengths,
            responses=right.input_ids,
            response_lengths=right.lengths,
            ended=torch.tensor([answer[-1] == stop for answer in answers]),
            sampled_logprobs=torch.zeros(right.input_ids.shape),
        )


def run_with_fixed_answers(config: StageConfig, ranks: Ranks | None = None) -> StageOutcome:
    """PPO in this process, on rollouts that depend on the prompts alone."""
    with (
        patch.object(collection, "GenerateSampler", FixedSampler),
        patch.object(collection, "DecodingSampler", FixedSampler),
    ):
        return ppo.run(config, ranks or tiny.ranks(), StopFlag())


@contextmanager
def spoilt_rollout(name: str, update: int, value: float = math.nan) -> Iterator[None]:
    """One number of the experience of PPO's n-th update, in its first row, is `value`."""
    updates, plain = itertools.count(1), collection.collect

    def spoil(*arguments: Any, **settings: Any) -> Experience:
        experience = plain(*arguments, **settings)
        if next(updates) == update:
            getattr(experience, name)[0, ...].fill_(value)
        return experience

    with patch.object(collection, "collect", spoil):
        yield


def attempt(config: StageConfig, number: int) -> StageConfig:
    """The same work, tried again."""
    return config.model_copy(update={"attempt": number})


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(config: StageConfig, kind: str | None = None) -> list[dict[str, Any]]:
    """The attempt's events, all or of one type."""
    found = read_lines(Path(config.attempt_folder) / FileName.EVENTS)
    return [event for event in found if kind in (None, event["type"])]


def steps(config: StageConfig) -> list[dict[str, float]]:
    """The metrics of each step of the attempt."""
    return [event["metrics"] for event in events(config, "step")]


def learned(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics that do not depend on the machine's speed."""
    return {name: value for name, value in metrics.items() if name not in SPEED}


def told(*configs: StageConfig) -> list[dict[str, Any]]:
    """What attempts told of steps and evaluations, in order, without the machine's speed."""
    return [
        {
            "type": event["type"],
            "step": event["step"],
            "epoch": event["epoch"],
            "metrics": learned(event["metrics"]),
        }
        for config in configs
        for event in events(config)
        if event["type"] in ("step", "evaluation")
    ]


def samples(config: StageConfig) -> list[dict[str, Any]]:
    """The attempt's samples."""
    return read_lines(Path(config.attempt_folder) / FileName.SAMPLES)


def artifact(config: StageConfig, outcome: StageOutcome | StageResult) -> Path:
    """Folder of what the stage left."""
    assert outcome.artifact is not None
    return Path(config.storage) / outcome.artifact.uri


def weights(config: StageConfig, outcome: StageOutcome) -> dict[str, torch.Tensor]:
    """Of the model that a stage has left."""
    return safetensors.torch.load_file(artifact(config, outcome) / "model.safetensors")


def require_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Both have the same weights, to the last bit."""
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert torch.equal(other[name], weight), name


def document(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file."""
    found: dict[str, Any] = json.loads((folder / name).read_text())
    return found


def checkpoints(config: StageConfig) -> list[str]:
    """Names in the attempt's checkpoint folder."""
    folder = Path(config.attempt_folder) / FileName.CHECKPOINTS
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def kept_weights(config: StageConfig, step: int, model: str = "actor") -> dict[str, torch.Tensor]:
    """A model's weights in a checkpoint, without ZeRO."""
    folder = Path(config.attempt_folder) / FileName.CHECKPOINTS / f"step-{step}" / model
    state = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    return {name.removeprefix("model."): weight for name, weight in state.items()}


def kept_state(config: StageConfig, step: int) -> dict[str, Any]:
    """What the stage itself kept in a checkpoint beside weights."""
    folder = Path(config.attempt_folder) / FileName.CHECKPOINTS / f"step-{step}"
    found: dict[str, Any] = document(folder, STATE)["own"]
    return found


@dataclass
class Launched:
    """A launcher under test, as a pod runs it."""

    config: StageConfig
    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def log(self) -> str:
        """What launcher and ranks wrote to stderr."""
        return (self.folder / "stderr").read_text()

    @property
    def stdout(self) -> str:
        """What launcher and ranks wrote to stdout."""
        return (self.folder / "stdout").read_text()

    @property
    def result(self) -> StageResult:
        """Its termination message."""
        text = (self.folder / "message").read_text()
        found = StageResult.from_message(text)
        assert found is not None, text
        return found

    def wait(self) -> int:
        """Its exit code."""
        try:
            return self.process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end: {self.log[-3000:]}") from None

    def wait_for_step(self, step: int) -> None:
        """Until that many steps are told."""
        path = Path(self.config.attempt_folder) / FileName.EVENTS
        self.until(lambda: path.exists() and f'"type": "step", "step": {step},' in path.read_text())

    def until(self, holds: Callable[[], bool]) -> None:
        """Until `holds`, or the launcher ended."""
        eventually(
            lambda: holds() or self.process.poll() is not None,
            WAIT_SECONDS,
            0.01,
            what=lambda: f"the launcher comes so far: {self.log[-3000:]}",
        )
        assert holds() or self.process.poll() is None, self.log[-3000:]

    def stop(self) -> None:
        """Ask it to stop, as a kubelet does."""
        self.process.send_signal(signal.SIGTERM)

    def ranks(self) -> list[int]:
        """Processes of its ranks."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        threads = children.parent.parent.glob("*/children")
        return sorted(int(pid) for path in threads for pid in path.read_text().split())


@contextmanager
def launched(config: StageConfig, folder: Path, **environment: str) -> Iterator[Launched]:
    """`python -m rlhf_trainer.launch stage.json`, killed at the end if it still runs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.json").write_text(config.to_json())
    variables = os.environ | {
        EnvVar.TERMINATION_MESSAGE: str(folder / "message"),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **import_path(),
    }
    # A world of one in this process has left its rank there.
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        variables.pop(name, None)
    with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "rlhf_trainer.launch", str(folder / "stage.json")],
            stdout=out,
            stderr=err,
            env=variables | environment,
        )
    found = Launched(config, process, folder)
    try:
        yield found
    finally:
        if process.poll() is None:
            for pid in found.ranks():
                os.kill(pid, signal.SIGKILL)
            process.kill()
            process.wait(WAIT_SECONDS)
