"""What each rank does in `test_inputs`."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_api.errors import RLHFError
from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import StageConfig
from rlhf_trainer.data.loading import load_sft
from rlhf_trainer.models.source import open_base
from rlhf_trainer.run import artifact
from rlhf_trainer.run.distributed import Ranks
from rlhf_trainer.run.inputs import Inputs
from rlhf_trainer.run.report import Reporter
from rlhf_trainer.run.token_cache import TokenCache


def on_nodes(ranks: Ranks, nodes: int) -> Ranks:
    """The same ranks on as many nodes."""
    size = ranks.world_size // nodes
    return replace(ranks, local_rank=ranks.rank % size, local_world_size=size)


def read(ranks: Ranks, config: StageConfig, cache: Path, nodes: int = 1) -> Any:
    """The tokens of the stage's dataset: how often they were made here, and what they are.

    Each node has a cache of its own below `cache`.
    """
    there, calls = on_nodes(ranks, nodes), []

    @functools.wraps(load_sft)
    def counted(*arguments: Any, **settings: Any) -> Any:
        calls.append(arguments)
        return load_sft(*arguments, **settings)

    sft = config.sft
    assert sft is not None
    place = cache / f"node-{ranks.rank // there.local_world_size}"
    with Reporter(config, there) as reporter:
        inputs = Inputs(config, there, reporter, cache=TokenCache(place))
        base = open_base(sft.model, config, there, "spec.stages.sft.model")
        try:
            rows = inputs.read(
                "dataset", counted, sft.dataset, base.tokenizer, max_length=sft.max_length
            )
        except RLHFError as error:
            return len(calls), type(error).__name__, str(error)
        return (
            len(calls),
            [(row.tokens.tolist(), row.response_mask.tolist()) for row in rows],
            inputs.digests,
            reporter.rows["dataset"].to_document(),
            is_mapped(rows[0].tokens),
        )


def is_mapped(array: np.ndarray) -> bool:
    """Whether the numbers lie in a file."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return isinstance(array, np.memmap)


def hashed(ranks: Ranks, config: StageConfig, nodes: int) -> Any:
    """Names of the files that this rank hashed to open an artifact, and where it found the model.

    `config` is of a stage that reads one.
    """
    names: list[str] = []
    sha256_of = artifact.sha256_of

    def recorded(path: Path) -> str:
        names.append(path.name)
        return sha256_of(path)

    there = on_nodes(ranks, nodes)
    source = config.spec.sources()["model"]
    assert source.from_stage is StageName.SFT
    artifact.sha256_of = recorded  # type: ignore[assignment]
    artifact._verify.cache_clear()
    try:
        base = open_base(source, config, there, "spec.stages.reward.model")
    except RLHFError as error:
        return names, f"{type(error).__name__}: {error}"
    finally:
        artifact.sha256_of = sha256_of
    return names, base.location.path


def finished(ranks: Ranks, config: StageConfig, nodes: int) -> Any:
    """Names of the files that this rank hashed to find a finished attempt, and its outcome."""
    names: list[str] = []
    sha256_of = artifact.sha256_of

    def recorded(path: Path) -> str:
        names.append(path.name)
        return sha256_of(path)

    artifact.sha256_of = recorded  # type: ignore[assignment]
    artifact._verify.cache_clear()
    try:
        found = artifact.finished_outcome(config, on_nodes(ranks, nodes))
    finally:
        artifact.sha256_of = sha256_of
    return names, found
