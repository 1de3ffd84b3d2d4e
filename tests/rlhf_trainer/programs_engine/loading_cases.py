"""What each rank does in `test_models`, `test_sharded_loading` and `test_source`: models are
loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from torch import Tensor, nn

from rlhf_api.v1alpha1 import StageSpec
from rlhf_trainer.models.adapters import add_adapters
from rlhf_trainer.models.engine import DTYPES, freeze, train, whole_parameters
from rlhf_trainer.models.heads import Actor, Logits, ScalarModel, score_head
from rlhf_trainer.models.load import (
    ModelSettings,
    load_causal_model,
    load_reward_base,
    load_reward_model,
)
from rlhf_trainer.ppo import models
from rlhf_trainer.run.artifact import ModelLocation
from rlhf_trainer.run.distributed import Ranks


def loaded(ranks: Ranks, folder: Path, zero_stage: int) -> list[tuple[str, int, int]]:
    """Of each loading of a model: by what, after how many were placed, and how many numbers of
    those this rank holds whole."""
    config = tiny.stage_config(
        "ppo", folder, world_size=ranks.world_size, zero_stage=zero_stage, precision="BF16"
    )
    assert config.ppo is not None
    placed: list[nn.Module] = []
    told: list[tuple[str, int, int]] = []

    def loading(name: str) -> Callable[..., Any]:
        load = getattr(models, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            whole = sum(p.numel() for module in placed for p in module.parameters())
            told.append((name, len(placed), whole))
            return load(*args, **kwargs)

        return call

    def placing(name: str) -> Callable[..., Any]:
        place = getattr(models, name)

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            found = place(module, *args, **kwargs)
            placed.append(module)
            return found

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("load_causal_model", "load_reward_base", "load_reward_model"):
            patch.setattr(models, name, loading(name))
        for name in ("train", "freeze"):
            patch.setattr(models, name, placing(name))
        bases = models.Bases.open(config.ppo, config, ranks)
        models.load_models(bases, config.ppo, config, ranks, models.Workload(16, 4))
    return told


def file_of(weight: Tensor) -> str:
    """The file whose pages hold a tensor, or nothing where these are of no file."""
    address = weight.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *more = line.split(maxsplit=5)
        start, end = (int(each, 16) for each in span.split("-"))
        if start <= address < end:
            return more[4] if len(more) == 5 else ""
    raise ValueError(f"nothing is mapped at {address:x}")


def of_files(folder: Path, kind: str, settings: ModelSettings) -> Any:
    """A model from a folder, as stages wrap it."""
    given = ModelLocation(str(folder)), tiny.tokenizer_of(folder), settings, "model"
    if kind == "actor":
        return Actor(load_causal_model(*given), logits=Logits.HEAD)
    load = load_reward_base if kind == "critic" else load_reward_model
    return ScalarModel(load(*given))


def cut(
    ranks: Ranks, folder: Path, kind: str, spec: StageSpec
) -> tuple[set[str], dict[str, Tensor]]:
    """Where weights lie once a model is loaded, but for a score head, and what they are once every
    rank has its share of them."""
    module = of_files(folder, kind, ModelSettings.of(spec, ranks))
    head = None if kind == "actor" else score_head(module.model).weight
    files = {Path(file_of(each)).name for each in module.parameters() if each is not head}
    add_adapters(module.model, spec.lora, spec.seed, "lora", DTYPES[spec.precision])
    placed = (
        freeze(module, spec, ranks)
        if kind == "reward model"
        else train(module, spec, ranks, learning_rate=1.0)
    )
    assert not any(each.numel() for each in module.parameters())
    with whole_parameters(placed):
        return files, {name: each.detach().clone() for name, each in module.named_parameters()}


def of_hub(ranks: Ranks, name: str, precision: str) -> tuple[set[str], set[str]]:
    """The data types in which a model of the hub is loaded to be cut, and where its weights lie."""
    settings = ModelSettings(DTYPES[precision], "sdpa", seed=1, as_saved=True)
    location = ModelLocation(name, on_hub=True)
    model = load_causal_model(location, tiny.tokenizer_of(Path(name)), settings, "model")
    weights = list(model.parameters())
    return {str(each.dtype) for each in weights}, {file_of(each) for each in weights}
