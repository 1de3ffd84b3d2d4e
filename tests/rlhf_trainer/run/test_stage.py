"""What every stage begins with: work that is done is not done again."""

from pathlib import Path

import pytest
import tiny

from rlhf_api.errors import ConfigError
from rlhf_api.v1alpha1 import SFTStage, StageConfig
from rlhf_trainer.process.outcome import StageOutcome
from rlhf_trainer.process.stopping import StopFlag
from rlhf_trainer.run.artifact import write_artifact
from rlhf_trainer.run.distributed import Ranks
from rlhf_trainer.run.report import Reporter
from rlhf_trainer.run.stage import run_unless_finished


class Training:
    """Leaves an artifact at step 2; counts how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(
        self, spec: SFTStage, config: StageConfig, ranks: Ranks, stop: StopFlag, reporter: Reporter
    ) -> StageOutcome:
        self.calls += 1
        assert spec is config.sft
        assert not stop.is_set
        assert reporter.rows == {}
        artifact = write_artifact(
            config, ranks, 2, lambda folder: tiny.write_rows(folder / "model.json", [{}])
        )
        return StageOutcome(artifact, 2, 2)


def test_what_an_earlier_attempt_finished_is_not_done_again(tmp_path: Path) -> None:
    training, config = Training(), tiny.stage_config("sft", tmp_path)
    first = run_unless_finished(training, config.sft, config, tiny.ranks(), StopFlag())
    again = config.model_copy(update={"attempt": 2})
    assert run_unless_finished(training, again.sft, again, tiny.ranks(), StopFlag()) == first
    assert training.calls == 1
    assert first.artifact is not None


def test_the_reporter_is_closed_however_the_stage_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Reporter] = []
    reporters: list[Reporter] = []
    close = Reporter.close

    def noted_close(reporter: Reporter) -> None:
        closed.append(reporter)
        close(reporter)

    monkeypatch.setattr(Reporter, "close", noted_close)

    def failing(*arguments: object) -> StageOutcome:
        (reporter,) = (each for each in arguments if isinstance(each, Reporter))
        reporters.append(reporter)
        raise OSError("no space")

    config = tiny.stage_config("sft", tmp_path)
    with pytest.raises(OSError, match="no space"):
        run_unless_finished(failing, config.sft, config, tiny.ranks(), StopFlag())
    assert closed == reporters != []


def test_a_stage_without_specification_is_refused(tmp_path: Path) -> None:
    training, config = Training(), tiny.stage_config("sft", tmp_path)
    with pytest.raises(ConfigError, match="stage sft has no specification"):
        run_unless_finished(training, None, config, tiny.ranks(), StopFlag())
    assert training.calls == 0
