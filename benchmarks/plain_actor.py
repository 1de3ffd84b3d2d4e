"""An actor that has all logits of the responses at once, as PPO is mostly written.

Called by `memory`, to compare with. Its numbers are those of `rlhf_trainer.models.heads.Actor`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_trainer.models.heads import Actor, Logits
from rlhf_trainer.ppo import models
from rlhf_trainer.rl import TokenStatistics


class PlainActor(Actor):
    """Log-softmax of a whole micro-batch, and autograd through it."""

    def __init__(
        self, model: PreTrainedModel, absent_ids: Sequence[int] = (), *, logits: Logits
    ) -> None:
        """As `Actor`, whatever logits the model may be asked for."""
        super().__init__(model, absent_ids)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        columns: Any,
        temperature: float = 1.0,
        *,
        entropy: bool = False,
        entropy_gradient: bool = False,
    ) -> TokenStatistics:
        """As `Actor`, for the number of last columns."""
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            logits_to_keep=columns + 1,
        )
        logits = output.logits[:, :-1].float()
        if temperature != 1:
            logits = logits / temperature
        if self.absent.numel():
            logits = logits.index_fill(-1, self.absent, -torch.inf)
        log_softmax = torch.log_softmax(logits, dim=-1)
        tokens = input_ids[:, -columns:].unsqueeze(-1)
        logprobs = log_softmax.gather(-1, tokens).squeeze(-1)
        if not entropy:
            return TokenStatistics(logprobs)
        with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
            # Of a word without a row p log p is 0.
            finite = log_softmax.clamp(min=torch.finfo(log_softmax.dtype).min)
            entropies = -(log_softmax.exp() * finite).sum(dim=-1)
        return TokenStatistics(logprobs, entropies)


@contextmanager
def actors_are_plain() -> Iterator[None]:
    """Inside, actor and reference of PPO are loaded as such ones."""
    with patch.object(models, "Actor", PlainActor):
        yield
