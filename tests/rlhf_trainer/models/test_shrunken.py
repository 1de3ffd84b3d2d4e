"""Configurations with tiny widths: what they keep, and that models come of them."""

from typing import Any

import pytest
import torch
import zoo
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3Config,
    LlamaConfig,
    Mamba2Config,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
)

from rlhf_trainer.models.shrunken import VOCABULARY, WINDOW, shrunken

# As model folders have them.
LLAMA_3: dict[str, Any] = {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 128256,
    "pad_token_id": 128004,
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
PHI_3: dict[str, Any] = {
    "sliding_window": 2047,
    "max_position_embeddings": 131072,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 48,
        "long_factor": [2.0] * 48,
        "original_max_position_embeddings": 4096,
    },
}
# By default the sizes of a published model.
PUBLISHED: dict[str, PreTrainedConfig] = {
    **{name: type(config)() for name, config in zoo.ARCHITECTURES.items()},
    "Llama 3": LlamaConfig(**LLAMA_3),
    "Phi-3 of 128k": Phi3Config(**PHI_3),
    "Gemma 3 with images": Gemma3Config(),
    "DeepSeek-V3": DeepseekV3Config(),
    "Mamba 2": Mamba2Config(),
}


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_sizes_become_small_models_of_as_many_layers(name: str) -> None:
    config = PUBLISHED[name]
    before = config.to_dict()

    small = shrunken(config)

    assert config.to_dict() == before
    text = small.get_text_config()
    assert text.num_hidden_layers == config.get_text_config().num_hidden_layers
    assert text.vocab_size == VOCABULARY
    model: Any = AutoModelForCausalLM.from_config(small, attn_implementation="eager")
    assert model.num_parameters() < 12_000_000
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.arange(3, 14).unsqueeze(0), use_cache=False).logits
    assert logits.shape == (1, 11, VOCABULARY)
    assert torch.isfinite(logits).all()


def test_windows_and_groups_of_heads_stay() -> None:
    small = shrunken(MistralConfig(sliding_window=4096))
    assert (small.sliding_window, small.num_attention_heads, small.num_key_value_heads) == (
        WINDOW,
        4,
        1,
    )
    assert shrunken(MistralConfig(sliding_window=None)).sliding_window is None
    assert shrunken(MistralConfig(sliding_window=3)).sliding_window == 3
    alike = shrunken(LlamaConfig(num_attention_heads=32, num_key_value_heads=32))
    assert alike.num_key_value_heads == alike.num_attention_heads
    kinds = shrunken(Gemma3Config()).get_text_config().layer_types
    assert kinds == Gemma3Config().get_text_config().layer_types
