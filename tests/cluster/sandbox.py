"""Namespaces of its own for a test cluster, so that it changes nothing on the machine.

A sandbox has its own network, mounts and processes. Links, iptables rules, sysctls, mounts and
processes vanish with its init; only cgroups (v1) do not, and they are found by the name of the
instance, at its next start or another's. `python -m cluster.sandbox -- PROGRAM ARGUMENT...` runs a
program in a new one.
"""

import argparse
import fcntl
import hashlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
from cluster import packages, sandbox_exec, sandbox_init, sandbox_link
from cluster.binaries import cache_folder
from cluster.cgroups import CgroupError, find_cgroups, remove_cgroups
from waiting import eventually

START_SECONDS = 30
STOP_SECONDS = 30
ENTER_SECONDS = 4 * 3600
"""For a whole run of tests, each of which has a bound of its own."""
INSTANCES = 64
"""How many may run at once."""

INSIDE = "RLHF_SANDBOX"
"""Environment variable with the folder of the sandbox that a program of `enter` runs in."""

_NAMESPACES = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class SandboxError(RuntimeError):
    """A sandbox does not start, answer or end; the message says which, and what was waited for."""


@dataclass
class Sandbox:
    """Namespaces whose files lie below a folder that the instance is named by.

    A second object of the same folder, also in another process, finds a running one.

    Attributes:
        folder: `<root>/<name>`; beside it lies the lock that is held while the sandbox lives.
        lasting: whether it outlives the process that starts it.
    """

    folder: Path
    lasting: bool = False
    _lock: int | None = field(default=None, repr=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def name(self) -> str:
        """Unique on the machine."""
        return self.folder.name

    @property
    def cgroup_prefix(self) -> str:
        """Begins the name of every cgroup of this instance."""
        return f"rlhf-{self.name}-"

    @property
    def link(self) -> str:
        """Name of the machine's end of the link to the sandbox."""
        return f"rlhf-{self.name}"

    @property
    def init(self) -> int | None:
        """Process id of the init, as the machine sees it; None if it does not run."""
        try:
            written = json.loads(self._pid_file.read_text())
        except FileNotFoundError:
            return None
        pid = int(written["pid"])
        return pid if written == _identity(pid) else None

    def start(self) -> None:
        """Start it; what a killed one below the same root has left is removed first.

        Raises:
            SandboxError: it runs already, or it is not ready in time.
        """
        _refuse_hidden(self.folder)
        if not self.take_lock():
            raise SandboxError(f"sandbox {self.folder}: already running; stop it first")
        try:
            self._remove_traces()
            self._remove_cgroups_of_killed()
            self._files.mkdir(parents=True)
            self._start_init()
            self.release()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process inside and wait until nothing is left but the instance's own files.

        Does nothing if there is nothing to stop.
        """
        if (pid := self.init) is not None:
            self._kill(pid)
        if self._process is not None:
            self._end_unshare(self._process)
            self._process = None
        self._wait_for_lock()
        self._remove_traces()
        self._wait_for_link()
        self.release()

    def command(self, argv: list[str]) -> list[str]:
        """A command line that runs `argv` inside, wherever and by whomever it is started.

        It dies with the thread that starts it; what it starts itself lives on in the sandbox.

        Raises:
            SandboxError: the sandbox does not run.
        """
        if (pid := self.init) is None:
            raise SandboxError(f"sandbox {self.folder}: not running; start it first")
        return [sys.executable, "-IS", sandbox_exec.__file__, str(pid), *argv]

    def exec(self, argv: list[str], **popen: Any) -> subprocess.Popen[Any]:
        """Start a program inside; takes what Popen takes."""
        return subprocess.Popen(self.command(argv), **popen)

    def connect(self) -> tuple[str, str]:
        """A link between machine and sandbox, which vanishes with it.

        Returns:
            The machine's address on it, and the sandbox's.
        """
        if (pid := self.init) is None:
            raise SandboxError(f"sandbox {self.folder}: not running; start it first")
        try:
            return sandbox_link.connect(self.link, pid, self.command, self._root)
        except sandbox_link.LinkError as error:
            raise SandboxError(f"sandbox {self.folder}: {error}") from error

    def take_lock(self) -> bool:
        """Become the one who may start it; False if another is, or it runs."""
        if self._lock is not None:
            return True
        self._root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._root / f"{self.name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._lock = descriptor
        return True

    def release(self) -> None:
        """Let go of the lock; a running sandbox keeps it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def _root(self) -> Path:
        return self.folder.parent

    @property
    def _files(self) -> Path:
        return self.folder / "sandbox"

    @property
    def _pid_file(self) -> Path:
        return self._files / "init.json"

    @property
    def _log(self) -> Path:
        return self._files / "init.log"

    def _start_init(self) -> None:
        ours, theirs = socket.socketpair()
        with ExitStack() as stack:
            stack.enter_context(ours)
            stack.enter_context(theirs)
            log = stack.enter_context(self._log.open("wb"))
            # unshare holds the lock from now on; it ends after everything inside.
            assert self._lock is not None
            passed = [theirs.fileno(), self._lock]
            init = [sys.executable, "-IS", sandbox_init.__file__, str(theirs.fileno())]
            if not self.lasting:
                # Not pdeathsig: that is sent when the thread ends, which may be long before.
                starter = os.pidfd_open(os.getpid())
                stack.callback(os.close, starter)
                passed.append(starter)
                init.append(f"--starter={starter}")
            # A session of its own: a terminal that closes, or Ctrl-Z, must not reach it.
            self._process = subprocess.Popen(
                ["unshare", *_NAMESPACES, *init],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd="/",
                pass_fds=passed,
                start_new_session=True,
            )
            theirs.close()
            self._acknowledge(ours)

    def _acknowledge(self, control: socket.socket) -> None:
        """Wait until init is ready, write down which process it is, and let it go on."""
        assert self._process is not None
        control.settimeout(START_SECONDS)
        try:
            answer = control.recv(16)
        except TimeoutError:
            answer = b""
        children = psutil.Process(self._process.pid).children() if answer else []
        if not children:
            log = self._log.read_text(errors="replace").strip()
            raise SandboxError(
                f"sandbox {self.folder}: init ended or was not ready within {START_SECONDS} s: "
                f"{log[-2000:]}"
            )
        new = self._pid_file.with_suffix(".new")
        new.write_text(json.dumps(_identity(children[0].pid)))
        new.rename(self._pid_file)
        try:
            control.sendall(b"go")
        except BrokenPipeError as error:
            raise SandboxError(f"sandbox {self.folder}: init ended while it started") from error

    def _kill(self, init: int) -> None:
        """End init by force; it is gone when everything in its pid namespace is."""
        try:
            descriptor = os.pidfd_open(init)
        except ProcessLookupError:
            return
        try:
            if self.init != init:  # it has ended, and the id may be another process's by now
                return
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(STOP_SECONDS * 1000):
                raise SandboxError(
                    f"sandbox {self.folder}: init (pid {init}) was not gone after {STOP_SECONDS} s"
                )
        except ProcessLookupError:
            return
        finally:
            os.close(descriptor)

    def _end_unshare(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for it; before init was written down, ending it ends init."""
        if self.init is None and not self._pid_file.exists():
            process.kill()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise SandboxError(
                f"sandbox {self.folder}: unshare (pid {process.pid}) was not gone after "
                f"{STOP_SECONDS} s, so a process inside does not end"
            ) from error

    def _wait_for_lock(self) -> None:
        what = (
            f"sandbox {self.folder}: its lock is free (another process starts it now, or holds "
            f"{self._root / self.name}.lock)"
        )
        eventually(self.take_lock, STOP_SECONDS, 0.02, what=what, error=SandboxError)

    def _wait_for_link(self) -> None:
        """The kernel takes a network namespace apart after its last process."""
        eventually(
            lambda: self.link not in (name for _, name in socket.if_nameindex()),
            STOP_SECONDS,
            what=f"sandbox {self.folder}: link {self.link} is gone",
            error=SandboxError,
        )

    def _remove_traces(self) -> None:
        """What outlives the namespaces of an instance; its lock is held."""
        self._remove_cgroups()
        if self._files.exists():
            shutil.rmtree(self._files)

    def _remove_cgroups(self) -> None:
        try:
            remove_cgroups(self.cgroup_prefix)
        except CgroupError as error:
            raise SandboxError(f"sandbox {self.folder}: {error}") from error

    def _remove_cgroups_of_killed(self) -> None:
        """Those of its siblings that do not run: nobody may ever start them again."""
        for lock in self._root.glob("*.lock"):
            sibling = Sandbox(lock.with_suffix(""))
            if sibling.name == self.name or not find_cgroups(sibling.cgroup_prefix):
                continue
            if sibling.take_lock():
                try:
                    sibling._remove_cgroups()
                finally:
                    sibling.release()


def named(root: Path, name: str, lasting: bool = False) -> Sandbox:
    """The instance of that name below a root, running or not.

    Its name ends in a digest of the root: two roots never share a name, and so neither cgroups nor
    links.
    """
    digest = hashlib.sha256(bytes(root.resolve())).hexdigest()[:4]
    return Sandbox(root.resolve() / f"{name}-{digest}", lasting)


def instance(root: Path, lasting: bool = False) -> Sandbox:
    """The first free instance below a root, not started yet, with its lock held."""
    for number in range(INSTANCES):
        found = named(root, f"c{number}", lasting)
        if found.take_lock():
            return found
    raise SandboxError(f"{root}: all {INSTANCES} instances run; stop one")


def enter(argv: list[str], root: Path | None = None) -> int:
    """Run a program in a new sandbox that ends with it; gives its exit code."""
    with instance(root or cache_folder() / "sandboxes") as sandbox:
        environment = os.environ | {INSIDE: str(sandbox.folder)}
        process = sandbox.exec(argv, env=environment)
        status, killed = sandbox_exec.follow(process.pid, ENTER_SECONDS)
        process.returncode = os.waitstatus_to_exitcode(status)
    if killed:
        raise SandboxError(f"{argv[0]}: killed, since it had not ended after {ENTER_SECONDS} s")
    died_of = -process.returncode
    return 128 + died_of if died_of > 0 else process.returncode


def _identity(pid: int) -> dict[str, object] | None:
    """What tells a process from a later one with the same id; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name of the program, which may hold anything, ends with the last bracket.
    fields = stat.rpartition(")")[2].split()
    if fields[0] == "Z":
        return None
    return {"pid": pid, "started": int(fields[19]), "boot": _BOOT.read_text().strip()}


def _refuse_hidden(folder: Path) -> None:
    hidden = [*sandbox_init.EMPTY]
    hidden += [place / name for place, names in sandbox_init.PRIVATE.items() for name in names]
    for place in hidden:
        if folder.resolve().is_relative_to(place):
            raise SandboxError(
                f"sandbox {folder}: {place} is hidden inside; choose a folder elsewhere, for "
                "example by XDG_CACHE_HOME"
            )


def main() -> None:
    """Run the program of the command line inside."""
    parser = argparse.ArgumentParser(prog="python -m cluster.sandbox", description=__doc__)
    parser.add_argument("argv", nargs="+", metavar="PROGRAM")
    argv = parser.parse_args().argv
    if reason := packages.reason_against():
        sys.exit(reason)
    try:
        sys.exit(enter(argv))
    except SandboxError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
