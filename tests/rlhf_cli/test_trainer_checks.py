"""What the trainer says of a job's models and rows, and what is said where it does not answer."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_api.errors import InputError, RLHFError
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_cli import trainer_checks
from rlhf_cli.trainer_checks import StorageError, row_counts


def job_at(folder: Path) -> RLHFJob:
    """With an SFT stage that reads files below `folder`."""
    stage = {
        "model": {"uri": f"file://{folder}/model"},
        "dataset": {"uri": f"file://{folder}/rows.jsonl"},
        "evalDataset": {"uri": f"file://{folder}/held-out.jsonl"},
    }
    return RLHFJob.from_document(
        {
            "apiVersion": "rlhf.dev/v1alpha1",
            "kind": "RLHFJob",
            "metadata": {"name": "reviews"},
            "spec": {"stages": {"sft": stage}},
        }
    )


def answer_with(monkeypatch: pytest.MonkeyPatch, *lines: dict[str, Any], then: str = "") -> None:
    """A trainer that answers with these lines, and then does something in Python."""
    said = "".join(json.dumps(line) + "\n" for line in lines)
    program = f"import sys, time; sys.stdout.write({said!r}); sys.stdout.flush(); {then}"
    monkeypatch.setattr(trainer_checks, "PROGRAM", (sys.executable, "-c", program))


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({"rows": None}, "not looked into"),
        ({"rows": 7, "identical": 0, "whole": True}, "7 rows"),
        (
            {"rows": 7, "identical": 2, "whole": True},
            "7 rows, 2 of them left out with identical responses",
        ),
        (
            {"rows": 7, "identical": 0, "whole": False},
            "more than can be looked at in seconds; the first 7 are good",
        ),
    ],
)
def test_what_is_said_of_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], text: str
) -> None:
    field = "spec.stages.sft.dataset"
    model = {"field": "spec.stages.sft.model"}
    answer_with(monkeypatch, {"inputs": {}}, model, {"field": field} | found)
    assert list(row_counts(job_at(tmp_path), {})) == [(field, text)]


FIELDS = [f"spec.stages.sft.{name}" for name in ("model", "dataset", "evalDataset")]
INPUTS = {"inputs": {field: f"file:///{field}" for field in FIELDS}}
BAD = {"field": FIELDS[0], "error": f"{FIELDS[0]}: is bad; mend it", "exitCode": 66}
SLOW = "was not looked into within 2 s; see whether its storage answers, and try again."


@pytest.mark.parametrize(
    ("lines", "error", "told"),
    [
        ([], StorageError, ["could not be looked into within 2 s; see whether this machine is"]),
        (
            [INPUTS],
            StorageError,
            [
                f"{FIELDS[0]}: file:///{FIELDS[0]}: {SLOW} "
                f"Not looked into either: {FIELDS[1]}, {FIELDS[2]}."
            ],
        ),
        (
            [INPUTS, {"field": FIELDS[0]}, {"field": FIELDS[1], "rows": None}],
            StorageError,
            [f"{FIELDS[2]}: file:///{FIELDS[2]}: {SLOW}"],
        ),
        # What was found by then is told as well, and is what the command ends with.
        ([INPUTS, BAD], InputError, [BAD["error"], f"{SLOW} Not looked into either: {FIELDS[2]}."]),
    ],
)
def test_what_took_too_long_is_named_and_what_is_unchecked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lines: list[dict[str, Any]],
    error: type[RLHFError],
    told: list[str],
) -> None:
    output = "".join(json.dumps(line) + "\n" for line in lines) + '{"fie'

    def late(command: object, **settings: Any) -> None:
        raise subprocess.TimeoutExpired("", settings["timeout"], output.encode())

    monkeypatch.setattr(trainer_checks, "CHECK_SECONDS", 2)
    monkeypatch.setattr(subprocess, "run", late)
    with pytest.raises(error) as caught:
        list(row_counts(job_at(tmp_path), {}))
    said = str(caught.value).splitlines()
    assert len(said) == len(told)
    for line, part in zip(said, told, strict=True):
        assert line.endswith(part) or part in line


def test_a_trainer_that_hangs_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough for an interpreter to start.
    monkeypatch.setattr(trainer_checks, "CHECK_SECONDS", 5)
    answer_with(monkeypatch, INPUTS, {"field": FIELDS[0]}, then="time.sleep(300)")
    with pytest.raises(StorageError, match=rf"^{FIELDS[1]}: .* within 5 s"):
        list(row_counts(job_at(tmp_path), {}))


def test_a_storage_that_fails_is_no_mistake_in_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = {"field": FIELDS[1], "error": "disk: Input/output error", "exitCode": 74}
    answer_with(monkeypatch, INPUTS, {"field": FIELDS[0]}, failing)
    with pytest.raises(StorageError, match=f"{FIELDS[1]}: disk: Input/output error"):
        list(row_counts(job_at(tmp_path), {}))


def test_a_trainer_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, INPUTS, then="sys.exit('no pyarrow')")
    with pytest.raises(RLHFError, match="could not be looked into: no pyarrow"):
        list(row_counts(job_at(tmp_path), {}))
