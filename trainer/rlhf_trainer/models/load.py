"""Weights: causal models and reward models, loaded, checked and saved.

Called by the stages; what they compute with them stands in `heads`.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
import transformers
from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_api.errors import ConfigError, InputError
from rlhf_api.v1alpha1 import StageSpec
from rlhf_trainer.errors import NonFiniteError
from rlhf_trainer.models.adapters import merge_adapters
from rlhf_trainer.models.as_saved import dtype_of_files
from rlhf_trainer.models.configs import model_config
from rlhf_trainer.models.engine import DTYPES, shards_weights
from rlhf_trainer.models.finite import spoilt_weights
from rlhf_trainer.models.generation import generation_config
from rlhf_trainer.models.heads import score_head
from rlhf_trainer.models.opening import one_line, opening
from rlhf_trainer.run.artifact import ModelLocation
from rlhf_trainer.run.distributed import Ranks
from rlhf_trainer.run.model_files import BUFFERS

logger = logging.getLogger(__name__)

T = TypeVar("T")

ATTENTION = {"SDPA": "sdpa", "Eager": "eager", "FlashAttention2": "flash_attention_2"}

_HEAD = "score.weight"
_LOGITS = re.compile(r"^lm_head\.|^(embed_out|output_projection|decoder)\.(weight|bias)$")
"""The layer of the vocabulary, as decoders call it; a model with one score mostly comes from one
that had it."""
_NO_SDPA = "does not support an attention implementation through torch.nn.functional"
"""How transformers says it."""
_USE = "use a model whose AutoModelForSequenceClassification has a score head, for example Llama"


@dataclass(frozen=True)
class ModelSettings:
    """How models of a stage are loaded.

    Attributes:
        dtype: of the weights; explicit, since transformers would take the checkpoint's.
        attention: transformers' name of the attention implementation.
        seed: of random weights.
        as_saved: whether weights keep the data type of their files, where the model becomes the
            same, and so need no memory: they are read when each is cut over the ranks.
        note: takes what is not as it was asked for, for people to read; each copy says it again.
    """

    dtype: torch.dtype
    attention: str
    seed: int
    note: Callable[[str], None] = logger.warning
    as_saved: bool = False

    @classmethod
    def of(
        cls, spec: StageSpec, ranks: Ranks, note: Callable[[str], None] = logger.warning
    ) -> "ModelSettings":
        """Settings that the stage's specification asks for."""
        attention = ATTENTION[spec.attention_implementation]
        as_saved = shards_weights(spec.zero_stage, ranks)
        return cls(DTYPES[spec.precision], attention, spec.seed, note, as_saved)


def load_causal_model(
    location: ModelLocation,
    tokenizer: PreTrainedTokenizerBase,
    settings: ModelSettings,
    field: str,
) -> PreTrainedModel:
    """A causal language model, in its precision, on the CPU.

    Raises:
        InputError: the weights are missing or of another kind of model.
    """
    config = model_config(location, tokenizer, field)
    if location.scratch is not None:
        torch.manual_seed(settings.seed)
        model = _from_config(AutoModelForCausalLM, config, settings, field)
    else:
        _require_architecture(config, "ForSequenceClassification", field, wanted=False)
        model, missing = _from_pretrained(AutoModelForCausalLM, location, config, settings, field)
        _require_all_weights(missing, location, field)
    _fit_tokenizer(model, tokenizer, field)
    return model


def untrained_model(
    config: PretrainedConfig, settings: ModelSettings, field: str
) -> PreTrainedModel:
    """A causal language model with random weights, in its precision, on the CPU."""
    return _from_config(AutoModelForCausalLM, config, settings, field)


def load_reward_base(
    location: ModelLocation,
    tokenizer: PreTrainedTokenizerBase,
    settings: ModelSettings,
    field: str,
    *,
    zero_head: bool = False,
) -> PreTrainedModel:
    """A model with one score, from any causal or reward model; a new head where it has none.

    The new head is drawn from N(0, 1/(d+1)) for hidden size d (Huang et al., "The N Implementation
    Details of RLHF with PPO", 2023), or zero, which makes a critic start at value 0.
    """
    config = model_config(location, tokenizer, field)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise InputError(f"{field}: transformers has no classifier of {config.model_type}; {_USE}")
    if _names_architecture(config, "ForSequenceClassification"):
        _require_one_label(config, location, field)
    config.num_labels = 1
    torch.manual_seed(settings.seed)
    missing = {_HEAD}
    if location.scratch is not None:
        model = _from_config(AutoModelForSequenceClassification, config, settings, field)
    else:
        model, missing = _from_pretrained(
            AutoModelForSequenceClassification, location, config, settings, field
        )
    _require_score_head(model, field)
    _require_all_weights(missing - {_HEAD}, location, field)
    head = score_head(model)
    # What is drawn for it is not rounded to the data type of its model's files.
    head.weight.data = head.weight.data.to(settings.dtype)
    if _HEAD in missing:
        with torch.no_grad():
            if zero_head:
                head.weight.zero_()
            else:
                head.weight.normal_(0.0, (head.in_features + 1) ** -0.5)
    _fit_tokenizer(model, tokenizer, field)
    return model


def load_reward_model(
    location: ModelLocation,
    tokenizer: PreTrainedTokenizerBase,
    settings: ModelSettings,
    field: str,
) -> PreTrainedModel:
    """A finished reward model.

    Raises:
        InputError: the model has no score head, or one with several labels.
    """
    config = model_config(location, tokenizer, field)
    _require_architecture(config, "ForSequenceClassification", field, wanted=True)
    _require_one_label(config, location, field)
    model, missing = _from_pretrained(
        AutoModelForSequenceClassification, location, config, settings, field
    )
    _require_score_head(model, field)
    _require_all_weights(missing, location, field)
    _fit_tokenizer(model, tokenizer, field)
    return model


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    stop_ids: Sequence[int],
    sampling: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write weights as safetensors, configuration and tokenizer; for a causal model also the
    generation configuration, with what ends an answer and the values of `sampling`.

    Adapters are merged into the weights before, for good: training has ended.
    """
    merge_adapters(model)
    if model.can_generate():
        model.generation_config = generation_config(stop_ids, sampling, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _from_config(
    factory: Any, config: PretrainedConfig, settings: ModelSettings, field: str
) -> PreTrainedModel:
    """A model with random weights."""

    def build(attention: str) -> PreTrainedModel:
        model: PreTrainedModel = factory.from_config(
            config, dtype=settings.dtype, attn_implementation=attention, trust_remote_code=False
        )
        return model

    return _with_attention(build, settings, config, field)


def _from_pretrained(
    factory: Any,
    location: ModelLocation,
    config: PretrainedConfig,
    settings: ModelSettings,
    field: str,
) -> tuple[PreTrainedModel, set[str]]:
    """A model and the names of weights that its files lack and that are random now."""
    dtype = settings.dtype

    def build(attention: str) -> Any:
        return factory.from_pretrained(
            location.path,
            revision=location.revision,
            config=config,
            dtype=dtype,
            attn_implementation=attention,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )

    with (
        opening(
            f"{field}: cannot load {location.path}", "save the model anew, or name another one"
        ),
        _quiet_about_new_weights(),
    ):
        if settings.as_saved:
            dtype = dtype_of_files(factory, location, config, dtype, field)
        model, loaded = _with_attention(build, settings, config, field)
    for name, saved, configured in sorted(loaded["mismatched_keys"]):
        raise InputError(
            f"{field}: cannot load {location.path}: {name} has shape {list(saved)} in its files "
            f"and {list(configured)} by its config.json; use files that were saved together"
        )
    for weight in spoilt_weights(dict(model.named_parameters())):
        raise NonFiniteError(
            f"{field}: cannot use {location.path}: its {weight} holds NaN or infinity; name a "
            "model whose weights are numbers"
        )
    _require_all_used(set(loaded["unexpected_keys"]), model, location, field)
    return model, set(loaded["missing_keys"])


def _require_all_used(
    unused: set[str], model: PreTrainedModel, location: ModelLocation, field: str
) -> None:
    """Raise InputError if files hold weights that the model does not have: it is another one."""
    unused = {name for name in unused if not BUFFERS.search(name)}
    if not model.can_generate():
        unused = {name for name in unused if not _LOGITS.search(name)}
    if unused:
        named = ", ".join(sorted(unused)[:3])
        raise InputError(
            f"{field}: cannot load {location.path}: its files hold {len(unused)} weights that "
            f"{type(model).__name__} does not have by its config.json, among them {named}, and "
            "without them it computes something else; use files that were saved together"
        )


def _require_all_weights(missing: set[str], location: ModelLocation, field: str) -> None:
    if missing:
        named = ", ".join(sorted(missing)[:3])
        raise InputError(
            f"{field}: cannot load {location.path}: its files lack {len(missing)} weights that its "
            f"config.json asks for, among them {named}; use files that were saved together"
        )


def _require_score_head(model: PreTrainedModel, field: str) -> None:
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise InputError(
            f"{field}: {type(model).__name__} has no linear score head with one output; {_USE}"
        )


def _fit_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, field: str) -> None:
    embeddings = int(model.config.get_text_config().vocab_size)
    if len(tokenizer) > embeddings:
        raise InputError(
            f"{field}: the tokenizer has {len(tokenizer)} tokens but the model only {embeddings} "
            "embeddings; use the tokenizer that the model was trained with"
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    if model.can_generate():
        # A checkpoint's own sampling defaults (a repetition penalty, say) would leak into rollouts.
        model.generation_config = GenerationConfig()


def _names_architecture(config: PretrainedConfig, ending: str) -> bool:
    return any(name.endswith(ending) for name in config.architectures or ())


def _require_architecture(
    config: PretrainedConfig, ending: str, field: str, *, wanted: bool
) -> None:
    if config.architectures and _names_architecture(config, ending) != wanted:
        names = ", ".join(config.architectures)
        kind = "a reward model with a score head" if wanted else "a causal language model"
        raise InputError(
            f"{field}: the model is {names}, but {kind} is needed here; "
            + ("train one with stages.reward" if wanted else "name the model it was trained from")
        )


def _require_one_label(config: PretrainedConfig, location: ModelLocation, field: str) -> None:
    if config.num_labels != 1:
        raise InputError(
            f"{field}: the model at {location.path} has {config.num_labels} labels; "
            f"a reward model has one score (num_labels: 1): {_USE}"
        )


def _with_attention(
    build: Callable[[str], T], settings: ModelSettings, config: PretrainedConfig, field: str
) -> T:
    """What `build` makes with the attention that was asked for, or with Eager where SDPA is not.

    Raises:
        ConfigError: the model or this machine has no FlashAttention2, which was asked for.
    """
    name = f"{field.rpartition('.')[0]}.attentionImplementation"
    eager, sdpa = ATTENTION["Eager"], ATTENTION["SDPA"]
    try:
        return build(settings.attention)
    except (ImportError, ValueError) as error:
        if settings.attention == eager:
            raise
        # Every model has eager attention: if that can be built, it was the other that could not.
        built = build(eager)
        if settings.attention != sdpa:
            raise ConfigError(f"{name}: {one_line(error)}; choose SDPA") from error
        settings.note(f"{name}: {_without_sdpa(error, config)}: Eager is used")
        return built


def _without_sdpa(error: Exception, config: PretrainedConfig) -> str:
    """Why a model cannot be built with SDPA, in the same words for all models of its type."""
    version = f"transformers {transformers.__version__}"
    if _NO_SDPA in str(error):
        return f"{version} offers no SDPA for the model type {config.model_type}"
    return f"{version} builds no {config.model_type} with SDPA ({one_line(error)})"


@contextmanager
def _quiet_about_new_weights() -> Iterator[None]:
    """transformers warns of weights that the files lack: a new head, or what we raise ourselves."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
