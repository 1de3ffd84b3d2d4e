"""The sizes of a model that its activations, its logits and its cache depend on.

Called by `memory`. What a configuration does not tell counts as nothing, so that an estimate made
of it stays a lower bound.
"""

from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from rlhf_api.v1alpha1.stages import Precision

WEIGHT_BYTES: dict[Precision, int] = {"BF16": 2, "FP32": 4}


@dataclass(frozen=True)
class Sizes:
    """What activations depend on."""

    layers: int
    hidden: int
    heads: int
    """Attention heads of a layer; 0 where the model has none."""
    keys: int
    """Numbers of a token's keys in a layer: fewer than hidden units with grouped queries, and 0
    where the model has no attention heads."""
    intermediate: int | None
    """Units of a gated feed-forward layer, where norms are RMSNorm, and the mean of them where
    layers differ; None for the older kind."""
    vocabulary: int
    width: int
    """Bytes of a number."""
    windows: tuple[int | None, ...]
    """How many tokens each layer with a cache keeps keys and values of; None for all of them."""

    @classmethod
    def of(cls, config: PretrainedConfig, precision: Precision) -> "Sizes":
        """The sizes that a configuration names."""
        text = config.get_text_config()
        return cls(
            layers=int(text.num_hidden_layers),
            hidden=int(text.hidden_size),
            heads=_heads(text),
            keys=_keys(text),
            intermediate=_intermediate(text),
            vocabulary=int(text.vocab_size),
            width=WEIGHT_BYTES[precision],
            windows=_windows(text),
        )


def _intermediate(text: PretrainedConfig) -> int | None:
    """Gemma 3n names one for each layer."""
    named = _numbers(text, "intermediate_size")
    if not named or not hasattr(text, "rms_norm_eps"):
        return None
    return sum(named) // len(named)


def _heads(text: PretrainedConfig) -> int:
    return max(_numbers(text, "num_attention_heads"), default=0)


def _keys(text: PretrainedConfig) -> int:
    heads = _heads(text)
    if heads == 0:
        return 0
    # A head need not be a share of the hidden units.
    width = min(_numbers(text, "head_dim"), default=int(text.hidden_size) // heads)
    return width * _groups(text, heads)


def _groups(text: PretrainedConfig, heads: int) -> int:
    """Heads that have keys of their own."""
    # Falcon's first architecture reads its number of groups nowhere.
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        return 1
    named = _numbers(text, "num_key_value_heads") + _numbers(text, "num_kv_heads")
    return min([heads, *named])


def _windows(text: PretrainedConfig) -> tuple[int | None, ...]:
    """As transformers' own cache would keep tokens; layers of other kinds have states of one
    token's size."""
    try:
        layers = DynamicCache(config=text).layers
    except KeyError:
        # A kind of layer that only its model brings along.
        return ()
    return tuple(
        # The token that is read is not kept beside its window.
        int(layer.sliding_window) - 1 if isinstance(layer, DynamicSlidingWindowLayer) else None
        for layer in layers
        if isinstance(layer, DynamicLayer)
    )


def _numbers(text: PretrainedConfig, name: str) -> list[int]:
    """What a field holds: one number, one for each layer, or nothing."""
    value: Any = getattr(text, name, None)
    values = value if isinstance(value, list | tuple) else [value]
    return [int(one) for one in values if isinstance(one, int)]
