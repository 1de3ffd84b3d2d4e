"""Rows of datasets as tests write them, and the datasets that they are of."""

from typing import Any

from rlhf_api.v1alpha1 import Columns, Dataset
from rlhf_trainer.data.parse.columns import Message
from rlhf_trainer.data.parse.formats import preference_rows, prompt_rows, sft_rows
from rlhf_trainer.data.read.rows import Row, Source

FIELD = "spec.stages.sft.dataset"
USER = {"role": "user", "content": "u"}
ASSISTANT = {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
TURNS = (Message("user", "u"),)
P = {"docid": "1#0", "title": "T", "text": "good"}
N = {"docid": "2#0", "title": "T", "text": "bad"}
PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
TOOLS = [{"type": "function", "function": {"name": "add"}}]
TALK = [USER, ASSISTANT]
GPT = {"from": "gpt", "value": "a"}
ASKED = {"prompt": "u", "response": "a"}
CHOSEN = {"chosen": TALK, "rejected": [USER, {**ASSISTANT, "content": "b"}]}
SHAREGPT = [{"from": "human", "value": "u"}, GPT]
OTHER_GPT = [{"from": "human", "value": "u"}, {"from": "gpt", "value": "b"}]
OTHER_TALK = [{**USER, "content": "v"}, {**ASSISTANT, "content": "b"}]
MIRACL = {"query": "q", "positive_passages": [P], "negative_passages": [N]}


def rows_of(*values: dict[str, Any]) -> list[Row]:
    """Rows of one file, by line."""
    return [Row(Source("data.jsonl", line), value) for line, value in enumerate(values, 1)]


def dataset_of(columns: dict[str, str] | None = None, **spec: Any) -> Dataset:
    """The file's spec."""
    return Dataset(uri="file:///data.jsonl", columns=Columns(**(columns or {})), **spec)


def turns_of(*roles: str) -> list[dict[str, str]]:
    """Turns of these roles, in order."""
    return [{"role": role, "content": "x"} for role in roles]


def parse(kind: str, row: dict[str, Any], columns: dict[str, str]) -> None:
    """Read one row for `kind`: sft, pref or prompt."""
    if kind == "sft":
        sft_rows(rows_of(row), dataset_of(columns), FIELD)
    elif kind == "pref":
        preference_rows(rows_of(row), dataset_of(columns), FIELD, seed=1)
    else:
        prompt_rows(rows_of(row), dataset_of(columns), FIELD)
