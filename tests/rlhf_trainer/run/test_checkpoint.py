"""Checkpoints on real files: what is found, what is kept, and random numbers."""

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_builders import (
    ALONE,
    checkpoints,
    fail,
    make_config,
    make_store,
    names,
    save,
    write,
)

from rlhf_api.errors import InputError
from rlhf_trainer.errors import StorageError
from rlhf_trainer.run.checkpoint import CheckpointStore, restore_rng_state, rng_state


def test_what_was_saved_is_found_again(tmp_path: Path) -> None:
    state = {"cursor": {"epoch": 1, "row": 7}, "klCoef": 0.1 + 0.2, "text": "词"}
    first = make_store(tmp_path)
    first.save(10, write, state, {"torch": torch.tensor([1, 2]), "words": [1, None, "a", 0.5]})
    assert first.last_step == 10

    second = make_store(tmp_path)
    found = second.newest()

    assert found is not None
    assert (found.step, found.attempt) == (10, 1)
    assert found.state == state
    assert (found.folder / "actor" / "weights.pt").read_bytes() == b"weights"
    assert second.last_step == 10
    own = second.load_rank_state(found)
    assert own["words"] == [1, None, "a", 0.5]
    assert own["torch"].tolist() == [1, 2]
    assert (checkpoints(tmp_path) / "latest").read_text() == "step-10\n"


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    kept = make_store(tmp_path)
    assert kept.newest() is None
    assert kept.last_step is None
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_configuration_is_skipped_beside_a_good_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(make_store(tmp_path, attempt=2, seed=2), 20)
    save(make_store(tmp_path, attempt=1, seed=1), 10)

    with caplog.at_level(logging.WARNING):
        found = make_store(tmp_path, attempt=3, seed=1).newest()
    assert found is not None
    assert found.step == 10
    assert "it was made with the configuration sha256:" in caplog.text


@pytest.mark.parametrize("spoiled", [False, True], ids=["alone", "beside a broken one"])
def test_where_all_are_of_another_configuration_none_is_passed_over(
    tmp_path: Path, spoiled: bool
) -> None:
    wanted = make_config(tmp_path, attempt=3, seed=2)
    if spoiled:
        save(make_store(tmp_path, attempt=3, seed=2), 30)
        (checkpoints(tmp_path, 3) / "step-30" / "state.json").unlink()
    for attempt, step in ((2, 20), (1, 10)):
        save(make_store(tmp_path, attempt=attempt, seed=1), step)

    with pytest.raises(InputError) as caught:
        make_store(tmp_path, attempt=3, seed=2).newest()
    newest, stage = checkpoints(tmp_path, 2) / "step-20", wanted.stage_folder
    made = make_config(tmp_path, seed=1).config_digest
    for word in (wanted.config_digest, made, f"{newest};", f"every attempt in {stage} to begin"):
        assert word in str(caught.value)
    assert newest.is_dir()


def test_the_digest_is_taken_as_it_is_given(tmp_path: Path) -> None:
    given = {"config_digest": "sha256:" + "e" * 64}
    save(CheckpointStore(make_config(tmp_path).model_copy(update=given), ALONE), 10)
    manifest = json.loads((checkpoints(tmp_path) / "step-10" / "manifest.json").read_text())
    assert manifest["configDigest"] == given["config_digest"]


def test_the_newest_is_found_without_latest(tmp_path: Path) -> None:
    save(make_store(tmp_path), 10)
    (checkpoints(tmp_path) / "latest").unlink()

    found = make_store(tmp_path).newest()
    assert found is not None
    assert found.step == 10


@pytest.mark.parametrize(("keep", "left"), [(1, [9]), (2, [8, 9]), (3, [2, 8, 9])])
def test_only_the_newest_are_kept(tmp_path: Path, keep: int, left: list[int]) -> None:
    kept = make_store(tmp_path, keep=keep)
    for step in (1, 2, 8, 9):
        save(kept, step)

    assert names(tmp_path) == ["latest", *(f"step-{step}" for step in left)]
    assert (checkpoints(tmp_path) / "latest").read_text() == "step-9\n"


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    kept = make_store(tmp_path, keep=2)
    for step in (9, 10, 100):
        save(kept, step)

    assert names(tmp_path) == ["latest", "step-10", "step-100"]


def test_earlier_attempts_go_after_this_ones_first_complete_checkpoint(tmp_path: Path) -> None:
    save(make_store(tmp_path, attempt=1), 10)
    second = make_store(tmp_path, attempt=2)
    found = second.newest()
    assert found is not None
    assert (found.step, found.attempt) == (10, 1)

    with pytest.raises(StorageError):
        second.save(15, fail, {}, {})
    assert names(tmp_path, 1) == ["latest", "step-10"]

    def look_and_write(folder: Path) -> None:
        assert names(tmp_path, 1) == ["latest", "step-10"]
        write(folder)

    second.save(20, look_and_write, {}, {})
    assert names(tmp_path, 1) == ["latest"]
    assert names(tmp_path, 2) == ["latest", "step-20"]


def test_later_attempts_are_none_of_ours(tmp_path: Path) -> None:
    save(make_store(tmp_path, attempt=3), 30)

    second = make_store(tmp_path, attempt=2)
    assert second.newest() is None
    save(second, 10)
    assert names(tmp_path, 3) == ["latest", "step-30"]


def test_the_farthest_of_all_attempts_is_resumed(tmp_path: Path) -> None:
    save(make_store(tmp_path, attempt=2), 20)
    save(make_store(tmp_path, attempt=1), 30)

    found = make_store(tmp_path, attempt=3).newest()
    assert found is not None
    assert (found.step, found.attempt) == (30, 1)
    save(make_store(tmp_path, attempt=2), 30)
    save(make_store(tmp_path, attempt=1), 30)
    found = make_store(tmp_path, attempt=3).newest()
    assert found is not None
    assert (found.step, found.attempt) == (30, 2)


def test_nothing_outside_of_the_own_attempt_is_written(tmp_path: Path) -> None:
    save(make_store(tmp_path, attempt=1), 10)
    (checkpoints(tmp_path, 1) / ".step-11.partial").mkdir()
    before = {path for path in tmp_path.rglob("*") if "attempt-1/checkpoints" in str(path)}
    second = make_store(tmp_path, attempt=2)
    second.newest()

    assert before == {path for path in tmp_path.rglob("*") if "checkpoints" in str(path)}
    save(second, 20)
    own = Path(make_config(tmp_path, 2).attempt_folder)
    added = set(tmp_path.rglob("*")) - before
    outside = {path for path in added if not path.is_relative_to(own)}
    assert outside == {tmp_path / "demo-12345678", own.parent, own.parent / "attempt-1"}


def test_a_step_is_kept_once(tmp_path: Path) -> None:
    kept = make_store(tmp_path)
    save(kept, 10)
    kept.save(10, fail, {}, {})

    resumed = make_store(tmp_path)
    resumed.newest()
    resumed.save(10, fail, {}, {})
    assert names(tmp_path) == ["latest", "step-10"]


def draws() -> list[Any]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        torch.rand(3).tolist(),
    ]


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    random.gauss(0, 1)
    np.random.randn()
    kept = make_store(tmp_path)
    kept.save(10, write, {}, rng_state())
    expected = draws()
    draws()

    found = kept.newest()
    assert found is not None
    restore_rng_state(kept.load_rank_state(found))

    assert draws() == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_random_numbers_of_the_gpu_go_on_where_they_were(tmp_path: Path) -> None:
    torch.cuda.init()
    kept = make_store(tmp_path)
    kept.save(10, write, {}, rng_state())
    expected = torch.rand(3, device="cuda").tolist()
    found = kept.newest()
    assert found is not None
    restore_rng_state(kept.load_rank_state(found))

    assert torch.rand(3, device="cuda").tolist() == expected
