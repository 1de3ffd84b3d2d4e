"""Runs one program inside a sandbox as if it ran outside: directory, environment, signals, status.

A program of its own (`sandbox_exec.py PID PROGRAM ARGUMENT...`), standard library only. nsenter
does not do: it forgets the working directory, and dies of a signal that was meant for the program.
"""

import ctypes
import os
import signal
import sys
import time
from typing import NoReturn

PR_SET_PDEATHSIG = 1
NAMESPACES = ("net", "pid", "mnt")

FORWARDED = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
    }
)

FOREVER_SECONDS = 10.0 * 365 * 24 * 3600
"""Whoever runs a program inside bounds it, and takes it along when it ends."""

_libc = ctypes.CDLL(None, use_errno=True)


def follow(child: int, seconds: float) -> tuple[int, bool]:
    """Pass signals on to a child until it ends, or kill it after so many seconds.

    What the terminal sends goes to the whole process group, so the child has it already.

    Returns:
        The status that waitpid gives, and whether it was killed here.
    """
    deadline = time.monotonic() + seconds
    signals = FORWARDED | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return status, False
            received = signal.sigtimedwait(signals, max(0.0, deadline - time.monotonic()))
            if received is None:
                os.kill(child, signal.SIGKILL)
                return os.waitpid(child, 0)[1], True
            sent_by_process = received.si_code <= 0
            if received.si_signo != signal.SIGCHLD and sent_by_process:
                os.kill(child, received.si_signo)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def enter_namespaces(pid: int) -> None:
    """Enter those of the process `pid`; the pid namespace takes effect for children only."""
    descriptors = [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name in NAMESPACES]
    directory = os.getcwd()
    for name, descriptor in zip(NAMESPACES, descriptors, strict=True):
        if _libc.setns(descriptor, 0):
            error = ctypes.get_errno()
            raise OSError(error, f"setns: {os.strerror(error)}", f"/proc/{pid}/ns/{name}")
        os.close(descriptor)
    # A mount namespace is entered at its root.
    os.chdir(directory)


def die_with_parent() -> None:
    """Have this process killed when the thread that started it ends."""
    _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def execute(argv: list[str]) -> NoReturn:
    """Become the program, with the signals as they were before this Python."""
    die_with_parent()
    for each in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(each, signal.SIG_DFL)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        sys.stderr.write(f"{argv[0]}: {error.strerror}\n")
        os._exit(127)


def main() -> None:
    """Run the program of the command line and end as it ended."""
    pid, argv = int(sys.argv[1]), sys.argv[2:]
    die_with_parent()
    # An inherited SIG_IGN would have the kernel forget how the program ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    enter_namespaces(pid)
    # What comes before `follow` waits for it: the program may run, and be sent a signal, sooner.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        execute(argv)
    status, _ = follow(child, FOREVER_SECONDS)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if os.WIFSIGNALED(status):
        died_of = os.WTERMSIG(status)
        if died_of != signal.SIGKILL:
            signal.signal(died_of, signal.SIG_DFL)
        os.kill(os.getpid(), died_of)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
