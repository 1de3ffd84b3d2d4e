"""Which logits a model has to be asked for, so that those of chosen columns are known.

Called by the stages before any weights are read; asks the shrunken copy of `layouts`.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from rlhf_trainer.data.packing import RowLayout, collate_packed
from rlhf_trainer.models.heads import Logits
from rlhf_trainer.models.layouts import REFUSED, Probe, known, probe_of
from rlhf_trainer.models.load import ModelSettings
from rlhf_trainer.models.source import Base

_CHOSEN = ((2, 0, 18), (12, 5, 5), (1, 2, 0), (10, 3, 7))
"""Columns of each row of a probe, in no order and one of them twice."""
_SAME_HEAD = 1e-5
"""Largest difference of logits by the same head, in their standard deviations."""


def fewest_logits(base: Base, settings: ModelSettings) -> Logits:
    """Which logits the model has to be asked for, so that those of chosen columns are known.

    Raises:
        InputError: nothing of it can be known.
    """
    # How logits are made of hidden states does not depend on who computes attention.
    eager = replace(settings, attention="eager")
    with known(base):
        probe = probe_of(base, eager, torch.device("cpu"))
    if head_makes_logits(probe):
        return Logits.HEAD
    return Logits.COLUMNS if keeps_columns(probe) else Logits.ALL


def keeps_columns(probe: Probe) -> bool:
    """Whether logits of chosen columns, others in each row, are those among all."""
    batch = collate_packed([[row] for row in probe.rows], 0)
    inputs = batch.input_ids, batch.attention_mask(RowLayout.PADDED, probe.model.dtype)
    chosen = torch.tensor(_CHOSEN)
    try:
        kept = probe.logits(*inputs, batch.position_ids, logits_to_keep=chosen)
    except REFUSED:
        return False
    every = probe.logits(*inputs, batch.position_ids)
    expected = every.take_along_dim(chosen.to(every.device).unsqueeze(-1), dim=1)
    return kept.shape == expected.shape and probe.agree(list(kept), list(expected))


@torch.no_grad()
def head_makes_logits(probe: Probe) -> bool:
    """Whether logits are what a linear head makes of hidden states, without cap or scale."""
    model: Any = probe.model
    ids = torch.from_numpy(probe.rows[0].tokens.astype(np.int64)).unsqueeze(0)
    ids = ids.to(next(model.parameters()).device)
    head = model.get_output_embeddings()
    # A class of its own may compute anything.
    if type(head) is not nn.Linear:
        return False
    try:
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logits = head(hidden)[0].float()
    except REFUSED:
        return False
    alone = probe.alone[0]
    return logits.shape == alone.shape and bool(
        (logits - alone).abs().max() <= _SAME_HEAD * alone.std()
    )
