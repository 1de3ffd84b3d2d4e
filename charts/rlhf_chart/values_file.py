"""From the values' schema to `values.yaml`: every value with its default and its text."""

import textwrap
from collections.abc import Iterator

from rlhf_api.loading import dump_yaml
from rlhf_chart.values_schema import values_schema
from rlhf_chart.values_sentences import Schema

_WIDTH = 100
_HEAD = "# Made from charts/rlhf_chart/values.py by `make generate`; change that.\n"


def values_text() -> str:
    """The text of `values.yaml`."""
    blocks = [
        "\n".join(_lines(name, field, 0)) for name, field in values_schema()["properties"].items()
    ]
    return "\n\n".join([_HEAD.rstrip("\n"), *blocks]) + "\n"


def _lines(name: str, field: Schema, depth: int) -> Iterator[str]:
    indent = "  " * depth
    text = field.get("description", "")
    yield from textwrap.wrap(
        text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
    )
    if "default" in field:
        default, width = field["default"], _WIDTH - len(indent)
        dumped = dump_yaml({name: default}, width=width, compact=isinstance(default, list | dict))
        yield from textwrap.indent(dumped, indent).splitlines()
        return
    yield f"{indent}{name}:"
    for inner, each in field["properties"].items():
        yield from _lines(inner, each, depth + 1)
