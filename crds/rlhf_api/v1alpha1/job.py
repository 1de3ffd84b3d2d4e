"""RLHFJob: metadata, spec and status together."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError

from rlhf_api.contract import Contract
from rlhf_api.errors import ConfigError
from rlhf_api.loading import describe_errors, read_yaml
from rlhf_api.names import API_VERSION, KIND, MAX_JOB_NAME_LENGTH
from rlhf_api.v1alpha1.spec import RLHFJobSpec
from rlhf_api.v1alpha1.status import RLHFJobStatus

JobName = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=MAX_JOB_NAME_LENGTH,
        pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$",
    ),
]


class ObjectMeta(Contract):
    """The fields of metadata that this project reads; others are the API server's."""

    model_config = {"extra": "ignore"}

    name: JobName
    """Name of the job: a DNS label of at most 40 characters, since children's names grow from it."""
    namespace: Annotated[str, StringConstraints(max_length=63)] = ""
    """Namespace of the job."""
    uid: Annotated[str, StringConstraints(max_length=64)] = ""
    """Given by the API server, or made at the first local run."""
    generation: int = Field(1, ge=0)
    """Grows with every change of spec."""
    resource_version: str = ""
    """Changes with every write."""
    labels: dict[str, str] = {}
    """Labels; children inherit none."""
    annotations: dict[str, str] = {}
    """Annotations; children inherit none."""


class RLHFJob(Contract):
    """An RLHF run: supervised fine-tuning, reward model and PPO, each optional."""

    api_version: Literal["rlhf.dev/v1alpha1"]
    """rlhf.dev/v1alpha1."""
    kind: Literal["RLHFJob"]
    """RLHFJob."""
    metadata: ObjectMeta
    """Name and namespace."""
    spec: RLHFJobSpec
    """What to run."""
    status: RLHFJobStatus = RLHFJobStatus()
    """What is known of the run; written by the operator or by rlhf run alone."""

    @classmethod
    def from_document(cls, document: Any, origin: str = KIND) -> "RLHFJob":
        """Check a parsed manifest or API object.

        Args:
            document: plain JSON values.
            origin: what to call it in messages, for example the file's path.

        Raises:
            ConfigError: one line for each mistake, with field, value and remedy.
        """
        if not isinstance(document, dict):
            raise ConfigError(f"{origin}: not a mapping; write an object of kind {KIND}")
        named = (document.get("apiVersion"), document.get("kind"))
        if named != (API_VERSION, KIND):
            raise ConfigError(
                f"{origin}: apiVersion and kind are {named[0]!r} and {named[1]!r}; "
                f"write {API_VERSION} and {KIND}"
            )
        try:
            return cls.model_validate_json(json.dumps(document), strict=True)
        except ValidationError as error:
            raise ConfigError("\n".join(describe_errors(error, cls, origin))) from error

    @classmethod
    def from_file(cls, path: Path) -> "RLHFJob":
        """Read one manifest.

        Raises:
            ConfigError: not readable, not YAML, not exactly one RLHFJob, or against the schema.
        """
        documents = read_yaml(path)
        if len(documents) != 1:
            raise ConfigError(
                f"{path}: holds {len(documents)} documents; write exactly one {KIND} in a file"
            )
        return cls.from_document(documents[0], str(path))


