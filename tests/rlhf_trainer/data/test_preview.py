"""What rows alone tell, told without torch, in the words of the ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import stage_runs
import tiny
from interpreters import import_path
from waiting import PATIENCE

from rlhf_api.errors import RLHFError
from rlhf_api.names import EnvVar, Reason
from rlhf_api.v1alpha1 import Dataset, StageConfig, StageResult
from rlhf_trainer.data import preview
from rlhf_trainer.data.preview import check_rows
from rlhf_trainer.launch import look_at_inputs

TORCHLESS = """
import sys
from rlhf_trainer.launch import main
code = main(sys.argv[1:], (sys.executable, "-c", "print('a rank was started')"))
heavy = {"torch", "transformers", "datasets"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""

WITHOUT_RESPONSE: dict[str, Any] = {"prompt": "abc"}


def rows_at(path: Path, *rows: dict[str, Any]) -> Dataset:
    return Dataset(uri=f"file://{tiny.write_rows(path, rows)}")


def bad_config(stage: str, field: str, folder: Path) -> StageConfig:
    """A stage of which one dataset has a bad third row."""
    rows: list[dict[str, Any]] = [dict(row) for row in tiny.ROWS[stage](4)]
    if field == "ptx_dataset":
        rows = [dict(row) for row in tiny.sft_rows(4)]
    rows[2] = {"prompt": 7}
    dataset = rows_at(folder / "bad.jsonl", *rows)
    return tiny.stage_config(stage, folder, **{field: dataset})


@pytest.mark.parametrize(
    ("stage", "field"),
    [
        ("sft", "dataset"),
        ("sft", "eval_dataset"),
        ("reward", "dataset"),
        ("reward", "eval_dataset"),
        ("ppo", "dataset"),
        ("ppo", "eval_dataset"),
        ("ppo", "ptx_dataset"),
    ],
)
def test_a_bad_row_of_every_dataset_is_told_in_the_words_of_the_ranks(
    tmp_path: Path, stage: str, field: str
) -> None:
    config = bad_config(stage, field, tmp_path)
    with pytest.raises(RLHFError) as early:
        check_rows(config)
    assert "bad.jsonl: line 3" in str(early.value)
    with pytest.raises(RLHFError) as late:
        stage_runs.run(config)
    assert (type(early.value), str(early.value)) == (type(late.value), str(late.value))


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_good_rows_pass(tmp_path: Path, stage: str) -> None:
    extra = {"ptx_dataset": True} if stage == "ppo" else {}
    check_rows(tiny.stage_config(stage, tmp_path, eval_dataset=True, **extra))


def test_a_file_that_is_not_there_is_told_too(tmp_path: Path) -> None:
    dataset = Dataset(uri=f"file://{tmp_path}/none.jsonl")
    config = tiny.stage_config("sft", tmp_path, eval_dataset=dataset)
    with pytest.raises(RLHFError, match=r"spec\.stages\.sft\.evalDataset\.uri: .*none\.jsonl"):
        check_rows(config)


def test_what_is_on_a_hub_is_left_to_the_ranks(tmp_path: Path) -> None:
    check_rows(tiny.stage_config("sft", tmp_path, dataset=Dataset(uri="hf://no/such")))


@pytest.mark.parametrize(
    ("spare_bytes", "seconds", "told"), [(0, 0.0, True), (-1, 300.0, True), (-1, 0.0, False)]
)
def test_large_files_are_looked_at_for_a_while(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spare_bytes: int,
    seconds: float,
    told: bool,
) -> None:
    rows = tmp_path / "rows"
    rows_at(rows / "a.jsonl", *tiny.sft_rows(4))
    rows_at(rows / "b.jsonl", WITHOUT_RESPONSE)
    config = tiny.stage_config("sft", tmp_path, dataset=Dataset(uri=f"file://{rows}"))
    size = sum(path.stat().st_size for path in rows.iterdir())
    monkeypatch.setattr(preview, "LOOK_BYTES", size + spare_bytes)
    monkeypatch.setattr(preview, "LOOK_SECONDS", seconds)
    if told:
        with pytest.raises(RLHFError, match=r"b\.jsonl: line 1: response: is missing"):
            check_rows(config)
    else:
        check_rows(config)


@pytest.fixture
def at_a_glance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every dataset is large, and there is time for one row."""
    monkeypatch.setattr(preview, "LOOK_BYTES", 0)
    monkeypatch.setattr(preview, "LOOK_SECONDS", 0.0)


def seen(stage: str, folder: Path, dataset: Dataset) -> preview.Seen | None:
    config = tiny.stage_config(stage, folder, dataset=dataset)
    return preview.count_rows(next(preview.datasets_of(config)), config)


@pytest.mark.usefixtures("at_a_glance")
def test_the_first_row_of_a_large_file_is_always_looked_at(tmp_path: Path) -> None:
    good = tiny.sft_rows(4)
    told = r"bad\.jsonl: line 1: response: is missing"
    with pytest.raises(RLHFError, match=told):
        seen("sft", tmp_path, rows_at(tmp_path / "bad.jsonl", WITHOUT_RESPONSE, *good))
    rows = rows_at(tmp_path / "good.jsonl", *good)
    assert seen("sft", tmp_path, rows) == preview.Seen(1, whole=False)


@pytest.mark.usefixtures("at_a_glance")
@pytest.mark.parametrize("name", ["rows.json", "rows.JSON"])
def test_a_large_list_is_not_read_whole(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(json.dumps([WITHOUT_RESPONSE]))
    assert seen("sft", tmp_path, Dataset(uri=f"file://{path}")) is None


@pytest.mark.usefixtures("at_a_glance")
@pytest.mark.parametrize(
    ("stage", "first"),
    [
        ("sft", {"prompt": "a", "response": "b", "weight": 0}),
        ("reward", {"prompt": "a", "chosen": "b", "rejected": "b"}),
        ("reward", {"query": "a", "positive_passages": [], "negative_passages": []}),
    ],
)
def test_nothing_is_said_of_a_whole_that_was_not_seen(
    tmp_path: Path, stage: str, first: dict[str, Any]
) -> None:
    """Alone, each of these rows would be a dataset of which nothing is left."""
    rows = rows_at(tmp_path / "rows.jsonl", first, *tiny.ROWS[stage](4))
    assert seen(stage, tmp_path, rows) == preview.Seen(1, whole=False)


@pytest.mark.usefixtures("at_a_glance")
def test_what_cannot_be_read_row_by_row_is_left_to_the_ranks(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("[no JSON")
    assert seen("sft", tmp_path, Dataset(uri=f"file://{path}")) is None
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "state.json").write_text("no JSON")
    assert seen("sft", tmp_path, Dataset(uri=f"file://{saved}")) is None


def test_the_launcher_tells_it_without_torch_and_starts_no_rank(tmp_path: Path) -> None:
    config = bad_config("sft", "dataset", tmp_path)
    (tmp_path / "stage.json").write_text(config.to_json())
    done = subprocess.run(
        [sys.executable, "-c", TORCHLESS, str(tmp_path / "stage.json")],
        capture_output=True,
        text=True,
        env=os.environ | import_path() | {EnvVar.TERMINATION_MESSAGE: str(tmp_path / "message")},
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (65, "")
    result = StageResult.from_message((tmp_path / "message").read_text())
    assert result is not None
    assert (result.reason, result.attempt) == (Reason.DATA_ERROR, 1)
    assert "bad.jsonl: line 3" in result.message
    assert done.stderr.count("bad.jsonl: line 3") == 1
    assert "Traceback" not in done.stderr


def test_a_job_s_rows_are_counted_without_torch(tmp_path: Path) -> None:
    good = tiny.stage_config("reward", tmp_path, eval_dataset=True)
    hub = tiny.stage_config("sft", tmp_path, dataset=Dataset(uri="hf://no/such"))
    bad = bad_config("ppo", "ptx_dataset", tmp_path)
    claim = tiny.stage_config("sft", tmp_path, dataset=Dataset(uri="pvc://claim/rows.jsonl"))
    lines = [json.dumps(json.loads(each.to_json())) for each in (good, hub, claim, bad)]
    program = (
        "import runpy, sys; runpy.run_module('rlhf_trainer.check_inputs', run_name='__main__'); "
        "sys.exit(','.join({'torch', 'transformers', 'datasets'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        env=os.environ | import_path(),
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines, last = map(json.loads, done.stdout.splitlines())
    assert first["inputs"]["spec.stages.sft.dataset"] == "hf://no/such"
    fields = [each["field"] for each in (*lines, last)]
    assert list(first["inputs"]) == list(dict.fromkeys(fields))
    told = [each for each in lines if "rows" in each]
    models = [each["field"] for each in lines if "rows" not in each]
    assert set(models) > {"spec.stages.sft.model", "spec.stages.reward.model"}
    sixteen = {"rows": 16, "identical": 0, "whole": True}
    assert told == [
        {"field": "spec.stages.reward.dataset", **sixteen},
        {"field": "spec.stages.reward.evalDataset", **sixteen},
        {"field": "spec.stages.sft.dataset", "rows": None},
        {"field": "spec.stages.ppo.dataset", **sixteen},
    ]
    assert (last["field"], last["exitCode"]) == ("spec.stages.ppo.ptxDataset", 65)
    assert "bad.jsonl: line 3" in last["error"]


def test_a_stage_that_is_done_needs_its_rows_no_more(tmp_path: Path) -> None:
    config = stage_runs.attempt(bad_config("sft", "dataset", tmp_path), 2)
    with pytest.raises(RLHFError, match="line 3"):
        look_at_inputs(config)
    manifest = Path(config.stage_folder) / "attempt-1" / "artifact" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.touch()
    look_at_inputs(config)


def test_pairs_of_one_text_are_counted_and_judged(tmp_path: Path) -> None:
    def found(same: int, **spec: Any) -> preview.Seen | None:
        rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * (4 - same)
        rows += [{"prompt": "a", "chosen": "b", "rejected": "b"}] * same
        place = rows_at(tmp_path / "rows.jsonl", *rows).model_copy(update=spec)
        config = tiny.stage_config("reward", tmp_path, dataset=place)
        (asked,) = preview.datasets_of(config)
        return preview.count_rows(asked, config)

    assert found(2) == preview.Seen(4, 2)
    told = r"spec\.stages\.reward\.dataset\.allowLoss: false, but 3 of 4 .*correct the pairs"
    with pytest.raises(RLHFError, match=told) as early:
        found(3)
    config = tiny.stage_config("reward", tmp_path, dataset=rows_at_last(tmp_path))
    with pytest.raises(RLHFError) as late:
        stage_runs.run(config)
    assert str(early.value) == str(late.value)
    assert found(3, allow_loss=True) == preview.Seen(4, 3)
    with pytest.raises(RLHFError, match="none of 4 pairs can be used"):
        found(4, allow_loss=True)


def rows_at_last(folder: Path) -> Dataset:
    """The rows that were written last."""
    return Dataset(uri=f"file://{folder / 'rows.jsonl'}")
