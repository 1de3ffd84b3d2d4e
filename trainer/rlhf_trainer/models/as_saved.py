"""In which data type a model's weights can stay in their files until each is asked for.

Called by `load`. A weight that is loaded in the data type of its safetensors has no memory of its
own: it lies in pages of the file, which the system reads when it is looked at and may drop.
"""

import copy
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from rlhf_trainer.run.artifact import ModelLocation
from rlhf_trainer.run.model_files import BUFFERS, weight_files, weight_types

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""By their names in safetensors (huggingface.co/docs/safetensors, "Format")."""


def dtype_of_files(
    factory: Any,
    location: ModelLocation,
    config: PretrainedConfig,
    dtype: torch.dtype,
    field: str,
) -> torch.dtype:
    """That of all weights in a model's files, if from it the model can become the same in `dtype`;
    else `dtype`.

    Args:
        factory: transformers' class that makes the model.
        location: where its files are, on this machine already.
        config: its configuration.
        dtype: of the weights when they are asked for.
        field: path of the field that names the model, for messages.
    """
    saved = _saved_types(location, field)
    kept = _DTYPES.get(saved.pop(), dtype) if len(saved) == 1 else dtype
    # A part of the configuration with a data type of its own would be exported with that of files.
    if kept == dtype or config.get_text_config() is not config:
        return dtype
    models = [_weightless(factory, config, each) for each in (kept, dtype)]
    # Weights that transformers puts together anew are in memory; better as small as they will be.
    if any(isinstance(each, WeightConverter) for each in get_model_conversion_mapping(models[0])):
        return dtype
    # Some models make constants in the data type of their weights, and so round them.
    one, other = ({name: each.dtype for name, each in m.named_buffers()} for m in models)
    return kept if one == other else dtype


def _saved_types(location: ModelLocation, field: str) -> set[str]:
    """What safetensors call the data types of a model's weights; nothing of pickled ones."""
    settings = location.file("config.json")
    assert settings is not None, location
    return {
        kind
        for path in weight_files(settings.parent, field)
        if path.suffix == ".safetensors"
        for name, kind in weight_types(path, field).items()
        if not BUFFERS.search(name)
    }


def _weightless(factory: Any, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    # What is drawn afterwards must not depend on the files.
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = factory.from_config(
            copy.deepcopy(config), dtype=dtype, trust_remote_code=False
        )
    return model
