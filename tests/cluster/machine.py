"""What two nodes need of the machine that they run on: links and cgroups, all inside a sandbox.

Ending the sandbox takes them back; nothing here undoes anything.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

from cluster.cgroups import find_cgroups, hierarchies
from waiting import eventually

NODE_BRIDGE = "rlhf-nodes"
KILL_SECONDS = 20
COMMAND_SECONDS = 120


def run(*command: str, seconds: float = COMMAND_SECONDS) -> str:
    """Run a program; gives its output.

    Raises:
        RuntimeError: it failed, or did not end in time.
    """
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{' '.join(command)}: did not end within {seconds:.0f} s") from error
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def make_network(addresses: Iterable[str]) -> None:
    """A bridge with the addresses of the nodes; nothing is attached to it."""
    run("ip", "link", "add", NODE_BRIDGE, "type", "bridge")
    for address in addresses:
        run("ip", "address", "add", f"{address}/32", "dev", NODE_BRIDGE)
    run("ip", "link", "set", NODE_BRIDGE, "up")
    run("sysctl", "-qw", "net.ipv4.ip_forward=1")


def make_cgroup(name: str) -> None:
    """A cgroup of that name in every hierarchy that a kubelet needs."""
    for hierarchy in hierarchies():
        folder = hierarchy / name
        folder.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):
            # A v1 cpuset is empty at first, and an empty one takes no process.
            if (folder / file).is_file() and (hierarchy / file).is_file():
                (folder / file).write_text((hierarchy / file).read_text())


def kill_cgroup(name: str) -> None:
    """End everything in a cgroup and in those below it, in every hierarchy.

    Raises:
        RuntimeError: something does not end in time.
    """

    def ended() -> bool:
        pids = _processes(name)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    eventually(
        ended,
        KILL_SECONDS,
        what=lambda: f"cgroup {name}: processes {sorted(_processes(name))} end",
        error=RuntimeError,
    )


def _processes(name: str) -> set[int]:
    files = (file for cgroup in find_cgroups(name) for file in cgroup.rglob("cgroup.procs"))
    return {int(pid) for file in files for pid in _lines(file)}


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:  # gone with its last process
        return []
