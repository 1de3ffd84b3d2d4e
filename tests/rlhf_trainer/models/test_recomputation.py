"""Which architectures can compute their layers anew, and what is said of others."""

from typing import Any

import pytest
import tiny
import torch
import zoo
from transformers import PreTrainedConfig

from rlhf_api.errors import ConfigError
from rlhf_trainer.data.tokenize.turns import end_of_turn
from rlhf_trainer.models import layouts, recomputation
from rlhf_trainer.models.generation import Generation
from rlhf_trainer.models.recomputation import check_checkpointing
from rlhf_trainer.models.source import Base
from rlhf_trainer.run.artifact import ModelLocation

FIELD = "spec.stages.reward.gradientCheckpointing"


def base(config: PreTrainedConfig) -> Base:
    words = tiny.tokenizer()
    end = end_of_turn(words)
    generation = Generation(end, (end.token_id,))
    return Base(
        "spec.stages.reward.model", ModelLocation("/models/base"), words, config, generation
    )


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_every_architecture_of_ours_can(name: str) -> None:
    check_checkpointing(base(zoo.ARCHITECTURES[name]), tiny.FP32, FIELD)


def refusal() -> str:
    with pytest.raises(ConfigError) as caught:
        check_checkpointing(base(zoo.ARCHITECTURES["Llama"]), tiny.FP32, FIELD)
    text = str(caught.value)
    assert text.startswith(f"{FIELD}: LlamaForCausalLM of spec.stages.reward.model ")
    assert text.endswith("; leave it out, or name another model")
    return text


def test_a_model_that_keeps_all_the_same_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recomputation, "checkpoint_layers", lambda _: None)
    assert "keeps as much for the backward pass" in refusal()


def checkpointed(model: Any, changed: Any) -> None:
    """With checkpointing, and something else in each layer."""
    model.activation_checkpointing_enable()
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(changed)


def test_a_model_that_learns_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return 2 * output

    monkeypatch.setattr(
        recomputation, "checkpoint_layers", lambda model: checkpointed(model, doubled)
    )
    assert "has other gradients with gradient checkpointing" in refusal()


def test_a_model_that_fails_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no such layer")

    monkeypatch.setattr(recomputation, "checkpoint_layers", lambda model: checkpointed(model, fail))
    assert "it raises RuntimeError: no such layer" in refusal()


def test_a_model_of_which_no_small_copy_can_be_made_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layouts, "MOST_PARAMETERS", 10)
    with pytest.raises(ConfigError) as caught:
        check_checkpointing(base(zoo.ARCHITECTURES["Llama"]), tiny.FP32, FIELD)
    text = str(caught.value)
    assert text.startswith(f"{FIELD}: whether llama of spec.stages.reward.model learns with it is ")
    assert "no small copy of it computes (it would have " in text
