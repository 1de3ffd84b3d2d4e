"""What rows alone tell of a job: `python -m rlhf_trainer.check_rows`, which `rlhf validate` asks.

Reads one stage.json a line, and says of each dataset of these stages in a line of JSON how many
rows it has, or why they cannot be used. Imports no torch and starts nothing.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from rlhf_api.errors import RLHFError
from rlhf_api.v1alpha1 import StageConfig, claim_of
from rlhf_trainer.data.preview import count_rows, datasets_of
from rlhf_trainer.errors import failure_of


def findings(documents: Iterable[str]) -> Iterator[dict[str, Any]]:
    """What is found of each dataset, but for those of claims without a folder.

    `field` names the dataset; `rows` is null where they are not looked into; `error` and `exitCode`
    stand for rows that cannot be used.
    """
    for document in documents:
        config = StageConfig.from_json(document)
        for asked in datasets_of(config):
            claim = claim_of(asked.dataset.uri)
            if claim is not None and claim not in config.claims:
                continue
            found: dict[str, Any] = {"field": asked.field}
            try:
                found["rows"] = count_rows(asked, config)
            except (RLHFError, OSError) as error:
                failure = failure_of(error)
                found |= {"error": failure.message, "exitCode": failure.exit_code}
            yield found


if __name__ == "__main__":
    for finding in findings(sys.stdin):
        sys.stdout.write(json.dumps(finding) + "\n")
