"""FlashAttention's two functions in plain loops, so that a CPU can show what they are called with.

transformers decides from masks and positions where sequences begin, and hands that to the kernels;
the kernels have no say in it. What is registered here is a name of its own: the code from the model
down to the kernel is transformers', without the search for a package and a GPU.

Signatures and meaning: github.com/Dao-AILab/flash-attention, flash_attn/flash_attn_interface.py.
"""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, modeling_flash_attention_utils
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import flash_attention_mask

NAME = "flash_attention_on_cpu"


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """Attention inside of each sequence of a ragged batch: Float[tokens, heads, width]."""
    assert dropout_p == 0.0
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    bounds = cu_seqlens_q.tolist()
    assert max(torch.diff(cu_seqlens_q).tolist()) == int(max_seqlen_q) == int(max_seqlen_k)
    parts = [
        _attention(q[start:end], k[start:end], v[start:end], softmax_scale, causal, window_size[0])
        for start, end in pairwise(bounds)
    ]
    return torch.cat(parts)


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """The same for sequences of one length: Float[batch, time, heads, width]."""
    assert dropout_p == 0.0
    rows = zip(q, k, v, strict=True)
    return torch.stack([_attention(*row, softmax_scale, causal, window_size[0]) for row in rows])


def _attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, causal: bool, window: int
) -> Tensor:
    """Float[time, heads, width] of one sequence, query by query."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    found = []
    for at in range(len(q)):
        first = max(0, at - window) if window >= 0 else 0
        last = at + 1 if causal else len(k)
        scores = torch.einsum("hd,thd->ht", q[at], k[first:last]) * scale
        found.append(torch.einsum("ht,thd->hd", scores.softmax(dim=-1), v[first:last]))
    return torch.stack(found)


@pytest.fixture
def flash_attention(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an attention implementation that computes with the functions above."""
    AttentionInterface.register(NAME, flash_attention_forward)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    utils: Any = modeling_flash_attention_utils
    process = utils._lazy_define_process_function(flash_attn_varlen_func)
    for name, value in {
        "_loaded_implementation": NAME,
        "_flash_fn": flash_attn_func,
        "_flash_varlen_fn": flash_attn_varlen_func,
        "_pad_fn": utils._pad_input,
        "_unpad_fn": utils._unpad_input,
        "_process_flash_kwargs_fn": process,
        "_process_with_kvcache_kwargs_fn": dict,
    }.items():
        monkeypatch.setattr(utils, name, value)
    return NAME
