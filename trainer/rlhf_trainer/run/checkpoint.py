"""The full training state of one stage, kept so that a kill at any moment costs at most the last
steps.

Called by the stages on all ranks together: rank 0 decides, all agree. A checkpoint is a folder
`step-<n>` below the attempt's `checkpoints/`, written as a hidden one, made durable, renamed, named
by `latest`; only then older ones go. Storage is the truth: the newest good one is looked for among
all attempts, and an earlier attempt's go only after this one has its own.
"""

import json
import logging
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf_api.errors import InputError
from rlhf_api.names import FileName
from rlhf_api.v1alpha1 import StageConfig
from rlhf_trainer.run.distributed import Ranks, gather_objects
from rlhf_trainer.run.files import (
    json_text,
    list_files,
    load_tensors,
    publish_folder,
    remove_folder,
    remove_leftovers,
    sha256_of,
    together,
    write_atomically,
)

logger = logging.getLogger(__name__)

STATE = "state.json"
RANK_STATE = "rank-{rank}.pt"
HASHED_BYTES = 64 << 20
"""Files up to this size are hashed; of larger ones the size must do, since hashing all weights
would cost more than the steps between two checkpoints are worth."""

_NAME = re.compile(r"step-(\d+)")


class BrokenCheckpointError(Exception):
    """A checkpoint that cannot be used, with the reason; never leaves this module."""


class ForeignCheckpointError(BrokenCheckpointError):
    """A checkpoint of another configuration."""

    def __init__(self, config_digest: str, expected: str) -> None:
        super().__init__(f"it was made with the configuration {config_digest}, this is {expected}")
        self.config_digest = config_digest


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint.

    Attributes:
        step: steps done when it was written.
        attempt: the attempt that wrote it.
        time: Unix time in seconds at which it was complete.
        folder: where the writer's files lie.
        state: what all ranks share, as it was given to `save`.
    """

    step: int
    attempt: int
    time: float
    folder: Path
    state: Mapping[str, Any]


class CheckpointStore:
    """Finds and keeps checkpoints of one stage; every method is called on all ranks together.

    Attributes:
        last_step: step of the newest complete checkpoint known; None while there is none.
    """

    def __init__(self, config: StageConfig, ranks: Ranks) -> None:
        self._config = config
        self._digest = config.config_digest
        self._ranks = ranks
        self._folder = _checkpoints_of(config, config.attempt)
        self._own_step: int | None = None
        self._alone = config.attempt == 1
        self.last_step: int | None = None

    def newest(self) -> Checkpoint | None:
        """The newest good checkpoint of this attempt and all before it; clears up leftovers.

        A broken one, or one of another configuration, is skipped with a logged reason where a
        good one is left.

        Raises:
            InputError: on every rank, if there is none to go on from, but one of another
                configuration: what was done must not be given up without a person's word.
        """
        checkpoint: Checkpoint | None = None
        with together(self._ranks, self._folder):
            if self._ranks.rank == 0:
                if self._folder.is_dir():
                    remove_leftovers(self._folder)
                checkpoint = self._find()
        checkpoint = gather_objects(self._ranks, checkpoint)[0]
        if checkpoint is not None:
            self.last_step = checkpoint.step
            self._own_step = checkpoint.step if checkpoint.attempt == self._config.attempt else None
        return checkpoint

    def save(
        self,
        step: int,
        write: Callable[[Path], None],
        state: Mapping[str, Any],
        rank_state: Mapping[str, Any],
    ) -> None:
        """Keep the state after `step` steps; a step that this attempt has kept is not kept again.

        Args:
            step: steps done.
            write: called on every rank with the folder to fill; it decides which rank writes what.
            state: what all ranks share, as JSON values.
            rank_state: this rank's own, of what `torch.load(weights_only=True)` takes.

        Raises:
            StorageError: on every rank, if any cannot write; the last good checkpoint stays.
        """
        if step == self._own_step:
            return

        def write_all(folder: Path) -> None:
            write(folder)
            buffer = BytesIO()
            torch.save(dict(rank_state), buffer)
            (folder / RANK_STATE.format(rank=self._ranks.rank)).write_bytes(buffer.getvalue())

        target = self._folder / f"step-{step}"
        publish_folder(
            self._ranks, target, write_all, lambda folder: self._seal(folder, step, state)
        )
        self._own_step = self.last_step = step
        with together(self._ranks, self._folder):
            if self._ranks.rank == 0:
                self._settle(target)

    def _settle(self, target: Path) -> None:
        """Name the new checkpoint, then let older ones go."""
        write_atomically(self._folder / FileName.LATEST, f"{target.name}\n")
        self._rotate(target)
        if not self._alone:
            self._remove_earlier_attempts()
            self._alone = True

    def load_rank_state(self, checkpoint: Checkpoint, rank: int | None = None) -> dict[str, Any]:
        """What rank `rank`, this one when left out, gave to `save`.

        Raises:
            InputError: its file is damaged, or would run code.
        """
        own = self._ranks.rank if rank is None else rank
        state: dict[str, Any] = load_tensors(checkpoint.folder / RANK_STATE.format(rank=own))
        return state

    def _seal(self, folder: Path, step: int, state: Mapping[str, Any]) -> None:
        write_atomically(folder / STATE, json_text(state, indent=2))
        files = [_describe(folder, path) for path in list_files(folder)]
        manifest = {"step": step, "configDigest": self._digest, "files": files}
        write_atomically(folder / FileName.MANIFEST, json_text(manifest, indent=2))

    def _find(self) -> Checkpoint | None:
        candidates = [
            (step, attempt, folder)
            for attempt in range(1, self._config.attempt + 1)
            for step, folder in _steps_in(_checkpoints_of(self._config, attempt))
        ]
        foreign: tuple[Path, str] | None = None
        for step, attempt, folder in sorted(candidates, reverse=True):
            try:
                state = _verified_state(folder, self._digest)
                # The manifest is what is written last.
                completed = (folder / FileName.MANIFEST).stat().st_mtime
            except (BrokenCheckpointError, OSError) as error:
                logger.warning("checkpoint %s is not used: %s", folder, error)
                if foreign is None and isinstance(error, ForeignCheckpointError):
                    foreign = folder, error.config_digest
                continue
            return Checkpoint(step, attempt, completed, folder, state)
        if foreign is not None:
            raise InputError(
                f"stage {self._config.stage}: configDigest is {self._digest}, but its newest "
                f"checkpoint was made with {foreign[1]}: {foreign[0]}; run it with the fields and "
                f"the release that made that one, or remove {FileName.CHECKPOINTS} of every "
                f"attempt in {self._config.stage_folder} to begin at step 0"
            )
        return None

    def _rotate(self, newest: Path) -> None:
        """Keep `newest` and those before it; later ones are of a course that was given up."""
        steps = [folder for _, folder in sorted(_steps_in(self._folder), reverse=True)]
        place = steps.index(newest)
        end = place + self._config.spec.checkpoint.keep
        for folder in steps[:place] + steps[end:]:
            remove_folder(folder)

    def _remove_earlier_attempts(self) -> None:
        for attempt in range(1, self._config.attempt):
            _remove_all(self._config, attempt)


def remove_of_finished(config: StageConfig, ranks: Ranks) -> None:
    """Remove the checkpoints of a stage that has left its artifact, unless they are to be kept."""
    if ranks.rank == 0 and not config.spec.checkpoint.keep_finished:
        for attempt in range(1, config.attempt + 1):
            _remove_all(config, attempt)


def _remove_all(config: StageConfig, attempt: int) -> None:
    for _, folder in _steps_in(_checkpoints_of(config, attempt)):
        try:
            remove_folder(folder)
        except OSError as error:
            # A straggler of that attempt may still write there; space is all that is lost.
            logger.warning("old checkpoint %s could not be removed: %s", folder, error)


def rng_state() -> dict[str, Any]:
    """State of every random number generator of this process, fit for `rank_state`."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [name, [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_rng_state(state: Mapping[str, Any]) -> None:
    """Put every generator back to what `rng_state` read; CUDA's where both times had it."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _checkpoints_of(config: StageConfig, attempt: int) -> Path:
    return Path(config.stage_folder) / f"attempt-{attempt}" / FileName.CHECKPOINTS


def _steps_in(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    named = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir() if path.is_dir()]
    return [(int(match[1]), path) for match, path in named if match]


def _describe(folder: Path, path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    entry: dict[str, Any] = {"path": path.relative_to(folder).as_posix(), "size": size}
    if size <= HASHED_BYTES:
        entry["sha256"] = sha256_of(path)
    return entry


def _verified_state(folder: Path, digest: str) -> Mapping[str, Any]:
    """The shared state of a checkpoint that is whole and of this configuration."""
    manifest = _read_json(folder / FileName.MANIFEST)
    try:
        if manifest["configDigest"] != digest:
            raise ForeignCheckpointError(manifest["configDigest"], digest)
        for entry in manifest["files"]:
            _check_file(folder, entry)
    except (KeyError, TypeError) as error:
        raise BrokenCheckpointError(f"{FileName.MANIFEST} lacks {error}") from error
    return _read_json(folder / STATE)


def _check_file(folder: Path, entry: Mapping[str, Any]) -> None:
    path = folder / entry["path"]
    if not path.is_file():
        raise BrokenCheckpointError(f"{entry['path']} is missing")
    size = path.stat().st_size
    if size != entry["size"]:
        raise BrokenCheckpointError(f"{entry['path']} has {size} bytes in place of {entry['size']}")
    if "sha256" in entry and sha256_of(path) != entry["sha256"]:
        raise BrokenCheckpointError(f"{entry['path']} has another content than was written")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise BrokenCheckpointError(f"{path.name} is missing") from error
    except ValueError as error:
        raise BrokenCheckpointError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise BrokenCheckpointError(f"{path.name} is not an object")
    return document
