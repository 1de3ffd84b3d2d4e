"""Pairs from rows of a retrieval dataset: a query, passages that answer it and others that do not.

Called by `formats`.
"""

import random

from rlhf_api.v1alpha1 import Dataset
from rlhf_trainer.data.parse.columns import Reader
from rlhf_trainer.data.parse.values import checked_text, encodable, mistake
from rlhf_trainer.data.read.rows import Row


def passage_pairs(
    read: Reader, row: Row, dataset: Dataset, random_key: str
) -> list[tuple[str, str]]:
    """(relevant, other) passages of one row, `pairsPerQuery` of them without repetition.

    Args:
        read: the spec's columns.
        row: a MIRACL row; passages are {docid, title, text}.
        dataset: the spec.
        random_key: decides the sample, for this row alone.

    Returns:
        At most one pair for each two passages; none where one of the lists is empty.

    Raises:
        DataError: a list or a passage that is none.
    """
    good = _passages(read, row, "positive_passages", dataset.title_prefix)
    bad = _passages(read, row, "negative_passages", dataset.title_prefix)
    combinations = len(good) * len(bad)
    picked = random.Random(random_key).sample(
        range(combinations), min(dataset.pairs_per_query, combinations)
    )
    return [(good[number // len(bad)], bad[number % len(bad)]) for number in picked]


def _passages(read: Reader, row: Row, name: str, title_prefix: bool) -> list[str]:
    column = read.column(name)
    value = read.value(row, name)
    if not isinstance(value, list):
        raise mistake(row, column, value, "must be a list of passages with docid, title and text")
    return [
        _passage(row, f"{column}[{index}]", item, title_prefix) for index, item in enumerate(value)
    ]


def _passage(row: Row, field: str, value: object, title_prefix: bool) -> str:
    if not isinstance(value, dict):
        raise mistake(row, field, value, "must be an object with docid, title and text")
    text = checked_text(row, f"{field}.text", value.get("text"))
    if not title_prefix:
        return text
    title = value.get("title")
    if not isinstance(title, str):
        raise mistake(row, f"{field}.title", title, "must be text, or turn titlePrefix off")
    encodable(row, f"{field}.title", title)
    return f"{title}\n{text}" if title.strip() else text
