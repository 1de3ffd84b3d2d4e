"""A rollout's rows share sequences where all models keep them apart, and teach what padded do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import stage_runs
import tiny
import worlds
import zoo

from rlhf_api.v1alpha1 import Dataset
from rlhf_trainer.data.packing import PackedBatch, RowLayout
from rlhf_trainer.models.heads import Logits
from rlhf_trainer.ppo import models
from rlhf_trainer.ppo.ptx import PTX
from rlhf_trainer.ppo.rollout import Rollout


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and sequences of each pass that scores or learns."""
    seen: list[tuple[int, int]] = []
    laid_out = Rollout._laid_out

    def watched(rollout: Rollout, lengths: Any, layout: RowLayout) -> Rollout:
        found = laid_out(rollout, lengths, layout)
        seen.append((len(lengths), len(found.inputs[0])))
        return found

    monkeypatch.setattr(Rollout, "_laid_out", watched)
    return seen


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The same of each pass over texts that are mixed in."""
    seen: list[tuple[int, int]] = []
    collated = PTX._collated

    def watched(mixed: PTX, rows: Any, layout: RowLayout) -> PackedBatch:
        found = collated(mixed, rows, layout)
        seen.append((len(rows), len(found.input_ids)))
        return found

    monkeypatch.setattr(PTX, "_collated", watched)
    return seen


def learned(base: Path, folder: Path, world_size: int = 1) -> list[dict[str, Any]]:
    """The metrics of a stage with actor and critic of `base` and prompts and mixed-in texts of
    unlike lengths. The reward model is a Llama."""
    prompts = [{"prompt": "abcdefgh"[row % 8] * (1 + 7 * (row % 4))} for row in range(16)]
    data = tiny.write_rows(folder.with_suffix(".jsonl"), prompts)
    texts = [each | {"response": "abcdefgh"[row % 8]} for row, each in enumerate(prompts)]
    others = tiny.write_rows(folder.with_suffix(".texts.jsonl"), texts)
    config = tiny.stage_config(
        "ppo",
        folder,
        world_size=world_size,
        dataset=Dataset(uri=f"file://{data}"),
        ptx_dataset=Dataset(uri=f"file://{others}"),
        max_prompt_length=32,
        model=tiny.file_source(base),
        critic_model=tiny.file_source(base),
        eval_dataset=True,
        batch_size=8,
        # Two ranks put other rows into smaller ones.
        minibatch_size=8,
        micro_batch_size=4,
        max_steps=2,
        entropy_coef=0.01,
        # Adam's first steps are smooth in the gradient then.
        adam_eps=1e-3,
    )
    if world_size == 1:
        stage_runs.run_with_fixed_answers(config)
    else:
        worlds.pair()(stage_runs.ON_RANK, "run_with_fixed_answers", config=config)
    return [event["metrics"] for event in stage_runs.events(config) if event.get("metrics")]


@pytest.mark.parametrize("name", ["Llama", "Mistral", "OPT"])
def test_what_is_learned_is_that_of_padded_rows(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    passes: list[tuple[int, int]],
    texts: list[tuple[int, int]],
    name: str,
) -> None:
    base = zoo.saved(name, tmp_path / "base")
    packed = learned(base, tmp_path / "packed")
    for seen in (passes, texts):
        assert any(sequences < rows for rows, sequences in seen)
        seen.clear()
    on_two = learned(base, tmp_path / "two", world_size=2)
    monkeypatch.setattr(models, "packed_layouts", lambda *given: iter(()))
    padded = learned(base, tmp_path / "padded")
    for seen in (passes, texts):
        assert seen
        assert all(sequences == rows for rows, sequences in seen)
    assert len(packed) == len(on_two) == len(padded) >= 3
    for *those, other in zip(packed, on_two, padded, strict=True):
        for one in those:
            for metric in one.keys() - stage_runs.SPEED:
                assert one[metric] == pytest.approx(other[metric], rel=1e-5, abs=1e-5), metric


def test_rows_stand_alone_where_nothing_keeps_them_apart(
    tmp_path: Path, passes: list[tuple[int, int]], texts: list[tuple[int, int]]
) -> None:
    assert learned(zoo.saved("BLOOM", tmp_path / "base"), tmp_path / "run")
    for seen in (passes, texts):
        assert seen
        assert all(sequences == rows for rows, sequences in seen)


def test_rows_stand_alone_where_a_model_breaks_what_its_copy_promised(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    passes: list[tuple[int, int]],
) -> None:
    """OPT counts positions by itself, so that rows that share a sequence see each other."""
    monkeypatch.setattr(models, "packed_layouts", lambda *given: iter([RowLayout.POSITIONS]))
    base = zoo.saved("OPT", tmp_path / "base")
    assert learned(base, tmp_path / "run")
    assert "rows of a rollout share no sequences" in caplog.text
    assert passes
    assert all(sequences == rows for rows, sequences in passes)


def test_rows_are_packed_where_all_models_agree_and_few_logits_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny.stage_config("ppo", tmp_path)
    assert config.ppo is not None
    bases = models.Bases.open(config.ppo, config, tiny.ranks())
    assert bases.reward_model is not None
    critic = replace(bases.critic, field="another critic")
    fields = ["spec.stages.ppo.model", "spec.stages.ppo.rewardModel", "another critic"]

    def chosen(*layouts: tuple[RowLayout, ...], logits: Logits = Logits.HEAD) -> RowLayout:
        by_field = dict(zip(fields, layouts, strict=True))
        monkeypatch.setattr(models, "packed_layouts", lambda base, *_: iter(by_field[base.field]))
        settings = models.ModelSettings.of(config.ppo, tiny.ranks())
        return models._layout(replace(bases, critic=critic), settings, tiny.ranks(), logits)

    positions, mask, one = RowLayout.POSITIONS, RowLayout.BLOCK_MASK, RowLayout.ONE_SEQUENCE
    either = positions, mask
    assert chosen(either, either, either) is positions
    for logits in (Logits.COLUMNS, Logits.ALL):
        assert chosen(either, either, either, logits=logits) is RowLayout.PADDED
    assert chosen((one,), (one,), (one,)) is one
    for at in range(3):
        others = [either] * 3
        for few, common in (((), RowLayout.PADDED), ((mask,), mask), ((positions,), positions)):
            others[at] = few
            assert chosen(*others) is common
    assert chosen(either, (positions,), (mask,)) is RowLayout.PADDED
