"""What /healthz and /readyz say, as tables on a clock of the tests' own."""

import asyncio
import gzip
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aiohttp
import pytest

from rlhf_api.errors import ConfigError
from rlhf_operator.health import PASS_SECONDS, WATCH_LAG_SECONDS, Health, served
from rlhf_operator.metrics import QUEUE_AGE
from rlhf_operator.work_queue import WorkQueue

RESYNC = 300.0
STALE = 2 * RESYNC + WATCH_LAG_SECONDS
CRD = "the CRD rlhfjobs.rlhf.dev is not installed; apply crds/rlhfjobs.yaml"
UNFILLED = "the store is not filled yet"

Step = Callable[["Trial"], Any]


class Queue(WorkQueue):
    """A queue whose longest pass is said by the test."""

    longest = 0.0

    def oldest_pass(self) -> float:
        return self.longest


class Trial:
    """The health of a process, and its clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.queue = Queue()
        self.health = Health(self.queue, RESYNC, clock=lambda: self.now)


def wait(seconds: float) -> Step:
    def step(trial: Trial) -> None:
        trial.now += seconds

    return step


def leads(trial: Trial) -> None:
    trial.health.leads = True


def begins(namespace: str = "a") -> Step:
    return lambda trial: trial.health.begins(namespace)


def filled(namespace: str = "a") -> Step:
    return lambda trial: trial.health.filled(namespace)


def listed(version: int = 10, namespace: str = "a", **jobs: int) -> Step:
    return lambda trial: trial.health.compare(namespace, jobs, version)


def seen(uid: str, version: int, namespace: str = "a") -> Step:
    return lambda trial: trial.health.seen(namespace, uid, version)


def missing(namespace: str = "a") -> Step:
    return lambda trial: trial.health.complains(namespace, "it does not exist", missing=True)


def fails(complaint: str = CRD, namespace: str = "a") -> Step:
    return lambda trial: trial.health.complains(namespace, complaint)


def answered(problem: str = "") -> Step:
    def step(trial: Trial) -> None:
        trial.health.served, trial.health.problem = not problem, problem

    return step


def passes_for(seconds: float) -> Step:
    def step(trial: Trial) -> None:
        trial.queue.longest = seconds

    return step


START = (leads, begins(), listed(), filled())
LATE = WATCH_LAG_SECONDS + 1
BEHIND = "the watch of namespace a is behind"


def after(steps: Sequence[Step]) -> Health:
    trial = Trial()
    for step in steps:
        step(trial)
    return trial.health


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        pytest.param((*START, wait(RESYNC)), "", id="at rest"),
        pytest.param(
            (*START, seen("j", 5), listed(j=9), wait(0.001), seen("j", 9), wait(LATE)),
            "",
            id="the event comes a millisecond after the LIST",
        ),
        pytest.param(
            (*START, listed(j=9), seen("j", 11), wait(LATE)), "", id="a newer event comes"
        ),
        pytest.param(
            (*START, listed(j=9), seen("j", 8), wait(LATE)), BEHIND, id="an older event comes"
        ),
        pytest.param(
            (*START, listed(j=9), seen("k", 9), wait(LATE)), BEHIND, id="another job's event"
        ),
        pytest.param((*START, listed(j=9), wait(LATE - 2)), "", id="behind for a moment"),
        pytest.param((*START, listed(j=9), wait(LATE)), BEHIND, id="really behind"),
        pytest.param(
            (*START, listed(j=9), wait(LATE / 2), listed(j=12, version=12), wait(LATE / 2 + 1)),
            BEHIND,
            id="behind from LIST to LIST",
        ),
        pytest.param(
            (*START, listed(j=9), wait(LATE), listed(version=20)), "", id="gone in the next LIST"
        ),
        pytest.param(
            # The deletion is told before the LIST that still shows the job comes in.
            (*START, seen("j", 12), listed(j=9, version=11), wait(LATE)),
            "",
            id="deleted while it was listed",
        ),
        pytest.param(
            # Made after the first LIST, seen before that LIST comes in, and never changed.
            (*START, seen("j", 12), listed(version=11), listed(j=12, version=20), wait(LATE)),
            "",
            id="made while others were listed",
        ),
        pytest.param(
            (*START, begins("b"), filled("b"), listed(j=9), seen("j", 9, "b"), wait(LATE)),
            BEHIND,
            id="seen by another watch",
        ),
        pytest.param((*START, listed(j=9), wait(LATE), begins()), "", id="the watch is begun anew"),
        pytest.param((*START, wait(STALE + 1)), "no LIST of namespace a has come", id="no LIST"),
        pytest.param(
            (leads, begins(""), listed(namespace=""), filled(""), wait(STALE + 1)),
            "no LIST has come",
            id="no LIST of all namespaces",
        ),
        pytest.param(
            (answered(), wait(100 * STALE), *START), "", id="leads after a long time as standby"
        ),
        pytest.param((begins(), listed(j=9), wait(STALE + 1)), "", id="a standby"),
        pytest.param((*START, passes_for(PASS_SECONDS + 1)), "a pass does not end", id="a pass"),
        pytest.param((*START, passes_for(PASS_SECONDS - 1)), "", id="a long pass"),
        pytest.param((*START, missing(), wait(10 * STALE)), "", id="the namespace is missing"),
        pytest.param(
            (*START, listed(j=9), missing(), wait(LATE)), "", id="missing with a job that was late"
        ),
        pytest.param(
            (*START, begins("b"), filled("b"), missing("b"), listed(j=9), wait(LATE)),
            BEHIND,
            id="behind beside a missing one",
        ),
        pytest.param((*START, fails(), wait(10 * STALE)), "", id="no CRD: a restart helps nobody"),
    ],
)
def test_healthz(steps: Sequence[Step], complaint: str) -> None:
    found = after(steps).complaint()
    assert found.startswith(complaint) if complaint else not found


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        pytest.param((), "the API server has not answered yet", id="a standby, nothing known"),
        pytest.param((answered(),), "", id="a standby, the CRD is served"),
        pytest.param((answered(CRD),), CRD, id="a standby, no CRD"),
        pytest.param((answered(), answered(CRD)), CRD, id="a standby, the CRD is gone"),
        pytest.param((answered(), leads), UNFILLED, id="leads, no watch yet"),
        pytest.param((leads, begins()), UNFILLED, id="begun"),
        pytest.param((*START,), "", id="filled"),
        pytest.param((*START, begins("b")), UNFILLED, id="one of two is filled"),
        pytest.param((*START, begins("b"), filled("b")), "", id="both are filled"),
        pytest.param((*START, missing("b")), "", id="the second is missing"),
        pytest.param(
            (*START, fails("the watcher has ended"), missing()), "", id="ended, and then missing"
        ),
        pytest.param((leads, missing(), begins("b"), filled("b")), "", id="the first is missing"),
        pytest.param((leads, missing()), "", id="the only one is missing"),
        pytest.param((leads, missing(), begins()), "", id="back, not filled yet"),
        pytest.param((leads, missing(), begins("b")), UNFILLED, id="missing, other not filled"),
        pytest.param((*START, fails()), CRD, id="the CRD is gone"),
        pytest.param((answered(), leads, fails()), CRD, id="the CRD was never there"),
        pytest.param((*START, fails(), begins()), CRD, id="the CRD is back, not filled yet"),
        pytest.param((*START, fails(), begins(), filled()), "", id="the CRD is back"),
        pytest.param((leads, missing("b"), fails()), CRD, id="no CRD beside a missing one"),
    ],
)
def test_readyz(steps: Sequence[Step], complaint: str) -> None:
    assert after(steps).unready() == complaint


def page(
    looks: Sequence[Callable[[], None]] = (), **headers: str
) -> tuple[Mapping[str, str], bytes]:
    """Headers and body of /metrics, as they come over the wire."""

    async def run() -> tuple[Mapping[str, str], bytes]:
        health = Health(WorkQueue(), RESYNC)
        health.looks += looks
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        async with (
            served(health, 0) as port,
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.get(f"http://127.0.0.1:{port}/metrics", headers=given) as answer,
        ):
            assert answer.status == 200
            return answer.headers, await answer.read()

    return asyncio.run(asyncio.wait_for(run(), 30))


def test_metrics_are_served_plain_and_compressed() -> None:
    headers, plain = page(Accept_Encoding="identity")
    assert "Content-Encoding" not in headers
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert b"\nrlhf_operator_build_info{version=" in plain
    headers, body = page(Accept_Encoding="gzip, deflate")
    assert headers["Content-Encoding"] == "gzip"
    assert b"\nrlhf_operator_queue_age_seconds 0.0\n" in gzip.decompress(body)


def test_metrics_are_served_in_the_format_that_is_asked_for() -> None:
    headers, body = page(
        Accept="application/openmetrics-text; version=1.0.0", Accept_Encoding="identity"
    )
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert b"\n# EOF\n" in body


def test_what_is_worked_out_on_request_is_set_before_it_is_told() -> None:
    _, body = page([lambda: QUEUE_AGE.set(17.5)], Accept_Encoding="identity")
    assert b"\nrlhf_operator_queue_age_seconds 17.5\n" in body


def test_a_port_that_is_taken_is_named() -> None:
    async def run(port: int) -> None:
        async with served(Health(WorkQueue(), RESYNC), port):
            pass

    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"RLHF_OPERATOR_PORT: is {port}, .* in use") as told:
            asyncio.run(asyncio.wait_for(run(port), 30))
    assert str(told.value).endswith("; free it, or set another one")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_a_port_is_the_same_for_ipv4_and_ipv6() -> None:
    async def run() -> None:
        async with served(Health(WorkQueue(), RESYNC), 0) as port:
            for host in ("127.0.0.1", "::1"):
                _, writer = await asyncio.open_connection(host, port)
                writer.close()
                await writer.wait_closed()

    asyncio.run(asyncio.wait_for(run(), 30))
