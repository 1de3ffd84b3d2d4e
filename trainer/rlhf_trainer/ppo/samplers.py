"""Who answers prompts: our own decode loop, or `generate` where a model cannot be decoded by it.

Called by PPO and its evaluation. Both draw the same token from the same logits, whatever the number
of ranks. A response ends at EOS or a stop token and is never forced to the maximum; its length is
found from those ids, never from padding.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
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
from rlhf_trainer.generation.counter import RowSeeds
from rlhf_trainer.generation.decoding import Decoder
from rlhf_trainer.generation.lockstep import Lockstep
from rlhf_trainer.generation.sampling import Sampling, TokenSampler
from rlhf_trainer.ppo.rollout import Rollout
from rlhf_trainer.rl import response_mask
from rlhf_trainer.run.distributed import Ranks


class Sampler(Protocol):
    """Whatever can answer prompts."""

    def sample(self, prompts: Sequence[Sequence[int]], seeds: RowSeeds) -> Rollout:
        """Sample one response for each prompt."""


@dataclass(frozen=True)
class Policy:
    """What answers, and what has to happen around it.

    Attributes:
        model: the causal model.
        ranks: this process among the others.
        asked_to_stop: when it turns true a rollout ends early and is worth nothing: the caller
            asks as well.
        in_step: whether ranks have to make equally many forward passes, which ZeRO 3's collectives
            need.
        prepared: entered around a rollout; makes weights whole.
    """

    model: PreTrainedModel
    ranks: Ranks
    asked_to_stop: Callable[[], bool] = lambda: False
    in_step: bool = False
    prepared: Callable[[], AbstractContextManager[None]] = nullcontext


class DecodingSampler:
    """Samples with our own decode loop."""

    def __init__(self, policy: Policy, sampling: Sampling) -> None:
        self._policy = policy
        self._sampling = sampling

    def sample(self, prompts: Sequence[Sequence[int]], seeds: RowSeeds) -> Rollout:
        """One response for each prompt, in order."""
        policy = self._policy
        lockstep = Lockstep(policy.model, policy.ranks) if policy.in_step else None
        decoder = Decoder(
            policy.model,
            self._sampling,
            policy.ranks.device,
            asked_to_stop=policy.asked_to_stop,
            forward=lockstep,
        )
        with policy.prepared():
            answers = decoder.respond(prompts, seeds)
            if lockstep is not None:
                lockstep.finish()
        batch = pad_left(prompts, self._sampling.pad_id)
        return Rollout(
            prompts=batch.input_ids.to(policy.ranks.device),
            prompt_lengths=batch.lengths.to(policy.ranks.device),
            responses=answers.tokens,
            response_lengths=answers.lengths,
            ended=answers.ended,
            sampled_logprobs=answers.logprobs,
        )


class GenerateSampler:
    """Samples with `transformers`' `generate`, in waves of a fixed number of prompts."""

    def __init__(self, policy: Policy, sampling: Sampling) -> None:
        self._policy = policy
        self._sampling = sampling
        self._draw = TokenSampler(sampling, policy.ranks.device)

    @torch.no_grad()
    def sample(self, prompts: Sequence[Sequence[int]], seeds: RowSeeds) -> Rollout:
        """One response for each prompt, in order."""
        size = self._sampling.wave
        parts = []
        with self._policy.prepared():
            for start in range(0, len(prompts), size):
                rows = range(start, min(start + size, len(prompts)))
                parts.append(self._wave([prompts[row] for row in rows], seeds[rows]))
        return Rollout.cat(parts, self._sampling.pad_id)

    def _wave(self, prompts: Sequence[Sequence[int]], seeds: RowSeeds) -> Rollout:
        sampling, device = self._sampling, self._policy.ranks.device
        batch = pad_left(prompts, sampling.pad_id)
        input_ids = batch.input_ids.to(device)
        uniforms = seeds.uniforms(sampling.max_response_length, device)
        chooser = _Chooser(self._draw, uniforms)
        # GenerationMixin is not among PreTrainedModel's declared bases.
        generate: Any = self._policy.model.generate
        sequences: Tensor = generate(
            input_ids=input_ids,
            attention_mask=batch.attention_mask.to(device),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=sampling.max_response_length,
                eos_token_id=list(sampling.stop_ids),
                pad_token_id=sampling.pad_id,
            ),
            logits_processor=LogitsProcessorList([chooser]),
            stopping_criteria=StoppingCriteriaList([_Interrupt(self._policy.asked_to_stop)]),
            synced_gpus=self._policy.in_step,
        )
        responses = sequences[:, input_ids.shape[1] :]
        lengths, ended = response_lengths(responses, sampling.stop_ids)
        mask = response_mask(lengths, responses.shape[1])
        return Rollout(
            prompts=input_ids,
            prompt_lengths=batch.lengths.to(device),
            responses=torch.where(mask, responses, sampling.pad_id),
            response_lengths=lengths,
            ended=ended,
            sampled_logprobs=torch.where(mask, chooser.logprobs(responses.shape[1]), 0.0),
        )


def response_lengths(responses: Tensor, stop_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Length of each response with its stop token, and whether it has one.

    Shapes: responses Long[batch, time] -> Long[batch], Bool[batch].
    """
    stops = torch.isin(responses, torch.tensor(list(stop_ids), device=responses.device))
    ended = stops.any(dim=1)
    first = stops.int().argmax(dim=1)
    return torch.where(ended, first + 1, responses.shape[1]), ended


class _Chooser(LogitsProcessor):
    """Draws each token by our own numbers and leaves `generate` no other; keeps the
    log-probabilities of what it has drawn."""

    def __init__(self, draw: TokenSampler, uniforms: Tensor) -> None:
        self._draw = draw
        self._uniforms = uniforms
        self._taken: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens, logprobs = self._draw(scores, self._uniforms[:, len(self._taken)])
        self._taken.append(logprobs)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens.unsqueeze(1), 0.0)

    def logprobs(self, width: int) -> Tensor:
        """Float[batch, width] of all tokens that `generate` returned."""
        return torch.stack(self._taken, dim=1)[:, :width]


class _Interrupt(StoppingCriteria):
    """Ends all rows at the next token once the process is asked to stop."""

    def __init__(self, asked_to_stop: Callable[[], bool]) -> None:
        self._asked_to_stop = asked_to_stop

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        return torch.full(
            (input_ids.shape[0],), self._asked_to_stop(), device=input_ids.device, dtype=torch.bool
        )
