"""The critic as PopArt needs it, and the score head that a critic starts with.

Called where PPO's models are loaded.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_api.v1alpha1.stages import ValueHeadInit
from rlhf_trainer.models import ScalarModel, score_head


class Critic(ScalarModel):
    """A value model with a trainable shift b of all its values, which PopArt rewrites."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        # In the head's precision: DeepSpeed flattens the parameters of one precision together.
        self.shift = nn.Parameter(score_head(model).weight.new_zeros(1))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """f + b. Shapes: Long[batch, time] each -> Float[batch, time] in fp32."""
        numbers: Tensor = super().forward(input_ids, attention_mask, position_ids)
        return numbers + self.shift.float()


@torch.no_grad()
def initialize_value_head(model: PreTrainedModel, init: ValueHeadInit, seed: int) -> None:
    """Keep the score head as it was loaded, or make it anew.

    Zero: every value starts at 0. Normal: N(0, 1/(d+1)) for hidden size d, drawn from `seed` alone
    (Huang et al., "The N Implementation Details of RLHF with PPO", 2023).
    """
    head = score_head(model)
    if init == "Zero":
        head.weight.zero_()
    elif init == "Normal":
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(head.weight.shape, generator=generator)
        head.weight.copy_(drawn * (head.in_features + 1) ** -0.5)
