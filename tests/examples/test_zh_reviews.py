"""The demo in a shortened form: the real data, all stages, real processes, held-out figures.

The bounds are those that a reward of the wrong sign does not meet: with chosen and rejected swapped
the reward model's own figures look as good, but snownlp's classifier sees no better answers;
with the score's sign flipped in PPO the score falls.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_api.loading import dump_yaml, read_yaml

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "zh_reviews.py"

SHORTER = {
    "sft": {"epochs": None, "maxSteps": 150, "batchSize": 64},
    "reward": {"epochs": None, "maxSteps": 90},
    "ppo": {"maxSteps": 14, "learningRate": 3e-4},
}
SMALLER = {"layers": 2, "hiddenSize": 128, "intermediateSize": 384}


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Figures of one shortened run."""
    folder = tmp_path_factory.mktemp("zh-reviews")
    run_command(sys.executable, SCRIPT, "prepare", "--output", folder / "data" / "zh-reviews")
    job = shortened(read_yaml(ROOT / "examples" / "zh-reviews.yaml")[0])
    (folder / "job.yaml").write_text(dump_yaml(job), encoding="utf-8")
    run_command(
        sys.executable, "-m", "rlhf_cli", "run", folder / "job.yaml", "--workdir", folder / "runs"
    )
    run_command(sys.executable, SCRIPT, "judge", folder / "runs" / "zh-reviews")
    found: dict[str, float] = json.loads(
        (folder / "runs" / "zh-reviews" / "summary.json").read_text("utf-8")
    )
    return found


def shortened(job: dict) -> dict:
    """The example with fewer steps and a smaller model."""
    for name, changes in SHORTER.items():
        stage = job["spec"]["stages"][name]
        stage |= changes
        job["spec"]["stages"][name] = {key: v for key, v in stage.items() if v is not None}
    job["spec"]["stages"]["sft"]["model"]["scratch"] |= SMALLER
    return job


def run_command(*command: object) -> None:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


@pytest.mark.timeout(900)
def test_the_reward_model_tells_good_from_bad(summary: dict[str, float]) -> None:
    assert summary["rewardAccuracy"] >= 0.7


@pytest.mark.timeout(900)
def test_answers_score_higher_after_ppo(summary: dict[str, float]) -> None:
    assert summary["scorePpo"] - summary["scoreSft"] >= 0.5 * summary["scoreSftStd"]


@pytest.mark.timeout(900)
def test_a_classifier_that_training_never_saw_agrees(summary: dict[str, float]) -> None:
    assert summary["judgePpo"] - summary["judgeSft"] >= 0.1


@pytest.mark.timeout(900)
def test_the_policy_stays_a_language_model(summary: dict[str, float]) -> None:
    assert 0 < summary["kl"] < 15
    assert summary["eosRate"] >= 0.7
    assert summary["meanLength"] >= 10
    assert summary["distinct2Ppo"] >= 0.7 * summary["distinct2Sft"]


@pytest.mark.timeout(900)
def test_every_figure_of_the_summary_is_there(summary: dict[str, float]) -> None:
    assert set(summary) == {
        "rewardAccuracy", "scoreSft", "scoreSftStd", "scorePpo", "kl", "eosRate", "meanLength",
        "distinct2Sft", "distinct2Ppo", "sftPerplexity", "secondsTotal", "secondsByStage",
        "judgeSft", "judgePpo", "rowsByStage",
    }  # fmt: skip
