"""Statistics of a reward model's scores: written beside it, read back, refused with a remedy."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from rlhf_api.errors import InputError
from rlhf_api.names import FileName
from rlhf_trainer.models.score_statistics import ScoreStatistics, model_statistics
from rlhf_trainer.run.artifact import ModelLocation

FIELD = "spec.stages.ppo.rewardModel"


def base(folder: Path) -> Any:
    return SimpleNamespace(field=FIELD, location=ModelLocation(str(folder)))


def spec(folder: Path, scaling: str) -> Any:
    return tiny.stage_spec("ppo", folder, reward_scaling=scaling)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = ScoreStatistics(-1.5, 0.25, 40)
    written.write(tmp_path)
    assert model_statistics(spec(tmp_path, "ModelStats"), base(tmp_path)) == written
    for scaling in ("None", "RunningStd", "RunningStdTotal"):
        assert model_statistics(spec(tmp_path, scaling), base(tmp_path)) is None


def test_scores_get_the_mean_0_and_the_deviation_1() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0])
    assert ScoreStatistics(2.0, 0.5, 3).normalized(scores).tolist() == [-2.0, 0.0, 2.0]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        '{"mean": 1.0, "count": 3}',
        '{"mean": 1.0, "std": "wide", "count": 3}',
        '{"mean": 1.0, "std": 0.0, "count": 3}',
        '{"mean": 1.0, "std": -1.0, "count": 3}',
        json.dumps({"mean": float("nan"), "std": 1.0, "count": 3}),
        json.dumps({"mean": 1.0, "std": float("inf"), "count": 3}),
    ],
)
def test_without_numbers_to_divide_by_it_says_what_to_do(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / FileName.REWARD_STATISTICS).write_text(text)
    with pytest.raises(InputError) as caught:
        model_statistics(spec(tmp_path, "ModelStats"), base(tmp_path))
    message = str(caught.value)
    for word in (FIELD, "reward_statistics.json", "evalDataset", "RunningStdTotal"):
        assert word in message
