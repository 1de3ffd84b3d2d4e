"""Requests to stop: signals, the launcher's death, and agreement among ranks."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from rlhf_trainer.process.stopping import StopFlag


@pytest.fixture
def installed() -> Iterator[StopFlag]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    flag = StopFlag()
    flag.install()
    yield flag
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_flag(installed: StopFlag, number: int) -> None:
    assert not installed.is_set
    os.kill(os.getpid(), number)
    assert installed.is_set


def test_a_flag_can_be_asked_without_a_signal() -> None:
    flag = StopFlag()
    assert not flag.is_set
    flag.ask()
    assert flag.is_set


RANK = """
import os, sys, time
from rlhf_trainer.process.stopping import StopFlag
flag = StopFlag()
flag.install()
parent = os.getppid()
print(flag.is_set, flush=True)
while os.getppid() == parent:
    time.sleep(0.01)
print(flag.is_set, file=sys.stderr)
"""
LAUNCHER = """
import os, subprocess, sys
rank = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
os.write(1, rank.stdout.readline())
os._exit(0)
"""


def test_the_launchers_death_is_a_request_to_stop() -> None:
    # Returns when the rank is gone as well, which holds stderr open.
    launched = subprocess.run(
        [sys.executable, "-c", LAUNCHER, RANK], capture_output=True, check=True, timeout=60
    )
    assert (launched.stdout, launched.stderr) == (b"False\n", b"True\n")
