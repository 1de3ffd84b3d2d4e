"""What a stage leaves and what the next one starts from: artifacts, manifests, model sources.

Called by the stages and by the process's edge. An artifact is a folder whose `manifest.json` is
written last and names every other file by size and sha256; nothing here reads weights.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from pydantic import Field, TypeAdapter, ValidationError

from rlhf_api.contract import Contract
from rlhf_api.errors import InputError
from rlhf_api.names import CONTRACT_VERSION, FileName, StageName
from rlhf_api.v1alpha1 import (
    Artifact,
    HealthVerdict,
    JobReference,
    ModelSource,
    RowCounts,
    ScratchModel,
    StageConfig,
)
from rlhf_api.v1alpha1.status import Rows
from rlhf_trainer.data.read.uris import Hub, locate
from rlhf_trainer.process.outcome import StageOutcome
from rlhf_trainer.run.checkpoint import remove_of_finished
from rlhf_trainer.run.distributed import Ranks, gather_objects, on_first_rank_of_node
from rlhf_trainer.run.files import (
    HIDDEN,
    json_text,
    list_files,
    publish_folder,
    sha256_of,
    storage_errors,
    write_atomically,
)
from rlhf_trainer.run.model_files import model_in, tokenizer_in

logger = logging.getLogger(__name__)

_ROWS: TypeAdapter[dict[str, RowCounts]] = TypeAdapter(Rows)


class StrayFileError(InputError):
    """An artifact is whole, but holds a file that its manifest does not name."""


class ManifestFile(Contract):
    """One file of an artifact."""

    path: str
    """Path relative to the artifact's folder."""
    size: int = Field(ge=0)
    """Size in bytes."""
    sha256: str
    """Digest of the content, as sha256:<hex>."""


class Manifest(Contract):
    """`manifest.json`: what makes a folder an artifact."""

    contract_version: int = CONTRACT_VERSION
    """Version of the contract that the writer speaks."""
    job: JobReference
    """The job that made it."""
    stage: StageName
    """The stage that made it."""
    step: int = Field(ge=0)
    """Steps that the stage did."""
    config_digest: str
    """Digest of the StageConfig that was run."""
    files: tuple[ManifestFile, ...]
    """Every other file of the folder."""
    verdicts: tuple[HealthVerdict, ...] = ()
    """Rules of health that were broken at the end."""


@dataclass(frozen=True)
class ModelLocation:
    """Where a model's files are found.

    Attributes:
        path: its folder, or the repository on the Hugging Face hub; of the tokenizer alone for a
            scratch model.
        revision: of the hub's repository; None for its default one and for folders.
        scratch: sizes of a model that starts from random weights.
        architecture: of a scratch model.
        on_hub: whether `path` is a repository rather than a folder.
    """

    path: str
    revision: str | None = None
    scratch: ScratchModel | None = None
    architecture: str | None = None
    on_hub: bool = False

    def file(self, name: str) -> Path | None:
        """The local path of one of its files, fetched before; None where there is none."""
        if not self.on_hub:
            path = Path(self.path) / name
            return path if path.is_file() else None
        cached = try_to_load_from_cache(self.path, name, revision=self.revision)
        return Path(cached) if isinstance(cached, str) else None


def write_artifact(
    config: StageConfig,
    ranks: Ranks,
    step: int,
    write: Callable[[Path], None],
    verdicts: tuple[HealthVerdict, ...] = (),
) -> Artifact:
    """Publish what the stage made, on all ranks together.

    Args:
        config: the stage.
        ranks: every rank must call.
        step: steps done.
        write: called on every rank with a temporary folder; it decides which rank writes what.
        verdicts: rules of health that are broken.

    Returns:
        The artifact, the same on every rank.

    Raises:
        StorageError: on every rank, if any of them cannot write; no artifact is left.
    """
    folder = Path(config.attempt_folder) / FileName.ARTIFACT
    publish_folder(
        ranks, folder, write, lambda partial: _write_manifest(config, step, partial, verdicts)
    )
    own = _artifact_at(config, folder) if ranks.rank == 0 else None
    artifact = gather_objects(ranks, own)[0]
    if artifact is None:
        raise RuntimeError("rank 0 published no artifact")
    return artifact


def finished_artifact(config: StageConfig) -> Artifact | None:
    """What this or an earlier attempt already made from the same configuration, if it is whole.

    Raises:
        InputError: there is none, but one of another configuration: it would be made once more.
    """
    foreign: tuple[Path, str] | None = None
    for attempt in range(config.attempt, 0, -1):
        folder = Path(config.stage_folder) / f"attempt-{attempt}" / FileName.ARTIFACT
        if not (folder / FileName.MANIFEST).is_file():
            continue
        try:
            artifact = _artifact_at(config, folder)
            manifest = _verify(folder, artifact.digest)
        except StrayFileError as error:
            # To train it all once more would be the dearest remedy.
            raise InputError(f"artifact of stage {config.stage} at {folder}: {error}") from error
        except (InputError, OSError) as error:
            logger.warning("the artifact of attempt %d is not used: %s", attempt, error)
            continue
        if manifest.config_digest == config.config_digest:
            return artifact
        foreign = foreign or (folder, manifest.config_digest)
    if foreign is not None:
        raise InputError(
            f"stage {config.stage}: configDigest is {config.config_digest}, but it has already "
            f"left an artifact made with {foreign[1]}: {foreign[0]}; run it with the fields and "
            "the release that made that one, or remove this folder to make it anew"
        )
    return None


def finished_outcome(config: StageConfig, ranks: Ranks) -> StageOutcome | None:
    """The outcome of an earlier attempt that finished; its work need not be done again.

    All ranks call this together; one of each node hashes what there is. The attempt may have been
    killed before it removed its checkpoints.
    """
    artifact = on_first_rank_of_node(ranks, lambda: finished_artifact(config))
    if artifact is None:
        return None
    remove_of_finished(config, ranks)
    done = read_manifest(config, artifact)
    return StageOutcome(
        artifact=artifact,
        step=done.step,
        total_steps=done.step,
        verdicts=done.verdicts,
        rows=_reported_rows(Path(config.storage) / artifact.uri),
    )


def _reported_rows(folder: Path) -> dict[str, RowCounts]:
    """What the attempt that left an artifact told of its rows; empty if it told nothing."""
    try:
        with folder.with_name(FileName.EVENTS).open("rb") as file:
            return _ROWS.validate_python(json.loads(file.readline())["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def read_manifest(config: StageConfig, artifact: Artifact) -> Manifest:
    """The manifest of an artifact below this job's storage: for its step and verdicts."""
    return _read_manifest(Path(config.storage) / artifact.uri)


def write_figures(folder: Path, figures: Mapping[str, Any]) -> None:
    """Leave what was measured on held-out rows beside the model."""
    write_atomically(folder / FileName.EVALUATION, json_text(figures, indent=2))


def open_artifact(config: StageConfig, stage: StageName) -> Path:
    """The verified folder of what `stage` made; a process hashes an artifact once.

    Raises:
        InputError: missing, or not what the stage's result promised.
    """
    artifact = config.artifacts.get(stage)
    if artifact is None:
        promised = ", ".join(config.artifacts) or "none"
        raise InputError(
            f"artifacts.{stage}: the artifact of stage {stage} is not among those given "
            f"({promised}); run that stage first"
        )
    storage = Path(config.storage)
    folder = storage / artifact.uri
    if not folder.resolve().is_relative_to(storage.resolve()):
        raise InputError(
            f"artifacts.{stage}.uri: {artifact.uri} lies outside of storage {storage}; use a path "
            "relative to it"
        )
    with storage_errors(folder):
        try:
            _verify(folder, artifact.digest)
        except InputError as error:
            remedy = "" if isinstance(error, StrayFileError) else f"; run stage {stage} again"
            raise InputError(f"artifact of stage {stage} at {folder}: {error}{remedy}") from error
    return folder


def model_folder(source: ModelSource, config: StageConfig, field: str) -> ModelLocation:
    """Where a model's files are, checked to be there unless they are on the hub.

    Args:
        source: the field's value.
        config: the stage, for its artifacts and claims.
        field: path of the field in the job, for messages.

    Raises:
        InputError: no such folder, one without a model in it, or an artifact that differs.
    """
    if source.from_stage is not None:
        return ModelLocation(str(model_in(open_artifact(config, source.from_stage), field)))
    uri = str(source.uri)
    if source.scratch is not None:
        tokenizer = _locate(source.scratch.tokenizer, config, f"{field}.scratch.tokenizer")
        if not tokenizer.on_hub:
            tokenizer_in(Path(tokenizer.path), f"{field}.scratch.tokenizer")
        return ModelLocation(
            tokenizer.path,
            tokenizer.revision,
            source.scratch,
            uri.removeprefix("scratch://"),
            tokenizer.on_hub,
        )
    location = _locate(uri, config, f"{field}.uri")
    if not location.on_hub:
        model_in(Path(location.path), f"{field}.uri")
    return location


def _locate(uri: str, config: StageConfig, field: str) -> ModelLocation:
    place = locate(uri, config.claims, field)
    if isinstance(place, Hub):
        return ModelLocation(place.name, place.revision, on_hub=True)
    return ModelLocation(str(place))


def _write_manifest(
    config: StageConfig, step: int, folder: Path, verdicts: tuple[HealthVerdict, ...]
) -> None:
    files = tuple(
        ManifestFile(
            path=path.relative_to(folder).as_posix(),
            size=path.stat().st_size,
            sha256=sha256_of(path),
        )
        for path in list_files(folder)
    )
    manifest = Manifest(
        job=config.job,
        stage=config.stage,
        step=step,
        config_digest=config.config_digest,
        files=files,
        verdicts=verdicts,
    )
    document = manifest.to_resolved_document()
    write_atomically(folder / FileName.MANIFEST, json_text(document, indent=2))


def _artifact_at(config: StageConfig, folder: Path) -> Artifact:
    uri = folder.relative_to(Path(config.storage)).as_posix()
    return Artifact(uri=uri, digest=sha256_of(folder / FileName.MANIFEST))


def _read_manifest(folder: Path) -> Manifest:
    try:
        return Manifest.parse_json((folder / FileName.MANIFEST).read_bytes())
    except ValidationError as error:
        raise InputError(f"{FileName.MANIFEST} cannot be read: {error}") from error


@lru_cache(maxsize=16)
def _verify(folder: Path, digest: str) -> Manifest:
    """Check every file against the manifest, and the manifest against `digest`."""
    path = folder / FileName.MANIFEST
    if not path.is_file():
        raise InputError(f"{FileName.MANIFEST} is missing, so that the artifact is not complete")
    actual = sha256_of(path)
    if actual != digest:
        raise InputError(f"{FileName.MANIFEST} has digest {actual}, but {digest} was promised")
    manifest = _read_manifest(folder)
    for problem in _differences(folder, manifest):
        raise InputError(problem)
    for name in _strays(folder, manifest):
        raise StrayFileError(f"file {name} is not in {FileName.MANIFEST}; remove it")
    return manifest


def _differences(folder: Path, manifest: Manifest) -> Iterator[str]:
    listed = {entry.path: entry for entry in manifest.files}
    present = {path.relative_to(folder).as_posix(): path for path in list_files(folder)}
    for name, entry in listed.items():
        if name not in present:
            yield f"file {name} with digest {entry.sha256} is missing"
            continue
        size, actual = present[name].stat().st_size, sha256_of(present[name])
        if (size, actual) != (entry.size, entry.sha256):
            yield (
                f"file {name} has {size} bytes with digest {actual}, but {entry.size} bytes with "
                f"digest {entry.sha256} were promised"
            )


def _strays(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Files beside those of the manifest that a library might read.

    Hidden ones, such as the .DS_Store of a desktop or the .nfs* of a server, are none of these.
    """
    listed = {FileName.MANIFEST, *(entry.path for entry in manifest.files)}
    for path in list_files(folder):
        name = path.relative_to(folder)
        hidden = any(part.startswith(HIDDEN) for part in name.parts)
        if name.as_posix() not in listed and not hidden:
            yield name.as_posix()
