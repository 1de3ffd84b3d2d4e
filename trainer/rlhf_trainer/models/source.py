"""Opening what a stage reads, before any weights: models' folders, tokenizers, rows.

Called by the stages on every rank. What lies on a hub is fetched by one rank of each node while the
others wait; then all read the same local copy.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

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
from rlhf_trainer.models.memory import ModelSize, count_parameters, count_scorer_parameters
from rlhf_trainer.models.tokenizers import load_tokenizer
from rlhf_trainer.run.artifact import ModelLocation, model_folder
from rlhf_trainer.run.distributed import Ranks, on_first_rank_of_node
from rlhf_trainer.run.model_files import require_weights

T = TypeVar("T")

_MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_OLD_WEIGHTS = ["*.bin"]
"""Read only where there are no safetensors; many repositories hold both."""
_STRETCHED = ("yarn", "linear", "dynamic")
"""Rotary embeddings whose factor is one of the positions."""


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
        """Raise ConfigError if sequences of `tokens` tokens are longer than the model can take.

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

    def size(self, name: str, *, trained: bool, scores: bool = False) -> ModelSize:
        """How large the model is, for the estimate of memory.

        With `scores` it has a score head in place of one for the vocabulary.
        """
        count = count_scorer_parameters if scores else count_parameters
        return ModelSize(name, count(self.config), trained)


def max_positions(config: PretrainedConfig) -> int | None:
    """Tokens of the longest sequence that the model can take; None where nothing bounds it.

    Rotary embeddings that are stretched reach `factor` times the positions of the original model
    (B. Peng et al., "YaRN", 2023), and configurations differ in whether `max_position_embeddings`
    counts that in. Those of Llama 3 and LongRoPE always do, and so do those that stretch but some
    of their layers.
    """
    text = config.get_text_config()
    positions: int | None = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    factor = rope.get("factor")
    if positions is None or factor is None or rope.get("rope_type") not in _STRETCHED:
        return positions
    original = rope.get("original_max_position_embeddings") or positions
    return max(positions, int(factor * original))


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
        checked_config(location, field)
        if not location.on_hub:
            require_weights(Path(location.path), field)
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


def _fetch(location: ModelLocation, field: str) -> None:
    try:
        folder = _snapshot(location, _MODEL_FILES)
        if not any(folder.rglob("*.safetensors")):
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
