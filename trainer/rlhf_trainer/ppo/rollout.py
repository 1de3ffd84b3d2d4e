"""A rollout: prompts and the responses that were sampled for them.

Made by `samplers`, read by everything that scores it or learns from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from rlhf_trainer.data.budget import PASS_TOKENS, within
from rlhf_trainer.data.packing import RowLayout, block_causal, fullest_passes, groups_of
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
    def inputs(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """As models read the rows: input_ids, attention_mask or none, position_ids, Long[sequences,
        time] each. Here each row is a sequence."""
        return self.sequences

    @property
    def action_columns(self) -> int | Tensor:
        """Which columns of `inputs` hold actions: so many last ones, or Long[sequences, n]."""
        return self.responses.shape[1]

    def of_actions(self, numbers: Tensor) -> Tensor:
        """Those of each row's actions, of Float[sequences, n] at `action_columns`.

        Shapes: -> Float[batch, response].
        """
        return numbers

    def before_actions(self, numbers: Tensor) -> Tensor:
        """Those of the state before each action, of Float[sequences, time] at all columns.

        Shapes: -> Float[batch, response].
        """
        return numbers[:, -self.responses.shape[1] - 1 : -1]

    def at_ends(self, numbers: Tensor) -> Tensor:
        """Those of each row's last real token, of Float[sequences, time]; Float[batch]."""
        last = self.prompts.shape[1] + self.response_lengths - 1
        return numbers.gather(1, last.unsqueeze(1)).squeeze(1)

    def ended_by(self, token: int) -> "Rollout":
        """The same rows, each that has ended with `token` in the place of what ended it."""
        columns = torch.arange(self.responses.shape[1], device=self.responses.device)
        last = columns == (self.response_lengths - 1).unsqueeze(1)
        at = last & self.ended.unsqueeze(1)
        return replace(self, responses=torch.where(at, token, self.responses))

    def __getitem__(self, rows: slice | Tensor) -> "Rollout":
        """Some of the rows, by a slice or by Long[n] indices; each is a sequence again."""
        return Rollout(**{each.name: getattr(self, each.name)[rows] for each in fields(Rollout)})

    def within(
        self, tokens: int, layout: RowLayout = RowLayout.PADDED
    ) -> list[tuple[Tensor, "Rollout"]]:
        """Rows of like length together, the shortest first, as many as `tokens` hold with their
        padding.

        Each part comes with the Long[n] indices of its rows, and has no column that is padding in
        all of them. How many parts there are depends on lengths, and so on the rank.

        Args:
            tokens: of one pass.
            layout: whether several rows share a sequence, and what keeps them apart.
        """
        lengths = torch.stack([self.prompt_lengths, self.response_lengths], dim=1)
        order = lengths.sum(dim=1).argsort(stable=True)
        # One look at the device for all parts.
        widths = [(prompt, response) for prompt, response in lengths[order].tolist()]
        if layout is RowLayout.PADDED:
            parts = within(widths, tokens, PASS_TOKENS[lengths.device.type])
        else:
            longest_first = [(sum(row),) for row in reversed(widths)]
            count = len(widths)
            parts = [
                slice(count - part.stop, count - part.start)
                for part in reversed(fullest_passes(longest_first, tokens, layout))
            ]
        return [(order[at], self[order[at]]._laid_out(widths[at], layout)) for at in parts]

    def _laid_out(self, lengths: Sequence[tuple[int, int]], layout: RowLayout) -> "Rollout":
        """The same rows, of prompts and responses of such `lengths`, without needless columns."""
        prompt, response = map(max, zip(*lengths, strict=True))
        narrow = self._narrowed(prompt, response)
        if layout is RowLayout.PADDED:
            return narrow
        groups = groups_of([sum(row) for row in lengths], layout)
        return PackedRollout.of(narrow, lengths, groups, masked=layout is RowLayout.BLOCK_MASK)

    def in_one_sequence(self, layout: RowLayout) -> "Rollout":
        """The same rows in one sequence, whatever would be computed in vain then."""
        lengths = torch.stack([self.prompt_lengths, self.response_lengths], dim=1).tolist()
        masked = layout is RowLayout.BLOCK_MASK
        return PackedRollout.of(self, lengths, [[*range(len(lengths))]], masked=masked)

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


@dataclass(frozen=True)
class PackedRollout(Rollout):
    """Rows that share sequences without padding inside of them, kept apart by their positions, and
    by a mask where these are not enough.

    Tokens are counted through all sequences, one behind the other.

    Attributes:
        starts: Long[batch], the place of each row's first token.
        action_starts: Long[batch], the place of its first action among those at `action_columns`.
        shape: number of sequences, and of tokens in each.
        most_actions: of a sequence.
        masked: whether models are given a mask.
    """

    starts: Tensor
    action_starts: Tensor
    shape: tuple[int, int]
    most_actions: int
    masked: bool

    @classmethod
    def of(
        cls,
        rollout: Rollout,
        lengths: Sequence[tuple[int, int]],
        groups: Sequence[Sequence[int]],
        *,
        masked: bool,
    ) -> "PackedRollout":
        """The rows of `rollout`, whose prompts and responses have such `lengths`.

        Args:
            rollout: rows that may be padded.
            lengths: of each row.
            groups: the rows of each sequence.
            masked: whether models are to be given a mask.
        """
        totals = [sum(row) for row in lengths]
        width = max(sum(totals[row] for row in group) for group in groups)
        most_actions = max(sum(lengths[row][1] for row in group) for group in groups)
        starts, action_starts = [0] * len(lengths), [0] * len(lengths)
        for number, group in enumerate(groups):
            start, action = number * width, number * most_actions
            for row in group:
                starts[row], action_starts[row] = start, action
                start, action = start + totals[row], action + lengths[row][1]
        places = torch.tensor([starts, action_starts], device=rollout.prompts.device)
        return cls(
            **{each.name: getattr(rollout, each.name) for each in fields(Rollout)},
            starts=places[0],
            action_starts=places[1],
            shape=(len(groups), width),
            most_actions=most_actions,
            masked=masked,
        )

    @property
    def inputs(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """input_ids, Bool[sequences, 1, time, time] or no mask, and position_ids, which begin again
        at 0 in each row and are 0 behind the last one."""
        ids = torch.cat([self.prompts, self.responses], dim=1)
        columns = torch.arange(ids.shape[1], device=ids.device)
        # The padding of a prompt stands before it.
        positions = columns - (self.prompts.shape[1] - self.prompt_lengths).unsqueeze(1)
        lengths = self.prompt_lengths + self.response_lengths
        real = (positions >= 0) & (positions < lengths.unsqueeze(1))
        places = self.starts.unsqueeze(1) + positions
        mask = None
        if self.masked:
            numbers = torch.arange(1, len(ids) + 1, device=ids.device).unsqueeze(1)
            rows = _scattered(numbers.expand_as(ids), places, real, self.shape, 0)
            mask = block_causal(rows)
        return (
            _scattered(ids, places, real, self.shape, 0),
            mask,
            _scattered(positions, places, real, self.shape, 0),
        )

    @property
    def action_columns(self) -> int | Tensor:
        """Long[sequences, n], filled with a column that exists."""
        columns = (self._first_actions + self._actions) % self.shape[1]
        places = self.action_starts.unsqueeze(1) + self._actions
        real = response_mask(self.response_lengths, self.responses.shape[1])
        return _scattered(columns, places, real, (self.shape[0], self.most_actions), 1)

    def of_actions(self, numbers: Tensor) -> Tensor:
        """As of any rollout; behind a response stands what belongs to another."""
        return _at(numbers, self.action_starts.unsqueeze(1) + self._actions)

    def before_actions(self, numbers: Tensor) -> Tensor:
        """As of any rollout; behind a response stands what belongs to another."""
        return _at(numbers, self._first_actions - 1 + self._actions)

    def at_ends(self, numbers: Tensor) -> Tensor:
        """As of any rollout."""
        return _at(numbers, self.starts + self.prompt_lengths + self.response_lengths - 1)

    @property
    def _actions(self) -> Tensor:
        return torch.arange(self.responses.shape[1], device=self.responses.device)

    @property
    def _first_actions(self) -> Tensor:
        return (self.starts + self.prompt_lengths).unsqueeze(1)


def _scattered(
    values: Tensor, places: Tensor, real: Tensor, shape: tuple[int, int], filling: int
) -> Tensor:
    """Long[shape]: `values` that are `real` at their `places`, counted through all rows.

    Without a look at the device: what is not real goes to a place that is thrown away.
    """
    size = shape[0] * shape[1]
    whole = values.new_full((size + 1,), filling)
    whole.scatter_(0, torch.where(real, places, size).flatten(), values.flatten())
    return whole[:size].view(shape)


def _at(numbers: Tensor, places: Tensor) -> Tensor:
    """What stands at `places` of Float[sequences, n], counted through all of them."""
    flat = numbers.flatten()
    return flat[places.clamp(max=flat.shape[0] - 1)]
