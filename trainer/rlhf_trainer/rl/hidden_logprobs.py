"""Log-probability and entropy of tokens from hidden states, without ever holding all logits.

Called by the actor whose logits are its head's of its hidden states, see `logprobs` for the others.
Forward, logits are those of a chunk of tokens over the whole vocabulary, and are forgotten.
Backward, they are computed anew for all tokens over a chunk of the vocabulary: each row of the
head's weight has its whole gradient in one product, summed as where nothing is cut.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from rlhf_trainer.rl._inputs import require_positive
from rlhf_trainer.rl.logprobs import (
    TokenStatistics,
    entropy_of,
    gradient_but_for_the_token,
    log_prob_of,
    policy_logits,
    token_statistics,
)

CHUNK_NUMBERS = 2**25
"""Logits that there are at once."""


def hidden_statistics(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    temperature: float = 1.0,
    absent: Tensor | None = None,
    *,
    entropy: bool = False,
    chunk: int = CHUNK_NUMBERS,
) -> TokenStatistics:
    """`token_statistics` of the logits hidden · weightᵀ + bias, no more than `chunk` at a time.

    Where all of them are no more they are kept for the backward pass, which takes less time.

    Shapes: hidden Float[batch, time, width], weight Float[vocab, width], bias Float[vocab], tokens
    Long[batch, time], absent Long[n] -> Float[batch, time] each, in fp32 (fp64 where weight is).
    Raises ValueError when shapes disagree, or temperature or chunk is not above 0.
    """
    require_positive(temperature=temperature, chunk=chunk)
    if hidden.dim() != 3 or hidden.shape[:2] != tokens.shape:
        raise ValueError(
            f"hidden has shape {list(hidden.shape)}, tokens {list(tokens.shape)}: "
            "want [batch, time, width], [batch, time]"
        )
    hidden = hidden.to(weight.dtype)
    if tokens.numel() * len(weight) <= chunk:
        logits = linear(hidden, weight, bias)
        return token_statistics(logits, tokens, temperature, absent, entropy=entropy)
    # torch declares no types of it.
    apply: Any = _HiddenStatistics.apply
    logprobs, entropies = apply(
        hidden.flatten(0, 1), weight, bias, tokens.flatten(), temperature, absent, entropy, chunk
    )
    return TokenStatistics(
        logprobs.view(tokens.shape), entropies.view(tokens.shape) if entropy else None
    )


class _HiddenStatistics(torch.autograd.Function):
    """Both numbers of flat tokens, with the gradients of `logprobs` led through the head."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        temperature: float,
        absent: Tensor | None,
        entropy: bool,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.absent, ctx.chunk = temperature, absent, chunk
        dtype = torch.promote_types(weight.dtype, torch.float32)
        logprobs, normalizers = (hidden.new_empty(len(tokens), dtype=dtype) for _ in range(2))
        entropies = hidden.new_empty(len(tokens) if entropy else 0, dtype=dtype)
        for part in _slices(len(tokens), chunk // len(weight)):
            z = policy_logits(linear(hidden[part], weight, bias), temperature, absent)
            logprobs[part], normalizers[part], log_softmax = _normalized(z, tokens[part])
            # Of each there is one at a time.
            del z
            if entropy:
                entropies[part] = entropy_of(log_softmax)
            del log_softmax
        if not entropy:
            ctx.mark_non_differentiable(entropies)
        ctx.save_for_backward(hidden, weight, bias, tokens, normalizers, entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_logprobs: Tensor | None, of_entropies: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if of_logprobs is None and of_entropies is None:
            return (None,) * 8
        hidden, weight, bias, tokens, normalizers, entropies = ctx.saved_tensors
        learns = ctx.needs_input_grad
        of_hidden = torch.zeros_like(hidden, dtype=normalizers.dtype) if learns[0] else None
        of_weight = torch.empty_like(weight) if learns[1] else None
        of_bias = torch.empty_like(bias) if learns[2] else None
        is_absent = _is_absent(ctx.absent, weight)
        for words in _slices(len(weight), ctx.chunk // len(tokens)):
            rows, shift = weight[words], None if bias is None else bias[words]
            z = policy_logits(linear(hidden, rows, shift), ctx.temperature)
            log_softmax = z.sub_(normalizers.unsqueeze(-1))
            of_z = gradient_but_for_the_token(log_softmax, of_logprobs, of_entropies, entropies)
            del z, log_softmax
            if of_logprobs is not None:
                _add_at_tokens(of_z, tokens - words.start, of_logprobs)
            if is_absent is not None:
                of_z.masked_fill_(is_absent[words], 0.0)
            of_logits = of_z.div_(ctx.temperature).to(weight.dtype)
            del of_z
            if of_hidden is not None:
                of_hidden += of_logits @ rows
            if of_weight is not None:
                torch.mm(of_logits.T, hidden, out=of_weight[words])
            if of_bias is not None:
                of_bias[words] = of_logits.sum(dim=0)
            del of_logits
        of_hidden = None if of_hidden is None else of_hidden.to(hidden.dtype)
        return of_hidden, of_weight, of_bias, None, None, None, None, None


def _normalized(z: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log p_a, log Σ_v exp z_v and log p_v. Shapes: Float[n, vocab], Long[n] -> Float[n] twice,
    Float[n, vocab]."""
    log_softmax = torch.log_softmax(z, dim=-1)
    # By a word that is not absent, which a token behind a mask may be.
    largest, word = z.max(dim=-1)
    return log_prob_of(tokens, log_softmax), largest - log_prob_of(word, log_softmax), log_softmax


def _slices(length: int, step: int) -> list[slice]:
    step = max(1, step)
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _is_absent(absent: Tensor | None, weight: Tensor) -> Tensor | None:
    """Bool[vocab], so that no host needs to know which of them lie in a slice."""
    if absent is None or not absent.numel():
        return None
    none = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
    return none.index_fill_(0, absent, True)


def _add_at_tokens(of_z: Tensor, places: Tensor, upstream: Tensor) -> None:
    """Add Float[n] at the words Long[n] of Float[n, words], where they are among them."""
    words = of_z.shape[-1]
    inside = (places >= 0) & (places < words)
    of_z.scatter_add_(
        -1,
        places.clamp(0, words - 1).unsqueeze(-1),
        torch.where(inside, upstream, 0.0).unsqueeze(-1),
    )
