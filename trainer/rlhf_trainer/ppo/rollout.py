"""A rollout: prompts and the responses that were sampled for them.

Made by `samplers`, read by everything that scores it or learns from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from rlhf_trainer.data.budget import PASS_TOKENS, within
from rlhf_trainer.rl import position_ids, response_mask


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

    def within(self, tokens: int) -> list[tuple[Tensor, "Rollout"]]:
        """Rows of like length together, as many as `tokens` hold with their padding.

        Each part comes with the Long[n] indices of its rows, and has no column that is padding in
        all of them. How many parts there are depends on lengths, and so on the rank.
        """
        lengths = torch.stack([self.prompt_lengths, self.response_lengths], dim=1)
        order = lengths.sum(dim=1).argsort(stable=True)
        # One look at the device for all parts.
        widths = [tuple(row) for row in lengths[order].tolist()]
        return [
            (order[part], self[order[part]]._narrowed(*map(max, zip(*widths[part], strict=True))))
            for part in within(widths, tokens, PASS_TOKENS[lengths.device.type])
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
