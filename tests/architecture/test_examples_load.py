"""Every RLHFJob under examples/ is one that an API server and `rlhf run` take."""

from pathlib import Path

import pytest

from rlhf_api.loading import read_yaml
from rlhf_api.names import KIND
from rlhf_api.v1alpha1 import RLHFJob, stage_order

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def jobs() -> list[Path]:
    return [
        path
        for path in sorted(EXAMPLES.glob("*.yaml"))
        if any(document.get("kind") == KIND for document in read_yaml(path))
    ]


def test_there_are_examples() -> None:
    assert jobs()


@pytest.mark.parametrize("path", jobs(), ids=lambda path: path.name)
def test_example_loads(path: Path) -> None:
    job = RLHFJob.from_file(path)
    assert stage_order(job.spec.stages)
    assert job.metadata.name == path.stem
