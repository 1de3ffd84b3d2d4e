"""Opening what a stage reads, before any weights: models' folders, tokenizers, rows.

Called by the stages on every rank. What lies on a hub is fetched by one rank of each node while the
others wait; then all read the same local copy.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlhf_api.errors import ConfigError, InputError
from rlhf_api.v1alpha1 import ModelSource, StageConfig
from rlhf_trainer.data.read.unreadable import input_errors
from rlhf_trainer.data.read.uris import Hub
from rlhf_trainer.data.tokenize.encoding import plain_pad
from rlhf_trainer.errors import CLOSED, FULL_OR_BROKEN, ServiceUnavailable
from rlhf_trainer.models.configs import checked_config, model_config
from rlhf_trainer.models.generation import Generation, read_generation
from rlhf_trainer.models.memory import ModelSize, count_parameters
from rlhf_trainer.models.opening import opening
from rlhf_trainer.models.pickled import check_pickled_weights
from rlhf_trainer.models.positions import check_rotations, max_positions, steady_positions
from rlhf_trainer.models.sizes import Sizes
from rlhf_trainer.models.tokenizers import load_tokenizer
from rlhf_trainer.run.artifact import ModelLocation, model_folder
from rlhf_trainer.run.distributed import Ranks, on_first_rank_of_node
from rlhf_trainer.run.model_files import refuse_adapter, require_weights

T = TypeVar("T")

_MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_OLD_WEIGHTS = ["*.bin"]
"""Read only where there are no safetensors; many repositories hold both."""


@dataclass(frozen=True)
class Base:
    """A model that a stage reads, without its weights.

    Attributes:
        field: path of the field that names it, for messages.
        location: where its files are.
        tokenizer: its tokenizer, with EOS and a pad token of its own.
        config: its configuration.
        generation: where its answers end, and how they are sampled.
    """

    field: str
    location: ModelLocation
    tokenizer: PreTrainedTokenizerBase
    config: PretrainedConfig
    generation: Generation

    @property
    def notes(self) -> tuple[str, ...]:
        """Where its answers end, and what pads batches if that is no special token, as people read
        it."""
        ending = f"{self.field}: {self.generation.described(self.tokenizer)}"
        pad = plain_pad(self.tokenizer)
        if pad is None:
            return (ending,)
        return ending, f"{self.field}: batches are padded by {pad!r}, which no row may hold"

    @property
    def pad_id(self) -> int:
        """Id that fills a batch."""
        return int(self.tokenizer.pad_token_id)

    @property
    def embedding_rows(self) -> int:
        """How many ids its embeddings take; often more than there are tokens."""
        return int(self.config.get_text_config().vocab_size)

    @property
    def absent_ids(self) -> tuple[int, ...]:
        """Rows of its embeddings without a token, ascending."""
        tokens = set(self.tokenizer.get_vocab().values())
        return tuple(i for i in range(self.embedding_rows) if i not in tokens)

    def require_positions(self, tokens: int, lengths: str) -> None:
        """Raise ConfigError if sequences of `tokens` tokens are longer than the model can take, or
        than it takes without computing others beside them otherwise.

        Args:
            tokens: of the longest sequence that the stage will see.
            lengths: the fields that bound it, for the message.
        """
        positions = max_positions(self.config)
        if positions is not None and tokens > positions:
            raise ConfigError(
                f"{self.field}: the model takes {positions} tokens, but sequences of this stage "
                f"reach {tokens}; lower {lengths}, or name a model that takes more"
            )
        steady = steady_positions(self.config)
        if steady is not None and tokens > steady:
            raise ConfigError(
                f"{self.field}: beside a row of more than {steady} tokens the model's rotary "
                "embeddings (longrope or dynamic) are others for every row of a pass, but "
                f"sequences of this stage reach {tokens}; lower {lengths} so that none has more, "
                "or name another model"
            )

    def size(self, name: str, *, trained: bool, scores: bool = False) -> ModelSize:
        """How large the model is, for the estimate of memory.

        With `scores` it has a score head in place of one for the vocabulary.
        """
        with _building(self.field, self.location, self.config):
            return ModelSize(name, count_parameters(self.config, scores=scores), trained)


def open_base(source: ModelSource, config: StageConfig, ranks: Ranks, field: str) -> Base:
    """Find a model, fetch it if it lies on a hub, and load its tokenizer and configuration.

    Raises:
        InputError: it is not there, or an artifact is not the one that was promised.
        ServiceUnavailable: the hub does not answer.
        ConfigError: its tokenizer cannot be used as it is.
    """

    def find() -> ModelLocation:
        with input_errors(field):
            location = model_folder(source, config, field)
        if location.on_hub:
            _fetch(location, field)
        return location

    # An artifact's files are hashed there: once a node is enough.
    location = on_first_rank_of_node(ranks, find)
    with input_errors(field):
        return _opened(location, source, field)


def _opened(location: ModelLocation, source: ModelSource, field: str) -> Base:
    if location.scratch is None:
        # First, since the tokenizer of what cannot be trained is of no concern.
        config = checked_config(location, field)
        with _building(field, location, config):
            check_rotations(config)
            count_parameters(config)
            Sizes.of(config, "FP32")
        if not location.on_hub:
            _check_weights(Path(location.path), field)
    place = Hub(location.path, location.revision) if location.on_hub else Path(location.path)
    tokenizer = load_tokenizer(
        place,
        field=field,
        pad_token=source.pad_token,
        chat_template=source.chat_template,
        use_chat_template=source.use_chat_template,
        end_of_turn=source.end_of_turn,
    )
    model = model_config(location, tokenizer, field)
    generation = read_generation(location, model, tokenizer, field)
    return Base(field, location, tokenizer, model, generation)


def _building(
    field: str, location: ModelLocation, config: PretrainedConfig
) -> AbstractContextManager[None]:
    """Around what makes the model of a configuration in its real size."""
    return opening(
        f"{field}: transformers {transformers.__version__} makes no model of the config.json at "
        f"{location.path} ({config.model_type})",
        "correct config.json, use a trainer with a newer transformers, or name another model",
    )


def _check_weights(folder: Path, field: str) -> None:
    require_weights(folder, field)
    check_pickled_weights(folder, field)


def _fetch(location: ModelLocation, field: str) -> None:
    """Fetch a repository, and look into its weights."""
    folder = _fetched(location, field)
    # Of a model from random weights the tokenizer alone lies there.
    if location.scratch is None:
        refuse_adapter(folder, f"hf://{location.path}", field)
        _check_weights(folder, field)


def _fetched(location: ModelLocation, field: str) -> Path:
    try:
        folder = _snapshot(location, _MODEL_FILES)
        if not any(folder.glob("model*.safetensors")):
            _snapshot(location, _OLD_WEIGHTS)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in FULL_OR_BROKEN | CLOSED:
            raise
        reason = " ".join(str(error).split())
        message = f"{field}: hf://{location.path} cannot be fetched: {reason}"
        if _may_pass(error):
            raise ServiceUnavailable(f"{message}; try again when the hub answers") from error
        raise InputError(
            f"{message}; check the name and the network, or fill the cache and set HF_HUB_OFFLINE=1"
        ) from error
    return folder


def _snapshot(location: ModelLocation, patterns: list[str]) -> Path:
    return Path(
        snapshot_download(location.path, revision=location.revision, allow_patterns=patterns)
    )


def _may_pass(error: BaseException) -> bool:
    """Whether the hub or the way to it failed, and not what was asked of it."""
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if isinstance(cause, HfHubHTTPError):
        return cause.response.status_code >= 500 or cause.response.status_code == 429
    if cause is None or isinstance(cause, OfflineModeIsEnabled):
        return False
    return cause is not error or isinstance(error, ConnectionError | TimeoutError)
