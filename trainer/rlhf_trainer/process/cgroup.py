"""What the container's control groups grant and have taken: processors, memory, kills for it.

Called by `launch`, and by the estimate of memory. cgroup v2, and v1 for what memory is free; where
there is none, the machine is the limit.
"""

import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60
"""Cgroup v1 says "no limit" by a number near 2**63."""


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


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes left below the tightest limit of this process's cgroups; None where there is none.

    File pages that the kernel can drop at once do not count as used.
    """
    groups = root / "proc/self/cgroup"
    if not groups.is_file():
        return None
    free: list[int] = []
    for line in groups.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            free += _free_on_path(root / "sys/fs/cgroup", path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            free += _free_on_path(base, path, *names)
    return min(free, default=None)


def _read(name: str, root: Path, membership: Path) -> str:
    """A file of our control group; empty where there is none."""
    try:
        lines = membership.read_text().splitlines()
        own = next((line[3:] for line in lines if line.startswith("0::")), "/")
        return (root / own.strip("/") / name).read_text()
    except OSError:
        return ""


def _free_on_path(base: Path, path: str, limit_name: str, usage_name: str) -> list[int]:
    """What each group from `path` up to the root leaves; limits of all of them hold."""
    own = base / path.lstrip("/")
    # In a container the path is often the host's, while the mount shows only the group itself.
    groups = [own, *own.parents] if own.is_dir() else [base]
    free = []
    for group in groups:
        if not group.is_relative_to(base):
            break
        limit = _number(group / limit_name)
        usage = _number(group / usage_name)
        if limit is None or usage is None or limit >= _UNLIMITED:
            continue
        free.append(max(0, limit - max(0, usage - _droppable(group))))
    return free


def _droppable(group: Path) -> int:
    statistics = group / "memory.stat"
    if not statistics.is_file():
        return 0
    values = dict(line.split(" ", 1) for line in statistics.read_text().splitlines() if " " in line)
    return int(values.get("total_inactive_file") or values.get("inactive_file") or 0)


def _number(path: Path) -> int | None:
    if not path.is_file():
        return None
    text = path.read_text().strip()
    return int(text) if text.isdecimal() else None
