"""RLHFJob: metadata, spec and status together."""

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, StringConstraints, ValidationError

from rlhf_api.contract import CelRule, Contract
from rlhf_api.errors import ConfigError
from rlhf_api.loading import describe_errors, find_nulls, read_yaml
from rlhf_api.names import API_VERSION, KIND, MAX_JOB_NAME_LENGTH
from rlhf_api.v1alpha1.spec import RLHFJobSpec
from rlhf_api.v1alpha1.status import RLHFJobStatus

_JOB_NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"

JobName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_JOB_NAME_LENGTH, pattern=_JOB_NAME),
]


class ObjectMeta(Contract):
    """The fields of metadata that this project reads; others are the API server's."""

    model_config = ConfigDict(extra="ignore")

    name: JobName
    """Name of the job: a DNS label of at most 40 characters; children's names grow from it."""
    namespace: Annotated[str, StringConstraints(max_length=63)] = ""
    """Namespace of the job."""
    uid: Annotated[str, StringConstraints(max_length=64)] = ""
    """Given by the API server, or made at the first local run."""
    generation: int = Field(1, ge=0)
    """Grows with every change of spec."""
    resource_version: str = ""
    """Changes with every write."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels; children inherit none."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations; children inherit none."""


class RLHFJob(Contract):
    """An RLHF run: supervised fine-tuning, reward model and PPO, each optional."""

    API_RULES: ClassVar[tuple[CelRule, ...]] = (
        CelRule(
            cel=f"self.metadata.name.size() <= {MAX_JOB_NAME_LENGTH}",
            message=f"metadata.name must have at most {MAX_JOB_NAME_LENGTH} characters, since the "
            "names of children grow from it",
        ),
        CelRule(
            cel=f"self.metadata.name.matches(r'{_JOB_NAME}')",
            message="metadata.name must be a DNS label that starts with a letter: a-z, 0-9 and -",
        ),
    )

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
        # First, since what follows walks the document and would not come back from a circle.
        try:
            text = json.dumps(document)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"{origin}: cannot be written as JSON: {error}") from error
        nulls = list(find_nulls(document.get("spec"), "spec"))
        if nulls:
            raise ConfigError(
                "\n".join(
                    f"{origin}: {path}: is empty; give it a value or remove it" for path in nulls
                )
            )
        try:
            return cls.parse_json(text)
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
                f"{path}: holds {len(documents)} documents (parts between ---); write exactly one "
                f"{KIND} in a file"
            )
        return cls.from_document(documents[0], str(path))
