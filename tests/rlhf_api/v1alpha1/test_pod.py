"""Quantities, labels and names as Kubernetes writes them."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from rlhf_api.v1alpha1.pod import MAX_GPUS, EnvName, LabelKey, LabelValue, Quantity, Resources


@pytest.mark.parametrize(
    "text", ["8", "0.5", "500m", "16Gi", "1e3", "1E-6", "1e99", ".5", "+1", "2k"]
)
def test_quantities(text: str) -> None:
    assert TypeAdapter(Quantity).validate_python(text, strict=True) == text


@pytest.mark.parametrize(
    "value", ["", "8 Gi", "1ki", "1.2.3", "1e100", "1e-999999", 0.5, True, None, [1]]
)
def test_no_quantities(value: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Quantity).validate_python(value, strict=True)


def test_integers_become_text() -> None:
    resources = Resources.model_validate_json('{"limits": {"nvidia.com/gpu": 8}}', strict=True)
    assert resources.to_document() == {"limits": {"nvidia.com/gpu": "8"}}


@pytest.mark.parametrize(
    ("limits", "gpus"),
    [
        (None, 0),
        ({"memory": "64Gi", "cpu": "8"}, 0),
        ({"nvidia.com/gpu": "8", "memory": "64Gi"}, 8),
        ({"nvidia.com/gpu": "0"}, 0),
        ({"nvidia.com/gpu": "-1"}, 0),
        ({"amd.com/gpu": "2"}, 2),
        ({"vendor.example/gpu": "1"}, 1),
        ({"gpu.intel.com/i915": "1"}, 1),
        ({"nvidia.com/gpu.shared": "2"}, 2),
        ({"nvidia.com/mig-1g.5gb": "1"}, 1),
        ({"nvidia.com/gpu": "1", "nvidia.com/gpumem": "8000", "nvidia.com/gpucores": "30"}, 1),
        ({"aliyun.com/gpu-mem": "16", "gpu": "4"}, 0),
        ({"nvidia.com/gpu": "2000m"}, 2),
        ({"nvidia.com/gpu": "1e1"}, 10),
        ({"nvidia.com/gpu": "1k"}, 1000),
        ({"nvidia.com/gpu": "1e-99"}, 1),
        ({"nvidia.com/gpu": "1e99"}, MAX_GPUS),
        ({"nvidia.com/gpu": "-1e99"}, 0),
        ({"nvidia.com/gpu": "9" * 64, "amd.com/gpu": "9" * 63 + "k"}, MAX_GPUS),
    ],
)
def test_gpus_of_the_limits(limits: dict[str, str] | None, gpus: int) -> None:
    assert Resources(limits=limits, requests={"nvidia.com/gpu": "9"}).gpus == gpus


def test_gpus_beyond_counting_are_counted_at_once() -> None:
    """An object that an older CRD let through has no room to stop the operator."""
    resources = Resources.model_construct(limits={"nvidia.com/gpu": "1e999999"})
    assert resources.gpus == MAX_GPUS


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
