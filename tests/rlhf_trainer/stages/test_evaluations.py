"""What evaluations of held-out rows cost and tell, in all three stages."""

from pathlib import Path
from typing import Any

import pytest
import stage_runs
import tiny

from rlhf_api.metrics import STATUS_METRICS, Metric, stages_of
from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import CheckpointPolicy, Dataset, StageConfig
from rlhf_trainer.errors import StopRequested

TOLD = {
    "sft": {"eval_loss", "perplexity"},
    "reward": {
        "eval_accuracy",
        "eval_chosen_score",
        "eval_rejected_score",
        "eval_score_margin",
    },
    "ppo": {"eval_reward", "eval_reward_std", "eval_kl", "eval_eos_rate", "eval_distinct_2"},
}


@pytest.mark.parametrize("stage", StageName)
def test_what_was_trained_on_and_what_was_held_out_have_series_of_their_own(
    tmp_path: Path, stage: str
) -> None:
    config = tiny.stage_config(stage, tmp_path, eval_dataset=True, eval_every_steps=1, max_steps=2)
    outcome = stage_runs.run(config)
    told = [event["metrics"] for event in stage_runs.events(config, "evaluation")]
    assert [set(each) for each in told] == [TOLD[stage]] * 2
    step = stage_runs.steps(config)[-1]
    assert not TOLD[stage] & step.keys()
    for name in STATUS_METRICS:
        expected = told[-1] if name in TOLD[stage] else step
        assert outcome.metrics.get(name) == expected.get(name), name
    for name in told[-1]:
        assert stages_of(Metric(name)) == (stage,)


@pytest.mark.parametrize("stage", StageName)
def test_no_step_is_lost_when_the_last_evaluation_fails(tmp_path: Path, stage: str) -> None:
    config = tiny.stage_config(
        stage,
        tmp_path,
        eval_dataset=True,
        max_steps=1,
        checkpoint=CheckpointPolicy(every_steps=1000),
    )
    stage_runs.run(config)
    events = stage_runs.events(config)
    passes = 2 if stage == StageName.PPO else 1
    assert [event["type"] for event in events] == [
        *("start", "step", "checkpoint"),
        *(["evaluating"] * passes),
        *("evaluation", "end"),
    ]
    assert events[-1]["etaSeconds"] == 0


class StopInEvaluation(stage_runs.StopAfter):
    """A request to stop that arrives among the first step's held-out rows: some looks after it."""

    LOOKS = 4

    def __init__(self, config: StageConfig) -> None:
        super().__init__(config, 1)
        self._left = self.LOOKS

    @property
    def is_set(self) -> bool:
        self._left -= super().is_set
        return self._left <= 0


@pytest.mark.parametrize(("stage", "every"), [("sft", 1), ("reward", 100), ("ppo", 1)])
def test_an_evaluation_that_a_request_to_stop_cuts_short_is_made_up_for(
    tmp_path: Path, stage: str, every: int
) -> None:
    """Whether the step was kept before its evaluation began, or because of the request."""
    held_out = tiny.write_rows(tmp_path / "held-out.jsonl", tiny.ROWS[stage](12, seed=2))
    settings: dict[str, Any] = {
        "max_steps": 2,
        "eval_every_steps": 1,
        "micro_batch_size": 1,
        "eval_dataset": Dataset(uri=f"file://{held_out}"),
        "checkpoint": CheckpointPolicy(every_steps=every),
    }
    config = tiny.stage_config(stage, tmp_path / "stopped", **settings)
    with pytest.raises(StopRequested) as caught:
        stage_runs.run(config, StopInEvaluation(config))
    assert (caught.value.step, caught.value.last_checkpoint_step) == (1, 1)
    assert [event["step"] for event in stage_runs.events(config, "step")] == [1]
    assert stage_runs.events(config, "evaluation") == []
    again = stage_runs.attempt(config, 2)
    stage_runs.run(again)
    straight = tiny.stage_config(stage, tmp_path / "straight", **settings)
    stage_runs.run(straight)
    expected = stage_runs.told(straight)
    assert [(event["type"], event["step"]) for event in expected] == [
        (kind, step) for step in (1, 2) for kind in ("step", "evaluation")
    ]
    assert stage_runs.told(config, again) == expected
