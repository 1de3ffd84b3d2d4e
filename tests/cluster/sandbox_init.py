"""PID 1 of a sandbox: makes its mounts, brings `lo` up, reaps orphans, and keeps it alive.

A program of its own, started by cluster.sandbox in namespaces that are already new; standard
library only. When it ends, the kernel ends every process of the sandbox.
"""

import argparse
import contextlib
import ctypes
import fcntl
import os
import select
import signal
import socket
import stat
import struct
from pathlib import Path

MS_BIND, MS_REC = 0x1000, 0x4000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1

HIDDEN_SYSCTLS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
"""What a kubelet writes though no namespace holds it."""

PRIVATE = {
    Path("/var/lib"): ("cni", "containerd", "kubelet"),
    Path("/var/log"): ("containers", "pods"),
}
"""Folders in which programs of a node write by fixed names, and those names.

Everything else that is there already stays the machine's; new entries are the sandbox's.
"""

EMPTY = (Path("/run"), Path("/etc/cni"))
"""Nothing of the machine's is seen there: sockets and locks of its daemons, its pod networks."""

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    arguments = [os.fsencode(text) for text in (source, target, kind)]
    if _libc.mount(*arguments, ctypes.c_ulong(flags), options.encode()):
        error = ctypes.get_errno()
        raise OSError(error, f"mount {kind or source}: {os.strerror(error)}", str(target))


def make_mounts() -> None:
    """Everything that is the sandbox's own; its /proc is new already."""
    renew_sysfs()
    for place in EMPTY:
        if place.is_dir():
            cover(place)
    lock = Path("/run/lock")
    lock.mkdir()
    lock.chmod(0o1777)
    for place, names in PRIVATE.items():
        if place.is_dir():
            make_private(place, names)
    hide_sysctls(Path("/run/sysctls"))


def renew_sysfs() -> None:
    """Show the links of this network namespace; the old /sys shows the machine's."""
    below = sorted(point for point in mount_points() if Path("/sys") in point.parents)
    old = os.open("/sys", os.O_PATH)
    mount("sysfs", Path("/sys"), "sysfs")
    done: list[Path] = []
    for point in below:
        if not any(each in point.parents for each in done):
            mount(f"/proc/self/fd/{old}/{point.relative_to('/sys')}", point, "", MS_BIND | MS_REC)
            done.append(point)
    os.close(old)


def mount_points() -> list[Path]:
    """Where something is mounted."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [Path(line.split()[4]) for line in lines]


def cover(place: Path) -> None:
    """Put an empty folder over one, with the same owner and mode."""
    found = place.stat()
    mode = stat.S_IMODE(found.st_mode)
    options = f"mode={mode:o},uid={found.st_uid},gid={found.st_gid}"
    mount("tmpfs", place, "tmpfs", 0, options)


def make_private(place: Path, names: tuple[str, ...]) -> None:
    """Keep what is in a folder, but for `names`; entries that are made later stay inside."""
    old = os.open(place, os.O_PATH)
    cover(place)
    behind = Path(f"/proc/self/fd/{old}")
    for name in os.listdir(behind):
        if name in names:
            continue
        source, target = behind / name, place / name
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
            continue
        if source.is_dir():
            target.mkdir()
        else:
            target.touch()
        mount(str(source), target, "", MS_BIND | MS_REC)
    os.close(old)
    for name in names:
        (place / name).mkdir()


def hide_sysctls(folder: Path) -> None:
    """Put files over the sysctls that are the whole machine's: a write stays in the sandbox."""
    for name in HIDDEN_SYSCTLS:
        sysctl = Path("/proc/sys") / name
        if sysctl.is_file():
            copy = folder / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(sysctl.read_text())
            mount(str(copy), sysctl, "", MS_BIND)


def raise_loopback() -> None:
    """Bring `lo` up, by ioctl: the program `ip` may not be installed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        request = struct.pack("16sh14x", b"lo", 0)
        name, flags = struct.unpack("16sh14x", fcntl.ioctl(link, SIOCGIFFLAGS, request))
        fcntl.ioctl(link, SIOCSIFFLAGS, struct.pack("16sh14x", name, flags | IFF_UP))


def keep(starter: int | None) -> None:
    """Reap orphans until the process behind the pidfd `starter` has ended; forever without one."""
    told, tell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    poll = select.poll()
    poll.register(told, select.POLLIN)
    if starter is not None:
        poll.register(starter, select.POLLIN)
    while True:
        reap()
        ready = [descriptor for descriptor, _ in poll.poll()]
        if starter in ready:
            return
        os.read(told, 4096)


def reap() -> None:
    """Take the status of every child that has ended."""
    with contextlib.suppress(ChildProcessError):  # there is no child
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue


def main() -> None:
    """Say `ready`, wait for an answer, and keep the sandbox.

    Without an answer the starter has died before it wrote down whom to end: then there is none.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("control", type=int, help="descriptor of a socket to the starter")
    parser.add_argument("--starter", type=int, help="pidfd of the process to die with")
    arguments = parser.parse_args()
    # What a terminal or a careless program sends to PID 1 must not end the sandbox.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    make_mounts()
    raise_loopback()
    with socket.socket(fileno=arguments.control) as control:
        control.sendall(b"ready")
        if not control.recv(16):
            return
    keep(arguments.starter)


if __name__ == "__main__":
    main()
