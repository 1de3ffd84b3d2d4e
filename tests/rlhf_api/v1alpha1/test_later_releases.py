"""What this release makes of files that a later one writes, whose stages have more fields."""

from typing import Any

import pytest

from rlhf_api.errors import ConfigError
from rlhf_api.v1alpha1 import SFTStage, StageConfig


def document(spec: dict[str, Any], **config: Any) -> dict[str, Any]:
    base = {"model": {"uri": "hf://org/base"}, "dataset": {"uri": "file://rows.jsonl"}}
    return {
        "job": {"name": "reviews", "uid": "0b5c1c4e-8f57"},
        "stage": "sft",
        "attempt": 1,
        "storage": "/runs",
        "sft": base | spec,
    } | config


class LaterSFTStage(SFTStage):
    """As a later release may have it."""

    label_smoothing: float = 0.0
    """A field that is not known here."""


class LaterStageConfig(StageConfig):
    """As a later release may have it."""

    sft: LaterSFTStage | None = None
    """With one field more."""
    profile_steps: int = 0
    """Another one."""


def test_a_later_field_at_its_default_changes_neither_digest_nor_file() -> None:
    config = StageConfig.model_validate(document({})).with_digest()
    later = LaterStageConfig.model_validate(
        document({"labelSmoothing": 0.0}, profileSteps=0)
    ).with_digest()
    assert later.config_digest == config.config_digest
    assert StageConfig.from_json(later.to_json()) == config


def test_a_later_field_that_is_set_is_refused_by_name() -> None:
    set_there = document({"labelSmoothing": 0.1})
    later = LaterStageConfig.model_validate(set_there).with_digest()
    assert later.config_digest != StageConfig.model_validate(document({})).digest()
    with pytest.raises(ConfigError, match=r"sft\.labelSmoothing: is unknown"):
        StageConfig.from_json(later.to_json())
