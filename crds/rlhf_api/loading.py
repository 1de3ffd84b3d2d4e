"""Reading manifests as kubectl reads them, and telling people what is wrong with them."""

import difflib
import json
import math
import re
from collections.abc import Hashable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo

from rlhf_api.errors import ConfigError

_MERGE = "tag:yaml.org,2002:merge"
_MAX_VALUE_LENGTH = 120
# Go prints a number without a decimal point below this size, which makes it an integer.
_MAX_INTEGRAL_FLOAT = 1e21

_KEY = "[key]"
"""How pydantic ends the path to a key of a map."""

_HUB_PAGE = re.compile(
    r"https?://(?:huggingface\.co|hf\.co)/(?:datasets/)?([\w.-]+(?:/[\w.-]+)?)/?"
)
_SCHEME = re.compile(r"(hf|file|pvc|scratch):(//|/|)([^/].*|/.*)", re.IGNORECASE)
"""A scheme that the contract knows, however it is spelled."""
_HUB_NAME = re.compile(r"(?!.*\.(?:jsonl?|parquet)$)\w[\w.-]*(?:/[\w.-]+)?(?:@[\w./-]+)?")


class _Loader(yaml.SafeLoader):
    """YAML as kubectl reads it (sigs.k8s.io/yaml, which goes by way of JSON).

    Unlike PyYAML: `1e-6` and `0o17` are numbers, `1e6` and `2.0` are integers, `y` and `n` are
    booleans like yes, no, on and off, dates and `1:30` are text, and a key stands once.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float):
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is not text; put it in quotes", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice; keep one", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_bool(self, node: yaml.ScalarNode) -> bool:
        return str(self.construct_scalar(node)).lower() in ("y", "yes", "true", "on")

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node)).replace("_", "")
        sign, digits = (-1 if text[0] == "-" else 1), text.lstrip("+-").lower()
        for prefix, base in (("0x", 16), ("0b", 2), ("0o", 8)):
            if digits.startswith(prefix):
                return sign * int(digits.removeprefix(prefix), base)
        if len(digits) > 1 and digits[0] == "0":
            return sign * int(digits, 8)
        return sign * int(digits)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float | int:
        text = str(self.construct_scalar(node)).replace("_", "").lower()
        number = math.inf if text.lstrip("+-") in (".inf", ".nan") else float(text)
        if not math.isfinite(number):
            raise yaml.constructor.ConstructorError(
                None, None, f"{text} is no finite number; write one", node.start_mark
            )
        integral = number.is_integer() and abs(number) < _MAX_INTEGRAL_FLOAT
        return int(number) if integral else number


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read as text, and writes equal parts out each time."""

    def ignore_aliases(self, data: object) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # Only double quotes keep what YAML takes for a line break.
        style = '"' if set(data) & set("\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)

_RESOLVERS = (
    (
        "bool",
        r"^(y|Y|yes|Yes|YES|n|N|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)$",
        "yYnNtTfFoO",
    ),
    (
        "int",
        r"^[-+]?(0|[1-9][0-9_]*|0[0-7_]+|0[xX][0-9a-fA-F_]*[0-9a-fA-F]|0b[01_]*[01]|0o[0-7_]*[0-7])$",
        "-+0123456789",
    ),
    (
        "float",
        r"^([-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
        "-+0123456789.",
    ),
)
_REPLACED = ("bool", "float", "int", "timestamp", "value")

for _class in (_Loader, _Dumper):
    # The table is copied before it changes, since PyYAML's belongs to everybody.
    _class.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in known if tag.rsplit(":", 1)[-1] not in _REPLACED]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for _tag, _form, _first in _RESOLVERS:
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_form), list(_first))

_Loader.add_constructor("tag:yaml.org,2002:bool", _Loader.construct_yaml_bool)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def read_yaml(path: Path) -> list[Any]:
    """All documents of a file that are not empty, as plain JSON values.

    Raises:
        ConfigError: the file cannot be read or is not YAML; names path and line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not text in UTF-8 ({error}); save it as UTF-8") from error
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror or error}; name a file that can be read"
        ) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, origin: str) -> list[Any]:
    """As `read_yaml`, of a text; `origin` is what messages call it."""
    try:
        return [document for document in yaml.load_all(text, _Loader) if document is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark is not None else ""
        raise ConfigError(f"{origin}: {line}not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        told = " ".join(str(error).split())
        raise ConfigError(f"{origin}: not YAML: {told}") from error


def dump_yaml(document: Any, *, width: int = 100, compact: bool = False) -> str:
    """Plain JSON values as a YAML text that `parse_yaml` and kubectl read back unchanged.

    Args:
        document: what to write, keys in its order.
        width: where long texts are broken.
        compact: whether innermost objects and lists stand on one line.
    """
    text: str = yaml.dump(
        document,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=width,
        default_flow_style=None if compact else False,
    )
    return text


def find_nulls(document: Any, path: str = "") -> Iterator[str]:
    """Paths of all fields without a value, which the API server refuses."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield from find_nulls(value, _join(path, key))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from find_nulls(value, _join(path, index))
    elif document is None:
        yield path


def describe_errors(error: ValidationError, model: type[BaseModel], origin: str) -> Iterator[str]:
    """One line for each mistake: `origin: field: what is wrong with which value, the remedy`."""
    for item in error.errors(include_url=False):
        field, sentence = _path(item["loc"]), _sentence(item, model)
        if item["loc"][-1:] == (_KEY,) and item["loc"][-2:-1] == (item["input"],):
            field, sentence = _path(item["loc"][:-1]), f"the key {sentence}"
        yield f"{origin}: {field}: {sentence}" if field else f"{origin}: {sentence}"


def _path(location: Iterable[int | str]) -> str:
    text = ""
    for part in location:
        text = _join(text, part)
    return text


def _join(path: str, part: object) -> str:
    if isinstance(part, int):
        return f"{path}[{part}]"
    if not re.fullmatch(r"\w+", str(part)):
        return f"{path}[{json.dumps(str(part), ensure_ascii=False)}]"
    return f"{path}.{part}" if path else str(part)


def _sentence(item: Any, model: type[BaseModel]) -> str:
    kind, location, given = item["type"], item["loc"], item["input"]
    value = json.dumps(given, ensure_ascii=False, default=str)
    brief = value if len(value) <= _MAX_VALUE_LENGTH else value[: _MAX_VALUE_LENGTH - 3] + "..."
    if kind == "extra_forbidden":
        return f"is unknown (value {brief}); {_near(model, location)}"
    if kind == "missing":
        return f"is missing; add it{_meaning(model, location)}"
    if kind == "value_error":
        reason = str(item["ctx"]["error"])
        return reason if brief != value else f"{reason} (value {value})"
    if kind == "string_pattern_mismatch":
        pattern = item["ctx"]["pattern"]
        if "://" in pattern and (remedy := _scheme_remedy(given, pattern)):
            return f"is {brief}, {remedy}"
        return f"is {brief}, which has not the needed form{_meaning(model, location)} ({pattern})"
    return f"is {brief}; {item['msg'][0].lower()}{item['msg'][1:]}{_quoting(kind, given)}"


def _scheme_remedy(given: str, pattern: str) -> str:
    """What to write for a URI of no scheme or of the hub's pages; empty where the form is wrong."""
    if "hf" not in pattern:
        return "" if "://" in given else f"which names no scheme; write http://{given}"
    if page := _HUB_PAGE.fullmatch(given):
        return f"a page of the Hugging Face hub; write hf://{page[1]}"
    if (named := _SCHEME.fullmatch(given)) and (uri := _uri(*named.groups())) != given:
        return f"which names its scheme in another way; write {uri}"
    if "://" in given:
        return ""
    path = f"which names no scheme; for a path write file://{given}"
    repository = f", for a repository of the Hugging Face hub hf://{given}"
    return path + repository if _HUB_NAME.fullmatch(given) else path


def _uri(scheme: str, slashes: str, rest: str) -> str:
    """What a URI of one slash, of none or with capitals means."""
    is_absolute = scheme.lower() == "file" and slashes == "/"
    return f"{scheme.lower()}://{'/' if is_absolute else ''}{rest}"


def _near(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    known = [info.alias or name for name, info in _fields_at(model, location[:-1]).items()]
    close = difflib.get_close_matches(to_camel(str(location[-1])), known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    return f"remove it; known are {', '.join(sorted(known))}" if known else "remove it"


def _meaning(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    for info in _fields_at(model, location[:-1]).values():
        if info.alias == location[-1] and info.description:
            return ": " + " ".join(info.description.split()).rstrip(".")
    return ""


def _quoting(kind: str, given: object) -> str:
    if kind == "string_type" and isinstance(given, bool | int | float):
        return "; put it in quotes"
    if kind in ("int_type", "float_type", "bool_type") and isinstance(given, str):
        # Quotes are to blame only where what they hold would be a value.
        return "; write it without quotes" if not isinstance(_scalar(given), str) else ""
    return ""


def _scalar(text: str) -> object:
    """What YAML takes `text` for when it has no quotes."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def _fields_at(model: type[BaseModel], location: Iterable[int | str]) -> dict[str, FieldInfo]:
    """Fields of the object at `location`; none where it is no model."""
    current = model
    for part in location:
        if isinstance(part, int):
            continue
        by_alias = {info.alias or name: info for name, info in current.model_fields.items()}
        found = _model_in(by_alias[part].annotation) if part in by_alias else None
        if found is None:
            return {}
        current = found
    return dict(current.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
