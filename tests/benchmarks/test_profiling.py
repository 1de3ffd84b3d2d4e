"""The profile of benchmarks/ppo_step.py."""

from pathlib import Path

import pytest
import torch
from speed import jobs, profiling
from speed.profiling import PHASES, TIMED_UPDATES, UPDATES, WARM_UP_UPDATES, Watch

from rlhf_api.metrics import Phase

SLOW = {Phase.ROLLOUT: 1.0, Phase.SCORING: 2.0, Phase.LEARNING: 5.0}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test advances."""
    now = [0.0]
    monkeypatch.setattr(profiling, "perf_counter", lambda: now[0])
    return now


def multiplied(x: torch.Tensor) -> torch.Tensor:
    return x @ x


def test_updates_are_timed_and_then_watched(clock: list[float]) -> None:
    watch = Watch()
    x = torch.ones(8, 8)
    for update in range(UPDATES):
        for phase in PHASES:
            with watch.phase(phase):
                # Slower at first, and slower where it is watched.
                is_timed = WARM_UP_UPDATES <= update < WARM_UP_UPDATES + TIMED_UPDATES
                clock[0] += SLOW[phase] * (1.0 if is_timed else 7.0)
                multiplied(x)
    text = profiling.text_of(watch)
    assert text.startswith("an update takes 8.00 s")
    assert "rollout: 12% of an update" in text
    assert "scoring: 25% of an update" in text
    assert "learning: 62% of an update" in text
    assert text.count("aten::mm ") == len(PHASES)
    assert text.count("(multiplied)") == len(PHASES)
    # The operators took next to nothing of a clock that goes by seconds.
    assert text.count("(between operators)") == len(PHASES)
    assert watch.watched == {phase: 7.0 * seconds for phase, seconds in SLOW.items()}


def test_what_lies_between_operators_is_the_rest() -> None:
    lines = profiling.operator_lines({"aten::mm": 2.0, "aten::add": 1.0}, 4.0).splitlines()
    assert [line.split() for line in lines] == [
        ["aten::mm", "50.0%"],
        ["aten::add", "25.0%"],
        ["(between", "operators)", "25.0%"],
    ]


def test_the_stage_that_is_profiled_is_the_one_that_is_measured(tmp_path: Path) -> None:
    document = jobs.ppo(tmp_path / "data", tmp_path / "sft", tmp_path / "reward", 30)
    config = profiling.stage_config(document, tmp_path)
    assert config.ppo.max_steps == UPDATES
    assert config.ppo.batch_size == document["spec"]["stages"]["ppo"]["batchSize"]
    assert config.world_size == 1
