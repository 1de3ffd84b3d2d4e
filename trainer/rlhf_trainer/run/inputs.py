"""The rows that a stage reads: tokenized by one rank of each node, seen by all of them.

Called by the stages.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_api.v1alpha1 import Dataset, StageConfig
from rlhf_trainer.data.tokenize.rendering import reads_clock
from rlhf_trainer.data.tokenize.table import T, Table
from rlhf_trainer.data.tokenize.tokenized import Counts
from rlhf_trainer.run.distributed import Ranks, on_first_rank_of_node
from rlhf_trainer.run.identity import identity_of, pinned, token_key
from rlhf_trainer.run.report import Reporter
from rlhf_trainer.run.token_cache import TokenCache, Tokens, cache_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Reads a stage's datasets and tells what became of their rows.

    Attributes:
        cache: where this node keeps tokens.
        digests: sha256 of the token arrays of the datasets that were read, by their fields.
    """

    config: StageConfig
    ranks: Ranks
    reporter: Reporter
    cache: TokenCache = field(default_factory=lambda: TokenCache(cache_folder(os.environ)))
    digests: dict[str, str] = field(default_factory=dict)

    def read(
        self,
        name: str,
        load: Callable[..., tuple[list[T], Counts]],
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        **settings: Any,
    ) -> Table[T]:
        """The rows of `dataset`, tokenized, on every rank; all ranks call this together.

        Args:
            name: its field in the stage, such as `evalDataset`.
            load: one of `data.loading`.
            dataset: the spec.
            tokenizer: from `load_tokenizer`.
            settings: what else `load` takes, other than claims and field, as JSON values.

        Raises:
            InputError: nothing to read at the URI.
            DataError: rows that cannot be used.
        """

        field_path = f"spec.stages.{self.config.stage}.{name}"
        made: list[Tokens[T]] = []

        def make(dataset: Dataset) -> Tokens[T]:
            found, counts = load(
                dataset, tokenizer, claims=self.config.claims, field=field_path, **settings
            )
            if counts.encoded_apart:
                logger.info("%s: %s", field_path, counts)
            made.append(Tokens.of(found, counts.row_counts))
            return made[0]

        def keep() -> tuple[Dataset, Path | None]:
            identity = identity_of(dataset, self.config.claims, field_path)
            known = pinned(dataset, identity)
            if identity is None:
                # A hub's files are fetched before the other ranks of the node ask for them.
                make(known)
                return known, None
            key = token_key(load.__name__, dataset, identity, tokenizer, settings)
            return known, self.cache.folder_of(key, lambda: make(known))

        known, folder = on_first_rank_of_node(self.ranks, keep)
        if folder is not None:
            tokens: Tokens[T] = Tokens.open(folder)
        else:
            tokens = made[0] if made else make(known)
        self.reporter.read_rows(name, tokens.counts)
        if not reads_clock(tokenizer):
            self.digests[name] = tokens.digest
        return tokens.table
