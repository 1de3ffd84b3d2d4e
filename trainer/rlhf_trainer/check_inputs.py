"""What the inputs of a job tell by themselves: `python -m rlhf_trainer.check_inputs`.

Asked by `rlhf validate`. Reads one stage.json a line, and says in lines of JSON what it looks into,
and then of each model and dataset, as soon as that is known, what is wrong with it or how many rows
it has. Imports no torch and starts nothing.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

from rlhf_api.errors import RLHFError
from rlhf_api.v1alpha1 import ModelSource, StageConfig, claim_of
from rlhf_trainer.data.preview import StageDataset, count_rows, datasets_of
from rlhf_trainer.errors import failure_of
from rlhf_trainer.run.model_files import check_model, models_of

Look = Callable[[], dict[str, Any]]


def findings(documents: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What is found of each model and dataset, but for those of claims without a folder.

    First `inputs`: the URI of each by its field, in the order in which they are looked into. Then a
    line for each: `field` names it; `rows` of a dataset is null where they are not looked into,
    `identical` of them are pairs with one text as both responses, and there are no more where they
    are the `whole`; `error` and `exitCode` stand for what cannot be used.
    """
    asked = [
        look
        for config in map(StageConfig.from_json, documents)
        for look in _looks(config)
        if (claim := claim_of(look[1])) is None or claim in config.claims
    ]
    yield {"inputs": {field: uri for field, uri, _ in asked}}
    for field, _, look in asked:
        try:
            finding = look()
        except (RLHFError, OSError) as error:
            failure = failure_of(error)
            finding = {"error": failure.message, "exitCode": failure.exit_code}
        yield {"field": field} | finding


def _looks(config: StageConfig) -> Iterator[tuple[str, str, Look]]:
    """Field and URI of each input, and how it is looked at."""
    for field, source in models_of(config):
        uri = source.scratch.tokenizer if source.scratch is not None else str(source.uri)
        yield field, uri, partial(_of_model, source, config, field)
    for asked in datasets_of(config):
        yield asked.field, asked.dataset.uri, partial(_of_rows, asked, config)


def _of_model(source: ModelSource, config: StageConfig, field: str) -> dict[str, Any]:
    check_model(source, config, field)
    return {}


def _of_rows(asked: StageDataset, config: StageConfig) -> dict[str, Any]:
    seen = count_rows(asked, config)
    return {"rows": None} if seen is None else asdict(seen)


if __name__ == "__main__":
    for finding in findings(sys.stdin):
        # At once: who waits no longer wants to know how far this has come.
        sys.stdout.write(json.dumps(finding) + "\n")
        sys.stdout.flush()
