"""The reward stage from its configuration to the artifact, on one rank and two."""

import io
import json
import math
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stage_runs
import tiny
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from rlhf_api.names import FileName
from rlhf_api.v1alpha1 import Columns, Dataset, StageConfig
from rlhf_trainer.models.load import ModelSettings, load_reward_base
from rlhf_trainer.process.outcome import StageOutcome

SEED = 3
HEADER = "***** Evaluating reward, Epoch 1/1 *****"
FIGURES = re.compile(
    r"(?:step: (\d+/\d+), )?chosen_last_scores \(higher is better\) : (-?\d+\.\d+),"
    r"reject_last_scores \(lower is better\) : (-?\d+\.\d+), "
    r"acc \(higher is better\) : (\d\.\d+)"
)
ALL_AT_ONCE: dict[str, Any] = {"batch_size": 16, "micro_batch_size": 8, "max_steps": 1}


@dataclass
class Finished:
    """A run and what it wrote to stdout."""

    config: StageConfig
    outcome: StageOutcome
    lines: list[str]

    @property
    def folder(self) -> Path:
        return stage_runs.artifact(self.config, self.outcome)


def dataset(path: Path, rows: list[dict[str, Any]], **settings: Any) -> Dataset:
    return Dataset(uri=f"file://{tiny.write_rows(path, rows)}", **settings)


def text_ids(text: str) -> list[int]:
    """Token ids with EOS, by hand."""
    return [*(3 + tiny.CHARACTERS.index(character) for character in text), 1]


@torch.no_grad()
def score(model: PreTrainedModel, text: str) -> float:
    """What a reader of the artifact gets for one text, without any padding."""
    return float(model(input_ids=torch.tensor([text_ids(text)])).logits[0, 0])


def pair_scores(
    model: PreTrainedModel, rows: list[dict[str, Any]]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    chosen, rejected = (
        np.array([score(model, row["query"] + row[side]) for row in rows])
        for side in ("chosen", "rejected")
    )
    return chosen, rejected


def fresh_model(folder: Path) -> PreTrainedModel:
    """The weights that the stage starts from."""
    words = tiny.tokenizer_folder(folder / "tokenizer")
    settings = ModelSettings(torch.float32, "sdpa", SEED)
    tokenizer = AutoTokenizer.from_pretrained(words)
    return load_reward_base(tiny.location(words), tokenizer, settings, "model")


def loaded(folder: Path) -> PreTrainedModel:
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()


HELD_OUT = tiny.preference_rows(1020, seed=2)


def evaluated(folder: Path, **settings: Any) -> StageConfig:
    """Four steps over 30 rows, whose last batch takes two rows of another epoch."""
    return tiny.stage_config(
        "reward",
        folder,
        dataset=dataset(folder / "train.jsonl", tiny.preference_rows(30)),
        eval_dataset=dataset(folder / "held-out.jsonl", HELD_OUT),
        max_steps=None,
        batch_size=8,
        micro_batch_size=4,
        learning_rate=0.05,
        schedule="Constant",
        # Of rounding errors in a gradient near zero Adam would make whole steps.
        adam_eps=1e-3,
        **settings,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One run, read by several tests."""
    config = evaluated(tmp_path_factory.mktemp("reward"))
    told = io.StringIO()
    with redirect_stdout(told):
        outcome = stage_runs.run(config)
    lines = told.getvalue().splitlines()
    return Finished(config, outcome, lines[lines.index(HEADER) :])


def test_what_can_be_learned_is_learned(finished: Finished) -> None:
    steps = stage_runs.steps(finished.config)
    assert len(steps) == 4
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=0.3)
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.2
    assert stage_runs.document(finished.folder, FileName.EVALUATION)["accuracy"] > 0.9


def test_the_evaluation_is_told_to_the_letter(finished: Finished) -> None:
    assert finished.lines[0] == HEADER
    found = [FIGURES.fullmatch(line) for line in finished.lines[1:]]
    assert all(found), finished.lines
    assert [match[1] for match in found if match] == ["499/1020", "999/1020", None]
    chosen, rejected = pair_scores(loaded(finished.folder), HELD_OUT)
    for match, rows in zip(found, (500, 1000, 1020), strict=True):
        assert match is not None
        told = [float(match[group]) for group in (2, 3, 4)]
        expected = [
            chosen[:rows].mean(),
            rejected[:rows].mean(),
            (chosen[:rows] > rejected[:rows]).mean(),
        ]
        assert told == pytest.approx(expected, rel=1e-5)
        # As DeepSpeed-Chat prints it: all digits of an fp32 number.
        assert all(np.float32(number).item() == number for number in told)


def test_statistics_are_those_of_all_scores(finished: Finished) -> None:
    scores = np.concatenate(pair_scores(loaded(finished.folder), HELD_OUT))
    found = stage_runs.document(finished.folder, FileName.REWARD_STATISTICS)
    assert sorted(found) == ["count", "mean", "std"]
    assert found["count"] == 2040
    assert found["mean"] == pytest.approx(scores.mean(), rel=1e-5, abs=1e-6)
    assert found["std"] == pytest.approx(scores.std(ddof=1), rel=1e-5)


def test_the_outcome_has_the_evaluation(finished: Finished) -> None:
    figures = stage_runs.document(finished.folder, FileName.EVALUATION)
    told = stage_runs.events(finished.config, "evaluation")[-1]["metrics"]
    for name, metric in (
        ("accuracy", "eval_accuracy"),
        ("chosenScore", "eval_chosen_score"),
        ("rejectedScore", "eval_rejected_score"),
    ):
        assert figures[name] == told[metric] == finished.outcome.metrics[metric]
    margin = told["eval_chosen_score"] - told["eval_rejected_score"]
    assert told["eval_score_margin"] == pytest.approx(margin)


@pytest.mark.parametrize("side", ["left", "right"])
def test_other_tools_score_alike_with_either_padding(finished: Finished, side: str) -> None:
    """A row may hold the pad token's characters no more than any text does; EOS ends it."""
    model = loaded(finished.folder)
    tokenizer = AutoTokenizer.from_pretrained(finished.folder, padding_side=side)
    texts = [row["query"] + row["chosen"] for row in HELD_OUT[:8]]
    batch = tokenizer(
        [text + tokenizer.eos_token for text in texts], return_tensors="pt", padding=True
    )
    with torch.no_grad():
        found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = [score(model, text) for text in texts]
    assert found.squeeze(1).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert model.config.num_labels == 1


def test_two_ranks_tell_the_same(finished: Finished, tmp_path: Path) -> None:
    config = evaluated(tmp_path, world_size=2, zero_stage=2)
    first, second = stage_runs.run_on_pair(config)
    assert second["stdout"].count("*") == 0
    lines = first["stdout"].splitlines()
    lines = lines[lines.index(HEADER) :]
    assert len(lines) == len(finished.lines)
    for mine, theirs in zip(finished.lines[1:], lines[1:], strict=True):
        ours, others = FIGURES.fullmatch(mine), FIGURES.fullmatch(theirs)
        assert ours is not None
        assert others is not None
        assert others[1] == ours[1]
        for group in (2, 3, 4):
            assert float(others[group]) == pytest.approx(float(ours[group]), rel=1e-4, abs=1e-5)
    for alone, pair in zip(
        stage_runs.steps(finished.config), stage_runs.steps(config), strict=True
    ):
        for name in ("loss", "accuracy", "chosen_score", "rejected_score", "gradient_norm"):
            assert pair[name] == pytest.approx(alone[name], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "row_margin", "margin", "centering"),
    [
        ({}, None, 0.0, 0.0),
        ({"margin": 0.7}, None, 0.7, 0.0),
        ({"margin": 0.7}, 1.5, 1.5, 0.0),
        ({"centering_coef": 0.3}, None, 0.0, 0.3),
    ],
)
def test_margin_and_centering(
    tmp_path: Path,
    settings: dict[str, float],
    row_margin: float | None,
    margin: float,
    centering: float,
) -> None:
    rows: list[dict[str, Any]] = [dict(row) for row in tiny.preference_rows()]
    columns = Columns()
    if row_margin is not None:
        rows = [row | {"gap": row_margin} for row in rows]
        columns = Columns(margin="gap")
    config = tiny.stage_config(
        "reward",
        tmp_path,
        dataset=dataset(tmp_path / "rows.jsonl", rows, columns=columns),
        **ALL_AT_ONCE,
        **settings,
    )
    stage_runs.run(config)
    chosen, rejected = pair_scores(fresh_model(tmp_path), rows)
    loss = np.logaddexp(0, -(chosen - rejected - margin)) + centering * (chosen + rejected) ** 2
    (step,) = stage_runs.steps(config)
    assert step["loss"] == pytest.approx(loss.mean(), rel=1e-5)
    assert step["chosen_score"] == pytest.approx(chosen.mean(), rel=1e-4, abs=1e-6)
    assert step["score_margin"] == pytest.approx((chosen - rejected).mean(), rel=1e-4, abs=1e-6)
    assert step["accuracy"] == (chosen > rejected).mean()


def test_miracl_rows(tmp_path: Path) -> None:
    def passages(*texts: str) -> list[dict[str, str]]:
        return [{"docid": str(at), "title": "ok", "text": text} for at, text in enumerate(texts)]

    rows = [
        {
            "query": row["query"],
            "positive_passages": passages(row["chosen"]),
            "negative_passages": passages(row["rejected"], "bbb"),
        }
        for row in tiny.preference_rows(20)
    ]
    rows[3]["positive_passages"] = []
    rows[7]["negative_passages"] = []
    path = tmp_path / "miracl.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tiny.stage_config(
        "reward",
        tmp_path,
        dataset=Dataset(uri=f"file://{path}", title_prefix=False),
        max_steps=None,
        batch_size=6,
        epochs=2,
        learning_rate=0.05,
    )
    outcome = stage_runs.run(config)
    # 18 rows have both kinds of passages.
    assert outcome.total_steps == 6
    steps = stage_runs.steps(config)
    assert stage_runs.events(config, "step")[-1]["epoch"] == 2.0
    assert steps[-1]["accuracy"] > 0.8
    assert not (stage_runs.artifact(config, outcome) / FileName.REWARD_STATISTICS).exists()


def test_a_reward_model_starts_from_an_sft_artifact(tmp_path: Path) -> None:
    base = tiny.saved(
        tiny.causal_model(tiny.tokenizer_folder(tmp_path / "tokenizer")),
        tmp_path / "base",
        tmp_path / "tokenizer",
    )
    config = tiny.stage_config(
        "reward", tmp_path, model=tiny.file_source(base), eval_dataset=True, eval_every_steps=2
    )
    outcome = stage_runs.run(config)
    assert loaded(stage_runs.artifact(config, outcome)).config.num_labels == 1
    assert [event["step"] for event in stage_runs.events(config, "evaluation")] == [2, 4]
