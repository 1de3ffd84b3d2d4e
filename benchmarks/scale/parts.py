"""The parts of the benchmark, in the order in which they run; each gives figures by name.

They share one control plane: jobs that an earlier part made stay, and a later part makes those that
it lacks.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from rlhf_api.names import PLURAL, ConditionType, Label, StageState
from scale.api import core_path, jobs_path
from scale.audit import (
    is_counted_write,
    job_of_child,
    seconds_to_child,
    within,
    without_progress,
)
from scale.bench import POLL_SECONDS, THREE_STAGES, Bench, BenchmarkError, show, tell
from scale.figures import Figures, percentile, rate_of, spread
from scale.kubelet import Endpoints, finish_pod, run_pods

Raw = dict[str, Any]

NEW_JOBS = 10
"""Jobs that are made among running ones, and while the operator is down."""
NEW_JOB_RATE = 2.0
SETTLE_RATE = 2.0
"""Children a second below which something is wrong, not slow."""
PATIENCE = 60.0
REPORTING_SECONDS = 3.0
STAGE_SECONDS = 2.0
"""How long a stage runs at least, in the part `staged`."""
SAMPLE_SECONDS = 10.0
"""Rarely, since each sample is a LIST of all jobs."""
# They would try for minutes to write the pods' loopback addresses, which the API server refuses.
RUNNING_CONTROLLERS = "*,-endpoints-controller,-endpointslice-controller"


async def staged(bench: Bench) -> Figures:
    """Writes of the operator for a job of three stages from its create to its end."""
    number, namespace = bench.options.staged, bench.options.staged_namespace
    tell(f"staged: {number} jobs of three stages run to their end")
    since = time.time()
    for index in range(number):
        await bench.api.create_job(namespace, f"staged-{index}", THREE_STAGES)
    async with Endpoints.open() as endpoints:
        await _play(bench, endpoints)
    await bench.until_quiet()
    own = [r for r in bench.operators(since) if r.namespace == namespace]
    writes = [request for request in own if is_counted_write(request)]
    counted = list(without_progress(writes))
    tell(f"writes of {number} jobs, without progress: {show(counted)}")
    return {
        "staged_jobs": number,
        "writes_per_job": round(len(counted) / number, 2),
        "progress_writes_per_job": round((len(writes) - len(counted)) / number, 2),
        "reads_per_job": round(sum(request.is_read for request in own) / number, 2),
    }


async def apply(bench: Bench) -> Figures:
    """Time from a job's create to its child, while many are created."""
    options = bench.options
    tell(f"apply: {options.jobs} jobs of one stage, {options.rate:g} in a second")
    since, before = time.time(), bench.cpu_seconds()
    names = [f"apply-{index}" for index in range(options.jobs)]
    await bench.create_jobs(names, options.rate)
    created = bench.cpu_seconds()
    await _until_children(bench, options.jobs)
    requests = within(bench.requests(), since)
    own = bench.operators(since)
    tell(f"the operator asked for {show(own)}")
    waits = seconds_to_child(requests, options.namespace)
    creates = [each for each in requests if each.creates(PLURAL)]
    seconds = options.jobs / options.rate
    used = {
        f"apply_cpu_{name.replace('-', '_')}": round((at - before[name]) / seconds, 3)
        for name, at in created.items()
    }
    return (
        used
        | {
            "applied_per_s": round(rate_of([each.received for each in creates]), 2),
            "floor_create_s": round(
                percentile([each.answered - each.received for each in creates], 0.5), 6
            ),
            "apply_to_child_max_s": round(max(waits.values()), 6),
            "writes_per_applied_job": round(sum(map(is_counted_write, own)) / options.jobs, 2),
        }
        | spread("apply_to_child", list(waits.values()))
    )


async def rest(bench: Bench) -> Figures:
    """What the operator does and uses while nothing happens to its jobs."""
    await _have_jobs(bench, bench.options.jobs)
    await bench.until_quiet()
    tell(f"rest: {bench.options.rest_seconds:g} s with {bench.options.jobs} pending jobs")
    use = await bench.use(bench.options.rest_seconds)
    return {
        "rest_seconds": round(use.seconds, 1),
        "reads_at_rest_per_s": round(use.reads / use.seconds, 3),
        "writes_at_rest": use.writes,
        "cpu_at_rest": round(use.cpu, 5),
        "rss_mb": round(use.rss_mb, 1),
    }


async def restart(bench: Bench) -> Figures:
    """From the start of the operator's process to children of jobs made while it was down."""
    await _have_jobs(bench, bench.options.jobs)
    tell(f"restart: with {bench.options.jobs} jobs, {NEW_JOBS} of them made while it is down")
    asked = time.monotonic()
    await bench.stop_operator()
    stopped = time.monotonic() - asked
    bench.operator = None
    names = {f"down-{index}" for index in range(NEW_JOBS)}
    await bench.create_jobs(sorted(names), NEW_JOBS)
    await bench.start_operator()

    def children() -> list[float]:
        """When the children of those jobs were made."""
        found = within(bench.requests(), bench.started)
        return [r.answered for r in found if r.creates("jobs") and job_of_child(r.name) in names]

    await bench.until(lambda: len(children()) >= NEW_JOBS, PATIENCE, "jobs made while down begin")
    return {
        "stop_s": round(stopped, 3),
        "steady_after_restart_s": round(min(children()) - bench.started, 3),
        "restart_last_child_s": round(max(children()) - bench.started, 3),
    }


async def running(bench: Bench) -> Figures:
    """What the operator does and uses with running jobs, and how late it tells their progress."""
    number, seconds = bench.options.running, bench.options.rest_seconds
    await _have_jobs(bench, number)
    bench.plane.run_controllers(RUNNING_CONTROLLERS)
    async with Endpoints.open() as endpoints:
        pods = (await _pending_pods(bench))[:number]
        tell(f"running: {len(pods)} pods start to run")
        await run_pods(bench.api, endpoints, pods)
        names = {pod["metadata"]["labels"][Label.JOB] for pod in pods}
        took = await _until_reporting(bench, names)
        tell(f"running: {seconds:g} s with {len(names)} running jobs")
        answers = endpoints.answers
        use, ages = await asyncio.gather(
            bench.use(seconds), _sample_ages(bench, endpoints, names, seconds)
        )
        scrapes = endpoints.answers - answers
        wait = await _new_job_seconds(bench)
    return {
        "running": len(names),
        "running_reporting_after_s": round(took, 1),
        "running_reads_per_s": round(use.reads / use.seconds, 3),
        "running_writes_per_s": round(use.writes / use.seconds, 3),
        "running_scrapes_per_s": round(scrapes / use.seconds, 3),
        "running_cpu": round(use.cpu, 5),
        "running_rss_mb": round(use.rss_mb, 1),
        "progress_age_max_s": round(max(ages), 3),
        "new_job_among_running_s": round(wait, 4),
    } | spread("progress_age", ages)


PARTS: dict[str, Callable[[Bench], Awaitable[Figures]]] = {
    part.__name__: part for part in (staged, apply, rest, restart, running)
}
"""The parts by name, in the order in which they run."""


def _limit(number: int) -> float:
    """Seconds within which `number` jobs come to their next state unless something is wrong."""
    return PATIENCE + number / SETTLE_RATE


async def _have_jobs(bench: Bench, number: int) -> None:
    """Make the jobs of one stage that are missing, and see that all have a pod."""
    options = bench.options
    there = bench.count_created(PLURAL, options.namespace)
    names = [f"job-{index}" for index in range(there, number)]
    if names:
        tell(f"{len(names)} more jobs of one stage are made")
        await bench.create_jobs(names, options.rate)
    await _until_children(bench, max(there, number))


async def _until_children(bench: Bench, number: int) -> None:
    for resource in ("jobs", "pods"):

        def made(resource: str = resource) -> bool:
            return bench.count_created(resource, bench.options.namespace) >= number

        await bench.until(made, _limit(number), f"{number} RLHFJobs have their {resource}")


async def _play(bench: Bench, endpoints: Endpoints) -> None:
    """Be the kubelet of the jobs of three stages until all have succeeded."""
    number, namespace = bench.options.staged, bench.options.staged_namespace
    deadline, seen = time.monotonic() + _limit(10 * number), set()
    async with asyncio.TaskGroup() as tasks:
        while True:
            for pod in await bench.api.items(core_path(namespace, "pods")):
                if pod["metadata"]["uid"] not in seen:
                    seen.add(pod["metadata"]["uid"])
                    tasks.create_task(_play_pod(bench, endpoints, pod))
            jobs = await bench.api.items(jobs_path(namespace))
            done = sum(map(_has_succeeded, jobs))
            if done == number:
                return
            bench.check_processes()
            if time.monotonic() > deadline:
                raise BenchmarkError(
                    f"{done} of {number} jobs of three stages succeeded in {_limit(10 * number):g} "
                    f"s; the log of the operator is in {bench.options.folder}"
                )
            await asyncio.sleep(POLL_SECONDS)


async def _play_pod(bench: Bench, endpoints: Endpoints, pod: Raw) -> None:
    metadata = pod["metadata"]
    job, stage = metadata["labels"][Label.JOB], metadata["labels"][Label.STAGE]
    await run_pods(bench.api, endpoints, [pod])
    await asyncio.sleep(STAGE_SECONDS)
    deadline = time.monotonic() + _limit(bench.options.staged)
    while True:
        document = await bench.api.request("GET", jobs_path(metadata["namespace"], job))
        if _stage(document, stage).get("state") == StageState.RUNNING:
            break
        if time.monotonic() > deadline:
            raise BenchmarkError(
                f"RLHFJob {job}: stage {stage} is {_stage(document, stage).get('state')} though "
                f"pod {metadata['name']} runs; the log of the operator says why"
            )
        await asyncio.sleep(POLL_SECONDS)
    await finish_pod(bench.api, pod, document)


async def _pending_pods(bench: Bench) -> list[Raw]:
    pods = await bench.api.items(core_path(bench.options.namespace, "pods"))
    pending = [pod for pod in pods if pod["status"].get("phase") == "Pending"]
    return sorted(pending, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))


async def _until_reporting(bench: Bench, names: set[str]) -> float:
    """Wait until the status of all these jobs says how far they are; gives the seconds it took."""
    start = time.monotonic()
    while silent := names - (await _steps(bench)).keys():
        bench.check_processes()
        if time.monotonic() - start > _limit(len(names)):
            raise BenchmarkError(
                f"{len(silent)} of {len(names)} running jobs tell no progress after "
                f"{_limit(len(names)):g} s, {min(silent)} among them; see its status"
            )
        await asyncio.sleep(REPORTING_SECONDS)
    return time.monotonic() - start


async def _sample_ages(
    bench: Bench, endpoints: Endpoints, names: set[str], seconds: float
) -> list[float]:
    """Now and then for some seconds, the age of the progress in each job's status."""
    ages: list[float] = []
    pause = min(SAMPLE_SECONDS, seconds / 4)
    for _ in range(int(seconds / pause)):
        now = time.time()
        steps = await _steps(bench)
        ages += [endpoints.age(steps[name], now) for name in names]
        await asyncio.sleep(pause)
    return ages


async def _steps(bench: Bench) -> dict[str, int]:
    """By job, the step that its status shows, where it shows one."""
    found = {}
    for job in await bench.api.items(jobs_path(bench.options.namespace)):
        progress = _stage(job, "sft").get("progress")
        if progress is not None:
            found[job["metadata"]["name"]] = int(progress["step"])
    return found


async def _new_job_seconds(bench: Bench) -> float:
    """The longest time from the create of a job to its child, of a few that are made now."""
    since = time.time()
    names = [f"among-{index}" for index in range(NEW_JOBS)]

    def waits() -> dict[str, float]:
        return seconds_to_child(within(bench.requests(), since), bench.options.namespace)

    await bench.create_jobs(names, NEW_JOB_RATE)
    await bench.until(
        lambda: waits().keys() >= set(names), PATIENCE, "new jobs among running ones begin"
    )
    return max(waits()[name] for name in names)


def _stage(job: Raw, name: str) -> Raw:
    found: Raw = ((job.get("status") or {}).get("stages") or {}).get(name) or {}
    return found


def _has_succeeded(job: Raw) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return any(
        each["type"] == ConditionType.SUCCEEDED and each["status"] == "True" for each in conditions
    )
