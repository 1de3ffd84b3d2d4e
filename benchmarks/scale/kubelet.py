"""The kubelet's part on a cluster without nodes: pods that run, are reached and end.

Each running pod has a loopback address of its own, on which its metrics are really served.
"""

import asyncio
import itertools
import random
import resource
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from rlhf_api.errors import RLHFError
from rlhf_api.metrics import Metric, MetricLabel, metric_name
from rlhf_api.names import Label, Port, Reason, StageName
from rlhf_api.v1alpha1 import Artifact, StageResult
from scale.api import Api

Raw = dict[str, Any]

STEPS_PER_SECOND = 10
"""So many that a step tells the time at which it was true to a tenth of a second."""
TOTAL_STEPS = 10_000_000
PATCHES_AT_ONCE = 10
FILES = 20_000
IMAGE = "registry.test/trainer:1"

_OTHER_METRICS = {
    Metric.LOSS: 1.75,
    Metric.LEARNING_RATE: 9.65e-6,
    Metric.GRADIENT_NORM: 0.8,
    Metric.TOKENS_PER_SECOND: 5120.0,
    Metric.SAMPLES_PER_SECOND: 12.5,
    Metric.STEP_SECONDS: 1 / STEPS_PER_SECOND,
}


class AddressTakenError(RLHFError):
    """A pod's metrics cannot be served."""


@dataclass
class Endpoints:
    """What the pods that run serve on `Port.METRICS`; all began at the same moment.

    Attributes:
        began: when step 0 was true, in seconds since the epoch.
        answers: how many times anyone has asked.
    """

    runner: web.AppRunner
    began: float = field(default_factory=time.time)
    answers: int = 0
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    # A network by chance, so that two runs on one machine do not meet.
    _addresses: Iterable[str] = field(default_factory=lambda: _addresses(random.randint(10, 250)))

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator["Endpoints"]:
        """Endpoints that end together."""
        # A socket for each pod, and one for each question.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(FILES, hard)), hard))
        application = web.Application()
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        endpoints = cls(runner)
        application.router.add_get("/metrics", endpoints._answer)
        await runner.setup()
        try:
            yield endpoints
        finally:
            await runner.cleanup()

    async def add(self, pod: Raw) -> str:
        """Serve a pod's metrics; gives the address.

        Raises:
            AddressTakenError: something else listens there.
        """
        address = next(iter(self._addresses))
        found = pod["metadata"]["labels"]
        self.labels[address] = {
            MetricLabel.JOB: found[Label.JOB],
            MetricLabel.STAGE: found[Label.STAGE],
            MetricLabel.ATTEMPT: found[Label.ATTEMPT],
        }
        try:
            await web.TCPSite(self.runner, address, Port.METRICS).start()
        except OSError as error:
            raise AddressTakenError(
                f"{address}:{Port.METRICS} cannot be opened ({error}); end what listens on "
                f"port {Port.METRICS} of this machine"
            ) from error
        return address

    def age(self, step: int, now: float) -> float:
        """How many seconds ago a step was the newest."""
        return now - self.began - step / STEPS_PER_SECOND

    async def _answer(self, request: web.Request) -> web.Response:
        self.answers += 1
        transport = request.transport
        address = transport.get_extra_info("sockname")[0] if transport is not None else ""
        text = exposition(self.labels[address], time.time() - self.began)
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4"})


def exposition(labels: dict[str, str], seconds: float) -> str:
    """What a trainer serves that has run for `seconds`, in Prometheus' text format."""
    step = int(seconds * STEPS_PER_SECOND)
    values = {
        Metric.STEP: step,
        Metric.TOTAL_STEPS: TOTAL_STEPS,
        Metric.PROGRESS: step / TOTAL_STEPS,
        Metric.ETA: (TOTAL_STEPS - step) / STEPS_PER_SECOND,
        **_OTHER_METRICS,
    }
    inside = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return "".join(
        f"# TYPE {metric_name(metric)} gauge\n{metric_name(metric)}{{{inside}}} {value}\n"
        for metric, value in values.items()
    )


async def run_pods(api: Api, endpoints: Endpoints, pods: Iterable[Raw]) -> None:
    """Let pods run and be ready, each with an address of its own."""
    limit = asyncio.Semaphore(PATCHES_AT_ONCE)

    async def run(pod: Raw) -> None:
        async with limit:
            await run_pod(api, endpoints, pod)

    async with asyncio.TaskGroup() as tasks:
        for pod in pods:
            tasks.create_task(run(pod))


async def run_pod(api: Api, endpoints: Endpoints, pod: Raw) -> None:
    """Let a pod run and be ready."""
    address = await endpoints.add(pod)
    state = {"running": {"startedAt": _now()}}
    status = _status("Running", state, ready=True)
    await api.patch_pod_status(pod, status | {"podIP": address, "podIPs": [{"ip": address}]})


async def finish_pod(api: Api, pod: Raw, job: Raw) -> None:
    """Let a pod end well, with the result that `job`, as it is now, waits for."""
    labels = pod["metadata"]["labels"]
    message = result(job, StageName(labels[Label.STAGE]), int(labels[Label.ATTEMPT]))
    ended = {"exitCode": 0, "reason": "Completed", "finishedAt": _now(), "message": message}
    await api.patch_pod_status(pod, _status("Succeeded", {"terminated": ended}, ready=False))


def result(job: Raw, stage: StageName, attempt: int) -> str:
    """The termination message of an attempt that is done."""
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    folder = f"{name}-{uid[:8]}/{stage}/attempt-{attempt}/artifact"
    return StageResult(
        stage=stage,
        attempt=attempt,
        config_digest=job["status"]["stages"][stage]["configDigest"],
        exit_code=0,
        reason=Reason.FINISHED,
        message="done",
        step=TOTAL_STEPS,
        total_steps=TOTAL_STEPS,
        artifact=Artifact(uri=folder, digest="sha256:" + "a" * 64),
    ).to_message()


def _status(phase: str, state: Raw, *, ready: bool) -> Raw:
    container = {
        "name": "trainer",
        "image": IMAGE,
        "imageID": "",
        "ready": ready,
        "restartCount": 0,
        "state": state,
    }
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": _now()},
        {"type": "Ready", "status": str(ready), "lastTransitionTime": _now()},
    ]
    return {
        "phase": phase,
        "startTime": _now(),
        "containerStatuses": [container],
        "conditions": conditions,
    }


def _addresses(network: int) -> Iterable[str]:
    """Loopback addresses of one of this machine's own networks."""
    return (f"127.{network}.{number >> 8}.{number & 255}" for number in itertools.count(1))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
