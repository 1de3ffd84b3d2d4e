"""A preset fills in what an object leaves out, and nothing else; the docs show the same table."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import JobReference, PPOStage, StageConfig
from rlhf_api.v1alpha1.presets import PRESETS, Preset

PAGE = Path(__file__).parents[3] / "docs" / "presets.md"
PPO: dict[str, Any] = {
    "model": {"uri": "hf://org/base"},
    "rewardModel": {"uri": "hf://org/reward"},
    "dataset": {"uri": "file://rows.jsonl"},
}
PTX = {"ptxDataset": {"uri": "file://texts.jsonl"}}


def stage(**written: Any) -> PPOStage:
    return PPOStage.model_validate(PPO | written)


def digest(spec: PPOStage) -> str:
    job = JobReference(name="reviews", uid="0b5c1c4e-8f57")
    settled = spec.model_copy(update={"preset": None})
    config = StageConfig(job=job, stage=StageName.PPO, attempt=1, storage="/runs", ppo=settled)
    return config.digest()


def written_out(preset: Preset) -> dict[str, Any]:
    """The preset's values as a person would write them."""
    return {to_camel(name): value for name, value in PRESETS[preset].items()}


@pytest.mark.parametrize("preset", get_args(Preset))
def test_a_preset_is_its_values_written_out(preset: Preset) -> None:
    """The values go through no validator when they come from the table: here they do."""
    by_hand, by_name = stage(**PTX, **written_out(preset)), stage(**PTX, preset=preset)
    assert by_name.model_copy(update={"preset": None}) == by_hand
    assert digest(by_name) == digest(by_hand)
    assert digest(by_name) != digest(stage(**PTX))


@pytest.mark.parametrize("preset", get_args(Preset))
def test_what_is_written_wins_even_where_it_is_the_default(preset: Preset) -> None:
    for name in PRESETS[preset]:
        default = PPOStage.model_fields[name].get_default()
        for key in (name, to_camel(name)):
            # A controller that adapts needs the target of the same preset.
            kept = {"klController": "Fixed"} if name == "kl_target" else {}
            spec = stage(**PTX, **kept, preset=preset, **{key: default})
            assert getattr(spec, name) == default, key


def test_only_what_was_written_counts_as_set() -> None:
    document = PPO | {"preset": "report", "gamma": 1.0}
    spec = PPOStage.model_validate_json(json.dumps(document), strict=True)
    assert spec.to_document() == document
    assert (spec.gamma, spec.reward_scaling) == (1.0, "RunningStd")


def test_a_strict_reader_of_json_takes_lists() -> None:
    """As kubectl's objects and files of stages hold them, with a preset and without."""
    for preset in (None, "openrlhf"):
        document = PPO | {"adamBetas": [0.8, 0.9], "stopTokens": ["."]}
        document |= {"preset": preset} if preset else {}
        spec = PPOStage.model_validate_json(json.dumps(document), strict=True)
        assert spec.adam_betas == (0.8, 0.9)


def test_a_weight_counts_only_beside_its_dataset() -> None:
    assert stage(preset="dschat").ptx_coef is None
    assert stage(**PTX, preset="dschat").ptx_coef == 27.8
    with pytest.raises(ValidationError, match="ptxCoef needs ptxDataset"):
        stage(preset="dschat", ptxCoef=27.8)


def test_rules_are_judged_on_what_the_preset_makes() -> None:
    assert stage(preset="nDetails", klController="Adaptive").kl_target == 6.0
    with pytest.raises(ValidationError, match="klController Adaptive needs klTarget"):
        stage(preset="dschat", klController="Adaptive")
    with pytest.raises(ValidationError, match="above a fifth of batchSize"):
        stage(preset="nDetails", klHorizon=6)


def test_the_unknown_is_refused() -> None:
    with pytest.raises(ValidationError, match="preset"):
        stage(preset="DSChat")


def test_no_preset_depends_on_defaults_that_may_change_or_on_the_machine() -> None:
    for preset, values in PRESETS.items():
        assert {"reward_scaling", "value_normalization"} <= values.keys(), preset
        # The API server judges minibatchSize against batchSize, and does not know this table.
        assert not {"batch_size", "minibatch_size"} & values.keys(), preset


def test_the_page_shows_the_table() -> None:
    names = get_args(Preset)
    assert tuple(PRESETS) == names
    lines = ["| field | " + " | ".join(f"`{name}`" for name in names) + " |"]
    lines += ["| --- " * (len(names) + 1) + "|"]
    for field in PPOStage.model_fields:
        if any(field in PRESETS[name] for name in names):
            cells = [_cell(PRESETS[name].get(field)) for name in names]
            lines.append(f"| `{to_camel(field)}` | " + " | ".join(cells) + " |")
    assert "\n".join(lines) in PAGE.read_text(), "\n".join(lines)


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)
