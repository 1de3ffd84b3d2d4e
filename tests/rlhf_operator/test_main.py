"""How the operator's process ends; what it does before is tested on a control plane."""

import os
import subprocess
import sys

_LEFT_BEHIND = """
import logging, threading, time
from rlhf_operator.__main__ import leave
logging.basicConfig(format="%(message)s")
threading.Thread(target=time.sleep, args=(3600,)).start()
print("printed")
logging.getLogger("rlhf_operator").error("logged")
leave(7)
"""


def test_a_thread_that_was_left_behind_changes_neither_end_nor_exit_code() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _LEFT_BEHIND], capture_output=True, text=True, timeout=120
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "printed\n", "logged\n")


_WITHOUT_END = """
import asyncio
from rlhf_operator import __main__ as operator
from rlhf_operator.leader import LeadershipLostError

async def work():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            print("goes on", flush=True)

async def lead(*_):
    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    raise LeadershipLostError("lost")

operator._until_signal = lead
operator.leave(operator.main())
"""


def test_work_that_does_not_end_does_not_keep_the_process() -> None:
    environment = os.environ | {"RLHF_OPERATOR_TRAINER_IMAGE": "registry.test/trainer:1"}
    ended = subprocess.run(
        [sys.executable, "-c", _WITHOUT_END],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout) == (1, "goes on\n"), ended.stderr
    assert ended.stderr.endswith("lost\n")
