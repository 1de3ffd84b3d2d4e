"""The actor's optimizer steps with what goes with them: other texts before, an average after.

Called by the PPO stage.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_api.metrics import Metric
from rlhf_api.v1alpha1 import PPOStage
from rlhf_trainer.data.packing import RowLayout
from rlhf_trainer.models.ema import MovingAverage
from rlhf_trainer.models.engine import TrainedModel
from rlhf_trainer.ppo.ptx import PTX, StopCheck
from rlhf_trainer.run.distributed import Ranks
from rlhf_trainer.run.loop import Kept, TrainingLoop


@dataclass(frozen=True)
class ActorSteps:
    """The actor, the texts whose loss is mixed in and the average of its weights, if any."""

    actor: TrainedModel
    ptx: PTX | None
    average: MovingAverage | None

    @classmethod
    def of(cls, actor: TrainedModel, spec: PPOStage, ptx: PTX | None, ranks: Ranks) -> "ActorSteps":
        """As the stage's specification asks for."""
        decay = spec.ema_decay
        average = MovingAverage(actor, decay, ranks.rank) if decay is not None else None
        return cls(actor, ptx, average)

    @property
    def models(self) -> dict[str, Kept]:
        """What a checkpoint keeps, by the name of its folder."""
        kept: dict[str, Kept] = {"actor": self.actor}
        return kept | ({"average": self.average} if self.average is not None else {})

    def to_document(self) -> dict[str, Any]:
        """What a checkpoint keeps as JSON values."""
        return self.ptx.to_document() if self.ptx is not None else {}

    def load(self, document: Mapping[str, Any]) -> None:
        """Take over what a checkpoint kept."""
        if self.ptx is not None:
            self.ptx.load(document)

    def step(
        self,
        learning_rate: float,
        check_stop: StopCheck | None = None,
        layout: RowLayout = RowLayout.PADDED,
    ) -> float:
        """Add the texts' gradient and apply all of it; its global norm before clipping.

        With texts the stage's own last `accumulate` was not the step's last, and before each of
        their micro-batches a request to stop is heard. Rows of texts stand in `layout`.
        """
        if self.ptx is not None:
            self.ptx.accumulate(self.actor, check_stop, layout)
        norm = self.actor.step(learning_rate)
        if self.average is not None:
            self.average.update()
        return norm

    def metrics(self) -> dict[Metric, float]:
        """Of the steps since the last call."""
        return self.ptx.metrics() if self.ptx is not None else {}

    def settle(self, loop: TrainingLoop) -> None:
        """Make the average, if there is one, the actor; a checkpoint keeps the last weights."""
        if self.average is not None:
            loop.save_unless_saved()
            self.average.take_over()
