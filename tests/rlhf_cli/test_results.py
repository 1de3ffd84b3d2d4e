"""Figures and samples of a job that has succeeded."""

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rlhf_api.names import StageState
from rlhf_api.v1alpha1 import (
    RLHFJob,
    RLHFJobStatus,
    RowCounts,
    StageArtifact,
    StageStatus,
    StageStatuses,
)
from rlhf_cli.results import result_lines, resumptions, summarize

START = datetime(2026, 1, 1, tzinfo=UTC)
EVALUATIONS: dict[str, Any] = {
    "sft": {"loss": 2.0, "perplexity": 7.4},
    "reward": {"accuracy": 0.81, "chosenScore": 1, "scoreMean": 0, "scoreStd": 1},
    "ppo": {
        "before": {"score": 0.5, "scoreStd": 1.5, "kl": 0.0, "eosRate": 0.7, "distinct2": 0.9},
        "after": {
            "score": 2.0,
            "scoreStd": 0.8,
            "kl": 8.0,
            "eosRate": 0.95,
            "meanLength": 21.5,
            "distinct2": 0.8,
        },
    },
}


def make_job(storage: Path, evaluations: dict[str, Any]) -> RLHFJob:
    base = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://a/b"}}
    stages = {}
    for index, (name, evaluation) in enumerate(evaluations.items()):
        folder = storage / name / "artifact"
        folder.mkdir(parents=True)
        if evaluation is not None:
            (folder / "evaluation.json").write_text(json.dumps(evaluation))
        stages[name] = StageStatus(
            state=StageState.SUCCEEDED,
            start_time=START + timedelta(minutes=index),
            completion_time=START + timedelta(minutes=index + 1),
            artifact=StageArtifact(uri=f"{name}/artifact", digest="sha256:" + "0" * 64),
        )
    end = START + timedelta(minutes=len(evaluations))
    document = {
        "apiVersion": "rlhf.dev/v1alpha1",
        "kind": "RLHFJob",
        "metadata": {"name": "reviews"},
        "spec": {"stages": {"sft": base}},
    }
    status = RLHFJobStatus(
        start_time=START, completion_time=end, stages=StageStatuses.model_validate(stages)
    )
    return RLHFJob.from_document(document).model_copy(update={"status": status})


def test_a_stop_says_where_each_stage_goes_on(tmp_path: Path) -> None:
    job = make_job(tmp_path, {"sft": None, "reward": None, "ppo": None})
    stopped = {"state": StageState.SUSPENDED, "attempt": 2}
    stages = job.status.stages.model_copy(
        update={
            "reward": StageStatus(**stopped, last_checkpoint_step=5),
            "ppo": StageStatus(**stopped),
        }
    )
    changed = job.status.model_copy(update={"stages": stages})
    assert list(resumptions(job.model_copy(update={"status": changed}))) == [
        "stage reward from the checkpoint of step 5",
        "stage ppo from its beginning",
    ]


def test_every_key_of_the_summary(tmp_path: Path) -> None:
    assert summarize(make_job(tmp_path, EVALUATIONS), tmp_path) == {
        "rewardAccuracy": 0.81,
        "scoreSft": 0.5,
        "scoreSftStd": 1.5,
        "scorePpo": 2.0,
        "kl": 8.0,
        "eosRate": 0.95,
        "meanLength": 21.5,
        "distinct2Sft": 0.9,
        "distinct2Ppo": 0.8,
        "sftPerplexity": 7.4,
        "secondsTotal": 180.0,
        "secondsByStage": {"sft": 60.0, "reward": 60.0, "ppo": 60.0},
    }


def test_idle_time_is_left_out(tmp_path: Path) -> None:
    job = make_job(tmp_path, {"sft": None})
    sft = job.status.stages.sft
    assert sft is not None
    stages = StageStatuses(sft=sft.model_copy(update={"idle_seconds": 20}))
    status = job.status.model_copy(update={"idle_seconds": 45, "stages": stages})
    summary = summarize(job.model_copy(update={"status": status}), tmp_path)
    assert (summary["secondsTotal"], summary["secondsByStage"]) == (15.0, {"sft": 40.0})


def test_what_was_not_evaluated_is_left_out(tmp_path: Path) -> None:
    job = make_job(tmp_path, {"sft": None, "reward": {"accuracy": 0.5}})
    summary = summarize(job, tmp_path)
    assert set(summary) == {"rewardAccuracy", "secondsTotal", "secondsByStage"}
    assert list(result_lines(job, tmp_path, summary)) == [
        "rewardAccuracy: 0.5",
        "time: 2 min 00 s (sft 1 min 00 s, reward 1 min 00 s)",
        f"sft: {tmp_path}/sft/artifact",
        f"reward: {tmp_path}/reward/artifact",
    ]


def test_a_nan_of_an_earlier_release_is_not_written_again(tmp_path: Path) -> None:
    job = make_job(tmp_path, {"sft": {"perplexity": math.nan}, "reward": {"accuracy": 0.5}})
    summary = summarize(job, tmp_path)
    assert json.loads(json.dumps(summary, allow_nan=False))["rewardAccuracy"] == 0.5
    assert "sftPerplexity" not in summary


def test_a_few_samples_on_one_line_each(tmp_path: Path) -> None:
    job = make_job(tmp_path, EVALUATIONS)
    row = {"prompt": "书", "responseBefore": "a\nb", "responseAfter": "c", "scoreBefore": -1.25}
    rows = tmp_path / "ppo" / "artifact" / "evaluation_samples.jsonl"
    rows.write_text((json.dumps(row) + "\n") * 5)
    lines = list(result_lines(job, tmp_path, summarize(job, tmp_path)))
    assert lines[:4] == ["prompt  书", "before  a b  (score -1.25)", "after   c", ""]
    assert sum(line.startswith("prompt") for line in lines) == 3


def test_what_became_of_the_rows(tmp_path: Path) -> None:
    job = make_job(tmp_path, {"sft": None, "reward": None})
    sft, reward = job.status.stages.sft, job.status.stages.reward
    assert sft is not None
    assert reward is not None
    lossy = {"dataset": RowCounts(kept=1, over_long=9), "evalDataset": RowCounts(kept=4)}
    cut = RowCounts(kept=2, truncated=1, encoded_apart=2)
    stages = StageStatuses(
        sft=sft.model_copy(update={"rows": {"dataset": cut}}),
        reward=reward.model_copy(update={"rows": lossy}),
    )
    job = job.model_copy(update={"status": job.status.model_copy(update={"stages": stages})})
    summary = summarize(job, tmp_path)
    others = ("truncated", "encodedApart", "overLong", "identical", "emptyList", "notLearned")
    none = dict.fromkeys(others, 0)
    assert summary["rowsByStage"] == {
        "sft": {"dataset": none | {"kept": 2, "truncated": 1, "encodedApart": 2}},
        "reward": {
            "dataset": none | {"kept": 1, "overLong": 9},
            "evalDataset": none | {"kept": 4},
        },
    }
    assert list(result_lines(job, tmp_path, summary))[:3] == [
        "sft dataset: 2 rows used, 1 cut to the limit, 2 with prompt and response encoded apart",
        "reward dataset: 1 rows used, 9 left out as too long",
        "reward evalDataset: 4 rows used",
    ]
