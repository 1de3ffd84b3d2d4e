"""What the main value sets are rendered to, kept so that a review sees every change.

`PYTHONPATH=tests .venv/bin/python -m chart_renders` writes them anew.
"""

from typing import Any

import pytest
from chart_renders import CHART, SETS, golden, identity_of, kept_golden, leaves, values_of

from rlhf_api.loading import read_yaml


def test_there_are_sets() -> None:
    assert {"default", "everything", "namespaced", "openshift", "own-accounts"} <= set(SETS)


def value_at(values: dict[str, Any], path: str, default: Any) -> Any:
    found: Any = values
    for name in path.split("."):
        if found is None:
            return None
        if name not in found:
            return default
        found = found[name]
    return found


def test_every_value_is_changed_in_a_set() -> None:
    (defaults,) = read_yaml(CHART / "values.yaml")
    sets = [each for name in SETS for each in read_yaml(values_of(name))]
    kept = {
        path
        for path, default in leaves(defaults)
        if all(value_at(each, path, default) == default for each in sets)
    }
    # test_alert_templates.py changes those of each alert.
    # The Pod Security Standard that a namespace may be held to asks for these.
    restricted = {"allowPrivilegeEscalation", "capabilities.drop"}
    expected = {f"securityContext.{name}" for name in restricted}
    assert {path for path in kept if not path.startswith("prometheusRule.alerts.")} == expected


@pytest.mark.parametrize("major", [3, 4])
@pytest.mark.parametrize("name", SETS)
def test_a_set_is_rendered_as_it_was(major: int, name: str) -> None:
    found = {identity_of(each): each for each in golden(major, name)}
    expected = {identity_of(each): each for each in kept_golden(name)}
    assert sorted(found) == sorted(expected)
    assert found == expected
