"""Checkpoints when things go wrong: damage, full disks, kills, and one rank of two that fails."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoint_builders import checkpoints, fail, make_config, make_store, names, save
from waiting import eventually

from rlhf_trainer.errors import StorageError
from rlhf_trainer.run import checkpoint as checkpoint_module

PROGRAMS = Path(__file__).parents[1] / "programs"


def spoil_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:-20])


def remove_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def empty_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


def list_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


def remove_weights(folder: Path) -> None:
    (folder / "actor" / "weights.pt").unlink()


def cut_weights(folder: Path) -> None:
    (folder / "actor" / "weights.pt").write_bytes(b"weight")


def change_weights(folder: Path) -> None:
    (folder / "actor" / "weights.pt").write_bytes(b"Weights")


def remove_state(folder: Path) -> None:
    (folder / "state.json").unlink()


def remove_rank_state(folder: Path) -> None:
    (folder / "rank-0.pt").unlink()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_manifest, "manifest.json is not JSON"),
        (remove_manifest, "manifest.json is missing"),
        (empty_manifest, "manifest.json lacks 'configDigest'"),
        (list_manifest, "manifest.json is not an object"),
        (remove_weights, "actor/weights.pt is missing"),
        (cut_weights, "actor/weights.pt has 6 bytes in place of 7"),
        (change_weights, "actor/weights.pt has another content"),
        (remove_state, "state.json is missing"),
        (remove_rank_state, "rank-0.pt is missing"),
    ],
)
def test_a_broken_checkpoint_is_skipped_with_its_reason(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[Path], None],
    reason: str,
) -> None:
    first = make_store(tmp_path)
    save(first, 10)
    save(first, 20)
    spoil(checkpoints(tmp_path) / "step-20")

    with caplog.at_level(logging.WARNING):
        found = make_store(tmp_path).newest()

    assert found is not None
    assert found.step == 10
    assert "step-20 is not used" in caplog.text
    assert reason in caplog.text


def test_of_a_large_file_the_size_must_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "HASHED_BYTES", 6)
    first = make_store(tmp_path)
    save(first, 10)
    folder = checkpoints(tmp_path) / "step-10"
    entries = json.loads((folder / "manifest.json").read_text())["files"]
    assert [entry["path"] for entry in entries if "sha256" not in entry] != []

    change_weights(folder)
    assert make_store(tmp_path).newest() is not None
    cut_weights(folder)
    assert make_store(tmp_path).newest() is None


def test_a_broken_later_step_goes_when_its_course_is_given_up(tmp_path: Path) -> None:
    first = make_store(tmp_path)
    save(first, 10)
    save(first, 20)
    remove_weights(checkpoints(tmp_path) / "step-20")
    second = make_store(tmp_path)
    found = second.newest()
    assert found is not None
    assert found.step == 10

    save(second, 15)

    assert names(tmp_path) == ["latest", "step-10", "step-15"]


def test_older_ones_go_only_after_latest_names_the_new_one(tmp_path: Path) -> None:
    kept = make_store(tmp_path, keep=1)
    save(kept, 10)
    latest = checkpoints(tmp_path) / "latest"
    latest.unlink()
    latest.mkdir()

    with pytest.raises(IsADirectoryError):
        save(kept, 20)

    assert names(tmp_path) == ["latest", "step-10", "step-20"]


def test_a_failed_write_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    kept = make_store(tmp_path, keep=1)
    save(kept, 10)

    with pytest.raises(StorageError, match=r"weights\.pt.*free space"):
        kept.save(20, fail, {}, {})

    assert names(tmp_path) == ["latest", "step-10"]
    assert kept.last_step == 10
    found = make_store(tmp_path, keep=1).newest()
    assert found is not None
    assert found.step == 10


@pytest.mark.parametrize("zipped", [True, False])
def test_a_full_disk_keeps_the_last_good_checkpoint(small_disk: Path, zipped: bool) -> None:
    def write_weights(folder: Path) -> None:
        weights = torch.zeros(150_000)
        torch.save(weights, folder / "weights.pt", _use_new_zipfile_serialization=zipped)

    kept = make_store(small_disk)
    kept.save(10, write_weights, {}, {})
    with pytest.raises(StorageError, match="storage"):
        kept.save(20, write_weights, {}, {})

    assert names(small_disk) == ["latest", "step-10"]
    found = make_store(small_disk).newest()
    assert found is not None
    assert torch.load(found.folder / "weights.pt").shape == (150_000,)


def test_a_broken_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(make_store(tmp_path), 10)
    cut_weights(checkpoints(tmp_path) / "step-10")
    second = make_store(tmp_path)
    assert second.newest() is None

    save(second, 10)
    assert make_store(tmp_path).newest() is not None
    assert names(tmp_path) == ["latest", "step-10"]


def test_a_kill_in_the_middle_of_a_save_leaves_the_last_good_one(tmp_path: Path) -> None:
    flag = tmp_path / "writing"
    process = subprocess.Popen(
        [
            sys.executable,
            str(PROGRAMS / "checkpoint_killed.py"),
            make_config(tmp_path).to_json(),
            str(flag),
        ]
    )
    try:
        eventually(
            lambda: flag.exists() or process.poll() is not None, 120, what="the save has begun"
        )
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert names(tmp_path) == [".step-20.partial", "latest", "step-10"]

    found = make_store(tmp_path).newest()

    assert found is not None
    assert (found.step, found.state) == (10, {"cursor": 10})
    assert names(tmp_path) == ["latest", "step-10"]


def test_a_kill_in_the_middle_of_a_removal_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    kept = make_store(tmp_path)
    save(kept, 10)
    (checkpoints(tmp_path) / "step-10").rename(checkpoints(tmp_path) / ".step-10.removed")

    assert make_store(tmp_path).newest() is None
    assert names(tmp_path) == ["latest"]


def test_two_ranks_keep_their_own_state_and_fail_together(tmp_path: Path) -> None:
    program, rendezvous = str(PROGRAMS / "checkpoint_rank.py"), str(tmp_path / "rendezvous")
    ranks = [
        subprocess.Popen(
            [sys.executable, program, str(rank), rendezvous, make_config(tmp_path).to_json()],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]

    assert [rank.returncode for rank in ranks] == [0, 0]
    told = [json.loads(output) for output in outputs]
    for rank, found in enumerate(told):
        assert "shard-1.pt" in found["error at 20"]
        assert "storage" in found["error at 30"]
        assert (found["step"], found["own"], found["other"]) == (10, rank, 1 - rank)
    assert names(tmp_path) == ["latest", "step-10"]
    files = checkpoints(tmp_path) / "step-10"
    assert sorted(path.name for path in files.iterdir()) == [
        "manifest.json",
        "rank-0.pt",
        "rank-1.pt",
        "shard-0.pt",
        "shard-1.pt",
        "state.json",
    ]
