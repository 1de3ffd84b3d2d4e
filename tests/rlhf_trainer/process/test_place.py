"""Where a launcher stands, by its environment; bad ones are covered with the launcher."""

from pathlib import Path

import pytest

from rlhf_api.errors import UsageError
from rlhf_api.names import EnvVar, StageName
from rlhf_api.v1alpha1 import Dataset, JobReference, ModelSource, SFTStage, StageConfig
from rlhf_trainer.process.cgroup import memory_kills, processors
from rlhf_trainer.process.place import place_of, stop_patience


def test_ranks_follow_the_completion_index() -> None:
    config = StageConfig(
        job=JobReference(name="demo", uid="12345678-aaaa"),
        stage=StageName.SFT,
        attempt=3,
        nodes=4,
        processes_per_node=8,
        master_address="demo-0.demo",
        master_port=29500,
        storage="/storage",
        sft=SFTStage(model=ModelSource(uri="hf://a/b"), dataset=Dataset(uri="hf://a/c")),
    ).with_digest()
    place = place_of(config, {EnvVar.COMPLETION_INDEX: "3"})
    assert place.ranks == range(24, 32)
    assert (place.address, place.port) == ("demo-0.demo", 29500)
    assert place.run == "12345678-aaaa-sft-3"


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, 290.0), ("300", 290.0), ("12", 6.0), ("30.5", 20.5), ("1", 0.5)]
)
def test_ten_seconds_of_the_grace_period_are_kept_or_half_of_it(
    text: str | None, seconds: float
) -> None:
    environment = {} if text is None else {str(EnvVar.GRACE_PERIOD_SECONDS): text}
    assert stop_patience(environment) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "5m"])
def test_a_grace_period_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="give a positive number of seconds"):
        stop_patience({EnvVar.GRACE_PERIOD_SECONDS: text})


@pytest.fixture
def group(tmp_path: Path) -> tuple[Path, Path]:
    """A control group's root, and the file that names ours."""
    (tmp_path / "own").mkdir()
    (tmp_path / "membership").write_text("1:cpu:/old\n0::/own\n")
    return tmp_path, tmp_path / "membership"


@pytest.mark.parametrize(
    ("quota", "count"), [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None)]
)
def test_processors_are_bounded_by_the_quota(
    group: tuple[Path, Path], quota: str, count: int | None
) -> None:
    unbounded = processors(*group)
    (group[0] / "own" / "cpu.max").write_text(f"{quota}\n")
    assert processors(*group) == (unbounded if count is None else count)


def test_kills_for_memory_are_counted(group: tuple[Path, Path], tmp_path: Path) -> None:
    assert memory_kills(*group) == 0
    (group[0] / "own" / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    assert memory_kills(*group) == 2
    assert memory_kills(group[0], tmp_path / "nowhere") == 0
