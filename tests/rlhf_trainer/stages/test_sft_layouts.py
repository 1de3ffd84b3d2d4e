"""SFT learns by the model's own logits, whatever its attention and however rows stand together."""

import math
from pathlib import Path
from typing import Any

import pytest
import stage_runs
import tiny
import torch
import zoo
from flash_twin import flash_attention as flash_attention
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    PreTrainedModel,
)

from rlhf_api.errors import ConfigError, InputError
from rlhf_api.v1alpha1 import StageConfig
from rlhf_trainer.models.load import ATTENTION

ROWS = tiny.sft_rows(16, seed=1)
HELD_OUT = tiny.sft_rows(16, seed=2)
ALL_AT_ONCE: dict[str, Any] = {"batch_size": 16, "micro_batch_size": 3, "max_steps": 1}


def saved(name: str, tmp_path: Path, attention: str = "eager") -> tuple[Path, PreTrainedModel]:
    """A folder with a model whose weights all matter, and the model."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(
        zoo.ARCHITECTURES[name], attn_implementation=attention, dtype=torch.float32
    )
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    folder = tmp_path / "models" / name.replace(" ", "-")
    if not folder.exists():
        tiny.saved(tiny.shake(model), folder, words)
    return folder, model.eval()


@torch.no_grad()
def plain_loss(model: PreTrainedModel, rows: list[dict[str, str]]) -> float:
    """transformers' own mean loss of all response tokens and EOS, row by row without padding."""
    words = tiny.tokenizer()
    total, count = 0.0, 0
    for row in rows:
        prompt, response = words.encode(row["prompt"]), [*words.encode(row["response"]), 1]
        ids = torch.tensor([prompt + response])
        labels = torch.tensor([[-100] * len(prompt) + response])
        total += len(response) * float(model(input_ids=ids, labels=labels).loss)
        count += len(response)
    return total / count


def config_of(tmp_path: Path, folder: Path, **settings: Any) -> StageConfig:
    return tiny.stage_config(
        "sft", tmp_path, model=tiny.file_source(folder), **ALL_AT_ONCE | settings
    )


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("Mistral", "SDPA"),
        ("Mistral", "Eager"),
        ("Gemma 3", "SDPA"),
        ("Falcon", "SDPA"),
        ("GPT-J", "SDPA"),
    ],
)
def test_loss_and_evaluation_are_those_of_transformers(
    tmp_path: Path, name: str, attention: str, packing: bool
) -> None:
    folder, model = saved(name, tmp_path)
    config = config_of(
        tmp_path,
        folder,
        attention_implementation=attention,
        packing=packing,
        eval_dataset=True,
        eval_every_steps=1,
        learning_rate=1e-12,
        batch_size=4 if packing else 16,
    )
    stage_runs.run(config)
    (step,) = stage_runs.steps(config)
    evaluation = stage_runs.events(config, "evaluation")[-1]["metrics"]
    if not packing:
        assert step["loss"] == pytest.approx(plain_loss(model, ROWS), rel=1e-5)
    assert evaluation["eval_loss"] == pytest.approx(plain_loss(model, HELD_OUT), rel=1e-5)


@pytest.mark.parametrize("name", ["BLOOM", "Falcon with ALiBi", "Mamba"])
def test_what_cannot_be_packed_is_refused_and_trains_without(tmp_path: Path, name: str) -> None:
    folder, model = saved(name, tmp_path)
    settings = {"attention_implementation": "Eager"}
    with pytest.raises(ConfigError, match=r"^spec\.stages\.sft\.packing: .*; set packing: false$"):
        stage_runs.run(config_of(tmp_path, folder, **settings))
    config = config_of(tmp_path, folder, packing=False, **settings)
    stage_runs.run(config)
    (step,) = stage_runs.steps(config)
    assert step["loss"] == pytest.approx(plain_loss(model, ROWS), rel=1e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_flash_attention_trains_as_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flash_attention: str, packing: bool
) -> None:
    monkeypatch.setitem(ATTENTION, "FlashAttention2", flash_attention)
    folder, _ = saved("Mistral", tmp_path)
    found = []
    for attention in ("SDPA", "FlashAttention2"):
        config = config_of(
            tmp_path / attention,
            folder,
            attention_implementation=attention,
            packing=packing,
            batch_size=4,
            max_steps=2,
            eval_dataset=True,
        )
        stage_runs.run(config)
        steps = stage_runs.steps(config)
        found.append(
            [step[name] for step in steps for name in ("loss", "gradient_norm")]
            + [stage_runs.events(config, "evaluation")[-1]["metrics"]["eval_loss"]]
        )
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert all(math.isfinite(number) and number > 0 for number in found[0])


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_an_encoder_is_refused_before_training(tmp_path: Path, stage: str) -> None:
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    config = BertConfig(
        vocab_size=22, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    folder = tmp_path / "bert"
    BertLMHeadModel(config).save_pretrained(folder)
    tiny.tokenizer_of(words).save_pretrained(folder)
    job = tiny.stage_config(stage, tmp_path, model=tiny.file_source(folder))
    with pytest.raises(
        InputError,
        match=rf"^spec\.stages\.{stage}\.model: .*BertLMHeadModel .*set is_decoder",
    ):
        stage_runs.run(job)


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_so_is_a_decoder_that_was_made_one(tmp_path: Path, stage: str) -> None:
    config = zoo.ARCHITECTURES["Gemma 3"].to_dict() | {"use_bidirectional_attention": True}
    folder = tmp_path / "bidirectional"
    Gemma3ForCausalLM(Gemma3TextConfig(**config)).save_pretrained(folder)
    tiny.tokenizer_of(tiny.tokenizer_folder(tmp_path / "tokenizer")).save_pretrained(folder)
    job = tiny.stage_config(stage, tmp_path, model=tiny.file_source(folder))
    with pytest.raises(
        InputError, match=rf"^spec\.stages\.{stage}\.model: in Gemma3ForCausalLM a token sees"
    ):
        stage_runs.run(job)


def test_a_critic_must_be_causal_too(tmp_path: Path) -> None:
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    config = Gemma3TextConfig(
        **zoo.ARCHITECTURES["Gemma 3"].to_dict()
        | {"use_bidirectional_attention": True, "num_labels": 1}
    )
    folder = tmp_path / "bidirectional"
    Gemma3TextForSequenceClassification(config).save_pretrained(folder)
    tiny.tokenizer_of(words).save_pretrained(folder)
    job = tiny.stage_config("ppo", tmp_path, critic_model=tiny.file_source(folder))
    with pytest.raises(InputError, match=r"^spec\.stages\.ppo\.criticModel: in Gemma3ForCausalLM"):
        stage_runs.run(job)
