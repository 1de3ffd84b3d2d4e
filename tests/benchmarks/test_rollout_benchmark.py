"""The rollout benchmark's arithmetic, and that every engine keeps to the lengths it is given."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rollout
import torch
from rollout import CONTINUOUS, GOALS, OURS, THEIRS, Measured
from transformers import AutoModelForCausalLM, LlamaConfig

SECONDS = {OURS: 2.0, THEIRS: 7.0, CONTINUOUS[0]: 5.0, CONTINUOUS[1]: 5.5}
MEASURED = Measured(SECONDS, {OURS: 4.0, THEIRS: 4.2}, tokens=95, row_steps=100)


def test_lengths_have_the_mean_and_the_longest_that_are_named() -> None:
    lengths = rollout.heavy_tailed(256)
    assert np.mean(lengths) == pytest.approx(84, abs=0.5)
    assert (min(lengths) >= 1, max(lengths)) == (True, 256)
    assert np.median(lengths) < 66
    assert rollout.heavy_tailed(256) == lengths


def test_figures_by_hand() -> None:
    assert rollout.figures(MEASURED) == pytest.approx(
        {
            "speedup_heavy_tailed": 3.5,
            "speedup_uniform": 1.05,
            "useful_row_share": 0.95,
            "speedup_vs_continuous_batching": 2.5,
        }
    )


def test_a_goal_that_is_not_reached_is_named() -> None:
    assert rollout.missed(rollout.figures(MEASURED)) == []
    assert rollout.missed(dict.fromkeys(GOALS, 0.89)) == list(GOALS)
    assert rollout.missed(rollout.figures(MEASURED) | {"useful_row_share": math.nan}) == [
        "useful_row_share"
    ]


def test_figures_are_written_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rollout.json"
    monkeypatch.setattr(rollout, "measure", lambda rounds, device: MEASURED)
    assert rollout.main(["--json", str(path)]) == 0
    assert json.loads(path.read_text()) == rollout.figures(MEASURED)
    slow = Measured(SECONDS | {OURS: 3.0}, MEASURED.uniform, 95, 100)
    monkeypatch.setattr(rollout, "measure", lambda rounds, device: slow)
    assert rollout.main(["--json", str(path)]) == 1


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(1)
    small = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 64}
    return AutoModelForCausalLM.from_config(LlamaConfig(**rollout.MODEL | small)).eval()


def test_forced_lengths_are_kept(model: Any) -> None:
    lengths = [3, 1, 9, 4]
    found = rollout.decode(model, rollout.prompts(4), lengths)
    assert found.ended.all()
    assert found.row_steps == sum(lengths)


def test_generate_keeps_to_the_lengths(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = []
    plain = model.generate
    monkeypatch.setattr(model, "generate", lambda **given: answers.append(plain(**given)))
    lengths = [3, 1, 9, 4]
    given = rollout.prompts(4)
    rollout.generate(model, given, lengths, 3)
    assert [len(answer) for answer in answers] == [3, 1]
    widths = [max(len(prompt) for prompt in part) for part in (given[:3], given[3:])]
    # Each wave ends with its longest row.
    assert [answer.shape[1] for answer in answers] == [widths[0] + 9, widths[1] + 4]


def test_continuous_batching_keeps_to_the_lengths(model: Any) -> None:
    rollout.continuous(model, rollout.prompts(4), [3, 1, 9, 4], 2)
