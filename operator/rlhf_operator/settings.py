"""Settings of the operator, from the environment. Read once, at the start, by `__main__`."""

import socket
from typing import Annotated, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What an installation decides; none of it is a secret.

    Raises:
        pydantic.ValidationError: a variable is missing or out of bounds.
    """

    model_config = SettingsConfigDict(
        env_prefix="RLHF_OPERATOR_", frozen=True, use_attribute_docstrings=True
    )

    trainer_image: Annotated[str, Field(min_length=1)]
    """Image of jobs that name none."""
    trainer_image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
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
    resync_seconds: float = Field(300, ge=1)
    """After how long every job is looked at without a cause."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """What is logged."""
