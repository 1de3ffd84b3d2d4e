"""The SFT stage from its configuration to the artifact, on one rank and two."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import stage_runs
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from rlhf_api.names import FileName
from rlhf_api.v1alpha1 import Dataset, StageConfig
from rlhf_trainer.data.packing import pack
from rlhf_trainer.models.load import ModelSettings, load_causal_model
from rlhf_trainer.process.outcome import StageOutcome

ROWS = tiny.sft_rows(16, seed=1)
HELD_OUT = tiny.sft_rows(16, seed=2)
SEED = 3
ALL_AT_ONCE: dict[str, Any] = {"batch_size": 16, "micro_batch_size": 8, "max_steps": 1}


def ids_of(text: str) -> list[int]:
    """Token ids, by hand."""
    return [3 + tiny.CHARACTERS.index(character) for character in text]


def fresh_model(folder: Path) -> PreTrainedModel:
    """The weights that the stage starts from."""
    words = tiny.tokenizer_folder(folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(words)
    settings = ModelSettings(torch.float32, "sdpa", SEED)
    return load_causal_model(tiny.location(words), tokenizer, settings, "model")


@torch.no_grad()
def mean_loss(model: PreTrainedModel, rows: list[dict[str, str]]) -> float:
    """-log p of every response token and EOS, row by row and token by token."""
    losses: list[float] = []
    for row in rows:
        prompt, response = ids_of(row["prompt"]), [*ids_of(row["response"]), 1]
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0]
        for at, token in enumerate(response, len(prompt)):
            losses.append(-float(torch.log_softmax(logits[at - 1], dim=-1)[token]))
    return math.fsum(losses) / len(losses)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).named_parameters()
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[StageConfig, StageOutcome]:
    """One run, read by several tests."""
    config = tiny.stage_config(
        "sft",
        tmp_path_factory.mktemp("sft"),
        eval_dataset=True,
        eval_every_steps=5,
        max_steps=16,
        packing=False,
        batch_size=8,
        learning_rate=0.05,
        schedule="Linear",
        warmup_ratio=0.25,
    )
    return config, stage_runs.run(config)


def test_the_loss_falls_on_what_can_be_learned(
    finished: tuple[StageConfig, StageOutcome],
) -> None:
    losses = [step["loss"] for step in stage_runs.steps(finished[0])]
    assert losses[0] > 2.5
    assert losses[-1] < 1.5


def test_outcome_and_events_tell_the_same(finished: tuple[StageConfig, StageOutcome]) -> None:
    config, outcome = finished
    steps = stage_runs.events(config, "step")
    assert [event["step"] for event in steps] == list(range(1, 17))
    assert [event["epoch"] for event in steps] == [step / 2 for step in range(1, 17)]
    assert (outcome.step, outcome.total_steps, outcome.last_checkpoint_step) == (16, 16, 16)
    assert outcome.metrics["loss"] == steps[-1]["metrics"]["loss"]
    assert [event["type"] for event in stage_runs.events(config)][-2:] == ["evaluation", "end"]
    for name in stage_runs.SPEED:
        assert all(event["metrics"][name] > 0 for event in steps)


def test_the_learning_rate_warms_up_and_falls(finished: tuple[StageConfig, StageOutcome]) -> None:
    rates = [step["learning_rate"] for step in stage_runs.steps(finished[0])]
    expected = [1 / 4, 2 / 4, 3 / 4, 4 / 4] + [1 - step / 12 for step in range(12)]
    assert rates == pytest.approx([0.05 * factor for factor in expected], rel=1e-9)


def test_the_evaluation_is_that_of_the_artifact(
    finished: tuple[StageConfig, StageOutcome],
) -> None:
    config, outcome = finished
    folder = stage_runs.artifact(config, outcome)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    figures = stage_runs.document(folder, FileName.EVALUATION)
    assert sorted(figures) == ["loss", "perplexity"]
    assert figures["loss"] == pytest.approx(mean_loss(model, HELD_OUT), rel=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]), rel=1e-9)
    told = stage_runs.events(config, "evaluation")
    assert [event["step"] for event in told] == [5, 10, 15, 16]
    assert told[-1]["metrics"] == {
        "eval_loss": figures["loss"],
        "perplexity": figures["perplexity"],
    }


def test_the_artifact_has_tokenizer_and_generation_config(
    finished: tuple[StageConfig, StageOutcome],
) -> None:
    folder = stage_runs.artifact(*finished)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("abc")["input_ids"] == ids_of("abc")
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
    generation = GenerationConfig.from_pretrained(folder)
    assert (generation.eos_token_id, generation.pad_token_id) == ([1], 0)
    listed = {file["path"] for file in stage_runs.document(folder, FileName.MANIFEST)["files"]}
    assert {"model.safetensors", "config.json", "tokenizer.json", FileName.EVALUATION} <= listed
    # What was learned: the prompt's last letter, again and again.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = torch.tensor([ids_of("fghc")])
    answer = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=2
    )
    assert tokenizer.decode(answer[0]) == "fghccc"


def test_only_responses_and_eos_carry_a_loss(tmp_path: Path) -> None:
    config = tiny.stage_config("sft", tmp_path, packing=False, **ALL_AT_ONCE)
    stage_runs.run(config)
    (step,) = stage_runs.steps(config)
    assert step["loss"] == pytest.approx(mean_loss(fresh_model(tmp_path), ROWS), rel=1e-6)


@pytest.mark.field("SFTStage.packing")
def test_packing_changes_neither_loss_nor_gradient(tmp_path: Path) -> None:
    lengths = [len(row["prompt"]) + len(row["response"]) + 1 for row in ROWS]
    sequences = len(pack(lengths, 32))
    assert sequences < 10
    # A large epsilon makes Adam's first step smooth in the gradient: no sign flips at zero.
    plain = tiny.stage_config("sft", tmp_path / "a", packing=False, adam_eps=1.0, **ALL_AT_ONCE)
    packed = tiny.stage_config(
        "sft",
        tmp_path / "b",
        packing=True,
        adam_eps=1.0,
        **ALL_AT_ONCE | {"batch_size": sequences, "micro_batch_size": 2},
    )
    found = [weights(stage_runs.artifact(each, stage_runs.run(each))) for each in (plain, packed)]
    (alone,), (together,) = stage_runs.steps(plain), stage_runs.steps(packed)
    for name in ("loss", "gradient_norm"):
        assert together[name] == pytest.approx(alone[name], rel=1e-5)
    start = dict(fresh_model(tmp_path / "a").named_parameters())
    for name, weight in found[0].items():
        moved, moved_packed = weight - start[name], found[1][name] - start[name]
        torch.testing.assert_close(moved_packed, moved, rtol=1e-3, atol=1e-7)


def test_clipping_scales_the_gradient_and_decay_shrinks_matrices_only(tmp_path: Path) -> None:
    """AdamW's first step is lr * g / (|g| + eps) + lr * decay * w, which gives g back."""
    settings: dict[str, Any] = {"packing": False, "adam_eps": 1.0, **ALL_AT_ONCE}
    changes = {"free": {}, "clipped": {"gradient_clipping": 0.25}, "decayed": {"weight_decay": 0.5}}
    moved: dict[str, dict[str, torch.Tensor]] = {}
    norms: dict[str, float] = {}
    start = dict(fresh_model(tmp_path).named_parameters())
    for name, change in changes.items():
        config = tiny.stage_config(
            "sft", tmp_path / name, **settings | {"gradient_clipping": 0.0} | change
        )
        after = weights(stage_runs.artifact(config, stage_runs.run(config)))
        moved[name] = {key: (start[key] - value).detach() for key, value in after.items()}
        norms[name] = stage_runs.steps(config)[0]["gradient_norm"]
    assert norms["clipped"] == pytest.approx(norms["free"], rel=1e-6)
    assert norms["free"] > 0.5
    rate = 0.01
    for key, free in moved["free"].items():
        gradient = free / (rate - free.abs())
        clipped = gradient * 0.25 / norms["free"]
        torch.testing.assert_close(
            moved["clipped"][key], rate * clipped / (clipped.abs() + 1), rtol=1e-2, atol=2e-7
        )
        decay = 0.5 * rate * start[key] if start[key].dim() >= 2 else torch.zeros_like(start[key])
        torch.testing.assert_close(
            moved["decayed"][key] - free, decay.detach(), rtol=1e-2, atol=2e-7
        )


@pytest.mark.parametrize(
    ("asked", "steps", "epoch"),
    [({"epochs": 2}, 6, 2.25), ({"max_steps": 3}, 3, 1.125), ({}, 3, 1.125)],
)
def test_epochs_and_steps(tmp_path: Path, asked: dict[str, int], steps: int, epoch: float) -> None:
    settings: dict[str, Any] = {"batch_size": 6, "packing": False, "max_steps": None} | asked
    config = tiny.stage_config("sft", tmp_path, **settings)
    outcome = stage_runs.run(config)
    assert (outcome.step, outcome.total_steps) == (steps, steps)
    assert stage_runs.events(config, "step")[-1]["epoch"] == epoch


def test_micro_batches_do_not_matter(tmp_path: Path) -> None:
    found = []
    for size in (1, 3, 8):
        config = tiny.stage_config(
            "sft", tmp_path / str(size), packing=False, batch_size=8, micro_batch_size=size
        )
        stage_runs.run(config)
        steps = stage_runs.steps(config)
        found.append([step["loss"] for step in steps] + [step["gradient_norm"] for step in steps])
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_two_ranks_learn_as_one(tmp_path: Path, zero_stage: int) -> None:
    settings: dict[str, Any] = {"eval_dataset": True, "adam_eps": 1e-3}
    alone = tiny.stage_config("sft", tmp_path / "one", **settings)
    outcome = stage_runs.run(alone)
    pair = tiny.stage_config(
        "sft", tmp_path / "two", world_size=2, zero_stage=zero_stage, **settings
    )
    first, second = stage_runs.run_on_pair(pair)
    assert first["outcome"].artifact == second["outcome"].artifact
    for mine, theirs in zip(stage_runs.steps(alone), stage_runs.steps(pair), strict=True):
        for name in ("loss", "gradient_norm"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-5)
    figures = [
        stage_runs.document(stage_runs.artifact(*each), FileName.EVALUATION)
        for each in ((alone, outcome), (pair, first["outcome"]))
    ]
    assert figures[1]["loss"] == pytest.approx(figures[0]["loss"], rel=1e-5)
    for name, weight in weights(stage_runs.artifact(alone, outcome)).items():
        other = weights(stage_runs.artifact(pair, first["outcome"]))[name]
        torch.testing.assert_close(other, weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "qwen3", "gpt_neox"])
def test_other_architectures_in_bf16(tmp_path: Path, architecture: str) -> None:
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    config = tiny.stage_config(
        "sft",
        tmp_path,
        model=tiny.scratch_source(words, architecture),
        precision="BF16",
        zero_stage=2,
        max_steps=8,
        learning_rate=0.02,
    )
    outcome = stage_runs.run(config)
    losses = [step["loss"] for step in stage_runs.steps(config)]
    assert losses[-1] < losses[0] - 0.3
    model = AutoModelForCausalLM.from_pretrained(stage_runs.artifact(config, outcome))
    assert model.dtype == torch.bfloat16


def test_rows_as_long_as_a_sequence_pack_one_by_one(tmp_path: Path) -> None:
    rows = [{"prompt": "ab", "response": "c" * 29}] * 3
    path = tiny.write_rows(tmp_path / "long.jsonl", rows)
    config = tiny.stage_config(
        "sft", tmp_path, dataset=Dataset(uri=f"file://{path}"), max_steps=None, batch_size=2
    )
    assert stage_runs.run(config).step == 2


@pytest.mark.parametrize("length", [4, 400])
def test_the_estimate_of_memory_counts_held_out_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, length: int
) -> None:
    long = tiny.write_rows(tmp_path / "long.jsonl", [{"prompt": "a", "response": "b" * length}] * 2)
    short = tiny.write_rows(tmp_path / "short.jsonl", [{"prompt": "a", "response": "bcd"}] * 4)
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")

    def needed(folder: str, **held_out: Any) -> int:
        config = tiny.stage_config(
            "sft",
            tmp_path / folder,
            model=tiny.scratch_source(words, max_positions=512),
            dataset=Dataset(uri=f"file://{short}"),
            max_length=512,
            batch_size=2,
            max_steps=1,
            **held_out,
        )
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="rlhf_trainer.models.memory"):
            stage_runs.run(config)
        (told,) = [one for one in caplog.records if hasattr(one, "bytes_needed")]
        return int(told.__dict__["bytes_needed"])

    larger = needed("with", eval_dataset=Dataset(uri=f"file://{long}")) - needed("without")
    assert (larger > 0) == (length > 4)
