"""One small configuration of each architecture that the trainer is proved with, by its name.

Windows are of 4 tokens, shorter than most rows of a test. Sizes that `tiny` writes come from a job;
these are as model folders bring them.
"""

from pathlib import Path
from typing import Any

import tiny
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from rlhf_trainer.data.tokenize.turns import end_of_turn
from rlhf_trainer.models.generation import Generation
from rlhf_trainer.models.source import Base
from rlhf_trainer.run.artifact import ModelLocation

WINDOW = 4
VOCABULARY = 22
"""As many as the tokenizer of `tiny` has."""

_IDS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
_GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **_IDS}
_WIDE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    **_IDS,
}
_GATED: dict[str, Any] = {"num_key_value_heads": 2, "intermediate_size": 64, **_WIDE}
_WINDOWED: dict[str, Any] = {"sliding_window": WINDOW, **_GATED}

ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "Llama": LlamaConfig(**_GATED),
    "Mistral": MistralConfig(**_WINDOWED),
    "Mixtral": MixtralConfig(num_local_experts=4, **_WINDOWED),
    "Qwen2": Qwen2Config(**_GATED),
    # One layer sees everything, the other a window.
    "Qwen2 with a window": Qwen2Config(use_sliding_window=True, max_window_layers=1, **_WINDOWED),
    "Qwen3": Qwen3Config(head_dim=8, **_GATED),
    "Gemma 2": Gemma2Config(head_dim=8, **_WINDOWED),
    # Every sixth layer sees everything.
    "Gemma 3": Gemma3TextConfig(head_dim=8, **_WINDOWED | {"num_hidden_layers": 6}),
    "Phi-3": Phi3Config(**_WINDOWED),
    "GPT-2": GPT2Config(**_GPT),
    "GPT-NeoX": GPTNeoXConfig(intermediate_size=64, **_WIDE),
    "GPT-J": GPTJConfig(rotary_dim=4, **_GPT),
    "OPT": OPTConfig(ffn_dim=64, word_embed_proj_dim=32, **_WIDE),
    "BLOOM": BloomConfig(hidden_size=32, n_layer=2, n_head=4, **_IDS),
    "Falcon": FalconConfig(**_WIDE),
    "Falcon with ALiBi": FalconConfig(alibi=True, **_WIDE),
    "Mamba": MambaConfig(hidden_size=32, num_hidden_layers=2, **_IDS),
}


def base(config: PreTrainedConfig | str) -> Base:
    """A model by its configuration or its name here, as a stage has opened it."""
    if isinstance(config, str):
        config = ARCHITECTURES[config]
    words = tiny.tokenizer()
    end = end_of_turn(words)
    generation = Generation(end, (end.token_id,))
    return Base("spec.stages.sft.model", ModelLocation("/models/base"), words, config, generation)


def saved(name: str, folder: Path) -> Path:
    """A model of an architecture whose weights all matter."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[name], dtype=torch.float32)
    tiny.saved(tiny.shake(model), folder, tiny.tokenizer_folder(folder.with_name("tokenizer")))
    return folder
