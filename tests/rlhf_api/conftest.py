"""An RLHFJob as people write it, and changes to it by path."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

REMOVED = object()
"""Stands for a field that is left out, in the changes given to `make_document`."""

_DATASET = {"uri": "file://rows.jsonl"}
_DOCUMENT: dict[str, Any] = {
    "apiVersion": "rlhf.dev/v1alpha1",
    "kind": "RLHFJob",
    "metadata": {"name": "reviews"},
    "spec": {
        "stages": {
            "sft": {"model": {"uri": "hf://org/base"}, "dataset": _DATASET},
            "reward": {"model": {"fromStage": "sft"}, "dataset": _DATASET},
            "ppo": {
                "model": {"fromStage": "sft"},
                "rewardModel": {"fromStage": "reward"},
                "dataset": _DATASET,
            },
        }
    },
}

MakeDocument = Callable[[Mapping[str, Any]], dict[str, Any]]


def changed(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The document with each `path.to.field` set, objects on the way made as needed."""
    document: dict[str, Any] = json.loads(json.dumps(_DOCUMENT))
    for path, value in changes.items():
        *parents, last = path.split(".")
        current = document
        for parent in parents:
            current = current.setdefault(parent, {})
        if value is REMOVED:
            current.pop(last, None)
        else:
            current[last] = value
    return document


@pytest.fixture
def make_document() -> MakeDocument:
    return changed


@pytest.fixture
def removed() -> object:
    return REMOVED
