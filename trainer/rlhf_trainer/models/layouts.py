"""Whether a model gives each row the logits that it has alone, and by what layout of a batch.

Called by the stages before any weights are read: a shrunken copy of the model with random weights
is asked, so that an architecture that nobody listed is judged too. Rows are longer than the copy's
windows, so that a mask that loses one is found out.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

from rlhf_api.errors import ConfigError, InputError
from rlhf_trainer.data.collate import pad_left
from rlhf_trainer.data.packing import RowLayout, collate_packed
from rlhf_trainer.data.tokenize.tokenized import SFTExample
from rlhf_trainer.models.heads import switch_off_dropout
from rlhf_trainer.models.load import ModelSettings, untrained_model
from rlhf_trainer.models.shrunken import VOCABULARY, shrunken
from rlhf_trainer.models.source import Base

PACKED = (RowLayout.POSITIONS, RowLayout.BLOCK_MASK)

_LENGTHS = (19, 13, 3, 11)
_BEHIND = 2
"""The row whose every token is near those before it."""
_FIRST_ID = 3
_NO_MASK = "it takes no mask of four dimensions"
MOST_PARAMETERS = 100_000_000
_SEED = 1
_KEPT = 8
"""Copies of the actor, the critic and the reward model, by two that compute attention."""
_UNSEEN = frozenset(
    ("architectures", "_name_or_path", "id2label", "label2id", "dtype", "transformers_version")
)
"""What a configuration says of weights or of their origin, which a copy has not."""
REFUSED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What libraries raise at a configuration that does not fit together, or at arguments."""


def row_layout(
    base: Base, settings: ModelSettings, device: torch.device, field: str, *, packing: bool
) -> RowLayout:
    """The first layout under which rows have the logits that they have alone.

    Args:
        base: the model.
        settings: how it will be loaded.
        device: where it will compute; FlashAttention is asked there, all else on the CPU.
        field: path of the field that says whether rows are packed.
        packing: whether several rows share a sequence.

    Raises:
        InputError: as `check_model` raises it.
        ConfigError: no layout keeps rows apart.
    """
    with known(base):
        probe = probe_of(base, settings, device)
        probe.require_repeatable(base.field)
        probe.require_causal(base.field)
    reasons = []
    for layout in probe.layouts(packing=packing):
        reason = probe.disagreement(layout)
        if reason is None:
            return layout
        reasons.append(reason if reason == _NO_MASK else f"with {layout} {reason}")
    named, kind, remedy = (
        (field, "packed", "set packing: false")
        if packing
        else (base.field, "padded", "name another model")
    )
    raise ConfigError(
        f"{named}: {type(probe.model).__name__} does not give {kind} rows the logits that they "
        f"have alone: {'; '.join(reasons)}; {remedy}"
    )


def packed_layouts(
    base: Base, settings: ModelSettings, device: torch.device
) -> Iterator[RowLayout]:
    """The layouts for several rows a sequence under which they have the logits that they have
    alone, also in a sequence of more tokens than a row may have; the best first.

    Args: as `row_layout`.
    """
    try:
        probe = probe_of(base, settings, device).wide
    except ProbeError:
        return
    yield from (each for each in probe.layouts(packing=True) if probe.disagreement(each) is None)


def packed_or_padded(base: Base, settings: ModelSettings, device: torch.device) -> RowLayout:
    """The first of `packed_layouts`; one row a sequence where there is none."""
    return next(packed_layouts(base, settings, device), RowLayout.PADDED)


def check_model(
    base: Base, settings: ModelSettings, *, causal: bool = True, left_padding: bool = False
) -> None:
    """Look for what makes a model learn something else, without a sign of it.

    Args:
        base: the model.
        settings: how it will be loaded.
        causal: whether no token may see those after it, as in an encoder.
        left_padding: whether padding may stand before a row, as PPO has it before prompts.

    Raises:
        InputError: tokens see those after them or padding before them, the model draws at random
            while it learns, or nothing of it can be known.
    """
    # Neither depends on who computes attention, and Eager is always there.
    eager = replace(settings, attention="eager")
    with known(base):
        probe = probe_of(base, eager, torch.device("cpu"))
        probe.require_repeatable(base.field)
        if causal:
            probe.require_causal(base.field)
    if left_padding:
        probe.require_left_padding(base.field)


@contextmanager
def known(base: Base) -> Iterator[None]:
    """Raises InputError where nothing can be found out."""
    try:
        yield
    except ProbeError as error:
        raise InputError(
            f"{base.field}: whether {base.config.model_type} gives rows of a batch the logits that "
            f"they have alone is not known: no small copy of it computes ({error}); name another "
            "model"
        ) from error


class ProbeError(Exception):
    """No shrunken copy can be made or run; the text says why."""


@dataclass(frozen=True)
class Probe:
    """A shrunken copy of a model with random weights, and its logits of rows that stand alone.

    Attributes:
        model: in evaluation mode, without dropout.
        rows: longer than its windows but for one.
        alone: Float[time, vocab] of each row.
    """

    model: PreTrainedModel
    rows: Sequence[SFTExample]
    alone: Sequence[Tensor]

    @classmethod
    def of(cls, base: Base, settings: ModelSettings, device: torch.device) -> "Probe":
        """Make one, in fp32 where FlashAttention is not asked for."""
        if not _asks_for_flash(settings):
            settings, device = replace(settings, dtype=torch.float32), torch.device("cpu")
        rows = _rows(_SEED)
        try:
            model: Any = _small_model(base, settings)
            model.to(device)
            switch_off_dropout(model)
        except REFUSED as error:
            raise ProbeError(shortened(error)) from error
        return cls(model, rows, [_alone(model, row) for row in rows])

    @property
    def wide(self) -> "Probe":
        """The same with more tokens in a packed sequence than the copy has positions."""
        return replace(self, rows=[*self.rows] * 2, alone=[*self.alone] * 2)

    @property
    def flash(self) -> bool:
        """Whether FlashAttention computes."""
        return is_flash_attention_requested(self.model.config)

    def layouts(self, *, packing: bool) -> tuple[RowLayout, ...]:
        """What may be used, the best first."""
        if not packing:
            return (RowLayout.PADDED,)
        return (RowLayout.ONE_SEQUENCE,) if self.flash else PACKED

    def require_repeatable(self, field: str) -> None:
        """Raise InputError if the copy computes something else while it learns."""
        with torch.random.fork_rng(devices=[]):
            learning = self._alone_learning()
        if not self.agree([learning], [self.alone[0]]):
            raise InputError(
                f"{field}: {type(self.model).__name__} draws at random while it learns (dropout, "
                "or a noise); set what names it in its config.json to 0"
            )

    def _alone_learning(self) -> Tensor:
        self.model.train()
        try:
            return _alone(self.model, self.rows[0])
        finally:
            self.model.eval()

    def require_causal(self, field: str) -> None:
        """Raise InputError if another last token changes what stands before it."""
        row = self.rows[0]
        ids = row.tokens.copy()
        ids[-1] = _other(ids[-1:])[0]
        changed = _alone(self.model, SFTExample(ids, row.response_mask))
        if self.agree([changed[:-1]], [self.alone[0][:-1]]):
            return
        remedy = "name a causal language model"
        if getattr(self.model.config, "is_decoder", True) is False:
            remedy += ", or set is_decoder: true in its config.json if it was trained as one"
        raise InputError(
            f"{field}: in {type(self.model).__name__} a token sees those after it, so that it "
            f"cannot learn to write them; {remedy}"
        )

    def require_left_padding(self, field: str) -> None:
        """Raise InputError if tokens have other logits behind padding, as before prompts of PPO."""
        batch = pad_left([row.tokens for row in self.rows], 0)
        try:
            logits = self.logits(batch.input_ids, batch.attention_mask, batch.position_ids)
        except REFUSED as error:
            reason = f"it raises {shortened(error)}"
        else:
            real = logits[batch.attention_mask.bool().to(logits.device)]
            if self.agree(real.split([len(row.tokens) for row in self.rows]), self.alone):
                return
            reason = "a row's logits are not those that it has alone"
        raise InputError(
            f"{field}: {type(self.model).__name__} reads padding before a row, as PPO has it "
            f"before prompts: {reason}; name another model"
        )

    def disagreement(self, layout: RowLayout) -> str | None:
        """Why rows in this layout do not have the logits that they have alone; None if they do."""
        try:
            logits = self._together(self.rows, layout)
        except REFUSED as error:
            # Libraries do not look at a mask before they compute with it.
            return _NO_MASK if layout is RowLayout.BLOCK_MASK else f"it raises {shortened(error)}"
        if self.agree(logits, self.alone):
            return None
        others = [
            SFTExample(_other(row.tokens), row.response_mask) if at < _BEHIND else row
            for at, row in enumerate(self.rows)
        ]
        changed = self._together(others, layout)
        if self.agree([changed[_BEHIND]], [logits[_BEHIND]]):
            return "a row's logits are not those that it has alone"
        return "a row's logits depend on the rows before it"

    @torch.no_grad()
    def _together(self, rows: Sequence[SFTExample], layout: RowLayout) -> list[Tensor]:
        """Float[time, vocab] of each row, in the order of `rows`."""
        packed = [[*range(len(rows) - 1)], [len(rows) - 1]]
        groups = [[at] for at in range(len(rows))] if layout is RowLayout.PADDED else packed
        parameter = next(self.model.parameters())
        batch = collate_packed([[rows[at] for at in group] for group in groups], 0, layout)
        batch = batch.to(parameter.device)
        mask = batch.attention_mask(layout, parameter.dtype)
        logits = self.logits(batch.input_ids, mask, batch.position_ids)
        # Real tokens in the order of the sequences are those of the rows in theirs.
        real = logits[batch.segment_ids > 0]
        return list(real.split([len(row.tokens) for row in rows]))

    @torch.no_grad()
    def logits(self, ids: Tensor, mask: Tensor | None, positions: Tensor, **kept: Tensor) -> Tensor:
        """Float[batch, time, vocab]."""
        device = next(self.model.parameters()).device
        logits: Tensor = self.model(
            input_ids=ids.to(device),
            attention_mask=None if mask is None else mask.to(device),
            position_ids=positions.to(device),
            use_cache=False,
            **{name: columns.to(device) for name, columns in kept.items()},
        ).logits
        return logits.float()

    def agree(self, actual: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
        """Whether logits are equal but for rounding.

        In fp32 at every token. In half precision, which FlashAttention needs, rounding may send
        a token to another expert: there at half of each row's tokens.
        """
        scale = torch.cat(list(self.alone)).std()
        bound, share = (1e-3, 1.0) if self.model.dtype == torch.float32 else (0.1, 0.5)
        changes = [
            ((one - other).square().mean(dim=-1).sqrt() / scale).quantile(share)
            for one, other in zip(actual, expected, strict=True)
        ]
        return bool(torch.stack(changes).max() <= bound)


def probe_of(base: Base, settings: ModelSettings, device: torch.device) -> Probe:
    """A probe that was made of the same configuration before, or a new one; not to be changed.

    A stage asks several times, and of models of one architecture. Raises ProbeError.
    """
    try:
        known = shrunken(base.config).to_dict().items()
    except REFUSED as error:
        raise ProbeError(shortened(error)) from error
    of_class, flash = type(base.config).__name__, _asks_for_flash(settings)
    described = repr(sorted((name, value) for name, value in known if name not in _UNSEEN))
    computes = (settings.dtype, device) if flash else None
    key = of_class, described, settings.attention, computes
    if key not in _probes:
        if len(_probes) >= _KEPT:
            _probes.clear()
        _probes[key] = Probe.of(base, settings, device)
    return _probes[key]


_probes: dict[tuple[Any, ...], Probe] = {}


def forget_probes() -> None:
    """Free what they take: for whoever has asked all, or has changed what models compute with."""
    _probes.clear()


def _asks_for_flash(settings: ModelSettings) -> bool:
    wanted: bool = is_flash_attention_requested(
        requested_attention_implementation=settings.attention
    )
    return wanted


def _rows(seed: int) -> list[SFTExample]:
    draw = np.random.default_rng(seed)
    return [
        SFTExample(
            draw.integers(_FIRST_ID, VOCABULARY, length).astype(np.int32),
            np.ones(length, dtype=np.bool_),
        )
        for length in _LENGTHS
    ]


def _other(ids: Any) -> Any:
    """Another token in place of each."""
    real = VOCABULARY - _FIRST_ID
    return ((ids - _FIRST_ID + 1) % real + _FIRST_ID).astype(ids.dtype)


@torch.no_grad()
def _alone(model: PreTrainedModel, row: SFTExample) -> Tensor:
    """Float[time, vocab] of one row without any padding. Raises ProbeError."""
    ids = torch.from_numpy(row.tokens.astype(np.int64)).unsqueeze(0)
    device = next(model.parameters()).device
    try:
        logits: Tensor = model(input_ids=ids.to(device), use_cache=False).logits[0]
    except REFUSED as error:
        raise ProbeError(shortened(error)) from error
    return logits.float()


def _small_model(base: Base, settings: ModelSettings) -> PreTrainedModel:
    config = shrunken(base.config)
    # Eager is always there, and nobody needs to be told again that it is used.
    eager = replace(settings, attention="eager")
    with torch.device("meta"):
        size = untrained_model(config, eager, base.field).num_parameters()
    if size > MOST_PARAMETERS:
        raise ProbeError(f"it would have {size:,} parameters")
    # What the stage draws later must not depend on this.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model: Any = untrained_model(config, settings, base.field)
        with torch.no_grad():
            for parameter in model.parameters():
                # Fresh matrices are so small that logits hardly depend on attention.
                if parameter.dim() >= 2:
                    parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
    model.eval()
    return model  # type: ignore[no-any-return]


def shortened(error: BaseException) -> str:
    """A library's message in one line that can be read."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 200 else text[:200] + '...'}"
