"""docs/spec.md has every field once, with what kubectl explain says of it."""

import re

from rlhf_api.reference import spec_reference
from rlhf_api.schema import resource_schema


def test_every_object_has_its_table() -> None:
    headings = re.findall(r"^## `(.+)`$", spec_reference(), re.MULTILINE)
    assert headings[0] == "spec"
    assert "spec.stages.ppo.model.scratch" in headings
    assert "spec.template.volumes[].emptyDir" in headings
    assert "status.conditions[]" in headings
    assert len(headings) == len(set(headings))


def test_rows_say_bounds_default_and_need() -> None:
    text = spec_reference()
    assert "| `clipRange` | number, > 0, <= 10 | Largest change" in text
    assert "| **`stages`** | object |" in text
    assert "| `precision` | `BF16` or `FP32` |" in text
    assert "| `adamBetas` | list of number, >= 0, < 1, exactly 2 |" in text
    assert "Default: [0.9, 0.95]. |" in text
    assert "| `limits` | map of quantity |" in text


def test_rules_are_listed_once_by_message() -> None:
    rules = resource_schema()["properties"]["spec"]["x-kubernetes-validations"]
    text = spec_reference()
    assert all(f"- {rule['message']}\n" in text for rule in rules)
