"""Reading manifests as kubectl reads them, and telling people what is wrong with them."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from rlhf_api.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML as sigs.k8s.io/yaml reads it: `1e-6` is a number, dates are text, keys stand once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# The tables are copied before they change, since SafeLoader's belong to everybody.
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag.rsplit(":", 1)[-1] not in ("timestamp", "float", "int")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0o?[0-7_]+)$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    "tag:yaml.org,2002:float",
    re.compile(
        r"^([-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> list[Any]:
    """All documents of a file that are not empty.

    Raises:
        ConfigError: the file cannot be read or is not YAML; names path and line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        documents = [document for document in yaml.load_all(text, _Loader) if document is not None]  # noqa: S506
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    return documents


def describe_errors(
    error: ValidationError, model: type[BaseModel], origin: str
) -> Iterator[str]:
    """One line for each mistake: `origin: field: what is wrong with which value, and the remedy`."""
    for item in error.errors(include_url=False):
        field = _path(item["loc"])
        yield f"{origin}: {field}: {_sentence(item, model)}" if field else (
            f"{origin}: {_sentence(item, model)}"
        )


def _path(location: Iterable[int | str]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _sentence(item: Any, model: type[BaseModel]) -> str:
    kind, context = item["type"], item.get("ctx", {})
    value = json.dumps(item["input"], ensure_ascii=False, default=str)
    if len(value) > 200:
        value = value[:197] + "..."
    if kind == "extra_forbidden":
        known = _fields_at(model, item["loc"][:-1])
        close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.6)
        remedy = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
        return f"unknown field with value {value}; {remedy}"
    if kind == "missing":
        return "is missing; add it"
    if kind == "value_error":
        return str(context["error"])
    bounds = ", ".join(f"{name} {bound}" for name, bound in context.items() if name != "error")
    remedy = item["msg"][0].lower() + item["msg"][1:]
    return f"{value}: {remedy}" + (f" ({bounds})" if bounds and bounds not in remedy else "")


def _fields_at(model: type[BaseModel], location: Iterable[int | str]) -> list[str]:
    """camelCase names of the fields of the object at `location`."""
    current: type[BaseModel] = model
    for part in location:
        if isinstance(part, int):
            continue
        by_alias = {info.alias or name: info for name, info in current.model_fields.items()}
        if part not in by_alias:
            return []
        found = _model_in(by_alias[part].annotation)
        if found is None:
            return []
        current = found
    return [info.alias or name for name, info in current.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
