"""What a cluster changes on this machine, and how it is taken back, whatever became of the cluster.

Everything is found by a name of ours, so that no list has to outlive a process that is killed.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
from cluster.node_files import POD_BRIDGE

NODE_BRIDGE = "rlhf-nodes"
CGROUPS = Path("/sys/fs/cgroup")
CGROUP_PREFIX = "rlhf-node-"
SYSCTLS = (
    "net.ipv4.ip_forward",
    "net.ipv4.conf.all.route_localnet",
    "vm.overcommit_memory",
    "vm.panic_on_oom",
    "kernel.panic",
    "kernel.panic_on_oops",
)
KILL_SECONDS = 20


def run(*command: str, check: bool = True, text: str | None = None) -> str:
    """Run a program; gives its output."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, input=text)
    if check and done.returncode:
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
    for hierarchy in _hierarchies():
        folder = hierarchy / name
        folder.mkdir(exist_ok=True)
        for file in ("cpuset.cpus", "cpuset.mems"):
            # A v1 cpuset is empty at first, and an empty one takes no process.
            if (folder / file).is_file() and (hierarchy / file).is_file():
                (folder / file).write_text((hierarchy / file).read_text())


def save_sysctls(path: Path) -> None:
    """Write down what `clean` is to restore; an earlier list is kept, since it is the true one."""
    if not path.exists():
        lines = [f"{name}={run('sysctl', '-n', name).strip()}\n" for name in SYSCTLS]
        path.write_text("".join(lines))


def restore_sysctls(path: Path) -> None:
    """Set them as they were."""
    if path.exists():
        for line in path.read_text().splitlines():
            run("sysctl", "-qw", line)
        path.unlink()


def clean(folder: Path) -> None:
    """Take everything back that a cluster whose files lie in `folder` has made."""
    kill(process for process in psutil.process_iter() if mentions(process, str(folder)))
    for cgroup in own_cgroups():
        kill_cgroup(cgroup)
    for cgroup in own_cgroups():
        for inner in sorted(cgroup.rglob("*"), key=lambda path: -len(path.parts)):
            if inner.is_dir():
                inner.rmdir()
        cgroup.rmdir()
    for mount in sorted(_mounts_below(folder), reverse=True):
        run("umount", "--lazy", mount)
    for veth in run("ip", "-o", "link", "show", "master", POD_BRIDGE, check=False).splitlines():
        run("ip", "link", "delete", veth.split(": ")[1].split("@")[0], check=False)
    for bridge in (POD_BRIDGE, NODE_BRIDGE):
        run("ip", "link", "delete", bridge, check=False)
    _clean_iptables()


def kill(processes: Iterable[psutil.Process]) -> None:
    """End the processes by force, and wait until they are gone."""
    found = [process for process in processes if process.pid != os.getpid()]
    for process in found:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(found, timeout=KILL_SECONDS)


def kill_cgroup(cgroup: Path) -> None:
    """End everything in a cgroup and in those below it."""
    deadline = time.monotonic() + KILL_SECONDS
    while pids := {int(pid) for file in cgroup.rglob("cgroup.procs") for pid in _lines(file)}:
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > deadline:
            raise RuntimeError(f"{cgroup}: processes {sorted(pids)} do not end")
        time.sleep(0.1)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:  # gone with its last process
        return []


def _hierarchies() -> list[Path]:
    """The cgroup v1 hierarchies, or the only one of v2."""
    if (CGROUPS / "cgroup.controllers").is_file():
        return [CGROUPS]
    return [path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]


def own_cgroups() -> list[Path]:
    return [path for each in _hierarchies() for path in each.glob(f"{CGROUP_PREFIX}*")]


def mentions(process: psutil.Process, text: str) -> bool:
    try:
        return any(text in argument for argument in process.cmdline()[0:40])
    except psutil.Error:
        return False


def _mounts_below(folder: Path) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = line.split()[4]
        if point.startswith(f"{folder}/"):
            yield point


def _clean_iptables() -> None:
    """Remove what kube-proxy and the kubelet have added; all other rules stay."""
    for program in ("iptables", "ip6tables"):
        saved = run(f"{program}-save", check=False)
        kept = [line for line in saved.splitlines() if "KUBE-" not in line and "CNI-" not in line]
        if len(kept) != len(saved.splitlines()):
            run(f"{program}-restore", text="\n".join(kept) + "\n")
