"""What the trainer says of a job's models and rows, and what is said where it does not answer."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf_api.v1alpha1 import RLHFJob
from rlhf_cli import trainer_checks
from rlhf_cli.trainer_checks import row_counts


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
    answer_with(monkeypatch, {"field": field} | found)
    assert list(row_counts(job_at(tmp_path), {})) == [(field, text)]
