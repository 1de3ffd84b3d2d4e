"""What a person got wrong: which exit code it becomes, and a message with field, value, remedy."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import stage_runs
import tiny
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_api.errors import RLHFError
from rlhf_api.names import ExitCode, Reason, StageName
from rlhf_api.v1alpha1 import Dataset, ModelSource, StageConfig
from rlhf_trainer.errors import Failure, failure_of


def failure(config: StageConfig) -> Failure:
    """How the stage refuses."""
    with pytest.raises(RLHFError) as caught:
        stage_runs.run(config)
    # Nothing was trained, nothing was left.
    assert not stage_runs.events(config)
    assert not (Path(config.attempt_folder) / "artifact").exists()
    return failure_of(caught.value)


def rows_at(path: Path, *rows: dict[str, Any]) -> Dataset:
    return Dataset(uri=f"file://{tiny.write_rows(path, rows)}")


def missing_file(folder: Path) -> tuple[StageConfig, int, list[str]]:
    config = tiny.stage_config("sft", folder, dataset=Dataset(uri=f"file://{folder}/none.jsonl"))
    return config, ExitCode.INPUT, ["spec.stages.sft.dataset.uri", "none.jsonl", "correct"]


def missing_held_out_file(folder: Path) -> tuple[StageConfig, int, list[str]]:
    dataset = Dataset(uri=f"file://{folder}/none.jsonl")
    config = tiny.stage_config("ppo", folder, eval_dataset=dataset)
    return config, ExitCode.INPUT, ["spec.stages.ppo.evalDataset.uri", "none.jsonl", "correct"]


def missing_model(folder: Path) -> tuple[StageConfig, int, list[str]]:
    config = tiny.stage_config("ppo", folder, model=tiny.file_source(folder / "none"))
    return config, ExitCode.INPUT, ["spec.stages.ppo.model.uri", str(folder / "none"), "check"]


def empty_dataset(folder: Path) -> tuple[StageConfig, int, list[str]]:
    config = tiny.stage_config("reward", folder, dataset=rows_at(folder / "empty.jsonl"))
    field = "spec.stages.reward.dataset.uri"
    return (
        config,
        ExitCode.DATA,
        [field, "empty.jsonl", "is empty: there is no row", "name a dataset"],
    )


def row_without_a_field(folder: Path) -> tuple[StageConfig, int, list[str]]:
    rows: list[dict[str, Any]] = [dict(row) for row in tiny.preference_rows(3)]
    del rows[2]["rejected"]
    config = tiny.stage_config("reward", folder, dataset=rows_at(folder / "rows.jsonl", *rows))
    return config, ExitCode.DATA, ["rows.jsonl: line 3", "rejected", "add it"]


def row_of_another_type(folder: Path) -> tuple[StageConfig, int, list[str]]:
    rows: list[dict[str, Any]] = [dict(row) for row in tiny.sft_rows(4)]
    rows[1]["response"] = 17
    config = tiny.stage_config("sft", folder, dataset=rows_at(folder / "rows.jsonl", *rows))
    return config, ExitCode.DATA, ["rows.jsonl: line 2", "response", "17", "correct it"]


def rows_that_are_too_long(folder: Path) -> tuple[StageConfig, int, list[str]]:
    config = tiny.stage_config("ppo", folder, max_prompt_length=1)
    return (
        config,
        ExitCode.DATA,
        ["ppo-train.jsonl", "1 tokens", "raise spec.stages.ppo.maxPromptLength"],
    )


def no_pad_token(folder: Path) -> tuple[StageConfig, int, list[str]]:
    words = tiny.tokenizer_folder(folder / "tokenizer")
    path = words / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings["pad_token"] = settings["eos_token"]
    path.write_text(json.dumps(settings))
    # Neither may the vocabulary hold a token that is known to be made for padding.
    for name in ("tokenizer.json",):
        text = (words / name).read_text()
        (words / name).write_text(text.replace("<pad>", "<one>"))
    config = tiny.stage_config("sft", folder)
    return config, ExitCode.CONFIG, ["spec.stages.sft.model.padToken", "</s>", "set padToken"]


def unknown_pad_token(folder: Path) -> tuple[StageConfig, int, list[str]]:
    words = tiny.tokenizer_folder(folder / "tokenizer")
    source = tiny.scratch_source(words).model_copy(update={"pad_token": "<none>"})
    config = tiny.stage_config("sft", folder, model=source)
    return config, ExitCode.CONFIG, ["spec.stages.sft.model.padToken", "<none>", "name one"]


def policy_as_reward_model(folder: Path) -> tuple[StageConfig, int, list[str]]:
    words = tiny.tokenizer_folder(folder / "tokenizer")
    causal = tiny.saved(tiny.causal_model(words), folder / "causal", words)
    config = tiny.stage_config("ppo", folder, reward_model=tiny.file_source(causal))
    remedy = "train one with stages.reward"
    return config, ExitCode.INPUT, ["spec.stages.ppo.rewardModel", "LlamaForCausalLM", remedy]


def reward_model_as_policy(folder: Path) -> tuple[StageConfig, int, list[str]]:
    words = tiny.tokenizer_folder(folder / "tokenizer")
    scalar = tiny.saved(tiny.scalar_model(words), folder / "scalar", words)
    config = tiny.stage_config("ppo", folder, model=tiny.file_source(scalar))
    wrong = "LlamaForSequenceClassification"
    return config, ExitCode.INPUT, ["spec.stages.ppo.model", wrong, "name the model"]


def three_labels(folder: Path) -> tuple[StageConfig, int, list[str]]:
    words = tiny.tokenizer_folder(folder / "tokenizer")
    model = tiny.scalar_model(words)
    three = AutoModelForSequenceClassification.from_config(
        type(model.config).from_dict(model.config.to_dict() | {"num_labels": 3})
    )
    config = tiny.stage_config(
        "ppo", folder, reward_model=tiny.file_source(tiny.saved(three, folder / "three", words))
    )
    return config, ExitCode.INPUT, ["spec.stages.ppo.rewardModel", "3 labels", "num_labels: 1"]


def other_tokenizer(folder: Path) -> tuple[StageConfig, int, list[str]]:
    words = tiny.tokenizer_folder(folder / "other", characters="ponmlkjihgfedcba .!")
    scalar = tiny.saved(tiny.scalar_model(words), folder / "scalar", words)
    config = tiny.stage_config("ppo", folder, reward_model=tiny.file_source(scalar))
    named = ["spec.stages.ppo.rewardModel", "spec.stages.ppo.model", "one family"]
    return config, ExitCode.CONFIG, named


def unknown_stop_token(folder: Path) -> tuple[StageConfig, int, list[str]]:
    config = tiny.stage_config("ppo", folder, stop_tokens=("a", "abc"))
    return config, ExitCode.CONFIG, ["spec.stages.ppo.stopTokens[1]", "'abc'", "single token"]


def held_out_rows_that_the_model_cannot_take(
    folder: Path, stage: str, row: dict[str, str]
) -> tuple[StageConfig, int, list[str]]:
    words = tiny.tokenizer_folder(folder / "tokenizer")
    model = tiny.saved(tiny.causal_model(words, "gpt2", max_positions=18), folder / "gpt2", words)
    changed: dict[str, Any] = {"model": tiny.file_source(model)}
    if stage == "ppo":
        changed |= {"max_prompt_length": 16}
    config = tiny.stage_config(
        stage, folder, **changed, eval_dataset=rows_at(folder / "long.jsonl", row)
    )
    return config, ExitCode.CONFIG, [f"spec.stages.{stage}.model", "takes 18 tokens", "lower"]


def long_texts(folder: Path) -> tuple[StageConfig, int, list[str]]:
    row = {"prompt": "abcdefgh" * 2, "response": "ab"}
    return held_out_rows_that_the_model_cannot_take(folder, "sft", row)


def long_pairs(folder: Path) -> tuple[StageConfig, int, list[str]]:
    row = {"query": "abcd" * 3, "chosen": "ab", "rejected": "abcdef"}
    return held_out_rows_that_the_model_cannot_take(folder, "reward", row)


def long_prompts(folder: Path) -> tuple[StageConfig, int, list[str]]:
    return held_out_rows_that_the_model_cannot_take(folder, "ppo", {"prompt": "abcdefghabcd"})


@pytest.mark.parametrize(
    "mistake",
    [
        missing_file,
        missing_held_out_file,
        missing_model,
        empty_dataset,
        row_without_a_field,
        row_of_another_type,
        rows_that_are_too_long,
        no_pad_token,
        unknown_pad_token,
        policy_as_reward_model,
        reward_model_as_policy,
        three_labels,
        other_tokenizer,
        unknown_stop_token,
        long_texts,
        long_pairs,
        long_prompts,
    ],
)
def test_a_mistake_is_named(
    tmp_path: Path, mistake: Callable[[Path], tuple[StageConfig, int, list[str]]]
) -> None:
    config, code, words = mistake(tmp_path)
    found = failure(config)
    assert (found.exit_code, [word for word in words if word not in found.message]) == (code, [])


def test_a_model_beyond_all_memory_is_refused_at_once(tmp_path: Path) -> None:
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    source = tiny.scratch_source(words, hidden_size=65536, layers=256, heads=512)
    config = tiny.stage_config("sft", tmp_path, model=source)
    found = failure(config)
    assert (found.exit_code, found.reason) == (ExitCode.CONFIG, Reason.OUT_OF_MEMORY)
    # 13 trillion parameters of 16 bytes.
    for word in ("spec.stages.sft", "microBatchSize (2)", "spec.stages.sft.precision to BF16"):
        assert word in found.message


def handed_on(folder: Path, change: Callable[[Path], None]) -> StageConfig:
    """A reward stage whose base was changed after the SFT stage left it."""
    sft = tiny.stage_config("sft", folder, max_steps=1)
    outcome = stage_runs.run(sft)
    change(stage_runs.artifact(sft, outcome))
    return tiny.stage_config("reward", folder, model=ModelSource(from_stage="sft")).model_copy(
        update={"artifacts": {StageName.SFT: outcome.artifact}}
    )


def test_an_artifact_that_differs_is_not_read(tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    found = failure(handed_on(tmp_path, change))
    assert found.exit_code == ExitCode.INPUT
    for word in ("artifact of stage sft", "model.safetensors", "run stage sft again"):
        assert word in found.message


def test_an_artifact_of_another_manifest_is_not_read(tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)
        path = folder / "manifest.json"
        path.write_text(path.read_text() + "\n")

    found = failure(handed_on(tmp_path, change))
    assert found.exit_code == ExitCode.INPUT
    for word in ("manifest.json has digest", "was promised", "run stage sft again"):
        assert word in found.message


def test_two_ranks_refuse_alike(tmp_path: Path) -> None:
    config, code, words = row_without_a_field(tmp_path)
    found = stage_runs.run_on_pair(config.model_copy(update={"processes_per_node": 2}))
    for rank in found:
        assert rank["error"].exit_code == code
        assert all(word in rank["error"].message for word in words)
