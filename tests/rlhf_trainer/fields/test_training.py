"""Every field that decides about weights: changed alone, they are those of plain PyTorch.

A twin that ignores batching, padding and DeepSpeed trains with the same fields, and the weights
after the last step must agree; without the change they must not.
"""

import functools
from pathlib import Path
from typing import Any

import plain_training
import pytest
import stage_runs
import tiny
import worlds

from rlhf_api.v1alpha1 import CheckpointPolicy, Dataset, ModelSource, StageConfig

cases: Any = worlds.load(Path(__file__).with_name("training_cases.py"))

TOLERANCE = 2e-5
SEEN = 20 * TOLERANCE
"""A field has an effect where weights differ by this much."""

ROWS = 6
BASE: dict[str, dict[str, Any]] = {
    # Of rounding errors in a gradient near zero Adam would make whole steps.
    "sft": {"packing": False, "adam_eps": 1e-3},
    "reward": {"adam_eps": 1e-3},
    "ppo": {
        "adam_eps": 1e-3,
        "update_epochs": 2,
        "kl_coef": 0.2,
        "kl_target": 1e3,
        "kl_horizon": 4,
    },
}
"""Three steps with four of six rows each."""


def rows_of(folder: Path, stage: str, seed: int) -> Dataset:
    """Six rows on disk."""
    path = folder / f"{stage}-{seed}.jsonl"
    if not path.exists():
        tiny.write_rows(path, tiny.ROWS[stage](ROWS, seed))
    return Dataset(uri=f"file://{path}")


def model_of(folder: Path, kind: str, seed: int) -> ModelSource:
    """Weights on disk that all matter."""
    place, words = folder / f"{kind}-{seed}", tiny.tokenizer_folder(folder / "tokenizer")
    if not place.exists():
        make = tiny.scalar_model if kind == "scalar" else tiny.causal_model
        tiny.saved(tiny.shake(make(words), seed), place, words)
    return tiny.file_source(place)


def config_of(folder: Path, stage: str, fields: dict[str, Any]) -> StageConfig:
    """The stage with changed fields; a model or rows may be the `other` ones."""
    kinds = dict.fromkeys(("reward_model", "critic_model"), "scalar")
    kinds["model"] = "scalar" if stage == "reward" else "causal"
    settings: dict[str, Any] = {
        "model": model_of(folder, kinds["model"], seed=7),
        "dataset": rows_of(folder, stage, seed=1),
        "max_steps": 3,
        "checkpoint": CheckpointPolicy(every_steps=1, keep=9, keep_finished=True),
    }
    others = {
        name: rows_of(folder, stage, seed=5)
        if name == "dataset"
        else model_of(folder, kinds[name], seed=8)
        for name, value in fields.items()
        if value == "other"
    }
    return tiny.stage_config(stage, folder, **settings | BASE[stage] | fields | others)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, rows and tokenizers of all stages."""
    return tmp_path_factory.mktemp("fields")


@functools.cache
def expected(folder: Path, stage: str, case: str) -> plain_training.Weights:
    """The twin's weights without the change of a case, and with what it needs beside itself."""
    return plain_training.weights_after(config_of(folder, stage, cases.BESIDE.get(case, {})))


def difference(one: plain_training.Weights, other: plain_training.Weights) -> float:
    """The largest of any weight."""
    return max(
        float((weight - other[model][name]).abs().max())
        for model, weights in one.items()
        for name, weight in weights.items()
    )


@pytest.mark.parametrize(("stage", "case"), cases.cases())
def test_weights_are_those_of_plain_torch(
    folder: Path, tmp_path: Path, stage: str, case: str
) -> None:
    config = config_of(folder, stage, cases.change(stage, case))
    config = config.model_copy(update={"storage": str(tmp_path)}).with_digest()
    run = stage_runs.run_with_fixed_answers if stage == "ppo" else stage_runs.run
    outcome = run(config)
    by_hand = plain_training.weights_after(config)
    found = {name: stage_runs.kept_weights(config, outcome.step, name) for name in by_hand}
    assert difference(by_hand, found) < TOLERANCE
    without = expected(folder, stage, case if case in cases.BESIDE else "")
    assert difference(by_hand, without) > SEEN
