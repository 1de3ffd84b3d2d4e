"""Quantities, labels and names as Kubernetes writes them."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from rlhf_api.v1alpha1.pod import EnvName, LabelKey, LabelValue, Quantity, Resources


@pytest.mark.parametrize("text", ["8", "0.5", "500m", "16Gi", "1e3", "1E6", ".5", "5.", "+1", "2k"])
def test_quantities(text: str) -> None:
    assert TypeAdapter(Quantity).validate_python(text, strict=True) == text


@pytest.mark.parametrize("value", ["", "8 Gi", "eight", "1ki", "1.2.3", 0.5, True, None, [1]])
def test_no_quantities(value: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Quantity).validate_python(value, strict=True)


def test_integers_become_text() -> None:
    resources = Resources.model_validate_json('{"limits": {"nvidia.com/gpu": 8}}', strict=True)
    assert resources.to_document() == {"limits": {"nvidia.com/gpu": "8"}}


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (EnvName, ["A", "_a.b-c", "a1"], ["", "1a", "a b", "a=b"]),
        (LabelKey, ["team", "a.b/c_d.e", "A"], ["", "/a", "A.b/c", "a/b/c", "-a", "a" * 64]),
        (LabelValue, ["", "a", "A_b.c-1"], ["-a", "a b", "a" * 64]),
    ],
)
def test_names(kind: Any, good: list[str], bad: list[str]) -> None:
    adapter: TypeAdapter[str] = TypeAdapter(kind)
    for text in good:
        assert adapter.validate_python(text) == text
    for text in bad:
        with pytest.raises(ValidationError):
            adapter.validate_python(text)
