"""A job's models and rows, where they lie on this machine. Called by `rlhf validate`.

The trainer looks at them in a process of its own, as its launcher does before it starts any rank.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from rlhf_api.errors import ConfigError, DataError, InputError, RLHFError
from rlhf_api.names import ExitCode
from rlhf_api.v1alpha1 import JobReference, RLHFJob, StageConfig, claim_of, uris
from rlhf_cli.local_job import FILE

PROGRAM = (sys.executable, "-m", "rlhf_trainer.check_inputs")
CHECK_SECONDS = 600.0
"""Time for all models and rows of a job. Minutes more than the largest ones need: it is there for a
folder on a network that does not answer."""
_UID = "00000000"
"""Of a job that was never made."""


class StorageError(RLHFError):
    """What holds a model or rows is failing, or does not answer."""

    exit_code: ClassVar[ExitCode] = ExitCode.IO


_KINDS: tuple[type[RLHFError], ...] = (DataError, InputError, ConfigError, StorageError)


def row_counts(job: RLHFJob, mounts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each local dataset's field, and what is found of its rows.

    Models' folders are looked into too.

    Nothing is told where the trainer is not installed.

    Args:
        job: localized, with inputs that are there.
        mounts: folders of claims.

    Raises:
        RLHFError: models and rows that cannot be used, a line for each, or not in time.
    """
    configs = list(_configs(job, mounts))
    if not configs or importlib.util.find_spec("pyarrow") is None:
        return
    found = _asked(configs)
    mistakes = [each for each in found.values() if "error" in each]
    if mistakes:
        kinds = (kind for kind in _KINDS if kind.exit_code == mistakes[0]["exitCode"])
        raise next(kinds, DataError)("\n".join(_sentence(each) for each in mistakes))
    for field, each in found.items():
        if "rows" in each:
            yield field, _rows_text(each)


def _configs(job: RLHFJob, mounts: Mapping[str, str]) -> Iterator[StageConfig]:
    """What each stage with a local model or dataset is given, as far as these are concerned."""
    for name, stage in job.spec.stages.present().items():
        if any(_is_local(uri, mounts) for path, uri in uris(stage) if "rewards" not in path):
            yield StageConfig(
                job=JobReference(name=job.metadata.name, uid=_UID),
                stage=name,
                attempt=1,
                storage="/",
                claims=dict(mounts),
                **{name.value: stage},
            )


def _is_local(uri: str, mounts: Mapping[str, str]) -> bool:
    return uri.startswith(FILE) or claim_of(uri) in mounts


def _asked(configs: list[StageConfig]) -> dict[str, dict[str, Any]]:
    """What the trainer finds, by field."""
    documents = [json.loads(config.with_digest().to_json()) for config in configs]
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    try:
        done = subprocess.run(
            PROGRAM, input=lines.encode(), capture_output=True, timeout=CHECK_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        inputs, found = _told(error.stdout or b"")
        return found | _not_in_time(inputs, [field for field in inputs if field not in found])
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = (said or [f"exit code {done.returncode}"])[-1]
        raise RLHFError(f"the models and rows could not be looked into: {reason}")
    return _told(done.stdout)[1]


def _told(output: bytes) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """The URIs of all that is looked into, and what was found of it by now, by field."""
    # What follows the last line break was still being written.
    whole = output[: output.rfind(b"\n") + 1]
    first, *found = map(json.loads, whole.splitlines() or [b'{"inputs": {}}'])
    return first["inputs"], {each["field"]: each for each in found}


def _not_in_time(inputs: Mapping[str, str], left: list[str]) -> dict[str, dict[str, Any]]:
    """What is said of the first of those that are left, which took the time of the others."""
    if not left:
        raise StorageError(
            f"the models and rows could not be looked into within {CHECK_SECONDS:g} s; see whether "
            "this machine is overloaded, and try again"
        )
    slow, *others = left
    unchecked = f" Not looked into either: {', '.join(others)}." if others else ""
    error = (
        f"{slow}: {inputs[slow]}: was not looked into within {CHECK_SECONDS:g} s; see whether its "
        f"storage answers, and try again.{unchecked}"
    )
    return {slow: {"field": slow, "error": error, "exitCode": ExitCode.IO}}


def _rows_text(found: Mapping[str, Any]) -> str:
    if found["rows"] is None:
        return "not looked into"
    if not found["whole"]:
        return f"more than can be looked at in seconds; the first {found['rows']} are good"
    same = found["identical"]
    lost = f", {same} of them left out with identical responses" if same else ""
    return f"{found['rows']} rows{lost}"


def _sentence(mistake: Mapping[str, Any]) -> str:
    field, error = mistake["field"], mistake["error"]
    return error if error.startswith(field) else f"{field}: {error}"
