"""`runs/<name>`: the folder of one job, with its status document and its lock.

    lock           held by the one `rlhf run` that works here
    status.yaml    the whole RLHFJob, as a cluster would show it
    summary.json   figures of a job that succeeded
    <name>-<uid>/  checkpoints, artifacts and logs of the stages, as in a cluster's storage

Called by `rlhf run`. A folder of another job is never touched.
"""

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rlhf_api.errors import ConfigError, UsageError
from rlhf_api.loading import dump_yaml, parse_yaml
from rlhf_api.names import FileName, StageName, StageState, WorkdirFile
from rlhf_api.v1alpha1 import (
    JobReference,
    RLHFJob,
    RLHFJobSpec,
    RLHFJobStatus,
    outside_result,
    stage_inputs,
)
from rlhf_cli.files import write_atomically
from rlhf_cli.local_job import localized
from rlhf_operator.planning.configs import Placement, stage_config

LOG = "launcher.log"


class Workdir:
    """The folder of one job.

    Attributes:
        folder: its absolute path; storage root of the stages.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.folder = (root / name).absolute()
        self._status = self.folder / WorkdirFile.STATUS
        self._lock = self.folder / WorkdirFile.LOCK
        self.summary = self.folder / WorkdirFile.SUMMARY

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other `rlhf run` out; the system lets go when the process dies.

        Raises:
            UsageError: another one is at work.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise UsageError(
                    f"{self.folder}: another rlhf run (process {file.read().strip()}) works here; "
                    "wait for it, stop it, or choose another --workdir"
                ) from error
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def load(self, job: RLHFJob, origin: Path) -> RLHFJob:
        """`job` with the uid and status that are kept here, or a new uid. Writes nothing.

        Args:
            job: as its file says.
            origin: that file.

        Raises:
            UsageError: the folder is another job's, or no job's at all.
            ConfigError: its status.yaml is damaged.
        """
        stored = self._stored()
        if stored is None:
            metadata = job.metadata.model_copy(update={"uid": str(uuid.uuid4())})
            return job.model_copy(update={"metadata": metadata, "status": RLHFJobStatus()})
        here, given = determining(stored.spec), determining(job.spec)
        difference = first_difference(here, given, "spec.stages")
        if difference is not None:
            path, old, new = difference
            digests = "".join(_changed_digests(stored, job, origin.parent))
            raise UsageError(
                f"{self.folder}: holds another job: {path} is {old} there and {new} in "
                f"{origin}{digests}; choose another --workdir or metadata.name, or remove the "
                "folder"
            )
        changed = stored.spec != job.spec
        metadata = stored.metadata.model_copy(
            update={"generation": stored.metadata.generation + changed}
        )
        return stored.model_copy(update={"spec": job.spec, "metadata": metadata})

    def save(self, job: RLHFJob) -> None:
        """Replace status.yaml."""
        document = job.to_document() | {
            "metadata": job.metadata.to_document() | {"generation": job.metadata.generation},
            "status": job.status.to_resolved_document(),
        }
        write_atomically(self._status, dump_yaml(document))

    def last_sign_of_life(self, job: RLHFJob) -> datetime | None:
        """When anything was last written by the job or its runner."""
        files = [self._status]
        for name in StageName:
            stage = getattr(job.status.stages, name)
            if stage is not None and stage.state is not StageState.SUCCEEDED:
                folder = self.attempt_folder(job, name, stage.attempt)
                files += [folder / FileName.EVENTS, folder / LOG]
        times = [file.stat().st_mtime for file in files if file.exists()]
        return datetime.fromtimestamp(max(times)).astimezone() if times else None

    def attempt_folder(self, job: RLHFJob, stage: StageName, attempt: int) -> Path:
        """Where an attempt keeps its files."""
        reference = JobReference(name=job.metadata.name, uid=job.metadata.uid)
        return self.folder / reference.folder / stage / f"attempt-{attempt}"

    def _stored(self) -> RLHFJob | None:
        if not self._status.exists():
            others = [path.name for path in self.folder.glob("*") if path != self._lock]
            others = [name for name in others if not name.startswith(".status.yaml")]
            if others:
                raise UsageError(
                    f"{self.folder}: is not empty ({sorted(others)[0]}), but holds no status.yaml; "
                    "choose another --workdir, or remove the folder"
                )
            return None
        text = self._status.read_text(encoding="utf-8")
        try:
            return RLHFJob.from_document(parse_yaml(text, str(self._status))[0], str(self._status))
        except (ConfigError, IndexError) as error:
            raise ConfigError(
                f"{self.folder}: status.yaml is damaged or of another release: {error}; choose "
                "another --workdir, or remove the folder"
            ) from error


def determining(spec: RLHFJobSpec) -> dict[str, Any]:
    """What of each stage determines its result, with all defaults: it cannot change in a run."""
    found: dict[str, Any] = {}
    for name, stage in spec.stages.present().items():
        document = stage.model_dump(
            mode="json", by_alias=True, exclude_none=True, exclude=outside_result(stage)
        )
        ranks = spec.nodes(name) * spec.processes_per_node(name)
        found[name.value] = document | {"nodes * processesPerNode": ranks}
    return found


def _changed_digests(stored: RLHFJob, job: RLHFJob, folder: Path) -> Iterator[str]:
    """A clause for each stage that was begun with another configuration than `job` gives it."""
    local = localized(job.model_copy(update={"metadata": stored.metadata}), folder)
    inputs = stage_inputs(local.spec.stages)
    statuses = {name: getattr(stored.status.stages, name) for name in StageName}
    artifacts = {
        name: status.artifact
        for name, status in statuses.items()
        if status is not None and status.artifact is not None
    }
    for name in local.spec.stages.present():
        begun = statuses[name] and statuses[name].config_digest
        if begun is None or not set(inputs[name].values()) <= artifacts.keys():
            continue
        placement = Placement(storage="/")
        digest = stage_config(local, name, 1, artifacts, placement).config_digest
        if digest != begun:
            yield f"; stage {name} was begun with configDigest {begun}, and that is now {digest}"


def first_difference(old: Any, new: Any, path: str) -> tuple[str, str, str] | None:
    """Path of the first field that differs, with both values; None if all is the same."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            found = first_difference(old.get(key), new.get(key), f"{path}.{key}")
            if found is not None:
                return found
        return None
    if old == new and type(old) is type(new):
        return None
    here, given = ("not set" if value is None else str(value) for value in (old, new))
    return path, here, given
