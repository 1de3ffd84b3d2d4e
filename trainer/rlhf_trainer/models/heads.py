"""What stages put on a model: token statistics of an actor, numbers of a scorer or a critic.

Called by the stages. Every forward pass gives explicit position ids, which learned positions need
with left padding; nothing here reads padding from token ids.
"""

import inspect
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_api.v1alpha1.stages import ValueHeadInit
from rlhf_trainer.rl import TokenStatistics, token_statistics

# As modules call a probability of leaving something out, or the size of a noise.
_RANDOM = re.compile("drop|jitter")


def score_head(model: PreTrainedModel) -> nn.Linear:
    """The linear layer of one output, which decoders' sequence classifiers call `score`."""
    head = model.score
    assert isinstance(head, nn.Linear)
    return head


class Actor(nn.Module):
    """A causal model that gives the log-probability of each response token, and its entropy."""

    absent: Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        absent_ids: Sequence[int] = (),
        *,
        keeps_columns: bool = False,
    ) -> None:
        """Of `model`, which gives logits by `forward`.

        Args:
            model: a causal language model.
            absent_ids: rows of the embeddings that no policy samples, as they have no token.
            keeps_columns: whether it computes the logits of columns that are chosen for each row,
                as `layouts.keeps_columns` finds; otherwise all are computed for such columns.
        """
        super().__init__()
        self.model = model
        # Not among the weights: a checkpoint needs it no more than the artifact does.
        absent = torch.tensor(tuple(absent_ids), dtype=torch.long)
        self.register_buffer("absent", absent, persistent=False)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._keeps_columns = keeps_columns

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        columns: int | Tensor,
        temperature: float = 1.0,
        *,
        entropy: bool = False,
        entropy_gradient: bool = False,
    ) -> TokenStatistics:
        """Statistics of the tokens in `columns`, with entropies where they are asked for.

        The gradient of entropies, which costs as much as that of log-probabilities, is asked for
        apart. It is cut off in here: DeepSpeed's hooks wait for that of every output that has one.

        Shapes: input_ids, attention_mask, position_ids Long[batch, time]; columns Long[batch, n],
        from 1, or the number n of last ones -> Float[batch, n] each. Packed rows have another mask,
        or none: see `data.packing.RowLayout`.
        """
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            **self._kept(columns),
        )
        if isinstance(columns, int):
            logits, tokens = output.logits[:, -columns - 1 : -1], input_ids[:, -columns:]
        else:
            logits, tokens = output.logits, input_ids.gather(1, columns)
            if not self._keeps_columns:
                logits = logits.take_along_dim((columns - 1).unsqueeze(-1), dim=1)
        statistics = token_statistics(logits, tokens, temperature, self.absent, entropy=entropy)
        if statistics.entropy is None or entropy_gradient:
            return statistics
        return statistics._replace(entropy=statistics.entropy.detach())

    def _kept(self, columns: int | Tensor) -> dict[str, int | Tensor]:
        """What tells the model which logits to compute: a token's stand one column before it."""
        if isinstance(columns, int):
            return {"logits_to_keep": columns + 1} if self._keeps_logits else {}
        return {"logits_to_keep": columns - 1} if self._keeps_columns else {}


class Float32Linear(nn.Linear):
    """A layer whose arithmetic and output are fp32, whatever its weights are.

    In bf16 scores above 1 lie 1/128 apart, and near 10 1/16: many pairs would be a tie.
    """

    @classmethod
    def of(cls, layer: nn.Linear) -> "Float32Linear":
        """With the parameters of `layer`, under the same names."""
        with torch.device("meta"):
            linear = cls(layer.in_features, layer.out_features, bias=layer.bias is not None)
        linear.weight, linear.bias = layer.weight, layer.bias
        return linear

    def forward(self, input: Tensor) -> Tensor:
        """Shapes: Float[..., in] -> Float[..., out] in fp32."""
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(input.float(), self.weight.float(), bias)


class ScalarModel(nn.Module):
    """A model with one number for each token: the score read at a sequence's end, or its values."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        model.score = Float32Linear.of(score_head(model))
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """Shapes: Long[batch, time] each -> Float[batch, time] in fp32."""
        output = self.model.base_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
        )
        numbers: Tensor = score_head(self.model)(output.last_hidden_state)
        return numbers.squeeze(-1)


def switch_off_dropout(model: nn.Module) -> None:
    """Make training and evaluation mode compute the same.

    With dropout the probability ratio of unchanged weights is far from 1: PPO would clip noise.
    Layers that are left out and noise of a router go with it. What a module reads from its
    configuration stays: see `layouts.check_model`.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and _RANDOM.search(name):
                setattr(module, name, 0.0)


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
