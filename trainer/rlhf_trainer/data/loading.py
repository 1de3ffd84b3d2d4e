"""From a dataset of the spec to token sequences, in one call a stage.

Called by the stages before any weights are loaded.
"""

from collections.abc import Mapping
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from rlhf_api.v1alpha1 import Dataset
from rlhf_trainer.data.parse import formats
from rlhf_trainer.data.parse.beside import Skipped
from rlhf_trainer.data.parse.kinds import refuse_kinds
from rlhf_trainer.data.parse.losses import CORRECT_PAIRS, require_consent
from rlhf_trainer.data.read.rows import read_rows
from rlhf_trainer.data.tokenize import tokenized
from rlhf_trainer.data.tokenize.tokenized import Counts, PreferencePair, Prompt, SFTExample


def load_sft(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    claims: Mapping[str, str],
    field: str,
    limits: str = "maxLength",
) -> tuple[list[SFTExample], Counts]:
    """Examples for supervised fine-tuning.

    Args:
        dataset: the spec.
        tokenizer: from `load_tokenizer`.
        max_length: longest sequence in tokens, prompt and response with EOS together.
        claims: where each claim of a pvc:// URI is mounted.
        field: the dataset's path in the spec, such as `spec.stages.sft.dataset`, for messages.
        limits: what in the same stage sets max_length, for messages.

    Raises:
        InputError: nothing to read at the URI.
        DataError: a row that cannot be used, none at all, or more than half of them lost without
            `allowLoss`.
    """
    raw_rows = read_rows(dataset, claims=claims, field=field)
    skipped = Skipped()
    rows = formats.sft_rows(raw_rows, dataset, field, skipped)
    examples, counts = tokenized.sft_examples(
        rows,
        tokenizer,
        max_length=max_length,
        over_long=dataset.over_long,
        limit_field=_beside(field, limits),
    )
    counts = replace(counts, not_learned=skipped.rows)
    _judge(dataset, counts, field, _beside(field, limits), max_length)
    return examples, counts


def load_preferences(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    claims: Mapping[str, str],
    field: str,
    seed: int,
) -> tuple[list[PreferencePair], Counts]:
    """Pairs for the reward model.

    Args: as `load_sft`, and
        seed: decides which pairs are sampled from MIRACL rows.

    Raises: as `load_sft`.
    """
    raw_rows = read_rows(dataset, claims=claims, field=field)
    skipped = Skipped()
    rows, dropped = formats.preference_rows(raw_rows, dataset, field, seed, skipped)
    pairs, counts = tokenized.preference_pairs(
        rows,
        tokenizer,
        max_length=max_length,
        over_long=dataset.over_long,
        limit_field=_beside(field, "maxLength"),
    )
    counts = replace(counts, dropped_empty_list=dropped, not_learned=skipped.rows)
    _judge(dataset, counts, field, _beside(field, "maxLength"), max_length)
    return pairs, counts


def load_prompts(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    claims: Mapping[str, str],
    field: str,
    refused: Mapping[str, str] | None = None,
) -> tuple[list[Prompt], Counts]:
    """Prompts for PPO; `max_length` is the longest prompt.

    Args: as `load_sft`, and
        refused: why prompts of a kind (`data.parse.kinds`) cannot be used, by kind.

    Raises: as `load_sft`, and
        ConfigError: a row is of such a kind.
    """
    skipped = Skipped()
    rows = formats.prompt_rows(
        read_rows(dataset, claims=claims, field=field), dataset, field, skipped
    )
    refuse_kinds(rows, refused or {})
    prompts, counts = tokenized.prompts(
        rows,
        tokenizer,
        max_length=max_length,
        over_long=dataset.over_long,
        limit_field=_beside(field, "maxPromptLength"),
    )
    counts = replace(counts, not_learned=skipped.rows)
    _judge(dataset, counts, field, _beside(field, "maxPromptLength"), max_length)
    return prompts, counts


def _beside(field: str, name: str) -> str:
    """Path of another field of the same stage."""
    return f"{field.rpartition('.')[0]}.{name}"


def _judge(dataset: Dataset, counts: Counts, field: str, limit_field: str, limit: int) -> None:
    """Raise DataError if more than half of the rows is lost without consent."""
    row_counts = counts.row_counts
    remedies = {
        (
            f"raise {limit_field} from {limit} (too long are those of {counts.too_long} tokens) or "
            f"set {field}.overLong to Truncate"
        ): row_counts.over_long,
        CORRECT_PAIRS: row_counts.identical,
    }
    require_consent(dataset, row_counts, field, remedies)
