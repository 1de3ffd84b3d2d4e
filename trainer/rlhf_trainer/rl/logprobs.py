"""Log-probability and entropy of tokens: the one place where logits become either.

Called by every stage, with the temperature the tokens were sampled at. `logits[:, t]` must be the
scores *of* `tokens[:, t]`, so the caller has shifted them. Beside the caller's logits and their
gradient nothing of batch × time × vocabulary is held: the backward pass takes the softmax anew
from the caller's logits, chunk by chunk.

PPO leaves out rows of the embedding that have no token (padded vocabularies): sampler, actor and
reference alike give them probability 0, and the loss of other texts that PPO mixes in. Supervised
fine-tuning keeps the model's own softmax.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_trainer.rl._inputs import at_least_float32, require_positive

TIME_CHUNK = 64


class TokenStatistics(NamedTuple):
    """What is known of each token, from one pass over the vocabulary."""

    logprobs: Tensor
    """Float[...], log π(token), fp32 (fp64 where the input is)."""
    entropy: Tensor | None = None
    """Float[...], nats of the distribution the token was drawn from; None where nobody asked."""


def policy_logits(logits: Tensor, temperature: float, absent: Tensor | None = None) -> Tensor:
    """z = logits / temperature, and −∞ at the ids of `absent`: tokens are drawn from softmax(z).

    Shapes: logits Float[..., vocab], absent Long[n] -> Float[..., vocab], in fp32 (fp64 where
    logits are).
    """
    scaled = at_least_float32(logits)
    if temperature != 1:
        scaled = scaled / temperature
    if absent is None or not absent.numel():
        return scaled
    return scaled.index_fill(-1, absent, -torch.inf)


def token_statistics(
    logits: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    absent: Tensor | None = None,
    *,
    entropy: bool = False,
    chunk: int = TIME_CHUNK,
) -> TokenStatistics:
    """log π(a_t) = z_{a_t} − log Σ_v exp z_v and, if asked, H_t = −Σ_v p_v log p_v.

    z = `policy_logits`, p = softmax(z). Shapes: logits Float[batch, time, vocab], tokens
    Long[batch, time], absent Long[n] -> Float[batch, time] each, in fp32 (fp64 where logits are).
    Tokens lie in [0, vocab), also where a mask hides them.
    Raises ValueError when shapes disagree, or temperature or chunk is not above 0.
    """
    _check(logits, tokens, temperature, chunk)
    # torch declares no types of it.
    apply: Any = _TokenStatistics.apply
    logprobs, entropies = apply(logits, tokens, temperature, absent, entropy, chunk)
    return TokenStatistics(logprobs, entropies if entropy else None)


def _check(logits: Tensor, tokens: Tensor, temperature: float, chunk: int) -> None:
    require_positive(temperature=temperature, chunk=chunk)
    if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
        raise ValueError(
            f"logits has shape {list(logits.shape)}, tokens {list(tokens.shape)}: "
            "want [batch, time, vocab], [batch, time]"
        )


class _TokenStatistics(torch.autograd.Function):
    """Both numbers with their gradients, which need the softmax and nothing else.

    d log π(a) / dz_v = 1[v = a] − p_v, and dH / dz_v = −p_v (log p_v + H).
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        tokens: Tensor,
        temperature: float,
        absent: Tensor | None,
        entropy: bool,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.absent, ctx.chunk = temperature, absent, chunk
        dtype = torch.promote_types(logits.dtype, torch.float32)
        logprobs = logits.new_empty(tokens.shape, dtype=dtype)
        entropies = logits.new_empty(tokens.shape if entropy else (0,), dtype=dtype)
        for columns in _columns(tokens.shape[1], chunk):
            z = policy_logits(logits[:, columns], temperature, absent)
            log_softmax = torch.log_softmax(z, dim=-1)
            logprobs[:, columns] = log_prob_of(tokens[:, columns], log_softmax)
            if entropy:
                entropies[:, columns] = entropy_of(log_softmax)
        if not entropy:
            ctx.mark_non_differentiable(entropies)
        ctx.save_for_backward(logits, tokens, entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_logprobs: Tensor | None, of_entropies: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if of_logprobs is None and of_entropies is None:
            return (None,) * 6
        logits, tokens, entropies = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for columns in _columns(tokens.shape[1], ctx.chunk):
            upstream = None if of_logprobs is None else of_logprobs[:, columns]
            z = policy_logits(logits[:, columns], ctx.temperature, ctx.absent)
            if of_entropies is None and upstream is not None:
                of_z = torch.softmax(z, dim=-1).mul_(-upstream.unsqueeze(-1))
            else:
                of_z = gradient_but_for_the_token(
                    torch.log_softmax(z, dim=-1),
                    upstream,
                    None if of_entropies is None else of_entropies[:, columns],
                    entropies[:, columns],
                )
            if upstream is not None:
                of_z.scatter_add_(-1, tokens[:, columns].unsqueeze(-1), upstream.unsqueeze(-1))
            if ctx.absent is not None:
                of_z.index_fill_(-1, ctx.absent, 0.0)
            gradient[:, columns] = of_z if ctx.temperature == 1 else of_z.div_(ctx.temperature)
        return gradient, None, None, None, None, None


def log_prob_of(tokens: Tensor, log_softmax: Tensor) -> Tensor:
    """log p_a. Shapes: tokens Long[...], log_softmax Float[..., vocab] -> Float[...]."""
    return log_softmax.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def entropy_of(log_softmax: Tensor) -> Tensor:
    """H = −Σ_v p_v log p_v. Shapes: log_softmax Float[..., vocab] -> Float[...]."""
    return -log_softmax.exp().mul_(_bounded(log_softmax)).sum(dim=-1)


def gradient_but_for_the_token(
    log_softmax: Tensor,
    of_logprobs: Tensor | None,
    of_entropies: Tensor | None,
    entropies: Tensor,
) -> Tensor:
    """−p_v (u + w (log p_v + H)): what z_v learns, where the token's own word learns u besides.

    For u = `of_logprobs` and w = `of_entropies`; `log_softmax` may hold some words alone. Shapes:
    log_softmax Float[..., words], the others Float[...] -> Float[..., words].
    """
    softmax = log_softmax.exp()
    if of_entropies is None:
        assert of_logprobs is not None
        return softmax.mul_(-of_logprobs.unsqueeze(-1))
    factor = _bounded(log_softmax).add_(entropies.unsqueeze(-1)).mul_(of_entropies.unsqueeze(-1))
    if of_logprobs is not None:
        factor.add_(of_logprobs.unsqueeze(-1))
    return softmax.mul_(factor.neg_())


def _columns(width: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, width, chunk)]


def _bounded(log_softmax: Tensor) -> Tensor:
    """A copy with a number where a word is forbidden (logit −inf): p log p is 0 · −inf there."""
    return log_softmax.clamp(min=torch.finfo(log_softmax.dtype).min)
