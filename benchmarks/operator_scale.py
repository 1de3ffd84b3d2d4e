"""Measure the operator with many jobs on a real control plane without nodes.

    python benchmarks/operator_scale.py --jobs 1000 --rate 20 --json figures.json

Starts etcd, kube-apiserver and kube-controller-manager of the tests and the operator as a process,
as a user of its own and with its default settings, and plays the users and the kubelet. Who did
what and when is read from the API server's audit log. A time from "apply" to "child" is that from
the answer to the create of an RLHFJob to the answer to the create of its batch Job, both by the
server's clock (`stageTimestamp`); `floor_create_s` is what the server itself takes for such a
create. Progress goes to stderr, with a table of the figures and their goals at the end.

The figures are those of one run on one machine, whose cores the control plane and this program use
too.
"""

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
from scale import versions
from scale.bench import Bench, BenchmarkError, ControlPlane, Options, control_plane, tell
from scale.figures import Figures, table
from scale.parts import PARTS

from rlhf_api.errors import RLHFError
from rlhf_operator.settings import Settings


def read_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=_count, default=1000, help="jobs of one stage (1000)")
    parser.add_argument("--rate", type=_positive, default=20.0, help="creates in a second (20)")
    parser.add_argument("--running", type=_count, help="jobs that run (as many as --jobs)")
    parser.add_argument("--staged", type=_count, default=20, help="jobs of three stages (20)")
    parser.add_argument(
        "--rest",
        type=_positive,
        default=60.0,
        help="seconds at rest, and again with running jobs (60)",
    )
    parser.add_argument("--namespace", default="scale", help="where the jobs are (scale)")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=list(PARTS),
        default=list(PARTS),
        help="what is measured (everything)",
    )
    parser.add_argument("--json", type=Path, required=True, help="file for the figures")
    parser.add_argument("--folder", type=Path, help="for logs (a new one, kept if it fails)")
    return parser.parse_args(arguments)


def context(given: argparse.Namespace) -> Figures:
    """What a reader of the figures must know beside them."""
    names = ("rlhf-operator", "kopf", "kubernetes", "aiohttp")
    found: Figures = {
        "jobs": given.jobs,
        "rate": given.rate,
        "cpu_count": os.cpu_count() or 0,
        "api_requests_per_second": Settings.model_fields["api_requests_per_second"].default,
        "version_control_plane": versions.KUBERNETES,
        "version_python": platform.python_version(),
    }
    for name in names:
        found[f"version_{name.replace('-', '_')}"] = importlib.metadata.version(name)
    return found


def options_of(given: argparse.Namespace, folder: Path) -> Options:
    """What the command line asks for."""
    return Options(
        jobs=given.jobs,
        rate=given.rate,
        running=given.running or given.jobs,
        staged=given.staged,
        rest_seconds=given.rest,
        namespace=given.namespace,
        folder=folder,
    )


async def measure(given: argparse.Namespace, options: Options, plane: ControlPlane) -> Figures:
    """Run the parts that were asked for, one after the other."""
    figures = context(given)
    tell(f"the operator's limit is {figures['api_requests_per_second']} requests in a second")
    async with Bench.open(options, plane) as bench:
        for name, part in PARTS.items():
            if name in given.parts:
                figures |= await part(bench)
                # Early, so that a part that fails takes no figures of others with it.
                given.json.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


async def _until_signal(
    given: argparse.Namespace, options: Options, plane: ControlPlane
) -> Figures:
    task = asyncio.create_task(measure(given, options, plane))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task


def main() -> int:
    """The process; gives its exit code."""
    given = read_arguments()
    failures: list[BaseException] = []
    folder = given.folder or Path(tempfile.mkdtemp(prefix="operator-scale-"))
    folder.mkdir(parents=True, exist_ok=True)
    options = options_of(given, folder)
    tell("starting etcd, kube-apiserver and kube-controller-manager")
    try:
        with control_plane(options) as plane:
            figures = asyncio.run(_until_signal(given, options, plane))
    except* (RLHFError, RuntimeError, OSError, aiohttp.ClientError) as group:
        failures += leaves(group)
    except* asyncio.CancelledError:
        failures.append(BenchmarkError("stopped on request"))
    for failure in failures:
        tell(f"{type(failure).__name__}: {failure}")
    if failures:
        tell(f"the logs are in {folder}")
        return 1
    if given.folder is None:
        shutil.rmtree(folder)
    sys.stderr.write(table(figures, given.rate))
    return 0


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The errors in a group, and in the groups within it."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of jobs; give 1 or more")
    return number


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is out of bounds; give more than 0")
    return number


if __name__ == "__main__":
    sys.exit(main())
