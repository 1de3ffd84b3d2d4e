"""cgroups of a sandbox: no namespace holds those of v1, so they are found by their name."""

import time
from pathlib import Path

HIERARCHIES = Path("/sys/fs/cgroup")
REMOVE_SECONDS = 20


class CgroupError(RuntimeError):
    """A cgroup cannot be removed."""


def find_cgroups(prefix: str) -> list[Path]:
    """Topmost cgroups whose name begins with `prefix`, in every hierarchy."""
    return sorted(path for each in hierarchies() for path in each.glob(f"{prefix}*"))


def hierarchies() -> list[Path]:
    """The cgroup v1 hierarchies, or the only one of v2."""
    if (HIERARCHIES / "cgroup.controllers").is_file():
        return [HIERARCHIES]
    return [path for path in HIERARCHIES.iterdir() if path.is_dir() and not path.is_symlink()]


def remove_cgroups(prefix: str, seconds: float = REMOVE_SECONDS) -> None:
    """Remove cgroups whose processes have ended; the kernel may let go of those a moment later.

    Raises:
        CgroupError: a cgroup is still in use after `seconds`.
    """
    deadline = time.monotonic() + seconds
    for top in find_cgroups(prefix):
        inner = [path for path in top.rglob("*") if path.is_dir()]
        for cgroup in (*sorted(inner, key=lambda path: -len(path.parts)), top):
            _remove(cgroup, deadline, seconds)


def _remove(cgroup: Path, deadline: float, seconds: float) -> None:
    while True:
        try:
            cgroup.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise CgroupError(_reason(cgroup, seconds)) from error
            time.sleep(0.05)
        else:
            return


def _reason(cgroup: Path, seconds: float) -> str:
    pids = (cgroup / "cgroup.procs").read_text().split()
    return f"cgroup {cgroup}: not empty after {seconds:g} s; end its processes {pids} and try again"
