"""Other rows of equal number behind the same path are refused to a stage that has a checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
import stage_runs
import tiny

from rlhf_api.errors import InputError
from rlhf_api.names import FileName
from rlhf_api.v1alpha1 import CheckpointPolicy, Dataset, StageConfig
from rlhf_trainer.errors import StopRequested

SETTINGS: dict[str, Any] = {
    "max_steps": 4,
    "checkpoint": CheckpointPolicy(every_steps=1),
    "eval_dataset": True,
}
FIELDS = [
    ("sft", "dataset"),
    ("sft", "eval_dataset"),
    ("reward", "dataset"),
    ("ppo", "ptx_dataset"),
]


def interrupted(folder: Path, stage: str, **changed: Any) -> StageConfig:
    """The second attempt of a stage whose first one has left a checkpoint."""
    more = {"ptx_dataset": True} if stage == "ppo" else {}
    config = tiny.stage_config(stage, folder, **SETTINGS | more | changed)
    with pytest.raises(StopRequested) as caught:
        stage_runs.run(config, stage_runs.StopAt(3 if stage != "ppo" else 12))
    assert caught.value.last_checkpoint_step is not None
    return stage_runs.attempt(config, 2)


def rows_of(config: StageConfig, name: str) -> Path:
    dataset = getattr(config.spec, name)
    assert isinstance(dataset, Dataset)
    return Path(dataset.uri.removeprefix("file://"))


def swap_first_rows(path: Path) -> None:
    first, second, *rest = path.read_text().splitlines(keepends=True)
    path.write_text("".join([second, first, *rest]))


@pytest.mark.parametrize(("stage", "name"), FIELDS)
def test_other_rows_are_refused_with_both_digests(tmp_path: Path, stage: str, name: str) -> None:
    config = interrupted(tmp_path, stage)
    path = rows_of(config, name)
    before = path.read_text()
    swap_first_rows(path)
    assert path.read_text() != before
    with pytest.raises(InputError) as caught:
        stage_runs.run(config)
    field = {"dataset": "dataset", "eval_dataset": "evalDataset", "ptx_dataset": "ptxDataset"}[name]
    (state,) = {
        json.loads(found.read_text())["data"][field]
        for found in Path(config.stage_folder).glob("attempt-1/checkpoints/step-*/state.json")
    }
    assert f"spec.stages.{stage}.{field}: its rows have digest sha256:" in str(caught.value)
    assert str(caught.value).count("sha256:") == 2
    assert state in str(caught.value)
    path.write_text(before)
    assert stage_runs.run(config).step == 4


def test_a_checkpoint_without_digests_is_accepted(tmp_path: Path) -> None:
    config = interrupted(tmp_path, "sft")
    for folder in Path(config.stage_folder).glob("attempt-1/checkpoints/step-*"):
        state = json.loads((folder / "state.json").read_text())
        del state["data"]
        (folder / "state.json").write_text(json.dumps(state))
        # Written by a release that knew no digests.
        manifest = json.loads((folder / FileName.MANIFEST).read_text())
        manifest["files"] = [each for each in manifest["files"] if each["path"] != "state.json"]
        (folder / FileName.MANIFEST).write_text(json.dumps(manifest))
    swap_first_rows(rows_of(config, "dataset"))
    assert stage_runs.run(config).step == 4
    (start,) = stage_runs.events(config, "start")
    assert start["step"] > 0


def test_tokens_that_say_the_date_may_change_over_night_and_their_rows_not(tmp_path: Path) -> None:
    template = "{{ strftime_now('%S') }}{{ messages[0].content }}"
    words = tiny.tokenizer_folder(tmp_path / "tokenizer", tiny.CHARACTERS + "0123456789")
    source = tiny.scratch_source(words).model_copy(update={"chat_template": template})
    config = interrupted(tmp_path, "sft", model=source)
    path = rows_of(config, "dataset")
    before = path.read_text()
    swap_first_rows(path)
    with pytest.raises(InputError, match=r"spec\.stages\.sft\.dataset: .* sha256:.* sha256:"):
        stage_runs.run(config)
    path.write_text(before)
    # By now the second is another one, and with it all tokens.
    assert stage_runs.run(config).step == 4
