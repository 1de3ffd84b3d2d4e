"""Settings of the operator, from a file and the environment. Read once, at the start."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from rlhf_api.errors import ConfigError
from rlhf_api.loading import read_yaml

PREFIX = "RLHF_OPERATOR_"
"""Begins the name of every variable."""
CONFIG = f"{PREFIX}CONFIG"
"""Variable that names the settings file; without it there is none."""

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
PullPolicy = Literal["IfNotPresent", "Always", "Never"]
Namespace = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]


class Settings(BaseSettings):
    """What an installation decides; none of it is a secret.

    A variable wins over what is given by name.

    Raises:
        pydantic.ValidationError: a value is missing or out of bounds.
        pydantic_settings.SettingsError: a variable that holds a list is no JSON.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    trainer_image: Annotated[str, Field(min_length=1)]
    """Image of jobs that name none."""
    trainer_image_pull_policy: PullPolicy = "IfNotPresent"
    """When a node pulls the trainer image."""
    namespaces: tuple[str, ...] = ()
    """Namespaces that are watched, as a JSON list; all when empty."""
    namespace: str = "default"
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
    """Most requests of the workers to the API server, half as many at once; 50 for Events, progress
    and why something waits come on top, and so do watches and the Lease."""
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
        return env_settings, init_settings


def read_settings() -> Settings:
    """The settings of this process: the file that `CONFIG` names, and the environment over it.

    The file is YAML; its keys are the fields in camelCase.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is missing or wrong; a
            line for each mistake.
    """
    path = os.environ.get(CONFIG, "")
    given = _read(Path(path)) if path else {}
    try:
        return Settings(**given)
    except SettingsError as error:
        raise ConfigError(f'{error}; write it as JSON, for example ["team-a"]') from error
    except ValidationError as error:
        raise ConfigError("\n".join(_mistakes(error, path, given))) from error


def _read(path: Path) -> dict[str, Any]:
    """What the file gives, by the names of fields."""
    documents = read_yaml(path) or [{}]
    if len(documents) > 1 or not isinstance(documents[0], dict):
        raise ConfigError(f"{path}: is no single mapping; write one setting on each line")
    fields = {to_camel(name): name for name in Settings.model_fields}
    unknown = [str(key) for key in documents[0] if key not in fields]
    if unknown:
        raise ConfigError(
            f"{path}: {', '.join(unknown)}: unknown; remove it, known are {', '.join(fields)}"
        )
    return {fields[key]: value for key, value in documents[0].items()}


def _mistakes(error: ValidationError, path: str, given: dict[str, Any]) -> Iterator[str]:
    """A line for each mistake: where it stands, what it is, and the remedy."""
    variables = {name.upper() for name in os.environ}
    for item in error.errors(include_url=False):
        field = str(item["loc"][0])
        variable, key = f"{PREFIX}{field}".upper(), to_camel(field)
        if item["type"] == "missing":
            other = f"{key} in {path}" if path else f"{key} in a file that {CONFIG} names"
            yield f"{variable}: is missing; set this variable, or {other}"
            continue
        stands = f"{path}: {key}" if field in given and variable not in variables else variable
        yield f"{stands}: is {item['input']!r}; {item['msg'][0].lower()}{item['msg'][1:]}"
