"""Settings of the operator, from a file and the environment. Read once, at the start."""

import json
import os
import re
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from rlhf_api.errors import ConfigError
from rlhf_api.loading import read_yaml

PREFIX = "RLHF_OPERATOR_"
"""Begins the name of every variable."""
CONFIG = f"{PREFIX}CONFIG"
"""Variable that names the settings file; without it there is none."""

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
PullPolicy = Literal["IfNotPresent", "Always", "Never"]

_OF_A_SERVICE = re.compile(
    r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)=.*"
    r"|\w+_PORT=(TCP|UDP|SCTP)://.*",
    re.DOTALL,
)
"""The variables by which Kubernetes tells pods of a Service."""

_LETTERS = "(a-z, 0-9 and -, at most 63)"
Namespace = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]


def _parsed(value: Any) -> Any:
    """A variable's JSON; what is none is left for the model to refuse."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


class _Environment(EnvSettingsSource):
    """The variables, but for what Kubernetes tells of a Service by the name of a setting."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """As the base has it: value, key and whether the value is a document."""
        value, key, is_complex = super().get_field_value(field, field_name)
        variable = f"{PREFIX}{field_name}={value}".upper()
        return (None if _OF_A_SERVICE.fullmatch(variable) else value), key, is_complex


class Settings(BaseSettings):
    """What an installation decides; none of it is a secret.

    A variable wins over what is given by name.

    Raises:
        pydantic.ValidationError: a value is missing or out of bounds, or a list is no JSON.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    trainer_image: Annotated[str, Field(min_length=1)]
    """Image of jobs that name none."""
    trainer_image_pull_policy: PullPolicy = "IfNotPresent"
    """When a node pulls the trainer image."""
    namespaces: Annotated[tuple[Namespace, ...], NoDecode, BeforeValidator(_parsed)] = ()
    """Namespaces that are watched, as a JSON list; all when empty."""
    namespace: Namespace = "default"
    """Namespace of the operator itself, where its Lease is."""
    identity: str = Field(default_factory=socket.gethostname)
    """Name of this replica in the Lease."""
    lease_name: str = "rlhf-operator"
    """Name of the Lease, the same for all replicas."""
    deployment: str = ""
    """Name of the operator's own Deployment, which the Lease goes with; none when empty."""
    port: int = Field(8080, ge=0, le=65535)
    """Port of /metrics, /healthz and /readyz; 0 chooses a free one."""
    workers: int = Field(32, ge=1, le=256)
    """Jobs that are looked at at the same time."""
    api_requests_per_second: float = Field(1000, gt=0)
    """Most requests of the workers to the API server, half as many at once; 50 for progress and why
    something waits and 50 for Events come on top, and so do watches and the Lease."""
    job_metrics_seconds: float = Field(900, ge=0)
    """How long the metrics of a job stay after its end."""
    resync_seconds: float = Field(300, ge=1)
    """After how long every job is looked at without a cause."""
    log_level: LogLevel = "INFO"
    """What is logged."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment first."""
        return _Environment(settings_cls), init_settings


def read_settings() -> Settings:
    """The settings of this process: the file that `CONFIG` names, and the environment over it.

    The file is YAML; its keys are the fields in camelCase.

    Raises:
        ConfigError: the file cannot be read, a key or a variable is unknown, or a value is missing
            or wrong; a line for each mistake.
    """
    path = os.environ.get(CONFIG, "")
    document = _read(Path(path)) if path else {}
    fields = {to_camel(name): name for name in Settings.model_fields}
    given = {fields[key]: value for key, value in document.items() if key in fields}
    mistakes = [*_unknown_keys(document, fields, path), *_unknown_variables()]
    try:
        settings = Settings(**given)
    except ValidationError as error:
        mistakes += _mistakes(error, path, given)
        raise ConfigError("\n".join(mistakes)) from error
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return settings


def _read(path: Path) -> dict[str, Any]:
    documents = read_yaml(path) or [{}]
    if len(documents) > 1 or not isinstance(documents[0], dict):
        raise ConfigError(f"{path}: is no single mapping; write one setting on each line")
    return documents[0]


def _unknown_keys(document: dict[str, Any], known: Iterable[str], path: str) -> Iterator[str]:
    if unknown := [str(key) for key in document if key not in known]:
        yield f"{path}: {', '.join(unknown)}: unknown; remove it, known are {', '.join(known)}"


def _unknown_variables() -> Iterator[str]:
    known = [CONFIG, *(f"{PREFIX}{name}".upper() for name in Settings.model_fields)]
    for name, value in os.environ.items():
        ours = name.upper().startswith(PREFIX) and name.upper() not in known
        if ours and not _OF_A_SERVICE.fullmatch(f"{name}={value}".upper()):
            yield f"{name}: unknown; unset it, known are {', '.join(known)}"


def _mistakes(error: ValidationError, path: str, given: dict[str, Any]) -> Iterator[str]:
    """A line for each mistake: where it stands, what it is, and the remedy."""
    variables = {name.upper() for name in os.environ}
    schemas = Settings.model_json_schema()["properties"]
    for item in error.errors(include_url=False):
        field, *inside = item["loc"]
        variable, key = f"{PREFIX}{field}".upper(), to_camel(str(field))
        if item["type"] == "missing":
            other = f"{key} in {path}" if path else f"{key} in a file that {CONFIG} names"
            yield f"{variable}: is missing; set this variable, or {other}"
            continue
        stands = f"{path}: {key}" if field in given and variable not in variables else variable
        verb = "holds" if inside else "is"
        yield f"{stands}: {verb} {item['input']!r}; write {_wanted(schemas[str(field)])}"


def _wanted(schema: dict[str, Any]) -> str:
    """What a setting takes, in words."""
    kind, least, most = schema["type"], schema.get("minimum"), schema.get("maximum")
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    if kind == "integer":
        return f"an integer from {least} to {most}"
    if kind == "number":
        above = f"above {schema.get('exclusiveMinimum')}"
        return f"a number {above if least is None else f'of at least {least}'}"
    if kind == "array":
        return f'a JSON list of namespaces {_LETTERS}, for example ["team-a", "team-b"]'
    if "pattern" in schema:
        return f"the name of a namespace {_LETTERS}"
    return "a text that is not empty" if "minLength" in schema else "a text"
