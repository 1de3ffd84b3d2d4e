"""Every RLHFJob under examples/ is one that an API server and `rlhf run` take."""

from pathlib import Path

import pytest
from example_files import EXAMPLES, MANIFESTS

from rlhf_api.loading import read_yaml
from rlhf_api.names import KIND
from rlhf_api.v1alpha1 import RLHFJob, stage_order

# A file without any RLHFJob is one that makes an example's data.
JOBS = [path for path in MANIFESTS if KIND in [each["kind"] for each in read_yaml(path)]]


def test_there_are_examples() -> None:
    assert JOBS


@pytest.mark.parametrize("path", JOBS, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_example_loads(path: Path) -> None:
    job = RLHFJob.from_file(path)
    assert stage_order(job.spec.stages)
    assert job.metadata.name == path.stem
