"""Mean and deviation of a reward model's scores, which stand beside its weights.

Written by the reward stage, read by PPO before any weights.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from rlhf_api.errors import InputError
from rlhf_api.names import FileName
from rlhf_api.v1alpha1 import PPOStage
from rlhf_trainer.models.source import Base
from rlhf_trainer.run.files import json_text, write_atomically


@dataclass(frozen=True)
class ScoreStatistics:
    """Of the scores of held-out rows.

    Attributes:
        mean: of the scores.
        std: their deviation, to divide by.
        count: of scores.
    """

    mean: float
    std: float
    count: int

    def normalized(self, scores: Tensor) -> Tensor:
        """(score − μ) / σ.

        Shapes: scores Float[...] -> Float[...].
        """
        return (scores - self.mean) / self.std

    def write(self, folder: Path) -> None:
        """Leave them beside the model."""
        text = json_text(asdict(self), indent=2)
        write_atomically(folder / FileName.REWARD_STATISTICS, text)


def model_statistics(spec: PPOStage, reward_model: Base | None) -> ScoreStatistics | None:
    """Those of the reward model where `rewardScaling` asks for them, else None.

    Raises:
        InputError: the model has none, or they are not numbers to divide by.
    """
    if spec.reward_scaling != "ModelStats":
        return None
    assert reward_model is not None, "the specification asks for ModelStats without a reward model"
    # `open_base` has fetched all of a repository's JSON files.
    path = reward_model.location.file(FileName.REWARD_STATISTICS)
    remedy = (
        "train the reward model with stages.reward and an evalDataset, which writes it, or choose "
        "rewardScaling RunningStdTotal"
    )
    if path is None:
        raise InputError(
            f"{reward_model.field}: rewardScaling is ModelStats, but "
            f"{reward_model.location.path} has no {FileName.REWARD_STATISTICS}; {remedy}"
        )
    try:
        return _parsed(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{reward_model.field}: {path} must hold a finite mean, a std above 0 and a count "
            f"({type(error).__name__}: {error}); {remedy}"
        ) from error


def _parsed(document: dict[str, float]) -> ScoreStatistics:
    statistics = ScoreStatistics(
        float(document["mean"]), float(document["std"]), int(document["count"])
    )
    if not (
        math.isfinite(statistics.mean) and math.isfinite(statistics.std) and statistics.std > 0
    ):
        raise ValueError(f"mean is {statistics.mean} and std {statistics.std}")
    return statistics
