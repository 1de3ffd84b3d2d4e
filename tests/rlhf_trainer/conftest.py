"""A reporter of rank 0, the stage that it tells of, and its clock."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from reporting import FIRST, Clock

from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import Dataset, JobReference, ModelSource, SFTStage, StageConfig
from rlhf_trainer.run.report import Reporter


@pytest.fixture(autouse=True)
def new_probes() -> Iterator[None]:
    """Tests spoil what models compute, which probes of others must not know."""
    yield
    if "rlhf_trainer.models.layouts" in sys.modules:
        sys.modules["rlhf_trainer.models.layouts"].forget_probes()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def config(tmp_path: Path) -> StageConfig:
    return StageConfig(
        job=JobReference(name="demo", uid="12345678-aaaa"),
        stage=StageName.SFT,
        attempt=1,
        storage=str(tmp_path),
        sft=SFTStage(model=ModelSource(uri="hf://a/b"), dataset=Dataset(uri="hf://a/c")),
    ).with_digest()


@pytest.fixture
def reporter(config: StageConfig, clock: Clock) -> Iterator[Reporter]:
    with Reporter(config, FIRST, clock=clock) as reporter:
        yield reporter
