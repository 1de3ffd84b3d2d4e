"""Sizes by hand numbers, and a cache's bytes by what models really keep."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    DynamicCache,
    FalconConfig,
    FalconMambaConfig,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTBigCodeConfig,
    LlamaConfig,
    Mamba2Config,
    PreTrainedConfig,
    Qwen3NextConfig,
    RwkvConfig,
    xLSTMConfig,
)
from zoo import ARCHITECTURES, WINDOW

from rlhf_trainer.models.activations import (
    MicroBatch,
    allowance,
    cache_bytes,
    evaluation_allowance,
)
from rlhf_trainer.models.sizes import Sizes

SMALL: dict[str, Any] = {
    "vocab_size": 22,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
HEADS: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
MORE: dict[str, PreTrainedConfig] = {
    "Falcon's newer architecture": FalconConfig(
        new_decoder_architecture=True, num_kv_heads=2, num_attention_heads=4, **SMALL
    ),
    "Falcon with all heads": FalconConfig(multi_query=False, num_attention_heads=4, **SMALL),
    "GPT-BigCode": GPTBigCodeConfig(
        vocab_size=22, n_embd=32, n_layer=2, n_head=4, n_positions=64, multi_query=True
    ),
    "Qwen3-Next": Qwen3NextConfig(
        intermediate_size=64,
        head_dim=8,
        linear_num_value_heads=2,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        **HEADS,
        **SMALL,
    ),
    "Gemma 3 with narrow heads": Gemma3TextConfig(
        intermediate_size=64, head_dim=4, sliding_window=WINDOW, **HEADS, **SMALL
    ),
}
HEADLESS: dict[str, PreTrainedConfig] = {
    "Mamba": ARCHITECTURES["Mamba"],
    "Mamba 2": Mamba2Config(num_heads=8, head_dim=8, **SMALL),
    "FalconMamba": FalconMambaConfig(**SMALL),
    "RWKV": RwkvConfig(**SMALL),
    "xLSTM": xLSTMConfig(num_heads=4, **SMALL),
}
KEEPS_MORE = {"Falcon's newer architecture"}
"""Repeats its groups for all heads before it keeps them."""


def test_the_sizes_of_any_configuration() -> None:
    gpt2 = GPT2Config(vocab_size=100, n_embd=16, n_layer=2, n_head=2)
    llama = {
        "vocab_size": 100,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    both = (None, None)

    assert Sizes.of(gpt2, "BF16") == Sizes(2, 16, 2, 16, None, 100, 2, both)
    assert Sizes.of(LlamaConfig(**llama), "FP32") == Sizes(2, 16, 2, 16, 32, 100, 4, both)
    grouped = LlamaConfig(**llama, num_key_value_heads=1)
    assert Sizes.of(grouped, "BF16") == Sizes(2, 16, 2, 8, 32, 100, 2, both)
    wide = LlamaConfig(**llama, num_key_value_heads=1, head_dim=20)
    assert Sizes.of(wide, "BF16").keys == 20


@pytest.mark.parametrize("name", HEADLESS)
def test_a_model_without_heads_keeps_no_keys(name: str) -> None:
    config, batch = HEADLESS[name], MicroBatch(2, 10, logits=5)

    assert Sizes.of(config, "BF16").keys == 0
    assert cache_bytes(batch, Sizes.of(config, "BF16")) == 0
    assert allowance(config, batch, "BF16") > evaluation_allowance(config, batch, "BF16") > 0


def test_layers_of_several_widths_count_by_their_mean() -> None:
    """And those which read another one's keys keep none."""
    config = Gemma3nTextConfig(
        **SMALL | {"num_hidden_layers": 5},
        **HEADS,
        head_dim=8,
        intermediate_size=[64, 64, 64, 32, 32],
        num_kv_shared_layers=2,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 2 + ["full_attention"],
    )
    sizes = Sizes.of(config, "BF16")

    assert sizes.intermediate == (3 * 64 + 2 * 32) // 5
    assert sizes.windows == (WINDOW - 1, None, WINDOW - 1)
    assert allowance(config, MicroBatch(2, 10, logits=5), "BF16") > 0


def test_the_groups_of_falcon_at_its_real_sizes() -> None:
    seven_billion = FalconConfig()

    # 32 layers, 71 heads of 64 units, of which one has keys: 64 numbers of 2 bytes.
    assert Sizes.of(seven_billion, "BF16").keys == 64
    found = cache_bytes(MicroBatch(1, 1), Sizes.of(seven_billion, "BF16"))
    assert found == 2 * 32 * 64 * 2


def test_only_layers_of_attention_keep_keys() -> None:
    bamba = BambaConfig(
        attn_layer_indices=[1, 3], intermediate_size=64, mamba_n_heads=8, **HEADS, **SMALL
    )

    assert Sizes.of(bamba, "BF16").windows == (None, None)


CACHED = {name: one for name, one in ARCHITECTURES.items() if name not in HEADLESS} | MORE


@pytest.mark.parametrize("length", [3, 12])
@pytest.mark.parametrize("name", CACHED)
@torch.no_grad()
def test_the_cache_is_what_the_model_keeps(name: str, length: int) -> None:
    config = CACHED[name]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    cache = DynamicCache(config=config)

    model(torch.randint(2, 22, (2, length)), past_key_values=cache, use_cache=True)

    kept = sum(
        part.numel() * part.element_size()
        for layer in cache.layers
        for part in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if part is not None
    )
    found = cache_bytes(MicroBatch(2, length), Sizes.of(config, "FP32"))
    assert 0 < found < kept if name in KEEPS_MORE else found == kept > 0


@pytest.mark.parametrize(
    ("tokens", "sequences"), [(120, 1), (100, 1), (239, 1), (240, 2), (600, 5), (9999, 5)]
)
def test_the_fullest_micro_batch_has_what_the_budget_and_the_batch_allow(
    tokens: int, sequences: int
) -> None:
    assert MicroBatch.fullest(tokens, 5, 120, 7) == MicroBatch(sequences, 120, 7)
