"""Where a URI of the spec lies on this machine.

Called for datasets, models and tokenizers. Nothing is opened or downloaded here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhf_api.errors import ConfigError, InputError


@dataclass(frozen=True)
class Hub:
    """A repository of the Hugging Face hub."""

    name: str
    """`org/name`, or `name` alone for the oldest ones."""
    revision: str | None = None
    """Branch, tag or commit; the default branch when None."""

    def __str__(self) -> str:
        return f"hf://{self.name}" + (f"@{self.revision}" if self.revision else "")


def locate(uri: str, claims: Mapping[str, str], field: str) -> Path | Hub:
    """The file or folder that `uri` means, or the hub's repository.

    Args:
        uri: `hf://org/name[@revision]`, `file://path` or `pvc://claim/path`. A relative path is
            taken from the working directory.
        claims: where each claim is mounted, as in `StageConfig.claims`.
        field: path of the spec's field, for messages, such as `spec.stages.sft.dataset.uri`.

    Raises:
        InputError: a claim that is not mounted, or a path that leaves its claim.
        ConfigError: another scheme.
    """
    scheme, _, rest = uri.partition("://")
    if scheme == "hf":
        name, _, revision = rest.strip("/").partition("@")
        return Hub(name, revision or None)
    if scheme == "file":
        return Path(rest).absolute()
    if scheme == "pvc":
        return _in_claim(uri, rest, claims, field)
    raise ConfigError(
        f"{field}: {uri}: {scheme}:// names no place to read from; use hf://, file:// or pvc://"
    )


def _in_claim(uri: str, rest: str, claims: Mapping[str, str], field: str) -> Path:
    claim, _, path = rest.partition("/")
    if claim not in claims:
        mounted = ", ".join(sorted(claims)) or "none"
        raise InputError(
            f"{field}: {uri}: claim {claim} is not mounted (mounted: {mounted}); run locally with "
            f"--mount {claim}=path, or correct the claim's name"
        )
    root = Path(claims[claim]).absolute()
    if ".." in Path(path).parts:
        raise InputError(f"{field}: {uri}: the path leaves claim {claim}; write it without ..")
    return root / path.lstrip("/")
