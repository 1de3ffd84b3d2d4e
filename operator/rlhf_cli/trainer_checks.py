"""A job's models and rows, where they lie on this machine. Called by `rlhf validate`.

The trainer looks at them in a process of its own, as its launcher does before it starts any rank.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_api.errors import ConfigError, DataError, InputError, RLHFError, UserError
from rlhf_api.v1alpha1 import JobReference, RLHFJob, StageConfig, claim_of, uris
from rlhf_cli.local_job import FILE

PROGRAM = (sys.executable, "-m", "rlhf_trainer.check_inputs")
_UID = "00000000"
"""Of a job that was never made."""
_KINDS: tuple[type[UserError], ...] = (DataError, InputError, ConfigError)


def row_counts(job: RLHFJob, mounts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each local dataset's field, and what is found of its rows.

    Models' folders are looked into too.

    Nothing is told where the trainer is not installed.

    Args:
        job: localized, with inputs that are there.
        mounts: folders of claims.

    Raises:
        UserError: models and rows that cannot be used, a line for each.
    """
    configs = list(_configs(job, mounts))
    if not configs or importlib.util.find_spec("pyarrow") is None:
        return
    found = _asked(configs)
    mistakes = [each for each in found if "error" in each]
    if mistakes:
        kinds = (kind for kind in _KINDS if kind.exit_code == mistakes[0]["exitCode"])
        raise next(kinds, DataError)("\n".join(_sentence(each) for each in mistakes))
    for each in found:
        yield each["field"], _rows_text(each)


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


def _asked(configs: list[StageConfig]) -> list[dict[str, Any]]:
    documents = [json.loads(config.with_digest().to_json()) for config in configs]
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    done = subprocess.run(
        PROGRAM, input=lines, capture_output=True, text=True, encoding="utf-8", check=False
    )
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RLHFError(f"the models and rows could not be looked into: {reason}")
    return [json.loads(line) for line in done.stdout.splitlines()]


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
