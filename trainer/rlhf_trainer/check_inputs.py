"""What the inputs of a job tell by themselves: `python -m rlhf_trainer.check_inputs`.

Asked by `rlhf validate`. Reads one stage.json a line, and says of each model and dataset of these
stages in a line of JSON what is wrong with it, or how many rows it has. Imports no torch and starts
nothing.
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

    `field` names it; `rows` of a dataset is null where they are not looked into, `identical` of
    them are pairs with one text as both responses, and there are no more where they are the
    `whole`; `error` and `exitCode` stand for what cannot be used. Of a model that can be used
    nothing is said.
    """
    for document in documents:
        config = StageConfig.from_json(document)
        for field, uri, look in _looks(config):
            claim = claim_of(uri)
            if claim is not None and claim not in config.claims:
                continue
            try:
                finding = look()
            except (RLHFError, OSError) as error:
                failure = failure_of(error)
                finding = {"error": failure.message, "exitCode": failure.exit_code}
            if finding:
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
        sys.stdout.write(json.dumps(finding) + "\n")
