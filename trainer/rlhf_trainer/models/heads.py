"""What stages put on a model: token statistics of an actor, numbers of a scorer or a critic.

Called by the stages. Every forward pass gives explicit position ids, which learned positions need
with left padding; nothing here reads padding from token ids.
"""

import inspect
import re
from collections.abc import Sequence
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_api.v1alpha1.stages import ValueHeadInit
from rlhf_trainer.data.packing import additive
from rlhf_trainer.rl import CHUNK_NUMBERS, TokenStatistics, hidden_statistics, token_statistics

T = TypeVar("T", bound=nn.Linear)

# As modules call a probability of leaving something out, or the size of a noise.
_RANDOM = re.compile("drop|jitter")


def score_head(model: PreTrainedModel) -> nn.Linear:
    """The linear layer of one output, which decoders' sequence classifiers call `score`."""
    head = model.score
    assert isinstance(head, nn.Linear)
    return head


class Logits(Enum):
    """Which logits a model is asked for, the least memory first."""

    HEAD = "head"
    """None: its head is given hidden states of chosen columns, in chunks."""
    COLUMNS = "columns"
    """Those of chosen columns, others in each row."""
    ALL = "all"
    """All of them, or all of the last columns where its `forward` takes their number."""


class VocabularyHead(nn.Linear):
    """The layer from hidden states to logits, which tells of tokens without all their logits.

    It does so itself, as ZeRO 3 has a layer's weights whole while that layer is called.
    """

    chunk = CHUNK_NUMBERS

    @classmethod
    def of(cls, layer: nn.Linear) -> "VocabularyHead":
        """With the parameters of `layer`, under the same names."""
        return _with_parameters_of(layer, cls)

    def forward(
        self,
        input: Tensor,
        tokens: Tensor | None = None,
        temperature: float = 1.0,
        absent: Tensor | None = None,
        *,
        entropy: bool = False,
        entropy_gradient: bool = False,
    ) -> Any:
        """Logits, or with `tokens` what `hidden_statistics` says of them; gradients as `Actor`."""
        if tokens is None:
            return super().forward(input)
        statistics = hidden_statistics(
            input,
            self.weight,
            self.bias,
            tokens,
            temperature,
            absent,
            entropy=entropy,
            chunk=self.chunk,
        )
        return statistics if entropy_gradient else _without_entropy_gradient(statistics)


class Actor(nn.Module):
    """A causal model that gives the log-probability of each response token, and its entropy."""

    absent: Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        absent_ids: Sequence[int] = (),
        *,
        logits: Logits = Logits.ALL,
    ) -> None:
        """Of `model`, which gives logits by `forward`.

        Args:
            model: a causal language model; with `Logits.HEAD` its head becomes a `VocabularyHead`.
            absent_ids: rows of the embeddings that no policy samples, as they have no token.
            logits: which it may be asked for, as `layouts.fewest_logits` finds.
        """
        super().__init__()
        self.model = model
        if logits is Logits.HEAD:
            head = model.get_output_embeddings()
            assert isinstance(head, nn.Linear)
            model.set_output_embeddings(VocabularyHead.of(head))
        # Not among the weights: a checkpoint needs it no more than the artifact does.
        absent = torch.tensor(tuple(absent_ids), dtype=torch.long)
        self.register_buffer("absent", absent, persistent=False)
        self._keeps_last = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._logits = logits

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
        or none: see `data.packing.RowLayout`. One of four dimensions may be boolean.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": _added(attention_mask, self.model.dtype),
            "position_ids": position_ids,
            "use_cache": False,
        }
        tokens = (
            input_ids[:, -columns:] if isinstance(columns, int) else input_ids.gather(1, columns)
        )
        given = tokens, temperature, self.absent
        statistics: TokenStatistics
        if self._logits is Logits.HEAD:
            hidden = _before(self.model.base_model(**inputs).last_hidden_state, columns)
            head: Any = self.model.get_output_embeddings()
            statistics = head(hidden, *given, entropy=entropy, entropy_gradient=entropy_gradient)
            return statistics
        statistics = token_statistics(self._chosen_logits(inputs, columns), *given, entropy=entropy)
        return statistics if entropy_gradient else _without_entropy_gradient(statistics)

    def _chosen_logits(self, inputs: dict[str, Any], columns: int | Tensor) -> Tensor:
        """Float[batch, n, vocab] of `columns`, as the model gives them."""
        if isinstance(columns, int):
            kept = {"logits_to_keep": columns + 1} if self._keeps_last else {}
            return _before(self.model(**inputs, **kept).logits, columns)
        if self._logits is Logits.COLUMNS:
            logits: Tensor = self.model(**inputs, logits_to_keep=columns - 1).logits
            return logits
        return _before(self.model(**inputs).logits, columns)


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return additive(mask, dtype) if mask is not None and mask.dtype == torch.bool else mask


def _before(each: Tensor, columns: int | Tensor) -> Tensor:
    """What stands one column before `columns`, where a token's logits are made.

    Shapes: Float[batch, time, size] -> Float[batch, n, size].
    """
    if isinstance(columns, int):
        return each[:, -columns - 1 : -1]
    return each.take_along_dim((columns - 1).unsqueeze(-1), dim=1)


def _without_entropy_gradient(statistics: TokenStatistics) -> TokenStatistics:
    if statistics.entropy is None:
        return statistics
    return statistics._replace(entropy=statistics.entropy.detach())


def _with_parameters_of(layer: nn.Linear, kind: type[T]) -> T:
    with torch.device("meta"):
        linear = kind(layer.in_features, layer.out_features, bias=layer.bias is not None)
    linear.weight, linear.bias = layer.weight, layer.bias
    return linear


class Float32Linear(nn.Linear):
    """A layer whose arithmetic and output are fp32, whatever its weights are.

    In bf16 scores above 1 lie 1/128 apart, and near 10 1/16: many pairs would be a tie.
    """

    @classmethod
    def of(cls, layer: nn.Linear) -> "Float32Linear":
        """With the parameters of `layer`, under the same names."""
        return _with_parameters_of(layer, cls)

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

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor
    ) -> Tensor:
        """Shapes: Long[batch, time] each -> Float[batch, time] in fp32. Masks as those of
        `Actor`."""
        output = self.model.base_model(
            input_ids=input_ids,
            attention_mask=_added(attention_mask, self.model.dtype),
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

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor
    ) -> Tensor:
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
