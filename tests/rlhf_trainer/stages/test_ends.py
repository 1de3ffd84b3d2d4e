"""Whole stages on models that differ from what a tokenizer alone says: stop lists, padded rows."""

import json
import math
from pathlib import Path
from typing import Any

import ppo_runs
import pytest
import stage_runs
import subwords
import tiny
import torch
import zoo
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from rlhf_api.errors import ConfigError
from rlhf_api.v1alpha1 import ModelSource
from rlhf_trainer.models.load import load_reward_base
from rlhf_trainer.run.artifact import ModelLocation

OWN = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 7, 9]}


def listed(tmp_path: Path) -> ModelSource:
    """A model with a generation configuration of its own."""
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    folder = tiny.saved(tiny.causal_model(words), tmp_path / "listed", words)
    (folder / "generation_config.json").write_text(json.dumps(OWN))
    return tiny.file_source(folder)


def generation(config: Any, outcome: Any) -> dict[str, Any]:
    """What the artifact is sampled by."""
    found = GenerationConfig.from_pretrained(stage_runs.artifact(config, outcome))
    names = ("do_sample", "temperature", "top_k", "top_p", "eos_token_id")
    return {name: getattr(found, name) for name in names if getattr(found, name) is not None}


def test_sft_leaves_the_sampling_of_its_base(tmp_path: Path) -> None:
    config = tiny.stage_config("sft", tmp_path, model=listed(tmp_path), max_steps=1)

    outcome = stage_runs.run(config)

    assert generation(config, outcome) == OWN
    (start,) = stage_runs.events(config, "start")
    assert start["notes"] == [
        "spec.stages.sft.model: answers end with '</s>', by EOS; sampling stops at 'e', 'g' as well"
    ]


def test_ppo_stops_at_the_whole_list_and_leaves_its_own_sampling(tmp_path: Path) -> None:
    config = tiny.stage_config(
        "ppo",
        tmp_path,
        model=listed(tmp_path),
        stop_tokens=("!",),
        temperature=0.8,
        top_k=20,
        top_p=0.95,
        max_response_length=5,
        max_steps=1,
        samples_every_steps=1,
        batch_size=16,
        rollout_micro_batch_size=16,
    )

    outcome = stage_runs.run(config)

    assert generation(config, outcome) == {
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 20,
        "top_p": 0.95,
        "eos_token_id": [1, 7, 9, 21],
    }
    rows = stage_runs.samples(config)
    assert not any(set("eg!") & set(row["response"]) for row in rows)
    cut_off = [row for row in rows if row["stopReason"] == "length"]
    assert cut_off
    (told,) = stage_runs.steps(config)
    assert told["truncated_share"] == pytest.approx(len(cut_off) / 16)
    judge = ppo_runs.judge(ppo_runs.local(config.spec.sources()["rewardModel"]))
    ended = [
        row
        for row in rows
        # The text of others lacks special tokens.
        if row["stopReason"] == "stop" and len(row["response"]) == row["length"] - 1
    ]
    assert len(ended) > 3
    for row in ended:
        ids = [*ppo_runs.ids_of(row["prompt"] + row["response"]), 1]
        assert row["score"] == pytest.approx(ppo_runs.score(judge, ids), rel=1e-4, abs=1e-5)
    (start,) = stage_runs.events(config, "start")
    assert "an answer that ends with 'e', 'g' is scored with '</s>' in its place" in str(start)


def test_a_padded_vocabulary_is_never_sampled_nor_scored(tmp_path: Path) -> None:
    """Rows 22 to 39 have no token: the reward model has no row for them at all."""
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    padded = tiny.causal_model(words)
    padded.resize_token_embeddings(40, mean_resizing=False)
    tiny.shake(padded)
    folder = tiny.saved(padded, tmp_path / "padded", words)
    config = tiny.stage_config(
        "ppo",
        tmp_path,
        model=tiny.file_source(folder),
        max_steps=2,
        batch_size=16,
        rollout_micro_batch_size=16,
        critic_model=tiny.file_source(folder),
        reward_scaling="None",
    )

    stage_runs.run(config)

    first = stage_runs.steps(config)[0]
    assert first["kl"] == pytest.approx(0, abs=1e-4)
    assert first["sampler_drift"] == pytest.approx(0, abs=1e-5)
    assert 0 < first["entropy"] < math.log(22)
    (start,) = stage_runs.events(config, "start")
    assert "rewardModel has 22 rows of embeddings and spec.stages.ppo.model 40" in str(start)
    ids = torch.tensor([[3, 4, 5]])
    logits = padded(input_ids=ids).logits[0, -1]
    assert torch.softmax(logits, dim=-1)[22:].sum() > 0.05, "padded rows are hardly ever sampled"


def test_a_reward_model_of_another_template_is_refused(tmp_path: Path) -> None:
    chat = "{% for m in messages %}{{ m.content }}!{% endfor %}"
    spec = tiny.stage_spec("ppo", tmp_path)
    actor = spec.model.model_copy(update={"chat_template": chat})
    config = tiny.stage_config("ppo", tmp_path, model=actor)

    with pytest.raises(ConfigError, match=r"^spec\.stages\.ppo\.rewardModel\.chatTemplate: "):
        stage_runs.run(config)


def test_a_reward_model_without_tools_scores_prompts_without_them(tmp_path: Path) -> None:
    plain = "{% for m in messages %}{{ m.content }}!{% endfor %}"
    spec = tiny.stage_spec("ppo", tmp_path)
    assert spec.reward_model is not None
    sources = {
        "model": spec.model.model_copy(update={"chat_template": "{{ tools or '' }}" + plain}),
        "reward_model": spec.reward_model.model_copy(update={"chat_template": plain}),
    }
    config = tiny.stage_config("ppo", tmp_path / "plain", **sources, max_steps=1)
    rows = [row | {"tools": [{"name": "f"}]} for row in tiny.prompt_rows()]
    path = tiny.write_rows(tmp_path / "tools.jsonl", rows)
    with_tools = spec.dataset.model_copy(update={"uri": f"file://{path}"})

    stage_runs.run(config)

    (start,) = stage_runs.events(config, "start")
    assert "renders plain prompts alike; a row with tools" in str(start["notes"])
    for name in ("dataset", "eval_dataset"):
        config = tiny.stage_config("ppo", tmp_path / name, **sources, **{name: with_tools})
        with pytest.raises(
            ConfigError, match=r"rewardModel\.chatTemplate: .*tools\.jsonl: line 1 is the first$"
        ):
            stage_runs.run(config)


def test_a_base_without_a_pad_token_needs_no_field_and_scores_alike_elsewhere(
    tmp_path: Path,
) -> None:
    """As GPT-2; transformers looks for the score before the padding."""
    only = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<e>")
    subwords.bare_bytes(**only).save_pretrained(str(tmp_path / "words"))
    source = tiny.scratch_source(tmp_path / "words")
    config = tiny.stage_config("reward", tmp_path, model=source, max_steps=1)

    outcome = stage_runs.run(config)

    (start,) = stage_runs.events(config, "start")
    assert (
        "spec.stages.reward.model: batches are padded by 'ÿ', which no row may hold"
        in (start["notes"])
    )
    folder = stage_runs.artifact(config, outcome)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    texts = ["ab<e>", "é and more<e>"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    assert (batch["input_ids"] == tokenizer.pad_token_id).sum() > 0
    with torch.no_grad():
        together = model(**batch).logits
        alone = [model(**tokenizer(text, return_tensors="pt")).logits for text in texts]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)


def without_sdpa(tmp_path: Path, stage: str) -> dict[str, ModelSource]:
    """The models of a stage, of an architecture for which transformers has no SDPA."""
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    config = zoo.ARCHITECTURES["GPT-J"]
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    causal = tiny.saved(tiny.shake(model), tmp_path / "gptj", words)
    if stage != "ppo":
        return {"model": tiny.file_source(causal)}
    place = ModelLocation(str(causal))
    scalar = load_reward_base(place, tiny.tokenizer_of(words), tiny.FP32, "model")
    scorer = tiny.saved(scalar, tmp_path / "gptj-scores", words)
    return {"model": tiny.file_source(causal), "reward_model": tiny.file_source(scorer)}


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
@pytest.mark.parametrize("asked", ["SDPA", "Eager"])
def test_attention_that_stands_in_is_told_once(tmp_path: Path, stage: str, asked: str) -> None:
    """However many models and copies of them a stage makes."""
    fields: dict[str, Any] = {"packing": False} if stage == "sft" else {}
    fields |= without_sdpa(tmp_path, stage) | {"attention_implementation": asked, "max_steps": 1}
    config = tiny.stage_config(stage, tmp_path, **fields)

    stage_runs.run(config)

    (start,) = stage_runs.events(config, "start")
    told = [note for note in start["notes"] if "attentionImplementation" in note]
    assert len(told) == (1 if asked == "SDPA" else 0)
    for note in told:
        assert note.startswith(f"spec.stages.{stage}.attentionImplementation: transformers ")
        assert note.endswith(" offers no SDPA for the model type gptj: Eager is used")
