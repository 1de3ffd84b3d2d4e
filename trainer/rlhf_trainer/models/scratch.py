"""Models from random weights: from the sizes of a job to transformers' configuration.

Called by `models`.
"""

from typing import Any

from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from rlhf_api.v1alpha1 import ScratchModel

# What each architecture calls the sizes of ScratchModel, where it differs from the common name.
_SIZE_NAMES: dict[str, dict[str, str]] = {
    "gpt2": {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
    },
    "opt": {"intermediate_size": "ffn_dim"},
}
_GROUPED_QUERY = ("llama", "qwen2", "qwen3")


def scratch_config(
    architecture: str, sizes: ScratchModel, tokenizer: PreTrainedTokenizerBase
) -> PretrainedConfig:
    """Configuration of a model with random weights, sized by the job and its tokenizer."""
    common: dict[str, Any] = {
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.intermediate_size or 4 * sizes.hidden_size,
        "max_position_embeddings": sizes.max_positions,
    }
    if architecture in _GROUPED_QUERY:
        common["num_key_value_heads"] = sizes.key_value_heads or sizes.heads
    if architecture == "qwen3":
        common["head_dim"] = sizes.hidden_size // sizes.heads
    if architecture == "opt":
        common["word_embed_proj_dim"] = sizes.hidden_size
    names = _SIZE_NAMES.get(architecture, {})
    settings = {names.get(name, name): value for name, value in common.items()}
    return AutoConfig.for_model(
        architecture,
        **settings,
        vocab_size=len(tokenizer),
        tie_word_embeddings=sizes.tie_embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
