"""How many tokens a model can take, by its configuration.

Called when a stage opens a model, before its rows are compared with it.
"""

from collections.abc import Iterator
from typing import Any

from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

POSITION_NAMES = ("max_position_embeddings", "max_seq_len", "max_target_positions")
"""Where configurations keep it, the usual name first; others are translated by `attribute_map`."""
_STRETCHED = ("yarn", "linear", "dynamic")
"""Rotary embeddings whose factor is one of the positions."""
_RECOMPUTED = ("longrope", "dynamic")
"""Rotary embeddings that transformers computes anew when it meets a long row."""


def max_positions(config: PretrainedConfig) -> int | None:
    """Tokens of the longest sequence that the model can take; None where nothing bounds it.

    Rotary embeddings that are stretched reach `factor` times the positions of the original model
    (B. Peng et al., "YaRN", 2023), and configurations differ in whether `max_position_embeddings`
    counts that in. Those of Llama 3 and LongRoPE always do, and so do those that stretch but some
    of their layers.
    """
    text = config.get_text_config()
    named = [getattr(text, name, None) for name in POSITION_NAMES]
    positions: int | None = next((number for number in named if number is not None), None)
    rope = getattr(text, "rope_parameters", None) or {}
    factor = rope.get("factor")
    if positions is None or factor is None or rope.get("rope_type") not in _STRETCHED:
        return positions
    original = rope.get("original_max_position_embeddings") or positions
    return max(positions, int(factor * original))


def steady_positions(config: PretrainedConfig) -> int | None:
    """Tokens of the longest row beside which every other one is computed as it is alone; None where
    nothing bounds it.

    When a pass holds a longer one, transformers takes other rotary embeddings for all of its rows.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    bounds = [
        # The extent that is not stretched yet.
        part.get("original_max_position_embeddings")
        if part["rope_type"] == "longrope"
        else positions
        for _, part in _recomputed(config)
    ]
    return min((bound for bound in bounds if bound is not None), default=None)


def _recomputed(config: PretrainedConfig) -> Iterator[tuple[str | None, dict[str, Any]]]:
    """Kind of layers and parameters of rotary embeddings that change with the rows."""
    rope: dict[str, Any] = getattr(config.get_text_config(), "rope_parameters", None) or {}
    # Kinds of layers may each have their own.
    nested = {kind: part for kind, part in rope.items() if isinstance(part, dict)}
    for kind, part in nested.items() if nested else [(None, rope)]:
        if part.get("rope_type") in _RECOMPUTED:
            yield kind, part


def check_rotations(config: PretrainedConfig) -> None:
    """Raise whatever transformers would raise over rotary embeddings at the first long row."""
    text = config.get_text_config()
    for kind, part in _recomputed(config):
        original = part.get("original_max_position_embeddings") or max_positions(config) or 0
        ROPE_INIT_FUNCTIONS[part["rope_type"]](
            text, device="cpu", seq_len=original + 1, layer_type=kind
        )
