"""A status is read leniently, since a newer release may have written it; a spec is not."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from rlhf_api.names import ConditionType, Phase, Reason, StageState
from rlhf_api.v1alpha1 import (
    Artifact,
    Condition,
    Progress,
    RLHFJobStatus,
    StageArtifact,
    StageStatus,
    StageStatuses,
    Summary,
)

DIGEST = "sha256:" + "0" * 64
ARTIFACT = {"uri": "a", "digest": DIGEST}
CONDITION = {
    "type": "Running",
    "status": "True",
    "reason": "PodsReady",
    "message": "",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}


@pytest.mark.parametrize(
    ("model", "document"),
    [
        (RLHFJobStatus, {}),
        (StageStatuses, {}),
        (Summary, {}),
        (StageStatus, {"state": "Running"}),
        (Progress, {"step": 1, "totalSteps": 2, "percent": 50}),
        (StageArtifact, ARTIFACT),
        (Condition, CONDITION),
    ],
)
def test_unknown_fields_are_kept(model: Any, document: dict[str, Any]) -> None:
    spare = {"spareField": {"deep": [1, None, "x"]}}
    read: BaseModel = model.model_validate(document | spare)
    assert read.model_dump(mode="json", by_alias=True)["spareField"] == spare["spareField"]
    assert read == model.model_validate(read.model_dump(mode="json", by_alias=True))
    assert read != model.model_validate(document)


@pytest.mark.parametrize(
    ("model", "field", "document", "known"),
    [
        (RLHFJobStatus, "phase", {}, Phase.RUNNING),
        (StageStatus, "state", {}, StageState.RUNNING),
        (StageStatus, "reason", {"state": "Running"}, Reason.PODS_READY),
        (Condition, "type", CONDITION, ConditionType.RUNNING),
        (Condition, "reason", CONDITION, Reason.PODS_READY),
    ],
)
def test_words_are_of_the_vocabulary_where_it_has_them(
    model: Any, field: str, document: dict[str, Any], known: Any
) -> None:
    for given, expected in ((known.value, known), ("Thawing", "Thawing")):
        read = getattr(model.model_validate(document | {field: given}), field)
        assert (read, type(read)) == (expected, type(expected))


def test_an_artifact_of_a_configuration_is_read_strictly() -> None:
    with pytest.raises(ValidationError, match="size"):
        Artifact.model_validate(ARTIFACT | {"size": 1})


@pytest.mark.parametrize("document", [{"stages": {"sft": {}}}, {"idleSeconds": -1}])
def test_what_is_known_is_still_checked(document: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RLHFJobStatus.model_validate(document)
