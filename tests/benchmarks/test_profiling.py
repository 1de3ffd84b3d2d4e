"""The profile of benchmarks/ppo_step.py and benchmarks/supervised.py."""

from pathlib import Path

import pytest
import torch
from speed import jobs, profiling
from speed.profiling import PHASES, TIMED_UPDATES, UPDATES, WARM_UP_UPDATES, Watch

from rlhf_api.metrics import Phase
from rlhf_api.names import StageName

PPO = PHASES[StageName.PPO]
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
    watch = Watch(PPO)
    x = torch.ones(8, 8)
    for update in range(UPDATES):
        for phase in PPO:
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
    assert text.count("aten::mm ") == len(PPO)
    assert text.count("(multiplied)") == len(PPO)
    # The operators took next to nothing of a clock that goes by seconds.
    assert text.count("(between operators)") == len(PPO)
    assert watch.watched == {phase: 7.0 * seconds for phase, seconds in SLOW.items()}


def test_what_lies_between_operators_is_the_rest() -> None:
    lines = profiling.operator_lines({"aten::mm": 2.0, "aten::add": 1.0}, 4.0).splitlines()
    assert [line.split() for line in lines] == [
        ["aten::mm", "50.0%"],
        ["aten::add", "25.0%"],
        ["(between", "operators)", "25.0%"],
    ]


def test_a_stage_of_one_phase_begins_a_step_with_it(clock: list[float]) -> None:
    watch = Watch(PHASES[StageName.REWARD])
    for _ in range(UPDATES):
        with watch.phase(Phase.LEARNING):
            clock[0] += 0.5
    assert profiling.text_of(watch).startswith("an update takes 0.50 s")


@pytest.mark.parametrize("name", StageName)
def test_the_stage_that_is_profiled_is_the_one_that_is_measured(
    tmp_path: Path, name: StageName
) -> None:
    data, model = tmp_path / "data", tmp_path / "sft"
    document = {
        StageName.SFT: lambda: jobs.sft(data, model, 30, packing=True),
        StageName.REWARD: lambda: jobs.reward(data, model, 30),
        StageName.PPO: lambda: jobs.ppo(data, model, tmp_path / "reward", 30),
    }[name]()
    config = profiling.stage_config(document, tmp_path)
    assert config.stage == name
    assert config.spec.max_steps == UPDATES
    assert config.spec.batch_size == document["spec"]["stages"][name]["batchSize"]
    assert config.world_size == 1
