"""How the operator's process ends; what it does before is tested on a control plane."""

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
