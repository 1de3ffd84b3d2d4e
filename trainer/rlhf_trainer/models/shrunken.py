"""A model's configuration with tiny widths: the same layers and rules, in milliseconds.

Called by `layouts`, which asks such a model what the real one would do: how attention treats masks
and positions does not depend on widths, and a window of a few tokens shows what one of 4,096 does.
"""

import copy
from typing import Any

from transformers import PreTrainedConfig

from rlhf_trainer.models.positions import POSITION_NAMES

WINDOW = 4
"""Tokens that a layer with a window sees in the copy."""
VOCABULARY = 64

_HEADS = 4
_HEAD = 16
_WIDTH = _HEADS * _HEAD

# Names as configurations spell them, without those that `attribute_map` translates.
_SIZES: dict[str, int] = {
    "vocab_size": VOCABULARY,
    "hidden_size": _WIDTH,
    "num_attention_heads": _HEADS,
    "head_dim": _HEAD,
    "global_head_dim": _HEAD,
    **dict.fromkeys(POSITION_NAMES, 64),
    "word_embed_proj_dim": _WIDTH,
    "embedding_size": _WIDTH,
    "rotary_dim": _HEAD // 2,
    "n_inner": _WIDTH,
    "q_lora_rank": _HEAD,
    "kv_lora_rank": _HEAD,
    "qk_nope_head_dim": _HEAD // 2,
    "qk_rope_head_dim": _HEAD // 2,
    "qk_head_dim": _HEAD,
    "v_head_dim": _HEAD,
    "n_group": 1,
    "topk_group": 1,
    "lru_width": _WIDTH,
    "attention_hidden_size": _WIDTH,
    # Not the width: MiniCPM scales logits by their ratio.
    "dim_model_base": _WIDTH // 2,
    "mamba_n_heads": 2 * _HEADS,
    "mamba_d_head": _HEAD,
    "n_mamba_heads": 2 * _HEADS,
    "mamba_headdim": _HEAD,
}
_AT_MOST: dict[str, int] = {
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    "window_size": WINDOW,
    "attention_window_size": WINDOW,
    "keep_window_size": WINDOW,
    "index_topk": WINDOW,
    "index_kpool": 1,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "chunk_size": WINDOW,
    "mamba_chunk_size": WINDOW,
    "pad_token_id": 0,
}
_INNER = ("intermediate_size", "ffn_dim", "ffn_hidden_size")


def shrunken(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy of `config` with tiny widths, as many layers, and windows of `WINDOW` tokens.

    Raises whatever a configuration of an unknown shape may raise.
    """
    small = copy.deepcopy(config)
    text = small.get_text_config()
    _shrink(text)
    for part in vars(small).values():
        if isinstance(part, PreTrainedConfig) and part is not text:
            # Towers of images and sounds, which texts never reach.
            _shrink(part)
            part.num_hidden_layers = 1
    return small


def _shrink(config: Any) -> None:
    groups = {
        name: config.num_attention_heads // heads
        for name in ("num_key_value_heads", "num_kv_heads")
        if isinstance(heads := getattr(config, name, None), int)
    }
    for name, value in _SIZES.items():
        if _is_number(getattr(config, name, None)):
            _set(config, name, value)
    for name, most in _AT_MOST.items():
        size: Any = getattr(config, name, None)
        if _is_number(size):
            _set(config, name, min(size, most))
    for name, group in groups.items():
        _set(config, name, max(_HEADS // group, 1))
    if _is_number(getattr(config, "qk_rope_head_dim", None)):
        _set(config, "head_dim", _SIZES["qk_rope_head_dim"])
    _shrink_inner(config)
    _plain_rope(config)


def _shrink_inner(config: Any) -> None:
    """Widths between two layers of width `hidden_size`."""
    expand = getattr(config, "expand", None)
    width = _WIDTH if expand is None else int(expand * _WIDTH)
    for name in [each for each in vars(config) if each.endswith(_INNER)]:
        if _is_number(getattr(config, name)):
            _set(config, name, width)
    if expand is not None and _is_number(getattr(config, "num_heads", None)):
        _set(config, "num_heads", width // _HEAD)


def _plain_rope(config: Any) -> None:
    """Rotation without scaling: its factors would be for heads of another width."""
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict):
        # Kinds of layers may each have their own.
        nested = all(isinstance(part, dict) for part in rope.values())
        config.rope_parameters = (
            {kind: _unscaled(part) for kind, part in rope.items()} if nested else _unscaled(rope)
        )


def _unscaled(rope: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in rope.items() if not isinstance(value, list)} | {
        "rope_type": "default"
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _set(config: Any, name: str, value: int) -> None:
    if not isinstance(getattr(type(config), name, None), property):
        setattr(config, name, value)
