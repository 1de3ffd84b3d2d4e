"""PPO-ptx: the loss on other texts that PPO mixes into the actor's update, against forgetting them.

Called by the PPO stage. Texts are read and checked like those of supervised fine-tuning, before any
weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from rlhf_api.metrics import Metric
from rlhf_api.v1alpha1 import PPOStage
from rlhf_api.v1alpha1.stages import DEFAULT_PTX_COEF
from rlhf_trainer.data.budget import micro_batches, token_budget
from rlhf_trainer.data.cursor import Cursor, rank_slice
from rlhf_trainer.data.loading import load_sft
from rlhf_trainer.data.packing import (
    PackedBatch,
    RowLayout,
    collate_packed,
    groups_of,
    packed_micro_batches,
)
from rlhf_trainer.data.tokenize.tokenized import SFTExample
from rlhf_trainer.models.engine import TrainedModel
from rlhf_trainer.models.response_loss import response_loss
from rlhf_trainer.models.source import Base
from rlhf_trainer.run.distributed import Ranks, filled, reduce_sum
from rlhf_trainer.run.inputs import Inputs

StopCheck = Callable[[], None]
"""Ends the attempt if any rank was asked to stop; all ranks call it together."""


@dataclass
class PTX:
    """The texts, how much they weigh and how far they were read.

    L = coef * sum over response tokens of -log pi / their number, over the rows of one batch on all
    ranks; a batch has as many rows as a minibatch. Ouyang et al., "Training language models to
    follow instructions with human feedback", 2022, equation 2.
    """

    examples: Sequence[SFTExample]
    pad_id: int
    coef: float
    token_budget: int
    cursor: Cursor
    ranks: Ranks
    _nll: Tensor | float = field(init=False, default=0.0)
    _tokens: int = field(init=False, default=0)

    @classmethod
    def read(cls, spec: PPOStage, base: Base, inputs: Inputs) -> "PTX | None":
        """The rows of `spec.ptx_dataset`; None without one."""
        if spec.ptx_dataset is None:
            return None
        examples = inputs.read(
            "ptxDataset",
            load_sft,
            spec.ptx_dataset,
            base.tokenizer,
            max_length=spec.max_prompt_length + spec.max_response_length,
            limits="maxPromptLength or maxResponseLength",
        )
        coef = DEFAULT_PTX_COEF if spec.ptx_coef is None else spec.ptx_coef
        rows = spec.minibatch_size or spec.batch_size
        cursor = Cursor(len(examples), rows, spec.seed)
        return cls(examples, base.pad_id, coef, token_budget(spec), cursor, inputs.ranks)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(map(self._length, range(len(self.examples))))

    @property
    def most_loss_tokens(self) -> int:
        """Tokens that carry a loss in the row with most of them."""
        return max(int(row.response_mask.sum()) for row in self.examples)

    def _length(self, row: int) -> int:
        return len(self.examples[row].tokens)

    def accumulate(
        self,
        actor: TrainedModel,
        check_stop: StopCheck | None = None,
        layout: RowLayout = RowLayout.PADDED,
    ) -> None:
        """Add the gradient of the next batch, as the last part of an optimizer step.

        Args:
            actor: whose loss on the texts it is.
            check_stop: called before each pass.
            layout: whether several rows share a sequence, and what keeps them apart.
        """
        batch = self.cursor.next_batch()
        # Every rank knows the whole batch, so the global count needs no communication.
        tokens = sum(int(self.examples[row].response_mask.sum()) for row in batch)
        mine = rank_slice(batch, self.ranks.rank, self.ranks.world_size)
        own = self._passes(mine, layout)
        parts = filled(own, [min(mine, key=self._length)], self.ranks)
        for index, (part, counts) in enumerate(parts):
            if check_stop is not None:
                check_stop()
            rows = self._collated(part, layout)
            loss = response_loss(actor, rows, layout, tokens, self.ranks)
            actor.accumulate(counts * self.coef * loss.loss, last=index == len(parts) - 1)
            self._nll += counts * loss.nll_sum
        self._tokens += tokens

    def _passes(self, rows: Sequence[int], layout: RowLayout) -> list[list[int]]:
        if layout is RowLayout.PADDED:
            return micro_batches(rows, self.token_budget, self._length, self.ranks.device)
        return packed_micro_batches(
            rows, self.token_budget, lambda row: (self._length(row),), layout
        )

    def _collated(self, rows: Sequence[int], layout: RowLayout) -> PackedBatch:
        groups = groups_of([self._length(row) for row in rows], layout)
        examples = [[self.examples[rows[at]] for at in group] for group in groups]
        return collate_packed(examples, self.pad_id, layout)

    def metrics(self) -> dict[Metric, float]:
        """The mean loss since the last call, over all ranks; nothing where nothing was learned."""
        if not self._tokens:
            return {}
        (nll,) = reduce_sum([float(self._nll)], self.ranks)
        mean = nll / self._tokens
        self._nll, self._tokens = 0.0, 0
        return {Metric.PTX_LOSS: mean}

    def to_document(self) -> dict[str, Any]:
        """How far the rows were read, as JSON values for a checkpoint."""
        return {"ptxCursor": self.cursor.state_dict()}

    def load(self, document: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was written; an empty document says that there was none."""
        if document:
            self.cursor.load_state_dict(document["ptxCursor"])
