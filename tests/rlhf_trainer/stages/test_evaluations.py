"""What evaluations of held-out rows cost and tell, in all three stages."""

from pathlib import Path

import pytest
import stage_runs
import tiny

from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import CheckpointPolicy


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
    assert stage_runs.checkpoints(config) == ["latest", "step-1"]
