"""The rollout: prompts in, sampled responses out.

Called by PPO and its evaluation. `Sampler` is what a faster engine has to offer; `GenerateSampler`
does it with transformers' `generate`. A response ends at EOS or a stop token and is never forced
to the maximum; its length is found from those ids, never from padding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from rlhf_trainer.data.collate import pad_left
from rlhf_trainer.rl import policy_logits, position_ids, response_mask


@dataclass(frozen=True)
class Rollout:
    """Prompts, left-padded, and their responses, right-padded.

    Shapes: prompts Long[batch, prompt], prompt_lengths Long[batch], responses Long[batch,
    response], response_lengths Long[batch] with EOS counted, ended Bool[batch] (by EOS or a stop
    token), sampled_logprobs Float[batch, response] (0 after the end).
    """

    prompts: Tensor
    prompt_lengths: Tensor
    responses: Tensor
    response_lengths: Tensor
    ended: Tensor
    sampled_logprobs: Tensor

    @property
    def response_mask(self) -> Tensor:
        """Bool[batch, response], true on every action, EOS included."""
        return response_mask(self.response_lengths, self.responses.shape[1])

    @property
    def sequences(self) -> tuple[Tensor, Tensor, Tensor]:
        """input_ids, attention_mask, position_ids, Long[batch, prompt + response] each."""
        width = self.prompts.shape[1]
        columns = torch.arange(width, device=self.prompts.device)
        prompt_mask = columns >= (width - self.prompt_lengths).unsqueeze(1)
        attention = torch.cat([prompt_mask, self.response_mask], dim=1).long()
        return torch.cat([self.prompts, self.responses], dim=1), attention, position_ids(attention)

    @property
    def last_index(self) -> Tensor:
        """Long[batch], column of the last real token in `sequences`."""
        return self.prompts.shape[1] + self.response_lengths - 1

    def ended_by(self, token: int) -> "Rollout":
        """The same rows, each that has ended with `token` in the place of what ended it."""
        columns = torch.arange(self.responses.shape[1], device=self.responses.device)
        last = columns == (self.response_lengths - 1).unsqueeze(1)
        at = last & self.ended.unsqueeze(1)
        return replace(self, responses=torch.where(at, token, self.responses))

    def __getitem__(self, rows: slice | Tensor) -> "Rollout":
        """Some of the rows, by a slice or by Long[n] indices."""
        return Rollout(**{each.name: getattr(self, each.name)[rows] for each in fields(self)})

    def by_length(self, size: int) -> list[tuple[Tensor, "Rollout"]]:
        """Rows of like length together, `size` at a time, without columns that are padding in all.

        Each part comes with the Long[n] indices of its rows. How many parts there are does not
        depend on lengths: ranks make equally many passes.
        """
        lengths = torch.stack([self.prompt_lengths, self.response_lengths])
        order = lengths.sum(dim=0).argsort(stable=True)
        # One look at the device for all parts.
        prompts, responses = lengths[:, order].tolist()
        return [
            (
                order[start : start + size],
                self[order[start : start + size]]._narrowed(
                    max(prompts[start : start + size]), max(responses[start : start + size])
                ),
            )
            for start in range(0, len(order), size)
        ]

    def _narrowed(self, prompt: int, response: int) -> "Rollout":
        """The same rows in so many columns, which hold all their tokens."""
        return replace(
            self,
            prompts=self.prompts[:, self.prompts.shape[1] - prompt :],
            responses=self.responses[:, :response],
            sampled_logprobs=self.sampled_logprobs[:, :response],
        )

    @classmethod
    def cat(cls, parts: Sequence["Rollout"], pad_id: int) -> "Rollout":
        """The rows of all parts one below the other, padded to their common width."""
        prompt = max(part.prompts.shape[1] for part in parts)
        response = max(part.responses.shape[1] for part in parts)

        def widened(x: Tensor, width: int, value: float, *, left: bool) -> Tensor:
            missing = width - x.shape[1]
            return torch.nn.functional.pad(x, (missing, 0) if left else (0, missing), value=value)

        wide = [
            replace(
                part,
                prompts=widened(part.prompts, prompt, pad_id, left=True),
                responses=widened(part.responses, response, pad_id, left=False),
                sampled_logprobs=widened(part.sampled_logprobs, response, 0.0, left=False),
            )
            for part in parts
        ]
        columns = {each.name: [getattr(part, each.name) for part in wide] for each in fields(cls)}
        return cls(**{name: torch.cat(column) for name, column in columns.items()})


class Sampler(Protocol):
    """Whatever can answer prompts."""

    def sample(self, prompts: Sequence[Sequence[int]]) -> Rollout:
        """Sample one response for each prompt."""


@dataclass(frozen=True)
class Sampling:
    """How responses are sampled.

    Attributes:
        max_response_length: in tokens, EOS counted.
        temperature: of the softmax.
        stop_ids: end of turn, EOS and the stop tokens.
        pad_id: fills the rest of a row.
        wave: prompts that are answered at a time.
        absent_ids: rows of the embeddings without a token, which are never sampled.
    """

    max_response_length: int
    temperature: float
    stop_ids: tuple[int, ...]
    pad_id: int
    wave: int
    absent_ids: tuple[int, ...] = ()


class GenerateSampler:
    """Samples with `transformers`' `generate`, in waves of a fixed number of prompts."""

    def __init__(
        self,
        model: PreTrainedModel,
        sampling: Sampling,
        device: torch.device,
        *,
        asked_to_stop: Callable[[], bool],
        synced: bool = False,
    ) -> None:
        """`synced` keeps ranks in step until all are done, which ZeRO 3's collectives need.

        When `asked_to_stop` turns true the rollout ends early and is worth nothing: the caller
        asks as well.
        """
        self._model = model
        self._sampling = sampling
        self._device = device
        self._asked_to_stop = asked_to_stop
        self._synced = synced

    @torch.no_grad()
    def sample(self, prompts: Sequence[Sequence[int]]) -> Rollout:
        """One response for each prompt, in order."""
        wave = self._sampling.wave
        parts = [
            self._sample_wave(prompts[start : start + wave])
            for start in range(0, len(prompts), wave)
        ]
        return Rollout.cat(parts, self._sampling.pad_id)

    def _sample_wave(self, prompts: Sequence[Sequence[int]]) -> Rollout:
        sampling = self._sampling
        batch = pad_left(prompts, sampling.pad_id)
        input_ids = batch.input_ids.to(self._device)
        absent = torch.tensor(sampling.absent_ids, dtype=torch.long, device=self._device)
        recorder = _Recorder(sampling.temperature, absent, sampling.stop_ids[0])
        # GenerationMixin is not among PreTrainedModel's declared bases.
        generate: Any = self._model.generate
        sequences: Tensor = generate(
            input_ids=input_ids,
            attention_mask=batch.attention_mask.to(self._device),
            generation_config=GenerationConfig(
                do_sample=True,
                max_new_tokens=sampling.max_response_length,
                eos_token_id=list(sampling.stop_ids),
                pad_token_id=sampling.pad_id,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
            ),
            logits_processor=LogitsProcessorList([recorder]),
            stopping_criteria=StoppingCriteriaList([_Interrupt(self._asked_to_stop)]),
            synced_gpus=self._synced,
        )
        responses = sequences[:, input_ids.shape[1] :]
        lengths, ended = response_lengths(responses, sampling.stop_ids)
        mask = response_mask(lengths, responses.shape[1])
        return Rollout(
            prompts=input_ids,
            prompt_lengths=batch.attention_mask.sum(dim=1).to(self._device),
            responses=torch.where(mask, responses, sampling.pad_id),
            response_lengths=lengths,
            ended=ended,
            sampled_logprobs=torch.where(mask, recorder.logprobs(sequences), 0.0),
        )


def response_lengths(responses: Tensor, stop_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Length of each response with its stop token, and whether it has one.

    Shapes: responses Long[batch, time] -> Long[batch], Bool[batch].
    """
    stops = torch.isin(responses, torch.tensor(list(stop_ids), device=responses.device))
    ended = stops.any(dim=1)
    first = stops.int().argmax(dim=1)
    return torch.where(ended, first + 1, responses.shape[1]), ended


class _Recorder(LogitsProcessor):
    """Applies the temperature, leaves out rows without a token and keeps each sampled token's
    log-probability, no more.

    Where logits are no distribution the answer ends by `stop_id`, with the log-probability NaN:
    sampling would raise on this rank alone, or stop the whole device.
    """

    def __init__(self, temperature: float, absent: Tensor, stop_id: int) -> None:
        self._temperature = temperature
        self._absent = absent
        self._stop_id = stop_id
        self._last: Tensor | None = None
        self._taken: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._take(input_ids[:, -1])
        logits = policy_logits(scores, self._temperature, self._absent)
        self._last = torch.log_softmax(logits, dim=-1)
        spoilt = ~torch.isfinite(self._last.amax(dim=-1, keepdim=True))
        end = torch.full_like(logits, -torch.inf)
        end[:, self._stop_id] = 0.0
        return torch.where(spoilt, end, logits)

    def _take(self, tokens: Tensor) -> None:
        if self._last is not None:
            self._taken.append(self._last.gather(1, tokens.unsqueeze(1)).squeeze(1))

    def logprobs(self, sequences: Tensor) -> Tensor:
        """Float[batch, time] of all tokens that `generate` returned."""
        self._take(sequences[:, -1])
        self._last = None
        return torch.stack(self._taken, dim=1)


class _Interrupt(StoppingCriteria):
    """Ends all rows at the next token once the process is asked to stop."""

    def __init__(self, asked_to_stop: Callable[[], bool]) -> None:
        self._asked_to_stop = asked_to_stop

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        return torch.full(
            (input_ids.shape[0],), self._asked_to_stop(), device=input_ids.device, dtype=torch.bool
        )
