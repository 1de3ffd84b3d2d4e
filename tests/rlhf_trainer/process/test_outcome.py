"""Which rank speaks for the node, and what ranks leave."""

import math
from pathlib import Path

import pytest

from rlhf_api.metrics import STATUS_METRICS
from rlhf_api.names import Reason
from rlhf_api.v1alpha1 import (
    Artifact,
    StageConfig,
    StageResult,
)
from rlhf_trainer.errors import Failure
from rlhf_trainer.process.outcome import (
    OUTCOME_FOLDER,
    RankEnd,
    RankOutcome,
    StageOutcome,
    failed,
    first_failure,
    leave_outcome,
    read_outcome,
    success,
    with_progress,
)


@pytest.fixture
def config(config: StageConfig) -> StageConfig:
    return config.model_copy(update={"attempt": 3})


def said(config: StageConfig, rank: int, code: int, time: float) -> RankEnd:
    result = failed(config, Failure(code, Reason.STOPPED, ""))
    return RankEnd(rank, code, time, RankOutcome(rank=rank, time=time, result=result))


def mute(rank: int, code: int, time: float) -> RankEnd:
    return RankEnd(rank, code, time)


@pytest.mark.parametrize("asked", [False, True])
def test_the_earliest_failure_is_first_and_success_is_none(asked: bool) -> None:
    ends = [mute(0, 0, 1.0), mute(1, 65, 3.0), mute(2, 137, 2.0)]
    found = first_failure(ends, asked_to_stop=asked)
    assert found is not None
    assert found.rank == 2
    assert first_failure(ends[:1], asked_to_stop=asked) is None
    assert first_failure([], asked_to_stop=asked) is None


def test_a_lost_peer_is_the_cause_only_when_nobody_knows_more(config: StageConfig) -> None:
    lost = [said(config, 0, 80, 1.0), said(config, 1, 80, 2.0)]
    assert first_failure(lost, asked_to_stop=False) == lost[0]
    assert first_failure([*lost, mute(2, 1, 9.0)], asked_to_stop=False) == mute(2, 1, 9.0)
    # The agent's SIGTERM is what ended rank 2, so it knows less than the others.
    assert first_failure([*lost, mute(2, 143, 0.5)], asked_to_stop=False) == lost[0]


def test_a_stop_that_was_asked_for_counts_by_its_time(config: StageConfig) -> None:
    stopped, crashed = said(config, 0, 75, 1.0), mute(1, 139, 2.0)
    assert first_failure([stopped, crashed], asked_to_stop=True) == stopped
    assert first_failure([stopped, crashed], asked_to_stop=False) == crashed
    assert first_failure([stopped], asked_to_stop=False) == stopped


def test_an_outcome_is_read_as_it_was_left(
    config: StageConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OUTCOME_FOLDER, str(tmp_path))
    artifact = Artifact(uri="demo/sft/attempt-3/artifact", digest="sha256:" + "0" * 64)
    result = success(config, StageOutcome(artifact, 9, 9, 8, {"loss": 0.25, "kl": math.nan}))
    leave_outcome(result, 1)
    found = read_outcome(tmp_path, 1)
    assert found is not None
    assert (found.rank, found.result) == (1, result)
    assert (result.artifact, result.metrics) == (artifact, {"loss": 0.25})
    assert [path.name for path in tmp_path.iterdir()] == ["outcome-1.json"]
    assert read_outcome(tmp_path, 0) is None


def test_half_an_outcome_is_none(tmp_path: Path) -> None:
    (tmp_path / "outcome-0.json").write_text('{"rank": 0, "time"')
    assert read_outcome(tmp_path, 0) is None


def test_without_a_launcher_nothing_is_left(
    config: StageConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(OUTCOME_FOLDER, raising=False)
    monkeypatch.chdir(tmp_path)
    leave_outcome(failed(config, Failure(1, Reason.CRASHED, "x")), 0)
    assert list(tmp_path.iterdir()) == []


def test_a_result_always_fits_its_bounds(config: StageConfig) -> None:
    many = {f"metric_{number}": float(number) for number in range(99)}
    assert len(success(config, StageOutcome(None, 1, 1, None, many)).metrics) == 32
    shown = dict.fromkeys([metric.value for metric in STATUS_METRICS], 1.0)
    kept = success(config, StageOutcome(None, 1, 1, None, many | shown)).metrics
    assert list(kept)[: len(shown)] == list(shown)
    assert len(kept) == 32
    # A run that was resumed has come by the same metrics in another order.
    backwards = dict(reversed((many | shown).items()))
    assert success(config, StageOutcome(None, 1, 1, None, backwards)).metrics == kept
    long = failed(config, Failure(65, Reason.DATA_ERROR, "y" * 99_999))
    assert StageResult.from_message(long.to_message()) is not None


def test_progress_comes_from_the_attempt_files_only_where_none_was_told(
    config: StageConfig,
) -> None:
    attempt = Path(config.attempt_folder)
    crashed = failed(config, Failure(1, Reason.CRASHED, "x"))
    assert with_progress(crashed, config) == crashed
    (attempt / "checkpoints").mkdir(parents=True)
    (attempt / "events.jsonl").write_text(
        "".join(f'{{"step": {n}, "totalSteps": 5000}}\n' for n in range(4001))
    )
    (attempt / "checkpoints" / "latest").write_text("step-4000\n")
    found = with_progress(crashed, config)
    assert (found.step, found.total_steps, found.last_checkpoint_step) == (4000, 5000, 4000)
    told = failed(config, Failure(75, Reason.STOPPED, "x", 12, 11))
    found = with_progress(told, config)
    assert (found.step, found.last_checkpoint_step) == (12, 11)


@pytest.mark.parametrize("content", ["", "\n", "[1]\n", '{"step": "x"}\n', "\x00\n"])
def test_broken_files_tell_no_progress(config: StageConfig, content: str) -> None:
    attempt = Path(config.attempt_folder)
    (attempt / "checkpoints").mkdir(parents=True)
    (attempt / "events.jsonl").write_text(content)
    (attempt / "checkpoints" / "latest").write_text("step-x")
    crashed = failed(config, Failure(1, Reason.CRASHED, "x"))
    assert with_progress(crashed, config) == crashed


def test_a_result_carries_the_digest_that_was_given(config: StageConfig) -> None:
    given = "sha256:" + "e" * 64
    config = config.model_copy(update={"config_digest": given})
    assert success(config, StageOutcome(None, 1, 1)).config_digest == given
    assert failed(config, Failure(1, Reason.CRASHED, "")).config_digest == given
