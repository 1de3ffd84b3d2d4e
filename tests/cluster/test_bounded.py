"""A server that accepts and never answers ends no test run."""

import socket
from pathlib import Path

import pytest
import yaml
from cluster import bounded
from kubernetes import client
from urllib3.exceptions import MaxRetryError


def test_a_request_that_nobody_answers_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "REQUEST_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = f"http://127.0.0.1:{silent.getsockname()[1]}"
        document = {
            "current-context": "one",
            "contexts": [{"name": "one", "context": {"cluster": "one", "user": "one"}}],
            "clusters": [{"name": "one", "cluster": {"server": server}}],
            "users": [{"name": "one", "user": {}}],
        }
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.write_text(yaml.safe_dump(document))
        with bounded.client_by(kubeconfig) as api, pytest.raises(MaxRetryError, match="timed out"):
            client.CoreV1Api(api).list_node()
