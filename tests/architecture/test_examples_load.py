"""Every YAML file under examples/ is an RLHFJob that an API server and `rlhf run` take."""

from pathlib import Path

import pytest

from rlhf_api.v1alpha1 import RLHFJob, stage_order

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
JOBS = sorted(path for form in ("*.yaml", "*.yml") for path in EXAMPLES.rglob(form))


def test_there_are_examples() -> None:
    assert JOBS


@pytest.mark.parametrize("path", JOBS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_example_loads(path: Path) -> None:
    job = RLHFJob.from_file(path)
    assert stage_order(job.spec.stages)
    assert job.metadata.name == path.stem
