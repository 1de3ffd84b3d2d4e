"""Tests that need nodes are left out, or fail, where no sandbox is."""

import pytest
from cluster.kube_fixtures import EXISTING, require_sandbox
from cluster.sandbox import INSIDE


@pytest.mark.parametrize(
    ("variables", "outcome", "words"),
    [
        ({}, pytest.skip.Exception, "make end-to-end"),
        ({"CI": "true"}, pytest.fail.Exception, "make end-to-end"),
        ({EXISTING: "a.yaml"}, pytest.skip.Exception, EXISTING),
        ({"CI": "true", EXISTING: "a.yaml"}, pytest.skip.Exception, EXISTING),
    ],
)
def test_nodes_without_a_sandbox(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    outcome: type[BaseException],
    words: str,
) -> None:
    for name in ("CI", EXISTING, INSIDE):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(outcome, match=words):
        require_sandbox()
