"""Forward passes in step with those of other ranks, which wait for each other's weights.

Called by the samplers where ZeRO 3 gathers the weights of a layer when it is computed: a rank that
made fewer passes would leave the others waiting for ever.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

from rlhf_trainer.run.distributed import Ranks, any_rank


class Lockstep:
    """A model whose forward passes every rank makes equally often."""

    def __init__(self, model: PreTrainedModel, ranks: Ranks) -> None:
        self._model = model
        self._ranks = ranks

    def __call__(self, **inputs: Any) -> Any:
        """The model's output; ranks that are done make a pass as well."""
        any_rank(self._ranks, holds=True)
        return self._model(**inputs)

    @torch.no_grad()
    def finish(self) -> None:
        """Make passes of no use until all ranks are done."""
        token = torch.zeros((1, 1), dtype=torch.long, device=self._ranks.device)
        while any_rank(self._ranks, holds=False):
            self._model(input_ids=token, use_cache=False)
