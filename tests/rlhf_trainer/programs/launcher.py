"""A launcher process for tests: `CASE` holds arguments, rank program, environment and log file."""

import os
import sys
import tempfile
from typing import Any

from rlhf_trainer.launch import main
from rlhf_trainer.process.edge import leave_process

CASE: dict[str, Any] = globals()["CASE"]

log = os.open(CASE["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(log, 1)
os.dup2(log, 2)
os.environ.update(CASE["environment"])
# The server that this process was forked from has chosen one already.
tempfile.tempdir = os.environ.get("TMPDIR")
if CASE["subreaper"]:
    import ctypes

    PR_SET_CHILD_SUBREAPER = 36
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
if CASE["gpu"]:
    from functools import partial

    from rlhf_trainer import launch
    from rlhf_trainer.process.device import GPUs, settle_device

    # The ranks here take none; the launcher does what it does where ranks talk by NCCL.
    launch.settle_device = partial(settle_device, look=lambda: GPUs(8))
leave_process(main(CASE["arguments"], (sys.executable, *CASE["program"])))
