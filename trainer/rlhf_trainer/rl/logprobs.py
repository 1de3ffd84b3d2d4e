"""Log-probability and entropy of tokens: the one place where logits become either.

Called by every stage, with the temperature the tokens were sampled at. `logits[:, t]` must be the
scores *of* `tokens[:, t]`, so the caller has shifted them. Never held at once: batch × time ×
vocabulary in fp32, forward or backward. Chunks are recomputed in the backward pass, so that
autograd keeps the caller's tensors and nothing of that size besides.

PPO leaves out rows of the embedding that have no token (padded vocabularies): sampler, actor and
reference alike give them probability 0, and the loss of other texts that PPO mixes in. Supervised
fine-tuning keeps the model's own softmax.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlhf_trainer.rl._inputs import at_least_float32, require_positive

T = TypeVar("T")

TIME_CHUNK = 64


class TokenStatistics(NamedTuple):
    """Both numbers of each token, in one pass over the vocabulary."""

    logprobs: Tensor
    """Float[...], log π(token), fp32 (fp64 where the input is)."""
    entropy: Tensor
    """Float[...], nats of the distribution the token was drawn from."""


def policy_logits(logits: Tensor, temperature: float, absent: Tensor | None = None) -> Tensor:
    """z = logits / temperature, and −∞ at the ids of `absent`: tokens are drawn from softmax(z).

    Shapes: logits Float[..., vocab], absent Long[n] -> Float[..., vocab], in fp32 (fp64 where
    logits are).
    """
    scaled = at_least_float32(logits) / temperature
    if absent is None or not absent.numel():
        return scaled
    return scaled.index_fill(-1, absent, -torch.inf)


def token_statistics(
    logits: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    absent: Tensor | None = None,
    *,
    chunk: int = TIME_CHUNK,
) -> TokenStatistics:
    """log π(a_t) = z_{a_t} − log Σ_v exp z_v and H_t = −Σ_v p_v log p_v, by one softmax.

    z = `policy_logits`, p = softmax(z). Shapes: logits Float[batch, time, vocab], tokens
    Long[batch, time], absent Long[n] -> 2 × Float[batch, time], in fp32 (fp64 where logits are).
    Tokens lie in [0, vocab), also where a mask hides them.
    Raises ValueError when shapes disagree, or temperature or chunk is not above 0.
    """
    _check(logits, tokens, temperature, chunk)
    parts = [
        _recomputed(_statistics, part, of, temperature, absent)
        for part, of in zip(
            torch.split(logits, chunk, dim=1), torch.split(tokens, chunk, dim=1), strict=True
        )
    ]
    return TokenStatistics(
        torch.cat([part[0] for part in parts], dim=1), torch.cat([part[1] for part in parts], dim=1)
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


def _gathered(log_softmax: Tensor, tokens: Tensor) -> Tensor:
    return log_softmax.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _summed(log_softmax: Tensor) -> Tensor:
    # A word that is forbidden (logit −inf) has p log p = 0 · −inf; the bound makes it 0, and its
    # gradient too.
    bounded = log_softmax.clamp(min=torch.finfo(log_softmax.dtype).min)
    return -(log_softmax.exp() * bounded).sum(dim=-1)


def _statistics(
    logits: Tensor, tokens: Tensor, temperature: float, absent: Tensor | None
) -> tuple[Tensor, Tensor]:
    log_softmax = torch.log_softmax(policy_logits(logits, temperature, absent), dim=-1)
    return _gathered(log_softmax, tokens), _summed(log_softmax)
