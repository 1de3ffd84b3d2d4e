"""The jobs that are measured: the stages of examples/zh-reviews.yaml, on one rank."""

from pathlib import Path
from typing import Any

from rlhf_api.loading import parse_yaml
from rlhf_api.names import StageName

Raw = dict[str, Any]

EXAMPLE = Path(__file__).parents[2] / "examples" / "zh-reviews.yaml"
PREPARE = EXAMPLE.with_name("zh_reviews.py")
DATA = "file://data/zh-reviews/"

NEVER = 1_000_000


def example(stage: StageName, data: Path) -> Raw:
    """A stage of the example, which finds its rows in `data`."""
    text = EXAMPLE.read_text("utf-8").replace(DATA, f"file://{data}/")
    (document,) = parse_yaml(text, str(EXAMPLE))
    found: Raw = document["spec"]["stages"][stage]
    return found


def job(name: str, stages: Raw) -> Raw:
    """An RLHFJob."""
    return {
        "apiVersion": "rlhf.dev/v1alpha1",
        "kind": "RLHFJob",
        "metadata": {"name": name},
        "spec": {"stages": stages},
    }


def models(data: Path) -> Raw:
    """The job that makes the SFT model and the reward model, as the example does."""
    return job(
        "models", {str(name): example(name, data) for name in (StageName.SFT, StageName.REWARD)}
    )


def ppo(data: Path, sft: Path, reward: Path, updates: int) -> Raw:
    """PPO of the example for so many updates.

    One optimizer step a pass over a rollout, and score and KL penalty scaled alike, so that the
    objective is the one that other systems have as well.
    """
    stage = _measured(example(StageName.PPO, data), updates) | {
        "model": {"uri": f"file://{sft}"},
        "rewardModel": {"uri": f"file://{reward}"},
    }
    stage["minibatchSize"] = stage["batchSize"]
    stage["rewardScaling"] = "RunningStdTotal"
    return job("ppo", {"ppo": stage})


def sft(data: Path, base: Path, steps: int, *, packing: bool) -> Raw:
    """SFT of the example, from a finished SFT model, which other systems can read."""
    stage = _measured(example(StageName.SFT, data), steps)
    stage |= {"model": {"uri": f"file://{base}"}, "packing": packing}
    return job("sft-packed" if packing else "sft", {"sft": stage})


def reward(data: Path, base: Path, steps: int) -> Raw:
    """The reward model of the example, from a finished SFT model."""
    stage = _measured(example(StageName.REWARD, data), steps)
    return job("reward", {"reward": stage | {"model": {"uri": f"file://{base}"}}})


def _measured(stage: Raw, steps: int) -> Raw:
    """Nothing but steps: neither evaluations nor checkpoints, and one rank with all threads."""
    left_out = ("evalDataset", "epochs", "maxSteps")
    kept = {name: value for name, value in stage.items() if name not in left_out}
    return kept | {
        "maxSteps": steps,
        "processesPerNode": 1,
        "checkpoint": {"everySteps": NEVER},
    }
