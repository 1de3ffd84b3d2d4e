"""What `helm test` runs: the program in the pod, against a server that answers so or otherwise."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from chart_renders import of_kind, rendered
from cluster.control_plane import free_port

from rlhf_operator.health import Health, served
from rlhf_operator.work_queue import WorkQueue

SECONDS = 60


def run_pod(url: str, patience: str = "0") -> subprocess.CompletedProcess[str]:
    """The pod's container as a process."""
    (pod,) = of_kind(rendered(4), "Pod")
    (container,) = pod["spec"]["containers"]
    program, *command = container["command"]
    assert program == "python"
    assert container["args"] == ["http://demo-rlhf-operator-metrics.ops.svc:8080", "60"]
    return subprocess.run(
        [sys.executable, *command, url, patience],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


@contextmanager
def answering(answers: dict[str, list[tuple[int, str]]]) -> Iterator[str]:
    """A server that gives its answers for a path one after the other, the last one for ever."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            left = answers[self.path]
            status, text = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(SECONDS)
        server.server_close()


def test_the_real_endpoint_passes() -> None:
    async def run() -> subprocess.CompletedProcess[str]:
        health = Health(WorkQueue(), 300)
        health.served = True
        async with served(health, free_port()) as port:
            return await asyncio.to_thread(run_pod, f"http://127.0.0.1:{port}")

    done = asyncio.run(run())
    assert done.returncode == 0, done.stderr


def test_it_waits_until_the_operator_is_ready() -> None:
    metrics = "# TYPE rlhf_operator_leader gauge\nrlhf_operator_leader 1\n"
    ready = [(500, "the store is not filled yet")] * 2 + [(200, "ok")]
    with answering({"/readyz": ready, "/metrics": [(200, metrics)]}) as url:
        done = run_pod(url, str(SECONDS))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("ready", "metrics", "told"),
    [
        ((500, "not yet"), (200, ""), "/readyz: HTTP Error 500"),
        ((200, "ok"), (200, "up 1\n"), "/metrics: tells no metric of the operator"),
    ],
)
def test_it_fails_with_a_sentence(
    ready: tuple[int, str], metrics: tuple[int, str], told: str
) -> None:
    with answering({"/readyz": [ready], "/metrics": [metrics]}) as url:
        done = run_pod(url)
    assert done.returncode == 1
    assert told in done.stderr


def test_nobody_there_is_told() -> None:
    done = run_pod("http://127.0.0.1:9")
    assert done.returncode == 1
    assert "look at the operator's pod and its log" in done.stderr
