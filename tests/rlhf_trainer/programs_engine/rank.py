"""A rank of a `World`: `rank.py <pipe> <file to meet at>` runs functions until the pipe ends."""

import os
import pickle
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist
import worlds

from rlhf_trainer.run.distributed import Ranks


def main() -> None:
    pipe = Connection(int(sys.argv[1]))
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=size)
    ranks = Ranks(rank, rank, size, size, torch.device("cpu"))
    while True:
        try:
            path, function, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = True, getattr(worlds.load(Path(path)), function)(ranks, **arguments)
        except BaseException:  # noqa: BLE001 - the test tells it
            answer = False, traceback.format_exc()
        pipe.send_bytes(pickle.dumps(answer))


if __name__ == "__main__":
    main()
