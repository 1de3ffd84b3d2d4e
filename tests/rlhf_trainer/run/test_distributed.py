"""What ranks do together: two real ranks over gloo, and a world of one."""

import json
import os
import random
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from rlhf_api.errors import DataError, UsageError
from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import Dataset, JobReference, ModelSource, SFTStage, StageConfig
from rlhf_trainer.run import distributed
from rlhf_trainer.run.distributed import (
    Ranks,
    agree_on_failure,
    barrier,
    gather_objects,
    on_first_rank_of_node,
    reduce_max,
    reduce_sum,
    seed_everything,
    start_ranks,
    stop_ranks,
)

pytestmark = pytest.mark.own_process_group

PROGRAM = Path(__file__).parents[1] / "programs" / "agreeing.py"
ALONE = Ranks(rank=0, local_rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"))


def stage_config(processes: int) -> StageConfig:
    return StageConfig(
        job=JobReference(name="demo", uid="12345678-aaaa"),
        stage=StageName.SFT,
        attempt=1,
        processes_per_node=processes,
        storage="/nowhere",
        sft=SFTStage(model=ModelSource(uri="hf://a/b"), dataset=Dataset(uri="hf://a/c")),
    ).with_digest()


def torchrun_environment(rank: int, processes: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks saw."""
    folder = tmp_path_factory.mktemp("agreeing")
    (folder / "stage.json").write_text(stage_config(2).to_json())
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, PROGRAM, folder / "stage.json", folder],
            env=os.environ | torchrun_environment(rank, 2, port),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, log = rank.communicate(timeout=90)
        assert rank.returncode == 0, log
    assert [path.name for path in folder.glob("worked-*")] == ["worked-0"]
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("sum", [0.2, 1.0, 2.0**54 - 2]),
        ("max", [-4.0, 1.0]),
        ("objects", [{"rank": 0}, {"rank": 1}]),
        ("on first", "by rank 0"),
        ("on first, refused", ["DataError", 65, "hub: no such model"]),
        ("nobody failed", []),
        ("rank 1 failed", ["StorageError", 74, "disk full"]),
        ("both failed", ["DataError", 65, "first"]),
        ("stop before", False),
        ("stop, agreed", True),
    ],
)
def test_both_ranks_see_the_same(
    seen: list[dict[str, Any]], rank: int, what: str, expected: object
) -> None:
    assert seen[rank][what] == expected


def test_an_error_that_cannot_travel_ends_the_other_rank_in_the_same_way(
    seen: list[dict[str, Any]],
) -> None:
    for rank, name in ((0, "RankFailed"), (1, "ZeroDivisionError")):
        kind, code, message = seen[rank]["a foreign error"]
        assert (kind, code) == (name, 1)
        assert message.startswith("ZeroDivisionError: x")
    for rank, name in ((0, "RankFailed"), (1, "OddError")):
        assert seen[rank]["cannot travel"] == [name, 74, "disk of 3"]


def test_a_barrier_waits_for_the_last(seen: list[dict[str, Any]]) -> None:
    assert min(rank["left"] for rank in seen) >= max(rank["entered"] for rank in seen)
    assert [rank["stop, own"] for rank in seen] == [False, True]


def test_a_lost_peer_is_found_out(seen: list[dict[str, Any]]) -> None:
    _, code, message, name, _, _ = seen[0]["lost"]
    assert (code, name) == (80, "DistNetworkError")
    assert message.startswith("lost a peer: ")


@pytest.mark.parametrize(("most", "added"), [(2, 0), (5, 3)])
def test_a_rank_with_fewer_parts_is_filled_up(
    monkeypatch: pytest.MonkeyPatch, most: int, added: int
) -> None:
    monkeypatch.setattr(distributed, "reduce_max", lambda own, _: [max(most, *own)])
    parts = distributed.filled(["a", "b"], "c", ALONE)
    assert parts == [("a", True), ("b", True)] + [("c", False)] * added


def test_a_world_of_one_needs_no_process_group() -> None:
    assert not dist.is_initialized()
    assert reduce_sum([1, 2.5], ALONE) == [1.0, 2.5]
    assert reduce_max([1, 2.5], ALONE) == [1.0, 2.5]
    assert gather_objects(ALONE, "x") == ["x"]
    assert on_first_rank_of_node(ALONE, lambda: 3) == 3
    barrier(ALONE)
    agree_on_failure(ALONE, None)
    with pytest.raises(DataError, match="bad"):
        agree_on_failure(ALONE, DataError("bad"))
    with pytest.raises(ZeroDivisionError):
        on_first_rank_of_node(ALONE, lambda: 1 // 0)


def test_a_world_of_one_has_a_process_group_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in torchrun_environment(0, 1, free_port()).items():
        monkeypatch.setenv(name, value)
    ranks = start_ranks(stage_config(1))
    try:
        assert (ranks.rank, ranks.world_size) == (0, 1)
        assert dist.is_initialized()
        assert dist.get_world_size() == 1
    finally:
        stop_ranks()
    assert not dist.is_initialized()
    stop_ranks()


def test_a_process_group_that_does_not_end_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    release, ended = threading.Event(), threading.Event()

    def destroy() -> None:
        release.wait(20)
        ended.set()

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "destroy_process_group", destroy)
    stop_ranks(seconds=0.1)
    assert not ended.is_set()
    release.set()


def test_a_rank_without_a_launcher_says_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match=r"RANK.* not set; .* python -m rlhf_trainer.launch"):
        start_ranks(stage_config(1))


def test_a_world_of_another_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in torchrun_environment(0, 4, 1).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"WORLD_SIZE is 4, but .* 1 nodes of 2 processes"):
        start_ranks(stage_config(2))


def test_seeds_repeat_and_never_share_a_stream() -> None:
    def draw(seed: int, rank: int) -> tuple[float, float, float]:
        seed_everything(seed, rank)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    draws = [draw(seed, rank) for seed in range(3) for rank in range(3)]
    assert draws == [draw(seed, rank) for seed in range(3) for rank in range(3)]
    for kind in zip(*draws, strict=True):
        assert len(set(kind)) == 9
