"""What evaluations of held-out rows cost and tell, in all three stages."""

from pathlib import Path

import pytest
import stage_runs
import tiny

from rlhf_api.metrics import STATUS_METRICS, Metric, stages_of
from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import CheckpointPolicy

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
    kinds = [event["type"] for event in stage_runs.events(config)]
    assert kinds == ["start", "step", "checkpoint", "evaluation", "end"]
