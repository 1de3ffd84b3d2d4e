"""A server that accepts and never answers, and a program that does not end, end no test run."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import yaml
from cluster import bounded
from cluster.sandbox_exec import follow
from kubernetes import client
from urllib3.exceptions import MaxRetryError
from waiting import eventually


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


def test_a_program_that_does_not_end_is_killed_and_said_to_be() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        status, killed = follow(process.pid, 0.1)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert (process.returncode, killed) == (-signal.SIGKILL, True)


def test_a_program_that_ends_in_time_is_not_killed() -> None:
    with subprocess.Popen(["sh", "-c", "exit 3"]) as process:
        status, killed = follow(process.pid, 60.0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert (process.returncode, killed) == (3, False)


def test_what_is_waited_for_in_vain_is_quoted() -> None:
    quoted = (
        r'test_bounded\.py:\d+: eventually\(lambda: "this" == "that", 0\): still False after 0 s'
    )
    with pytest.raises(AssertionError, match=quoted):
        eventually(lambda: "this" == "that", 0)
    with pytest.raises(AssertionError, match=r"the end: still \[\] after 0 s"):
        eventually(list, 0, what="the end")
