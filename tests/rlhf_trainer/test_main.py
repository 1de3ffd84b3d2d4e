"""One rank: what its stage returns or raises becomes an outcome and an exit code."""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_api.errors import DataError
from rlhf_api.names import Reason, StageName
from rlhf_api.v1alpha1 import (
    Dataset,
    JobReference,
    ModelSource,
    SFTStage,
    StageConfig,
    StageResult,
)
from rlhf_trainer.__main__ import main
from rlhf_trainer.errors import StopRequested
from rlhf_trainer.process.outcome import OUTCOME_FOLDER, StageOutcome, read_outcome
from rlhf_trainer.process.stopping import StopFlag
from rlhf_trainer.run.distributed import Ranks, any_rank, stop_ranks

pytestmark = pytest.mark.own_process_group


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The environment of rank 0 of 1, and afterwards a process as it was."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        OUTCOME_FOLDER: str(tmp_path),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    level = logging.getLogger("rlhf_trainer").level
    yield
    stop_ranks()
    logging.getLogger("rlhf_trainer").setLevel(level)
    for number, handler in signals.items():
        signal.signal(number, handler)


@pytest.fixture
def stage_file(tmp_path: Path) -> str:
    config = StageConfig(
        job=JobReference(name="demo", uid="12345678-aaaa"),
        stage=StageName.SFT,
        attempt=2,
        storage=str(tmp_path / "storage"),
        sft=SFTStage(model=ModelSource(uri="hf://a/b"), dataset=Dataset(uri="hf://a/c")),
    ).with_digest()
    path = tmp_path / "stage.json"
    path.write_text(config.to_json())
    return str(path)


def left(tmp_path: Path) -> StageResult:
    outcome = read_outcome(tmp_path, 0)
    assert outcome is not None
    return outcome.result


def test_what_a_stage_returns_is_left(tmp_path: Path, stage_file: str) -> None:
    def run(config: StageConfig, ranks: Ranks, stop: StopFlag) -> StageOutcome:
        assert (config.attempt, ranks.world_size, stop.is_set) == (2, 1, False)
        return StageOutcome(None, 4, 4, 2, {"loss": 0.5})

    assert main([stage_file], run) == 0
    result = left(tmp_path)
    assert (result.exit_code, result.reason) == (0, Reason.FINISHED)
    assert (result.step, result.total_steps, result.last_checkpoint_step) == (4, 4, 2)
    assert result.metrics == {"loss": 0.5}


def test_an_error_of_ours_is_logged_without_a_traceback(
    tmp_path: Path, stage_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    def run(config: StageConfig, ranks: Ranks, stop: StopFlag) -> StageOutcome:
        raise DataError("d.jsonl:3: field chosen: None; give a text")

    assert main([stage_file], run) == 65
    assert left(tmp_path).message == "d.jsonl:3: field chosen: None; give a text"
    assert [record.exc_info for record in caplog.records] == [None]


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), SystemExit(0), KeyboardInterrupt()])
def test_what_nobody_foresaw_is_a_crash_with_a_traceback(
    tmp_path: Path, stage_file: str, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def run(config: StageConfig, ranks: Ranks, stop: StopFlag) -> StageOutcome:
        raise error

    assert main([stage_file], run) == 1
    result = left(tmp_path)
    assert (result.exit_code, result.reason) == (1, Reason.CRASHED)
    assert type(error).__name__ in result.message
    assert "in run)" in result.message
    assert "Traceback" in caplog.text


def test_a_signal_reaches_the_stage(tmp_path: Path, stage_file: str) -> None:
    def run(config: StageConfig, ranks: Ranks, stop: StopFlag) -> StageOutcome:
        os.kill(os.getpid(), signal.SIGTERM)
        assert any_rank(ranks, stop.is_set)
        raise StopRequested(3, 3)

    assert main([stage_file], run) == 75
    assert (left(tmp_path).step, left(tmp_path).last_checkpoint_step) == (3, 3)


def test_without_a_configuration_there_is_only_a_code(tmp_path: Path) -> None:
    assert main([]) == 64
    assert main([str(tmp_path / "missing.json")]) == 64
    assert read_outcome(tmp_path, 0) is None


def test_a_launcher_that_is_missing_is_told(
    tmp_path: Path, stage_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE")
    assert main([stage_file]) == 64
    assert "WORLD_SIZE not set" in left(tmp_path).message


def test_a_folder_that_cannot_be_written_costs_only_the_message(
    stage_file: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def run(config: StageConfig, ranks: Ranks, stop: StopFlag) -> StageOutcome:
        raise DataError("bad")

    monkeypatch.setenv(OUTCOME_FOLDER, "/nowhere")
    assert main([stage_file], run) == 65
    assert "only exit code 65" in caplog.text


@pytest.mark.parametrize("name", list(StageName))
def test_every_stage_of_the_contract_can_be_run(name: StageName) -> None:
    from rlhf_trainer.__main__ import stage_named

    assert callable(stage_named(name))
