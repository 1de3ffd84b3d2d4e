"""That stages estimate their memory for what really computes them."""

import logging
from pathlib import Path

import pytest
import stage_runs
import tiny

from rlhf_trainer.models import memory


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_eager_attention_is_estimated_with_its_matrix(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stage: str
) -> None:
    needed = {}
    for implementation in ("SDPA", "Eager"):
        folder = tmp_path / implementation
        config = tiny.stage_config(
            stage, folder, attention_implementation=implementation, max_steps=1
        )
        with caplog.at_level(logging.INFO, logger=memory.__name__):
            stage_runs.run(config)
        needed[implementation] = int(caplog.records[-1].__dict__["bytes_needed"])
        caplog.clear()
    assert needed["Eager"] > needed["SDPA"]
