"""The decode loop: prompts in, sampled responses out, and no row computed after its end.

Called by `ppo.samplers`. Prompts stand on the left of their padding, positions come from the mask,
and rows that have ended leave the batch with their keys and values.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from rlhf_trainer.data.collate import pad_left
from rlhf_trainer.generation.cache import joined, keep_rows
from rlhf_trainer.generation.counter import RowSeeds
from rlhf_trainer.generation.sampling import Sampling, TokenSampler, running
from rlhf_trainer.generation.waves import bucket, waves

Forward = Callable[..., Any]
"""A model's forward pass, with what ranks do around it."""


@dataclass(frozen=True)
class Responses:
    """Sampled responses, right-padded.

    Shapes: tokens Long[batch, time], lengths Long[batch] with the stop token counted, ended
    Bool[batch] (by a stop token, not by the maximum), logprobs Float[batch, time] of the
    distribution that was drawn from, 0 after the end.

    Attributes:
        row_steps: rows that the model computed a token for, over all tokens.
    """

    tokens: Tensor
    lengths: Tensor
    ended: Tensor
    logprobs: Tensor
    row_steps: int


@dataclass
class _Rows:
    """The rows that are still computed.

    Attributes:
        at: Long[rows], their places in the wave.
        mask: Long[rows, columns] of the keys and values and of all tokens that may follow.
        columns: how many of them there are so far.
        positions: Long[rows, 1], of the last token.
        uniforms: Double[rows, tokens].
    """

    at: Tensor
    mask: Tensor
    columns: int
    positions: Tensor
    uniforms: Tensor
    cache: DynamicCache

    def keep(self, alive: Tensor) -> Tensor:
        """Leave out rows that have ended, as far as sizes of batches allow.

        Shapes: alive Bool[rows] -> Long[kept], their places among the rows before.
        """
        spare = bucket(int(alive.sum())) - int(alive.sum())
        # Some that have ended fill up the batch.
        ended = (~alive).nonzero().squeeze(1)[:spare]
        kept = torch.cat([alive.nonzero().squeeze(1), ended]).sort().values
        self.at, self.positions = self.at[kept], self.positions[kept]
        self.uniforms, self.mask = self.uniforms[kept], self.mask[kept]
        padding = int(self.mask[alive[kept]].argmax(dim=1).min())
        gone = keep_rows(self.cache, kept, padding)
        self.mask, self.columns = self.mask[:, gone:], self.columns - gone
        return kept


class Decoder:
    """Answers prompts with one model."""

    def __init__(
        self,
        model: PreTrainedModel,
        sampling: Sampling,
        device: torch.device,
        *,
        asked_to_stop: Callable[[], bool] = lambda: False,
        forward: Forward | None = None,
    ) -> None:
        """When `asked_to_stop` turns true, responses end where they are and are worth nothing."""
        self._model = model
        self._sampling = sampling
        self._device = device
        self._asked_to_stop = asked_to_stop
        self._forward: Forward = forward or model
        self._draw = TokenSampler(sampling, device)
        known = inspect.signature(model.forward).parameters
        self._last_logits = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

    @torch.no_grad()
    def respond(self, prompts: Sequence[Sequence[int]], seeds: RowSeeds) -> Responses:
        """One response for each prompt, in order."""
        sampling = self._sampling
        planned = waves(
            [len(prompt) for prompt in prompts],
            sampling.max_response_length,
            room=sampling.room,
            at_least=sampling.wave,
        )
        parts = [self._wave([prompts[row] for row in wave], seeds[wave]) for wave in planned]
        width = max(part.tokens.shape[1] for part in parts)
        order = torch.tensor([row for wave in planned for row in wave], device=self._device)

        def whole(columns: Sequence[Tensor], value: float = 0) -> Tensor:
            wide = [
                pad(part, (0, width - part.shape[1]), value=value) if part.dim() == 2 else part
                for part in columns
            ]
            return torch.cat(wide)[order.argsort()]

        return Responses(
            whole([part.tokens for part in parts], sampling.pad_id),
            whole([part.lengths for part in parts]),
            whole([part.ended for part in parts]),
            whole([part.logprobs for part in parts]),
            sum(part.row_steps for part in parts),
        )

    def _wave(self, prompts: Sequence[Sequence[int]], seeds: RowSeeds) -> Responses:
        """The responses of rows that are decoded together."""
        sampling, most = self._sampling, self._sampling.max_response_length
        rows, logits = self._read(prompts, seeds.uniforms(most, self._device))
        count = len(prompts)
        tokens = torch.full((count, most), sampling.pad_id, device=self._device)
        logprobs = torch.zeros((count, most), device=self._device)
        alive = torch.ones(count, dtype=torch.bool, device=self._device)
        ended = torch.zeros(count, dtype=torch.bool, device=self._device)
        lengths = torch.zeros(count, dtype=torch.long, device=self._device)
        row_steps = 0
        for step in range(most):
            drawn, drawn_logprobs = self._draw(logits, rows.uniforms[:, step])
            drawn = torch.where(alive, drawn, sampling.pad_id)
            tokens[rows.at, step] = drawn
            logprobs[rows.at, step] = torch.where(alive, drawn_logprobs, 0.0)
            lengths[rows.at] += alive
            row_steps += len(rows.at)
            goes_on = running(drawn, sampling.stop_ids)
            ended[rows.at] |= alive & ~goes_on
            alive = alive & goes_on
            left = int(alive.sum())
            if left == 0 or step == most - 1 or self._asked_to_stop():
                break
            if bucket(left) < len(rows.at):
                kept = rows.keep(alive)
                drawn, alive = drawn[kept], alive[kept]
            logits = self._next(rows, drawn)
        width = step + 1
        return Responses(tokens[:, :width], lengths, ended, logprobs[:, :width], row_steps)

    def _read(self, prompts: Sequence[Sequence[int]], uniforms: Tensor) -> tuple[_Rows, Tensor]:
        """Keys and values of the prompts, and Float[rows, vocab] of the first token.

        As many are read at a time as are scored at a time, whose activations there is room for.
        """
        size = self._sampling.wave
        caches, logits, widths, masks = [], [], [], []
        for start in range(0, len(prompts), size):
            batch = pad_left(prompts[start : start + size], self._sampling.pad_id)
            mask = batch.attention_mask.to(self._device)
            cache = DynamicCache(config=self._model.config)
            logits.append(self._logits(batch.input_ids, mask, batch.position_ids, cache))
            caches.append(cache)
            widths.append(mask.shape[1])
            masks.append(mask)
        width = max(widths)
        after = self._sampling.max_response_length
        mask = torch.cat([pad(each, (width - each.shape[1], 0)) for each in masks])
        rows = _Rows(
            at=torch.arange(len(prompts), device=self._device),
            mask=pad(mask, (0, after), value=1),
            columns=width,
            positions=mask.sum(dim=1, keepdim=True) - 1,
            uniforms=uniforms,
            cache=joined(caches, widths),
        )
        return rows, torch.cat(logits)

    def _next(self, rows: _Rows, tokens: Tensor) -> Tensor:
        """Float[rows, vocab] of the token after `tokens`."""
        rows.columns += 1
        rows.positions = rows.positions + 1
        mask = rows.mask[:, : rows.columns]
        return self._logits(tokens.unsqueeze(1), mask, rows.positions, rows.cache)

    def _logits(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        output = self._forward(
            input_ids=ids.to(self._device),
            attention_mask=mask,
            position_ids=positions.to(self._device),
            past_key_values=cache,
            use_cache=True,
            **self._last_logits,
        )
        logits: Tensor = output.logits[:, -1]
        return logits
