"""Which token comes next: the distribution that tokens are drawn from, and the draw.

Called by the samplers at each token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_trainer.rl import policy_logits


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled.

    Attributes:
        max_response_length: in tokens, EOS counted.
        temperature: of the softmax.
        stop_ids: end of turn, EOS and the stop tokens.
        pad_id: fills the rest of a row.
        wave: prompts that the model reads at a time, and at least so many answered together.
        absent_ids: rows of the embeddings without a token, which are never sampled.
        top_k: only so many of the likeliest tokens are sampled; all of them at 0.
        top_p: only the likeliest tokens are sampled that together reach this probability.
        room: how many rows of so many tokens, prompt and response, may be decoded together.
    """

    max_response_length: int
    temperature: float
    stop_ids: tuple[int, ...]
    pad_id: int
    wave: int
    absent_ids: tuple[int, ...] = ()
    top_k: int = 0
    top_p: float = 1.0
    room: Callable[[int], int] = lambda tokens: 0


class TokenSampler:
    """Draws tokens from softmax(logits / temperature), cut down to `top_k` and then `top_p`."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._sampling = sampling
        self._absent = torch.tensor(sampling.absent_ids, dtype=torch.long, device=device)

    def __call__(self, logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """One token for each row by inverting the distribution function, and its log-probability.

        A row whose logits are no distribution gets the first stop id, with the log-probability
        NaN: an error here would end this rank alone.

        Shapes: logits Float[batch, vocab], uniforms Double[batch] in [0, 1) -> Long[batch],
        Float[batch].
        """
        logprobs = self.distribution(logits)
        # In fp32 the sum over a large vocabulary would round a rare token away.
        cumulative = logprobs.exp().cumsum(dim=-1, dtype=torch.float64)
        drawn = uniforms.unsqueeze(1) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, drawn, right=True).squeeze(1)
        # Where nothing is left of a spoilt row, the search runs past the end.
        spoilt = ~torch.isfinite(logprobs.amax(dim=-1))
        tokens = torch.where(spoilt, self._sampling.stop_ids[0], tokens)
        chosen = logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1)
        return tokens, torch.where(spoilt, torch.nan, chosen)

    def distribution(self, logits: Tensor) -> Tensor:
        """Log-probability of each token, −∞ where it is never sampled; Float[batch, vocab]."""
        sampling = self._sampling
        kept = policy_logits(logits, sampling.temperature, self._absent)
        if 0 < sampling.top_k < kept.shape[-1]:
            kept = _of_ranks(kept, _first(kept, sampling.top_k))
        if sampling.top_p < 1.0:
            kept = _of_ranks(kept, _nucleus(kept, sampling.top_p))
        return torch.log_softmax(kept, dim=-1)


def _first(logits: Tensor, count: int) -> Tensor:
    """Bool[batch, vocab] over ranks, the likeliest token first."""
    return torch.arange(logits.shape[-1], device=logits.device).expand_as(logits) < count


def _nucleus(logits: Tensor, share: float) -> Tensor:
    """The same of the fewest tokens whose probabilities reach `share` (Holtzman et al., "The
    Curious Case of Neural Text Degeneration", 2020); one at least."""
    falling = torch.softmax(logits, dim=-1).sort(dim=-1, descending=True).values
    before = falling.cumsum(dim=-1, dtype=torch.float64) - falling
    kept = before < share
    kept[:, 0] = True
    return kept


def _of_ranks(logits: Tensor, kept: Tensor) -> Tensor:
    """The logits with −∞ wherever `kept` says no of a token's rank; of equals the first wins."""
    order = logits.argsort(dim=-1, descending=True, stable=True)
    of_tokens = torch.zeros_like(kept).scatter(1, order, kept)
    return logits.masked_fill(~of_tokens, -torch.inf)


def running(tokens: Tensor, stop_ids: Sequence[int]) -> Tensor:
    """Bool[batch], false where a token ends its response."""
    return ~torch.isin(tokens, torch.tensor(list(stop_ids), device=tokens.device))
