"""The configuration of a model, before any weights are read: what cannot be trained is named here.

Called when a stage opens a model, and again when it loads one. Code that a checkpoint brings along
is never run.
"""

from pathlib import Path
from typing import Any

import transformers
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_PRETRAINING_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from rlhf_api.errors import InputError
from rlhf_trainer.models.opening import opening
from rlhf_trainer.models.scratch import scratch_config
from rlhf_trainer.run.artifact import ModelLocation
from rlhf_trainer.run.model_files import (
    DECODER_REMEDY,
    QUANTISATION,
    model_settings,
    quantised,
    refuse_pointers,
    require_decoder,
    require_unquantised,
)

_TAKEN = (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_PRETRAINING_MAPPING,
    MODEL_MAPPING,
)
"""Classes whose weights are those of a causal model or a score; what they lack is found missing."""

_DECIDED = {"dtype": "float32", "attn_implementation": "eager", "output_attentions": False}
"""What a stage decides when it loads a model, with values that every configuration takes: a
config.json may name what this machine does not have."""
_OUTPUTS = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
"""What a model returns, which a config.json may say and a stage reads."""


def model_config(
    location: ModelLocation, tokenizer: PreTrainedTokenizerBase, field: str
) -> PretrainedConfig:
    """Configuration of the model at a location, before any weights are read.

    Raises:
        InputError: as `checked_config`.
    """
    if location.scratch is not None:
        return scratch_config(str(location.architecture), location.scratch, tokenizer)
    return checked_config(location, field)


def checked_config(location: ModelLocation, field: str) -> PretrainedConfig:
    """Configuration of a checkpoint that this trainer can train.

    Raises:
        InputError: it cannot be read, or is of a model that is quantised, needs code of its own or
            is no causal language model.
    """
    if not location.on_hub:
        refuse_pointers(Path(location.path), field)
        model_settings(Path(location.path), field)
    with opening(
        f"{field}: no usable model configuration at {location.path}",
        "name a folder or repository that transformers' save_pretrained has written",
    ):
        raw, _ = PretrainedConfig.get_config_dict(location.path, revision=location.revision)
        _require_known_type(raw, location, field)
        require_unquantised(raw, location.path, field)
        require_decoder(raw, location.path, field)
        config = read_config(location.path, location.revision)
    _require_unquantised(config, location, field)
    _require_causal(config, location, field)
    _require_own_class(config, raw.get("auto_map"), location, field)
    return config


def read_config(place: str | Path, revision: str | None) -> PretrainedConfig:
    """What transformers makes of a config.json, but for what a stage decides by itself.

    Raises whatever transformers raises.
    """
    config: PretrainedConfig = AutoConfig.from_pretrained(
        place, revision=revision, trust_remote_code=False, **_DECIDED
    )
    config._attn_implementation = None
    for part in (config, config.get_text_config()):
        for name, value in _OUTPUTS.items():
            setattr(part, name, value)
    return config


def _require_known_type(raw: dict[str, Any], location: ModelLocation, field: str) -> None:
    kind, code = raw.get("model_type"), raw.get("auto_map")
    if kind in CONFIG_MAPPING or not (kind or code):
        return
    prefix = f"{field}: the model at {location.path} has the type {kind}, which transformers"
    if code:
        raise InputError(
            f"{prefix} does not have: {_never_run(code)}; name a model of a type that transformers "
            "has"
        )
    raise InputError(
        f"{prefix} {transformers.__version__} does not know; use a trainer with a newer one, or "
        "name another model"
    )


def _require_unquantised(config: PretrainedConfig, location: ModelLocation, field: str) -> None:
    # A family may keep its text model under a name of its own.
    for name in QUANTISATION:
        value = getattr(config.get_text_config(), name, None)
        if value:
            settings = value if isinstance(value, dict) else value.to_dict()
            raise quantised(settings, name, location.path, field)


def _require_causal(config: PretrainedConfig, location: ModelLocation, field: str) -> None:
    # Whatever a file says there.
    names = ", ".join(map(str, config.architectures or [type(config).__name__]))
    prefix = f"{field}: the model at {location.path} is {names} ({config.model_type})"
    if config.is_encoder_decoder:
        raise InputError(f"{prefix}, an encoder with a decoder; {DECODER_REMEDY}")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"{prefix}, of which transformers has no causal language model; {DECODER_REMEDY}"
        )
    # Of these families alone the same class is an encoder, or a decoder, by its configuration.
    directed = getattr(config, "is_decoder", False) or getattr(config, "causal", False)
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not directed:
        raise InputError(
            f"{prefix}, an encoder, whose tokens see those behind them; {DECODER_REMEDY}, "
            "or set is_decoder in its config.json if it was trained as a decoder"
        )
    # In rows of many blocks it draws some of them at random, from what follows as well.
    if getattr(config, "attention_type", None) == "block_sparse":
        raise InputError(
            f"{prefix}, with attention_type block_sparse, by which tokens see blocks behind them "
            "in long rows; set attention_type: original_full in its config.json, or name another "
            "model"
        )


def _require_own_class(
    config: PretrainedConfig, code: dict[str, Any] | None, location: ModelLocation, field: str
) -> None:
    """Raise InputError if the weights are of a class that is not the one they would be loaded as.

    A type that transformers has is no proof: code of a checkpoint often builds on one, and its
    weights fit into the plain class, which computes something else.
    """
    taken = {name.casefold() for mapping in _TAKEN for name in _class_names(mapping, config)}
    # Some publishers spell a name with other capitals.
    strange = [name for name in config.architectures or () if name.casefold() not in taken]
    if not strange:
        return
    prefix = f"{field}: the model at {location.path} is {', '.join(strange)} ({config.model_type})"
    if not all(hasattr(transformers, name) for name in strange):
        needs = f": {_never_run(code)}" if code else ""
        raise InputError(f"{prefix}, which transformers does not have{needs}; {DECODER_REMEDY}")
    known = ", ".join(_class_names(MODEL_FOR_CAUSAL_LM_MAPPING, config))
    raise InputError(
        f"{prefix}, and neither {known} nor a reward model made from it; {DECODER_REMEDY}"
    )


def _class_names(mapping: Any, config: PretrainedConfig) -> tuple[str, ...]:
    """Names of the classes that transformers has for a configuration."""
    classes = mapping.get(type(config), ())
    return tuple(each.__name__ for each in (classes if isinstance(classes, tuple) else (classes,)))


def _never_run(code: dict[str, Any]) -> str:
    named = ", ".join(f"{name}: {place}" for name, place in sorted(code.items()))
    return f"it needs code of its own ({named}), which is never run here"
