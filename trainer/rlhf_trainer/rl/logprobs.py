"""Log-probability and entropy of tokens: the one place where logits become either.

Called by every stage, with the temperature the tokens were sampled at. `logits[:, t]` must be the
scores *of* `tokens[:, t]`, so the caller has shifted them. Never held at once: batch × time ×
vocabulary in fp32, forward or backward. Chunks are recomputed in the backward pass, so that
autograd keeps the caller's tensors and nothing of that size besides.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlhf_trainer.rl._inputs import at_least_float32, require_positive

T = TypeVar("T")

TIME_CHUNK = 64
POSITION_CHUNK = 1024


class TokenStatistics(NamedTuple):
    """Both numbers of each token, in one pass over the vocabulary."""

    logprobs: Tensor
    """Float[...], log π(token), fp32 (fp64 where the input is)."""
    entropy: Tensor
    """Float[...], nats of the distribution the token was drawn from."""


def token_logprobs(
    logits: Tensor, tokens: Tensor, temperature: float = 1.0, *, chunk: int = TIME_CHUNK
) -> Tensor:
    """log π(a_t) = z_{a_t} − log Σ_v exp z_v, z = logits / temperature.

    Shapes: logits Float[batch, time, vocab], tokens Long[batch, time] -> Float[batch, time], in
    fp32 (fp64 where logits are). Tokens lie in [0, vocab), also where a mask hides them.
    Raises ValueError when shapes disagree, or temperature or chunk is not above 0.
    """
    _check(logits, tokens, temperature, chunk)
    parts = [
        _recomputed(_logprobs, part, of, temperature)
        for part, of in zip(
            torch.split(logits, chunk, dim=1), torch.split(tokens, chunk, dim=1), strict=True
        )
    ]
    return torch.cat(parts, dim=1)


def token_entropy(logits: Tensor, temperature: float = 1.0, *, chunk: int = TIME_CHUNK) -> Tensor:
    """H_t = −Σ_v p_v log p_v, p = softmax(logits / temperature), in nats.

    Shapes: logits Float[batch, time, vocab] -> Float[batch, time], in fp32 (fp64 where logits are).
    Raises ValueError when temperature or chunk is not above 0.
    """
    require_positive(temperature=temperature, chunk=chunk)
    parts = [_recomputed(_entropy, part, temperature) for part in torch.split(logits, chunk, dim=1)]
    return torch.cat(parts, dim=1)


def token_statistics(
    logits: Tensor, tokens: Tensor, temperature: float = 1.0, *, chunk: int = TIME_CHUNK
) -> TokenStatistics:
    """`token_logprobs` and `token_entropy` with one softmax for both.

    Shapes: logits Float[batch, time, vocab], tokens Long[batch, time] -> 2 × Float[batch, time].
    Raises ValueError when shapes disagree, or temperature or chunk is not above 0.
    """
    _check(logits, tokens, temperature, chunk)
    parts = [
        _recomputed(_statistics, part, of, temperature)
        for part, of in zip(
            torch.split(logits, chunk, dim=1), torch.split(tokens, chunk, dim=1), strict=True
        )
    ]
    return TokenStatistics(
        torch.cat([part[0] for part in parts], dim=1), torch.cat([part[1] for part in parts], dim=1)
    )


def logprobs_from_hidden(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    tokens: Tensor,
    temperature: float = 1.0,
    *,
    chunk: int = POSITION_CHUNK,
) -> TokenStatistics:
    """`token_statistics` of logits = head(hidden) that exist for `chunk` positions at a time.

    The caller flattens its batch to the positions that a mask selects, so nothing is spent on the
    rest. `head` is called ⌈n / chunk⌉ times forward and again backward (once where n is 0); where
    it gathers partitioned weights, the ranks must agree on n.

    Shapes: hidden Float[n, d], head Float[m, d] -> Float[m, vocab], tokens Long[n] -> 2 × Float[n].
    Raises ValueError when shapes disagree, or temperature or chunk is not above 0.
    """
    require_positive(temperature=temperature, chunk=chunk)
    if hidden.dim() != 2 or hidden.shape[:1] != tokens.shape:
        raise ValueError(
            f"hidden has shape {list(hidden.shape)}, tokens {list(tokens.shape)}: want [n, d], [n]"
        )

    def statistics(part: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
        return _statistics(head(part), of, temperature)

    parts = [
        _recomputed(statistics, part, of)
        for part, of in zip(torch.split(hidden, chunk), torch.split(tokens, chunk), strict=True)
    ]
    return TokenStatistics(
        torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    )


def _check(logits: Tensor, tokens: Tensor, temperature: float, chunk: int) -> None:
    require_positive(temperature=temperature, chunk=chunk)
    if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
        raise ValueError(
            f"logits has shape {list(logits.shape)}, tokens {list(tokens.shape)}: "
            "want [batch, time, vocab], [batch, time]"
        )


def _recomputed(function: Callable[..., T], *args: object) -> T:
    """Call it, and again in the backward pass in place of keeping what it made on the way."""
    result: T = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return result


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax(at_least_float32(logits) / temperature, dim=-1)


def _gathered(log_softmax: Tensor, tokens: Tensor) -> Tensor:
    return log_softmax.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _summed(log_softmax: Tensor) -> Tensor:
    # A word that is forbidden (logit −inf) has p log p = 0 · −inf; the bound makes it 0, and its
    # gradient too.
    bounded = log_softmax.clamp(min=torch.finfo(log_softmax.dtype).min)
    return -(log_softmax.exp() * bounded).sum(dim=-1)


def _logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    return _gathered(_log_softmax(logits, temperature), tokens)


def _entropy(logits: Tensor, temperature: float) -> Tensor:
    return _summed(_log_softmax(logits, temperature))


def _statistics(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    log_softmax = _log_softmax(logits, temperature)
    return _gathered(log_softmax, tokens), _summed(log_softmax)
