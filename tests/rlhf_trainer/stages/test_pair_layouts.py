"""Pairs share sequences where the model keeps them apart, and learn the same as padded ones."""

from pathlib import Path
from typing import Any

import pytest
import stage_runs
import tiny
import zoo

from rlhf_trainer.data.packing import RowLayout
from rlhf_trainer.data.pairs import PairBatch
from rlhf_trainer.stages import reward


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("Llama", RowLayout.POSITIONS),
        ("Mistral", RowLayout.POSITIONS),
        ("OPT", RowLayout.BLOCK_MASK),
        ("BLOOM", RowLayout.PADDED),
    ],
)
def test_what_is_learned_is_that_of_padded_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, layout: RowLayout
) -> None:
    base = zoo.saved(name, tmp_path / "base")
    score, passes = reward.score_pairs, list[PairBatch]()

    def watched(model: Any, batch: PairBatch, *given: Any) -> Any:
        passes.append(batch)
        return score(model, batch, *given)

    monkeypatch.setattr(reward, "score_pairs", watched)

    def measured(folder: str, world_size: int = 1) -> tuple[list[dict[str, Any]], int]:
        """The metrics of steps and evaluations, and the columns that were computed here."""
        passes.clear()
        config = tiny.stage_config(
            "reward",
            tmp_path / folder,
            world_size=world_size,
            model=tiny.file_source(base),
            eval_dataset=True,
            batch_size=16,
            micro_batch_size=8,
            max_steps=2,
            # Adam's first steps are smooth in the gradient then.
            adam_eps=1e-3,
        )
        if world_size == 1:
            stage_runs.run(config)
        else:
            assert all("outcome" in told for told in stage_runs.run_on_pair(config))
        events = stage_runs.events(config)
        columns = sum(batch.sequences.input_ids.numel() for batch in passes)
        return [event["metrics"] for event in events if event.get("metrics")], columns

    packed, packed_columns = measured("packed")
    assert {batch.layout for batch in passes} == {layout}
    on_two, _ = measured("two", world_size=2)
    monkeypatch.setattr(reward, "packed_or_padded", lambda *given: RowLayout.PADDED)
    padded, padded_columns = measured("padded")
    assert len(packed) == len(on_two) == len(padded) >= 3
    for *those, other in zip(packed, on_two, padded, strict=True):
        for one in those:
            for metric in one.keys() - stage_runs.SPEED:
                assert one[metric] == pytest.approx(other[metric], rel=1e-5, abs=1e-6), metric
    if layout is RowLayout.PADDED:
        assert packed_columns == padded_columns
    else:
        assert packed_columns < padded_columns
