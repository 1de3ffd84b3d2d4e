"""The estimate by hand numbers, what a rank may take, and the refusal."""

from dataclasses import replace

import psutil
import pytest
import torch
from transformers import (
    CodeGenConfig,
    LlamaConfig,
)

from rlhf_api.names import ExitCode, StageName
from rlhf_api.v1alpha1 import Dataset, JobReference, LoRA, ModelSource, SFTStage, StageConfig
from rlhf_api.v1alpha1.stages import Precision
from rlhf_trainer.errors import MemoryEstimateError
from rlhf_trainer.models.memory import (
    GIB,
    Footprint,
    ModelSize,
    available_bytes,
    check_memory,
    count_parameters,
    footprint,
    sharding_bytes,
)
from rlhf_trainer.run.distributed import Ranks

ALONE = Ranks(rank=0, local_rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("precision", "zero_stage", "expected"),
    [
        # 1000 parameters on 4 ranks; BF16: 2 weights, 4 gradients, 4 master + 8 moments.
        ("BF16", 0, Footprint(2000, 4000, 12000)),
        ("BF16", 1, Footprint(2000, 4000, 3000)),
        ("BF16", 2, Footprint(2000, 1000, 3000)),
        ("BF16", 3, Footprint(500, 1000, 3000)),
        # FP32: 4 weights, 4 gradients, 8 moments, and a master copy once ZeRO cuts it out.
        ("FP32", 0, Footprint(4000, 4000, 8000)),
        ("FP32", 1, Footprint(4000, 4000, 3000)),
        ("FP32", 2, Footprint(4000, 1000, 3000)),
        ("FP32", 3, Footprint(1000, 1000, 3000)),
    ],
)
def test_a_trained_model_by_hand(
    precision: Precision, zero_stage: int, expected: Footprint
) -> None:
    model = ModelSize("actor", 1000, trained=True)

    found = footprint(model, precision=precision, zero_stage=zero_stage, world_size=4)

    assert found == expected
    assert found.total == expected.weights + expected.gradients + expected.optimizer


@pytest.mark.parametrize(("zero_stage", "average"), [(0, 4000), (1, 1000), (3, 1000)])
@pytest.mark.parametrize("precision", ["BF16", "FP32"])
def test_an_average_is_fp32_and_sharded_like_the_optimizer(
    precision: Precision, zero_stage: int, average: int
) -> None:
    plain, averaged = (
        footprint(
            ModelSize("actor", 1000, trained=True, averaged=averaged),
            precision=precision,
            zero_stage=zero_stage,
            world_size=4,
        )
        for averaged in (False, True)
    )
    assert (plain.average, averaged.average) == (0, average)
    assert averaged.total == plain.total + average


@pytest.mark.parametrize("zero_stage", range(4))
def test_adapters_alone_have_gradients_and_an_optimizer(zero_stage: int) -> None:
    model = ModelSize("actor", 1000, trained=True, averaged=True, adapters=8)
    plain = ModelSize("actor", 8, trained=True, averaged=True)
    found, small = (
        footprint(each, precision="BF16", zero_stage=zero_stage, world_size=4)
        for each in (model, plain)
    )
    assert found == replace(small, weights=500 if zero_stage == 3 else 2000)
    sent = sharding_bytes(model, precision="BF16", zero_stage=zero_stage)
    assert sent == {0: 0, 1: 8 * 4, 2: 8 * 6, 3: 8 * 10 + 1000 * 2}[zero_stage]


@pytest.mark.parametrize(("zero_stage", "weights"), [(0, 2000), (2, 2000), (3, 500)])
def test_a_frozen_model_has_weights_alone(zero_stage: int, weights: int) -> None:
    model = ModelSize("reference", 1000, trained=False)

    found = footprint(model, precision="BF16", zero_stage=zero_stage, world_size=4)

    assert found == Footprint(weights)


def test_the_seven_billion_of_the_zero_paper() -> None:
    # Figure 1 of the paper: 7.5B parameters, 64 ranks: 120, 31.4, 16.6, 1.9 GB, with 2 bytes a
    # gradient; 2 more make 15 GB, or 0.23 once they are sharded.
    model = ModelSize("model", 7_500_000_000, trained=True)
    gigabytes = [
        footprint(model, precision="BF16", zero_stage=stage, world_size=64).total / 1e9
        for stage in range(4)
    ]

    assert gigabytes == pytest.approx([135.0, 46.4, 16.9, 2.1], abs=0.05)


def test_shares_round_up() -> None:
    found = footprint(
        ModelSize("m", 1001, trained=True), precision="BF16", zero_stage=3, world_size=4
    )
    assert found == Footprint(501, 1001, 3003)


def test_a_refusal_names_the_budget_that_was_set() -> None:
    config = stage(micro_batch_tokens=2048)
    with pytest.raises(MemoryEstimateError, match=r"lower spec\.stages\.sft\.microBatchTokens"):
        check_memory(config, ALONE, [ACTOR], available=lambda _: (0, "t"))


LLAMA = LlamaConfig(
    vocab_size=100,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    intermediate_size=32,
    tie_word_embeddings=True,
)
# Embeddings 1600; a layer: attention 4 * 256, feed-forward 3 * 512, norms 2 * 16; last norm 16.
LLAMA_PARAMETERS = 1600 + 2 * (1024 + 1536 + 32) + 16


def test_parameters_are_counted_without_taking_memory() -> None:
    huge = LlamaConfig(hidden_size=8192, num_hidden_layers=80, num_attention_heads=64,
                       num_key_value_heads=8, intermediate_size=28672, vocab_size=32000,
                       tie_word_embeddings=False)  # fmt: skip

    assert count_parameters(LLAMA) == LLAMA_PARAMETERS
    assert count_parameters(huge) == 68_976_648_192


def test_untied_embeddings_and_a_score_head_count() -> None:
    untied = LlamaConfig(**{**LLAMA.to_dict(), "tie_word_embeddings": False})
    scored = LlamaConfig(**{**LLAMA.to_dict(), "num_labels": 1, "pad_token_id": 0})

    assert count_parameters(untied) == LLAMA_PARAMETERS + 1600
    found = count_parameters(scored, scores=True)
    assert found == LLAMA_PARAMETERS + 16


@pytest.mark.parametrize(
    ("precision", "zero_stage", "expected"),
    [
        ("BF16", 0, 0),
        ("BF16", 1, 4000),
        ("BF16", 2, 6000),
        # The same, the reduced gradients, and the weights.
        ("BF16", 3, 12000),
        ("FP32", 1, 4000),
        ("FP32", 2, 4000),
        ("FP32", 3, 12000),
    ],
)
def test_what_sharding_takes_by_hand(precision: Precision, zero_stage: int, expected: int) -> None:
    for trained in (True, False):
        model = ModelSize("actor", 1000, trained=trained)
        found = sharding_bytes(model, precision=precision, zero_stage=zero_stage)
        assert found == (expected if trained else 0)
    huge = ModelSize("actor", GIB, trained=True)
    assert sharding_bytes(huge, precision="BF16", zero_stage=2) == 6 * 50_000_000


def test_a_scorer_has_no_vocabulary_head() -> None:
    untied = LlamaConfig(**{**LLAMA.to_dict(), "tie_word_embeddings": False})

    assert count_parameters(untied, scores=True) == LLAMA_PARAMETERS + 16
    assert count_parameters(untied) == LLAMA_PARAMETERS + 1600
    assert untied.num_labels == 2, "the configuration is the caller's"
    # Refused when it is loaded.
    codegen = CodeGenConfig(vocab_size=100, n_embd=32, n_layer=1, n_head=4, rotary_dim=4)
    assert count_parameters(codegen, scores=True) == count_parameters(codegen)


def stage(**settings: object) -> StageConfig:
    nodes = {"processes_per_node": settings.pop("processes_per_node", 1)}
    return StageConfig.model_validate(
        {
            "job": JobReference(name="demo", uid="12345678"),
            "stage": StageName.SFT,
            "attempt": 1,
            "storage": "/nowhere",
            "sft": SFTStage.model_validate(
                {
                    "model": ModelSource(uri="hf://a/b"),
                    "dataset": Dataset(uri="hf://a/c"),
                    **settings,
                }
            ),
            **nodes,
        }
    )


ACTOR = ModelSize("actor", GIB, trained=True)
REFERENCE = ModelSize("reference", GIB, trained=False)


def test_what_just_fits_is_accepted_and_a_byte_less_is_not() -> None:
    needed = 18 * GIB + 2 * GIB + 1000

    whole = stage(zero_stage=0)

    check_memory(whole, ALONE, [ACTOR, REFERENCE], 1000, available=lambda _: (needed, "t"))
    with pytest.raises(MemoryEstimateError):
        check_memory(whole, ALONE, [ACTOR, REFERENCE], 1000, available=lambda _: (needed - 1, ""))


def test_a_refusal_names_numbers_fields_and_remedies() -> None:
    config = stage(zero_stage=1, micro_batch_size=8, precision="FP32", processes_per_node=2)
    ranks = Ranks(0, 0, 1, 2, torch.device("cpu"))

    with pytest.raises(MemoryEstimateError) as caught:
        check_memory(
            config,
            ranks,
            [ACTOR, REFERENCE],
            GIB // 2,
            available=lambda _: (10 * GIB, "the container's memory limit over 2 processes"),
        )

    message = str(caught.value)
    assert caught.value.exit_code == ExitCode.CONFIG
    for part in (
        "spec.stages.sft: not enough memory",
        "at least 18.69 GiB, and 10.00 GiB are there (the container's memory limit",
        "actor with 1,073,741,824 parameters 14.00 GiB",
        "weights 4.00 GiB, gradients 4.00 GiB, optimizer 6.00 GiB",
        "reference with 1,073,741,824 parameters 4.00 GiB",
        "activations and other work 0.69 GiB",
        "precision to BF16",
        "spec.stages.sft.zeroStage (1)",
        "spec.stages.sft.microBatchSize (8)",
        "set spec.stages.sft.gradientCheckpointing to true",
        "train adapters alone (spec.stages.sft.lora)",
        "smaller model",
        "lower spec.stages.sft.processesPerNode (2)",
    ):
        assert part in message, part


def test_a_refusal_counts_the_average() -> None:
    averaged = ModelSize("actor", GIB, trained=True, averaged=True)
    with pytest.raises(MemoryEstimateError) as caught:
        check_memory(stage(), ALONE, [averaged], available=lambda _: (18 * GIB, "t"))
    for part in ("moving average 4.00 GiB", "eave out spec.stages.sft.emaDecay"):
        assert part in str(caught.value), part


def test_a_refusal_tells_how_much_is_trained() -> None:
    adapted = ModelSize("actor", GIB, trained=True, adapters=1000)
    config = stage(lora=LoRA(rank=1, alpha=1))
    with pytest.raises(MemoryEstimateError) as caught:
        check_memory(config, ALONE, [adapted], available=lambda _: (GIB, "t"))
    assert "with 1,073,741,824 parameters of which 1,000 are trained 2.00 GiB (" in str(
        caught.value
    )
    assert "train adapters" not in str(caught.value)


def test_what_is_set_is_no_remedy() -> None:
    with pytest.raises(MemoryEstimateError) as caught:
        check_memory(
            stage(gradient_checkpointing=True), ALONE, [ACTOR], available=lambda _: (1, "")
        )
    assert "gradientCheckpointing" not in str(caught.value)


def test_zero_is_no_remedy_for_a_single_rank() -> None:
    with pytest.raises(MemoryEstimateError) as caught:
        check_memory(stage(zero_stage=0), ALONE, [ACTOR], available=lambda _: (1, "free on cuda:0"))

    assert "zeroStage" not in str(caught.value)
    assert "raise spec.stages.sft.processesPerNode (1)" in str(caught.value)


def test_memory_is_shared_by_the_processes_of_a_node() -> None:
    alone, _ = available_bytes(ALONE)
    shared, origin = available_bytes(Ranks(0, 0, 4, 4, torch.device("cpu")))

    assert 0 < shared < alone
    assert shared == pytest.approx(alone / 4, rel=0.1)
    assert "over 4 processes" in origin


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_tells_its_free_memory() -> None:
    free, origin = available_bytes(Ranks(0, 0, 1, 1, torch.device("cuda", 0)))

    assert 0 < free <= torch.cuda.get_device_properties(0).total_memory
    assert origin == "free on cuda:0"


def test_this_machine_can_be_read() -> None:
    free, origin = available_bytes(ALONE)
    assert 0 < free <= psutil.virtual_memory().total
    assert "memory" in origin
