"""What the container's control group grants and has taken: processors, and kills for memory.

Called by `launch`. cgroup v2 only; where there is none, the machine is the limit.
"""

import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def processors(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int:
    """Number of processors that this container may use, at least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota, _, period = _read("cpu.max", root, membership).strip().partition(" ")
    if quota.isdigit() and period.isdigit():
        allowed = min(allowed, int(quota) // int(period))
    return max(1, allowed)


def memory_kills(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int:
    """How many processes of this container the kernel has killed because its memory ran out."""
    for line in _read("memory.events", root, membership).splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill" and count.isdigit():
            return int(count)
    return 0


def _read(name: str, root: Path, membership: Path) -> str:
    """A file of our control group; empty where there is none."""
    try:
        lines = membership.read_text().splitlines()
        own = next((line[3:] for line in lines if line.startswith("0::")), "/")
        return (root / own.strip("/") / name).read_text()
    except OSError:
        return ""
