"""How many tokens a model takes, by what its family calls that."""

from typing import Any

import pytest
import torch
import zoo
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MptConfig,
)

from rlhf_api.errors import ConfigError
from rlhf_trainer.models.positions import check_rotations, max_positions, steady_positions

UNBOUNDED = {"bloom", "cpmant", "falcon_mamba", "mamba", "mamba2", "recurrent_gemma", "xlstm"}
"""Families with states, or with biases by distance."""
NEED_MORE = {"gemma4_assistant", "musicgen", "musicgen_melody"}
"""Families without a configuration by default."""


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({}, 64),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "yarn", "factor": 4.0}, 256),
        # It is counted in already, as in DeepSeek's configurations.
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}, 64),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}, 64),
        ({"type": "linear", "factor": 2.0}, 128),
        ({"type": "dynamic", "factor": 2.5}, 160),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64}, 64),
    ],
)
def test_rotary_embeddings_that_are_stretched_take_more(
    rope: dict[str, Any], expected: int
) -> None:
    factors = {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if "llama3" in str(rope) else {}
    settings = {"rope_parameters": rope | factors | {"rope_theta": 10000.0}} if rope else {}
    assert max_positions(LlamaConfig(max_position_embeddings=64, **settings)) == expected


def test_positions_are_read_from_whatever_bounds_them() -> None:
    assert max_positions(GPT2Config(n_positions=32)) == 32
    assert max_positions(BloomConfig()) is None
    assert max_positions(MambaConfig()) is None
    # A factor of some of the layers says nothing of the others.
    layers = {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    layers["full_attention"] = {"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0}
    gemma = Gemma3TextConfig(max_position_embeddings=128, rope_parameters=layers)
    assert max_positions(gemma) == 128
    assert max_positions(MptConfig(max_seq_len=20)) == 20


def test_no_family_bounds_them_by_another_name() -> None:
    families = [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING if kind.model_type not in NEED_MORE]
    assert len(families) > 100
    assert {kind.model_type for kind in families if max_positions(kind()) is None} == UNBOUNDED


@pytest.mark.parametrize("short", [[1.0] * 4, [1.0] * 3])
def test_what_is_computed_at_the_first_long_row_is_computed_before(short: list[float]) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32}
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 64}
    right = {**rope, "short_factor": short, "long_factor": [2.0] * 4}
    check_rotations(LlamaConfig(**sizes, rope_parameters=right))
    layers = {"full_attention": right | {"long_factor": [2.0] * 3}, "sliding_attention": right}
    for wrong in (layers["full_attention"], {**rope, "rope_type": "dynamic", "factor": "2"}):
        with pytest.raises((RuntimeError, TypeError, ValueError, OverflowError)):
            check_rotations(LlamaConfig(**sizes, rope_parameters=wrong))
    with pytest.raises(RuntimeError, match="size of tensor"):
        check_rotations(Gemma3TextConfig(**sizes, head_dim=8, rope_parameters=layers))
    for nothing in (BloomConfig(), LlamaConfig(), Gemma3TextConfig()):
        check_rotations(nothing)


LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}


@pytest.mark.parametrize(
    ("rope", "positions", "steady"),
    [
        (LONG, 64, 32),
        (DYNAMIC, 32, 32),
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}, 32, None),
        ({"rope_type": "default", "rope_theta": 1e4}, 32, None),
    ],
)
def test_a_row_is_computed_as_it_is_alone_beside_none_that_is_too_long(
    rope: dict[str, Any], positions: int, steady: int | None
) -> None:
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
        rope_parameters=rope,
    )
    assert steady_positions(config) == steady
    torch.manual_seed(3)
    model: Any = LlamaForCausalLM(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    row = torch.randint(16, (1, 20))

    @torch.no_grad()
    def beside(longest: int) -> torch.Tensor:
        rows = torch.nn.functional.pad(row, (0, longest - 20)).repeat(2, 1)
        ends = torch.arange(longest) < torch.tensor([[20], [longest]])
        logits: torch.Tensor = model(input_ids=rows, attention_mask=ends.long()).logits
        return logits[0, :20]

    longest = 32 if steady is None else steady
    assert torch.allclose(beside(longest), beside(20), atol=1e-5)
    if steady is not None:
        assert (beside(steady + 1) - beside(20)).abs().max() > 1e-3


def test_kinds_of_layers_are_steady_where_all_of_them_are() -> None:
    layers = {"sliding_attention": LONG | {"original_max_position_embeddings": 16}}
    layers["full_attention"] = LONG
    assert steady_positions(Gemma3TextConfig(rope_parameters=layers)) == 16
    assert steady_positions(BloomConfig()) is None


@pytest.mark.parametrize("rope", [LONG, DYNAMIC | {"original_max_position_embeddings": 32}])
def test_rows_that_change_those_beside_them_are_refused(rope: dict[str, Any]) -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "vocab_size": 64}
    longest = 64 if rope is LONG else 32
    base = zoo.base(LlamaConfig(**sizes, max_position_embeddings=longest, rope_parameters=rope))
    base.require_positions(32, "spec.stages.sft.maxLength")
    with pytest.raises(ConfigError) as caught:
        base.require_positions(33, "spec.stages.sft.maxLength")
    for word in (base.field, "more than 32 tokens", "reach 33", "lower spec.stages.sft.maxLength"):
        assert word in str(caught.value)
