"""Adapters beside a model: what is trained, what they compute, and that merging keeps it."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import worlds
import zoo
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from rlhf_api.errors import ConfigError
from rlhf_api.names import ExitCode
from rlhf_api.v1alpha1 import LoRA
from rlhf_trainer.data.tokenize.turns import end_of_turn
from rlhf_trainer.models.adapters import (
    WithoutAdapters,
    add_adapters,
    merge_adapters,
    trained_size,
)
from rlhf_trainer.models.engine import DTYPES, train
from rlhf_trainer.models.generation import Generation
from rlhf_trainer.models.heads import Actor, switch_off_dropout
from rlhf_trainer.models.load import untrained_model
from rlhf_trainer.models.source import Base
from rlhf_trainer.run.artifact import ModelLocation

PROGRAM = Path(__file__).parents[1] / "programs_engine" / "adapter_cases.py"
cases: Any = worlds.load(PROGRAM)
FIELD = "spec.stages.sft.lora"
TWO = LoRA(rank=2, alpha=6)
IDS = torch.tensor([[3, 9, 4, 12, 7]])
ZERO_STAGES = [0, 1, 2, 3]


def model_of(name: str) -> PreTrainedModel:
    model = untrained_model(zoo.ARCHITECTURES[name], tiny.FP32, "model")
    switch_off_dropout(model)
    return tiny.shake(model).eval()  # type: ignore[no-any-return]


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@torch.no_grad()
def learn(model: PreTrainedModel) -> None:
    """Move everything that is trained."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


# PEFT takes no adapters beside all linear layers of Mamba.
LINEAR = [name for name in zoo.ARCHITECTURES if name != "Mamba"]


@pytest.mark.parametrize("name", LINEAR)
def test_adapters_begin_as_nothing_and_merged_they_stay_what_they_are(
    tmp_path: Path, name: str
) -> None:
    model = model_of(name)
    names = [each for each, _ in model.named_parameters()]
    before = logits(model)
    add_adapters(model, TWO, 1, FIELD)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    trained = [each for each, weight in model.named_parameters() if weight.requires_grad]
    assert trained
    assert all("lora_" in each for each in trained)
    learn(model)
    learned = logits(model)
    assert float((learned - before).abs().max()) > 0.1
    merge_adapters(model)
    # The names of a plain model, which transformers alone loads.
    assert [each for each, _ in model.named_parameters()] == names
    torch.testing.assert_close(logits(model), learned, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(logits(plain), learned, rtol=1e-5, atol=1e-5)
    assert not list(tmp_path.glob("adapter*"))


def test_a_score_head_is_trained_whole(tmp_path: Path) -> None:
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    model = tiny.scalar_model(words)
    add_adapters(model, TWO, 1, FIELD)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert [name for name in trained if "lora_" not in name] == ["score.weight"]
    learn(model)
    model.config.pad_token_id = 0
    scores = logits(model)
    folder = tiny.saved(model, tmp_path / "scores", words)
    plain = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    torch.testing.assert_close(logits(plain.eval()), scores, rtol=0, atol=1e-5)


@pytest.mark.field("LoRA.rank", "LoRA.alpha", instead=1)
def test_alpha_over_rank_scales_what_an_adapter_adds(tmp_path: Path) -> None:
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    model = tiny.causal_model(words)
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    before = layer.weight.detach().clone()  # type: ignore[union-attr, operator]
    add_adapters(model, LoRA(rank=2, alpha=6, target_modules=("q_proj",)), 1, FIELD)
    learn(model)
    weights = dict(model.named_parameters())
    a, b = (
        weights[f"model.layers.0.self_attn.q_proj.lora_{side}.default.weight"].detach().clone()
        for side in "AB"
    )
    assert (a.shape, b.shape) == ((2, 16), (16, 2))
    merge_adapters(model)
    after = model.get_submodule("model.layers.0.self_attn.q_proj").weight
    torch.testing.assert_close(after, before + 3.0 * b @ a, rtol=0, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.field("LoRA.target_modules")
def test_the_layers_that_are_named_get_one_and_the_head_none(tmp_path: Path) -> None:
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")

    def adapted(*targets: str) -> set[str]:
        model = tiny.causal_model(words, layers=2, tie_embeddings=False)
        add_adapters(model, LoRA(rank=1, alpha=1, target_modules=targets), 1, FIELD)
        return {
            name.partition(".lora_")[0].removeprefix("model.layers.")
            for name, weight in model.named_parameters()
            if weight.requires_grad
        }

    assert adapted("q_proj", "mlp.up_proj") == {
        f"{layer}.{name}" for layer in "01" for name in ("self_attn.q_proj", "mlp.up_proj")
    }
    assert adapted("layers.1.self_attn.q_proj") == {"1.self_attn.q_proj"}
    every = adapted()
    assert len(every) == 2 * 7
    assert not any("lm_head" in name for name in every)


def test_the_first_matrices_depend_on_the_seed_alone(tmp_path: Path) -> None:
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")

    def first(seed: int) -> torch.Tensor:
        model = tiny.causal_model(words)
        torch.manual_seed(99 + seed)
        drawn = torch.get_rng_state()
        add_adapters(model, TWO, seed, FIELD)
        assert torch.equal(torch.get_rng_state(), drawn)
        return next(w.detach() for n, w in model.named_parameters() if "lora_A" in n)

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def base(name: str) -> Base:
    words = tiny.tokenizer()
    end = end_of_turn(words)
    generation = Generation(end, (end.token_id,))
    config = zoo.ARCHITECTURES[name]
    return Base("spec.stages.sft.model", ModelLocation("/models/base"), words, config, generation)


def refusal(name: str, *targets: str) -> str:
    lora = LoRA(rank=1, alpha=1, target_modules=targets)
    with pytest.raises(ConfigError) as caught:
        trained_size(base(name), "model", lora, FIELD, print)
    assert caught.value.exit_code == ExitCode.CONFIG
    return str(caught.value)


def test_a_layer_that_is_not_there_is_refused_before_any_weights() -> None:
    assert refusal("Llama", "q_proj", "c_attn") == (
        "spec.stages.sft.lora.targetModules[1]: LlamaForCausalLM has no linear layer 'c_attn' "
        "beside its head; name some of down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, "
        "v_proj"
    )
    # The head, an embedding and a part of a name are none either.
    for target in ("lm_head", "embed_tokens", "proj"):
        assert f"no linear layer '{target}'" in refusal("Llama", target)


def test_what_peft_does_not_take_is_told_with_the_field() -> None:
    told = refusal("Mamba")
    assert told.startswith("spec.stages.sft.lora: ")
    assert "'out_proj' is incompatible with Mamba-based models" in told
    assert told.endswith("; name other layers in spec.stages.sft.lora.targetModules")
    named = LoRA(rank=1, alpha=1, target_modules=("in_proj", "x_proj"))
    assert trained_size(base("Mamba"), "model", named, FIELD, print).learning > 0


def test_a_model_without_linear_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("Llama")
    monkeypatch.setattr(model, "named_modules", lambda: iter([("lm_head", model.lm_head)]))
    with pytest.raises(ConfigError) as caught:
        add_adapters(model, TWO, 1, FIELD)
    assert str(caught.value) == (
        "spec.stages.sft.lora: LlamaForCausalLM has no linear layer beside its head; leave it out, "
        "or name another model"
    )


def test_the_size_counts_what_is_trained_apart() -> None:
    told: list[str] = []
    plain = trained_size(base("Llama"), "model", None, FIELD, told.append)
    assert told == []
    found = trained_size(base("Llama"), "model", TWO, FIELD, told.append)
    # Per layer of width 32: queries and output 32 + 32, keys and values 32 + 16, and three of the
    # feed-forward layer 32 + 64; two layers, rank 2.
    adapters = 2 * 2 * (2 * 64 + 2 * 48 + 3 * 96)
    assert (found.learning, found.parameters) == (adapters, plain.parameters + adapters)
    assert plain.learning == plain.parameters
    assert told == [
        f"{FIELD}: {adapters:,} of {plain.parameters + adapters:,} parameters of the model are "
        "trained, with adapters beside 14 layers"
    ]


@pytest.mark.parametrize("precision", ["FP32", "BF16"])
@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_without_adapters_the_actor_is_the_reference(
    tmp_path: Path, zero_stage: int, precision: str
) -> None:
    cases.check_reference(tiny.ranks(), tmp_path, [zero_stage], precision)


def test_the_reference_on_two_ranks(tmp_path: Path) -> None:
    cases.actor(tmp_path, "FP32")
    worlds.pair()(
        PROGRAM, "check_reference", folder=tmp_path, zero_stages=ZERO_STAGES, precision="FP32"
    )


def test_frozen_weights_have_no_gradient(tmp_path: Path) -> None:
    actor: Actor = cases.actor(tmp_path, "BF16")
    spec = tiny.stage_spec("sft", tmp_path, precision="BF16", zero_stage=2)
    model = train(actor, spec, tiny.ranks(), learning_rate=0.1)
    assert {weight.dtype for weight in actor.parameters()} == {DTYPES["BF16"]}
    reference = WithoutAdapters.of(model)
    cases.learn(model, 1)
    reference(IDS, torch.ones_like(IDS), torch.arange(5).unsqueeze(0), 3)
    cases.learn(model, 1)
    frozen = [weight for weight in actor.parameters() if not weight.requires_grad]
    assert frozen
    assert all(weight.grad is None for weight in frozen)
