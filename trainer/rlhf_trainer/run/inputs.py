"""The rows that a stage reads: tokenized by one rank of each node, seen by all of them.

Called by the stages.
"""

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
from rlhf_trainer.run.distributed import Ranks, barrier, on_first_rank_of_node
from rlhf_trainer.run.identity import identity_of, pinned, rows_digest, token_key
from rlhf_trainer.run.report import Reporter
from rlhf_trainer.run.token_cache import TokenCache, Tokens, cache_folder


@dataclass(frozen=True)
class Kept:
    """What one rank of a node tells the others of a dataset.

    Attributes:
        dataset: at the commit that it was identified by.
        folder: of its tokens; None where they could not be kept.
        rows: digest of what its rows are; None where it cannot be told.
    """

    dataset: Dataset
    folder: Path | None = None
    rows: str | None = None


@dataclass(frozen=True)
class Inputs:
    """Reads a stage's datasets and tells what became of their rows.

    Attributes:
        cache: where this node keeps tokens.
        digests: sha256 of the token arrays of the datasets that were read, by their fields; of
            their rows where the tokens hold the date.
    """

    config: StageConfig
    ranks: Ranks
    reporter: Reporter
    cache: TokenCache = field(default_factory=lambda: TokenCache(cache_folder(os.environ)))
    digests: dict[str, str] = field(default_factory=dict)

    def read_train_and_eval(
        self,
        load: Callable[..., tuple[list[T], Counts]],
        tokenizer: PreTrainedTokenizerBase,
        **settings: Any,
    ) -> tuple[Table[T], Table[T] | None]:
        """The stage's rows to learn, and those that are held out, if any are.

        Args and raises as `read`.
        """
        spec = self.config.spec
        train = self.read("dataset", load, spec.dataset, tokenizer, **settings)
        if spec.eval_dataset is None:
            return train, None
        return train, self.read("evalDataset", load, spec.eval_dataset, tokenizer, **settings)

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
            rows, counts = load(
                dataset, tokenizer, claims=self.config.claims, field=field_path, **settings
            )
            made.append(Tokens.of(rows, counts.row_counts))
            return made[0]

        def keep() -> Kept:
            identity = identity_of(dataset, self.config.claims, field_path)
            known = pinned(dataset, identity)
            if identity is None:
                # A hub's files are fetched before the other ranks of the node ask for them.
                make(known)
                return Kept(known)
            key = token_key(load.__name__, dataset, identity, tokenizer, settings)
            folder = self.cache.folder_of(key, lambda: make(known))
            return Kept(known, folder, rows_digest(identity))

        kept = on_first_rank_of_node(self.ranks, keep)
        if kept.folder is not None:
            tokens: Tokens[T] = Tokens.open(kept.folder)
        else:
            tokens = made[0] if made else make(kept.dataset)
        # Whether their tokens were made now or long ago.
        self.reporter.read_rows(name, tokens.counts)
        self._note_digest(name, tokens, kept, dated=reads_clock(tokenizer))
        return tokens.table

    def _note_digest(self, name: str, tokens: Tokens[Any], kept: Kept, *, dated: bool) -> None:
        """What must be the same after a resume; `dated` tokens, with the date in them, go."""
        if dated:
            self._forget(kept.folder)
        # Dated tokens are others tomorrow; their rows must be the same.
        digest = kept.rows if dated else tokens.digest
        if digest is not None:
            self.digests[name] = digest

    def _forget(self, folder: Path | None) -> None:
        """Remove tokens that nobody will ask for again, once every rank has mapped them."""
        barrier(self.ranks)
        if folder is not None and self.ranks.local_rank == 0:
            self.cache.discard(folder)
