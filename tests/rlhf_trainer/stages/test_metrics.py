"""What whole stages serve on their endpoint: every metric that is said to be theirs, and no other.

Each stage runs with everything on that has metrics of its own; its page is fetched over HTTP after
its last step, and the tests read it.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import metrics_pages
import pytest
import stage_runs
import tiny

from rlhf_api.metrics import (
    BUILD_INFO,
    LABEL_OF,
    LabelledMetric,
    Metric,
    MetricLabel,
    Phase,
    metric_name,
    phases_of,
    stages_of,
)
from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import Reward, StageConfig
from rlhf_trainer.errors import StopRequested
from rlhf_trainer.run import report
from rlhf_trainer.run.metrics_endpoint import MetricsEndpoint

STEPS = 12
# The first level of a reward that a rule of health knows comes after ten updates.
SETTINGS: dict[StageName, dict[str, Any]] = {
    StageName.SFT: {"eval_dataset": True, "max_steps": 4, "packing": False},
    StageName.REWARD: {"eval_dataset": True, "max_steps": 4},
    StageName.PPO: {
        "eval_dataset": True,
        "max_steps": STEPS,
        "ptx_dataset": True,
        "reward_scaling": "RunningStd",
        "value_normalization": "PopArt",
        "rewards": (Reward(name="model", type="RewardModel"),),
        "samples_every_steps": 1,
        "learning_rate": 1e-4,
    },
}
IN_STEP = (Phase.DATA, Phase.ROLLOUT, Phase.SCORING, Phase.LEARNING)


@dataclass
class Told:
    """A stage that ran, and what it told.

    Attributes:
        page: its endpoint's, after all of its work.
        seconds: by phase, when it began to train and after each step.
    """

    config: StageConfig
    page: str = ""
    seconds: list[dict[Phase, float]] = field(default_factory=list)

    def value(self, metric: Metric) -> float:
        return metrics_pages.values(self.page)[metric_name(metric)]

    def phases(self) -> dict[str, float]:
        found = metrics_pages.values(self.page, MetricLabel.PHASE)
        return {name.split()[1]: value for name, value in found.items()}


def ran(config: StageConfig) -> Told:
    told = Told(config)

    class Endpoint(MetricsEndpoint):
        """Fetches its own page before it is closed."""

        def close(self) -> None:
            told.page = told.page or metrics_pages.fetched(self.port)
            super().close()

    class Reporter(report.Reporter):
        """Takes down the seconds of the phases where steps begin and end."""

        def start(self, *arguments: Any) -> None:
            super().start(*arguments)
            told.seconds.append(self._phases.seconds())

        def step(self, *arguments: Any) -> None:
            told.seconds.append(self._phases.seconds())
            super().step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "MetricsEndpoint", Endpoint)
        patch.setattr("rlhf_trainer.run.stage.Reporter", Reporter)
        stage_runs.run(config)
    return told


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[StageName, Told]:
    return {
        stage: ran(tiny.stage_config(stage, tmp_path_factory.mktemp(stage), **settings))
        for stage, settings in SETTINGS.items()
    }


@pytest.mark.parametrize("stage", StageName)
def test_a_stage_serves_all_its_metrics_and_no_others(
    everything: dict[StageName, Told], stage: StageName
) -> None:
    served = set(metrics_pages.values(everything[stage].page))
    own = {metric_name(each) for each in (*Metric, *LabelledMetric) if stage in stages_of(each)}
    assert served == own | {BUILD_INFO}


@pytest.mark.parametrize("stage", StageName)
def test_promtool_finds_no_fault(everything: dict[StageName, Told], stage: StageName) -> None:
    assert metrics_pages.faults(everything[stage].page) == ""


def test_families_have_their_label(everything: dict[StageName, Told]) -> None:
    page = everything[StageName.PPO].page
    for metric, label in LABEL_OF.items():
        found = metrics_pages.values(page, label)
        assert any(name.startswith(f"{metric_name(metric)} ") for name in found), metric


# Counters


def test_tokens_and_samples_of_sft_are_those_of_its_rows(everything: dict[StageName, Told]) -> None:
    # Four steps of four are all 16 rows once, each with EOS.
    told = everything[StageName.SFT]
    rows = tiny.sft_rows()
    assert told.value(Metric.TOKENS) == sum(len(r["prompt"] + r["response"]) + 1 for r in rows)
    assert told.value(Metric.SAMPLES) == len(rows) == 16


def test_tokens_and_samples_of_the_reward_model_are_those_of_its_pairs(
    everything: dict[StageName, Told],
) -> None:
    told = everything[StageName.REWARD]
    rows = tiny.preference_rows()
    tokens = sum(
        len(row["query"] + row[answer]) + 1 for row in rows for answer in ("chosen", "rejected")
    )
    assert told.value(Metric.TOKENS) == tokens
    assert told.value(Metric.SAMPLES) == 16


def test_tokens_and_samples_of_ppo_are_those_of_its_answers(
    everything: dict[StageName, Told],
) -> None:
    told = everything[StageName.PPO]
    answers = stage_runs.samples(told.config)
    assert told.value(Metric.TOKENS) == sum(row["length"] + len(row["prompt"]) for row in answers)
    assert told.value(Metric.SAMPLES) == len(answers) == 4 * STEPS


def test_counters_begin_anew_with_an_attempt(tmp_path: Path) -> None:
    first = tiny.stage_config("sft", tmp_path, max_steps=8)
    with pytest.raises(StopRequested):
        stage_runs.run(first, stage_runs.StopAt(7))
    kept = stage_runs.events(first, "checkpoint")[-1]["step"]
    second = ran(stage_runs.attempt(first, 2))
    assert 0 < kept < 8
    assert second.value(Metric.SAMPLES) == 4 * (8 - kept)


# Seconds by phase


@pytest.mark.parametrize("stage", StageName)
def test_all_phases_of_a_stage_take_time(
    everything: dict[StageName, Told], stage: StageName
) -> None:
    found = everything[stage].phases()
    assert set(found) == {phase.value for phase in phases_of(stage)}
    assert all(found.values()), found


@pytest.mark.parametrize("stage", StageName)
def test_the_phases_of_steps_add_up_to_their_time(
    everything: dict[StageName, Told], stage: StageName
) -> None:
    told = everything[stage]
    totals = [step[Metric.STEP_SECONDS] for step in stage_runs.steps(told.config)]
    spent = [
        sum(after.get(phase, 0.0) - before.get(phase, 0.0) for phase in IN_STEP)
        for before, after in pairwise(told.seconds)
    ]
    shares = [part / total for part, total in zip(spent, totals, strict=True)]
    assert max(shares) <= 1
    # A machine may pause between two phases of one step, but hardly so in each.
    assert max(shares) > 0.9
