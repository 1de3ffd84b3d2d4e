"""Keys and values of the rows that are decoded together.

Called by the decode loop. Rows of transformers' own caches are kept or left out; what has another
cache than keys and values is left to `generate`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

_GROWTH = 64
"""Columns that are added at a time."""


class CacheError(Exception):
    """A model leaves no keys and values where transformers says that it keeps them."""


class GrowingLayer(DynamicLayer):
    """Keys and values with columns to spare: `DynamicLayer` copies all of them for each token."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        DynamicLayer.__init__(self)
        self.lazy_initialization(keys, values)
        self._length = keys.shape[-2]
        self._keys, self._values = keys, values
        self._show()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add columns; returns all of them."""
        start, self._length = self._length, self._length + key_states.shape[-2]
        missing = self._length - self._keys.shape[-2]
        if missing > 0:
            added = (0, 0, 0, missing + _GROWTH)
            self._keys, self._values = pad(self._keys, added), pad(self._values, added)
        self._keys[:, :, start : self._length] = key_states
        self._values[:, :, start : self._length] = value_states
        return self._show()

    def keep(self, rows: Tensor, first_column: int) -> None:
        """Leave out other rows, and columns that are padding in all that stay."""
        self._keys = self._keys[:, :, first_column:].index_select(0, rows)
        self._values = self._values[:, :, first_column:].index_select(0, rows)
        self._length -= first_column
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = self._keys[:, :, : self._length], self._values[:, :, : self._length]
        self.keys, self.values = keys, values
        return keys, values


def selects_rows(model: PreTrainedModel) -> bool:
    """Whether all that a model keeps of its past are keys and values, whole or of a window."""
    if getattr(model, "_is_stateful", False):
        return False
    try:
        layers = DynamicCache(config=model.config).layers
    except KeyError:
        # A kind of layer that only its model brings along.
        return False
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def joined(caches: Sequence[DynamicCache], widths: Sequence[int]) -> DynamicCache:
    """The rows of several caches as one, padded on the left to the widest.

    Raises:
        CacheError: a layer of the model has not used its cache.
    """
    whole = caches[0]
    for at in range(len(whole.layers)):
        parts: list[Any] = [cache.layers[at] for cache in caches]
        if parts[0].keys is None:
            raise CacheError(f"layer {at} keeps no keys and values")
        keys, values = _stacked(parts, "keys"), _stacked(parts, "values")
        if isinstance(parts[0], DynamicSlidingWindowLayer):
            parts[0].keys, parts[0].values = keys, values
            parts[0].cumulative_length = max(widths)
        else:
            whole.layers[at] = GrowingLayer(keys, values)
    return whole


def _stacked(layers: Sequence[Any], name: str) -> Tensor:
    """The tensors of that name one below the other, which the layers give up."""
    parts: list[Tensor] = [getattr(layer, name) for layer in layers]
    for layer in layers:
        setattr(layer, name, None)
    if len(parts) == 1:
        return parts[0]
    columns = max(part.shape[-2] for part in parts)
    return torch.cat([pad(part, (0, 0, columns - part.shape[-2], 0)) for part in parts])


def keep_rows(cache: DynamicCache, rows: Tensor, first_column: int) -> int:
    """Leave out other rows; columns before `first_column` too, where every layer has them all.

    Returns how many columns are gone.
    """
    layers: list[Any] = cache.layers
    if not all(isinstance(layer, GrowingLayer) for layer in layers):
        first_column = 0
    for layer in layers:
        if isinstance(layer, GrowingLayer):
            layer.keep(rows, first_column)
        else:
            layer.batch_select_indices(rows)
    return first_column
