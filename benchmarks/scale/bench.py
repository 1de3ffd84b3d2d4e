"""A control plane, an operator on it, and what all parts of the benchmark do with them.

Made by `operator_scale.py`, used by `parts`.
"""

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from cluster.control_plane import ControlPlane
from cluster.kube_fixtures import Access, access_by
from operating import OperatorProcess, stage

from rlhf_api.errors import RLHFError
from rlhf_api.names import OPERATOR_NAME
from scale.api import Api, core_path
from scale.audit import AuditLog, Request, count_by_kind, is_counted_write, status_rule, within

Raw = dict[str, Any]

MEGABYTE = 1e6
POLL_SECONDS = 0.5
QUIET_SECONDS = 5.0
SETTLE_SECONDS = 120.0
START_SECONDS = 30.0

ONE_STAGE: Raw = {"sft": stage()}
THREE_STAGES: Raw = {
    "sft": stage(),
    "reward": stage(model={"fromStage": "sft"}),
    "ppo": stage(model={"fromStage": "sft"}, rewardModel={"fromStage": "reward"}),
}


class BenchmarkError(RLHFError):
    """What is measured did not come to the state in which it can be."""


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        jobs: jobs of one stage.
        rate: how many of them are created in a second.
        running: how many of them run in the part `running`.
        staged: jobs of three stages.
        rest_seconds: how long the operator is watched at rest, and with running jobs.
        namespace: of the jobs; those of three stages have a namespace beside it.
        folder: where the control plane and the operator leave their files.
    """

    jobs: int
    rate: float
    running: int
    staged: int
    rest_seconds: float
    namespace: str
    folder: Path

    @property
    def staged_namespace(self) -> str:
        """Of the jobs of three stages."""
        return f"{self.namespace}-staged"


def control_plane(options: Options) -> ControlPlane:
    """The control plane of a benchmark, whose audit log tells what `audit` reads."""
    return ControlPlane(
        options.folder / "control-plane", audit_rules=(status_rule(options.staged_namespace),)
    )


@dataclass(frozen=True)
class Use:
    """What the operator used over some time."""

    cpu: float
    rss_mb: float
    reads: int
    writes: int
    seconds: float


@dataclass
class Bench:
    """A control plane and an operator that leads."""

    options: Options
    access: Access
    plane: ControlPlane
    api: Api
    log: AuditLog
    operator: OperatorProcess | None = None
    started: float = 0.0
    """When the operator's process was started, in seconds since the epoch."""

    @classmethod
    @asynccontextmanager
    async def open(cls, options: Options, plane: ControlPlane) -> AsyncIterator["Bench"]:
        """An operator on a control plane that `control_plane` made; it ends with this."""
        access = await asyncio.to_thread(access_by, plane.kubeconfig, plane)
        async with Api.connect(plane.kubeconfig) as api:
            bench = cls(options, access, plane, api, AuditLog(plane.audit_log))
            try:
                for namespace in (options.namespace, options.staged_namespace):
                    await bench._make_namespace(namespace)
                await bench.start_operator()
                yield bench
            finally:
                await bench.stop_operator()
                bench.log.close()
                access.api.close()

    async def start_operator(self) -> None:
        """Start it and wait until it leads."""
        kubeconfig = self.plane.kubeconfig_for(OPERATOR_NAME, ("system:masters",))
        self.started = time.time()
        # All namespaces, as the chart installs it.
        self.operator = OperatorProcess(
            self.access, "default", self.options.folder, str(kubeconfig), NAMESPACES="[]"
        )
        await asyncio.to_thread(self.operator.wait_until_leading)

    async def stop_operator(self) -> None:
        """End it by SIGTERM, if it runs.

        Raises:
            BenchmarkError: it did not leave, and was killed.
        """
        if self.operator is None:
            return
        try:
            await asyncio.to_thread(self.operator.end)
        except subprocess.TimeoutExpired as error:
            await asyncio.to_thread(self.operator.end, signal.SIGKILL)
            log = self.operator.log
            raise BenchmarkError(f"the operator does not end on SIGTERM; see {log}") from error

    def requests(self) -> list[Request]:
        """All requests so far, of everyone."""
        return self.log.read()

    def operators(self, since: float, until: float = float("inf")) -> list[Request]:
        """The operator's requests that came in that time, but for those of its Lease."""
        return [
            request
            for request in within(self.requests(), since, until)
            if request.user == OPERATOR_NAME and request.resource != "leases"
        ]

    def count_created(self, resource: str, namespace: str) -> int:
        """How many objects of `resource` were made in a namespace, by whomever."""
        return sum(
            request.namespace == namespace and request.creates(resource)
            for request in self.requests()
        )

    async def create_jobs(self, names: Sequence[str], rate: float) -> None:
        """Make jobs of one stage, `rate` in a second.

        Open loop: a create does not wait for the answer to the one before.
        """
        start = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for number, name in enumerate(names):
                await asyncio.sleep(start + number / rate - time.monotonic())
                tasks.create_task(self.api.create_job(self.options.namespace, name, ONE_STAGE))

    async def until(self, check: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait until `check` holds.

        Raises:
            BenchmarkError: it does not within `seconds`, or a process has ended.
        """
        deadline = time.monotonic() + seconds
        while not check():
            self.check_processes()
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{what}: not so after {seconds:g} s; {self._refusals()}")
            await asyncio.sleep(POLL_SECONDS)

    async def until_quiet(self) -> None:
        """Wait until the operator writes nothing; one that never rests is measured as it is."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while any(map(is_counted_write, self.operators(time.time() - QUIET_SECONDS))):
            if time.monotonic() > deadline:
                tell(f"the operator still writes after {SETTLE_SECONDS:g} s; measured as it is")
                return
            await asyncio.sleep(POLL_SECONDS)

    async def use(self, seconds: float) -> Use:
        """What the operator does and uses in the next `seconds`."""
        process = self.process()
        before, since = process.cpu_times(), time.time()
        await asyncio.sleep(seconds)
        after, until = process.cpu_times(), time.time()
        rss = process.memory_info().rss
        # What was asked within the time may be answered, and logged, a moment after it.
        await asyncio.sleep(1)
        requests = self.operators(since, until)
        tell(f"in {until - since:.0f} s the operator asked for {show(requests)}")
        return Use(
            cpu=(after.user + after.system - before.user - before.system) / (until - since),
            rss_mb=rss / MEGABYTE,
            reads=sum(request.is_read for request in requests),
            writes=sum(map(is_counted_write, requests)),
            seconds=until - since,
        )

    def process(self) -> psutil.Process:
        """The operator's process."""
        if self.operator is None:
            raise BenchmarkError("the operator does not run; start it first")
        return psutil.Process(self.operator.process.pid)

    def cpu_seconds(self) -> dict[str, float]:
        """What each process has used until now: the operator, the control plane, this program."""
        control_plane = {name: each.pid for name, each in self.plane.processes.items()}
        processes = {
            "operator": self.process(),
            "benchmark": psutil.Process(),
            **{name: psutil.Process(pid) for name, pid in control_plane.items()},
        }
        times = {name: process.cpu_times() for name, process in processes.items()}
        return {name: each.user + each.system for name, each in times.items()}

    def check_processes(self) -> None:
        """See that everything runs.

        Raises:
            BenchmarkError: the operator has ended.
            RuntimeError: a part of the control plane has ended.
        """
        self.plane.check_processes()
        operator = self.operator
        if operator is not None and (code := operator.process.poll()) is not None:
            log = operator.log.read_text()[-2000:]
            raise BenchmarkError(f"the operator ended with {code}: {log}")

    async def _make_namespace(self, name: str) -> None:
        """A namespace in which pods are admitted, with the claim that the jobs name."""
        await self.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        claim = {"metadata": {"name": "runs"}, "spec": spec}
        await self.api.request("POST", core_path(name, "persistentvolumeclaims"), claim)
        # Made by a controller a moment later; the Job controller makes no pod without it.
        await self.until(
            lambda: self.count_created("serviceaccounts", name) > 0,
            START_SECONDS,
            f"namespace {name} has its service account",
        )

    def _refusals(self) -> str:
        refused = [request for request in self.requests() if request.code >= 400]
        kinds = Counter(f"{each.user}: {each.kind}: {each.code}" for each in refused)
        return f"most frequent refusals: {dict(kinds.most_common(5))}"


def show(requests: Iterable[Request]) -> str:
    """How many requests of each kind, in words."""
    counts = count_by_kind(requests).most_common()
    return ", ".join(f"{number} {kind}" for kind, number in counts) or "nothing"


def tell(text: str) -> None:
    """A line of progress."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()
