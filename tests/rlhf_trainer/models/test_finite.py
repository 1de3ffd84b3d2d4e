"""Weights that are no numbers are found, and named."""

import math

import pytest
import torch

from rlhf_trainer.models.finite import spoilt_weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_each_element_counts(dtype: torch.dtype, value: float) -> None:
    largest = torch.finfo(dtype).max
    good = torch.full((2, 3), largest, dtype=dtype)
    bad = good.clone()
    bad[1, 2] = value
    whole = {"a": good, "none": torch.empty(0, dtype=dtype), "b": torch.ones(2)}
    assert spoilt_weights(whole) == []
    assert spoilt_weights({}) == []
    assert spoilt_weights(whole | {"a": bad}) == ["a"]
    assert spoilt_weights(whole | {"a": bad, "b": bad}) == ["a", "b"]


@pytest.mark.parametrize(("elements", "found"), [(5, ["cut"]), (4, [])])
def test_what_fills_up_a_part_does_not_count(elements: int, found: list[str]) -> None:
    parameter = torch.nn.Parameter(torch.empty(0))
    parameter.ds_tensor = torch.tensor([[1.0, 2.0, 3.0], [4.0, math.nan, math.inf]])  # type: ignore[attr-defined]
    parameter.ds_numel = elements  # type: ignore[attr-defined]
    assert spoilt_weights({"cut": parameter}) == found
