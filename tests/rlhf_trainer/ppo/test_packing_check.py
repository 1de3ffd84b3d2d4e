"""Rows of a rollout share sequences where the models themselves keep them apart."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import worlds

from rlhf_trainer.data.packing import RowLayout
from rlhf_trainer.ppo.experience import last_scores, response_values
from rlhf_trainer.ppo.packing_check import packing_changes, sound_layout

PROGRAM = Path(__file__).parents[1] / "programs_engine" / "self_check_cases.py"
cases: Any = worlds.load(PROGRAM)


@pytest.mark.parametrize("precision", ["FP32", "BF16"])
@pytest.mark.parametrize("broken", ["actor", "reward_model", "critic"])
@pytest.mark.parametrize(
    ("moved", "sound"), [(0.0, True), (0.8, True), (1.3, False), (math.nan, False)]
)
def test_rows_share_sequences_where_that_changes_less_than_padding_may(
    tmp_path: Path, precision: str, broken: str, moved: float, sound: bool
) -> None:
    """Changes are in units of the bounds; packed rows are known by having no mask."""
    subjects = cases.subjects(tmp_path, "llama", precision)
    subjects = replace(subjects, critic=subjects.reward_model)
    rollout, spec = cases.rollout(subjects), cases.spec(tmp_path, precision=precision)
    plain: Any = getattr(subjects, broken)
    log_ratio, score = {"FP32": (1e-5, 1e-4), "BF16": (0.02, 0.05)}[precision]
    with torch.no_grad():
        bound = {
            "actor": lambda: log_ratio,
            "reward_model": lambda: score * last_scores(plain, rollout).std(),
            "critic": lambda: score * response_values(plain, rollout)[rollout.response_mask].std(),
        }[broken]()

    def changed(ids: torch.Tensor, mask: torch.Tensor | None, *rest: Any) -> Any:
        found: Any = plain(ids, mask, *rest)
        more = moved * bound * (mask is None)
        if broken == "actor":
            return found._replace(logprobs=found.logprobs + more)
        return found + more

    asked: dict[str, Any] = {broken: changed}
    given = rollout, RowLayout.POSITIONS, spec, tiny.ALONE
    expected = RowLayout.POSITIONS if sound else RowLayout.PADDED
    assert sound_layout(replace(subjects, **asked), *given) is expected
    padded = rollout, RowLayout.PADDED, spec, tiny.ALONE
    assert sound_layout(subjects, *padded) is RowLayout.PADDED
    if broken != "actor":
        asked[broken] = None
        assert sound_layout(replace(subjects, **asked), *given) is RowLayout.POSITIONS


@pytest.mark.parametrize("layout", [RowLayout.POSITIONS, RowLayout.BLOCK_MASK])
def test_the_check_of_packing_has_rows_share_a_sequence(tmp_path: Path, layout: RowLayout) -> None:
    """Also where a pass has one row, and with a mask as without."""
    subjects = cases.subjects(tmp_path, "llama")
    rollout = cases.rollout(subjects)
    spec = cases.spec(tmp_path, micro_batch_size=1, rollout_micro_batch_size=1)
    seen: list[tuple[int, int]] = []

    def watched(ids: torch.Tensor, mask: torch.Tensor | None, *rest: Any) -> Any:
        seen.append((len(ids), 0 if mask is None else mask.dim()))
        return subjects.actor(ids, mask, *rest)

    changes = packing_changes(replace(subjects, actor=watched), rollout, layout, spec)
    assert max(changes) < 1e-5
    dimensions = 4 if layout is RowLayout.BLOCK_MASK else 0
    packed = [rows for rows, mask in seen if mask == dimensions]
    assert packed == [1] * 4, "eight rows, two in a sequence"
    assert len(seen) == 4 + 8
