"""The files under examples/: manifests for kubectl and `rlhf`, and values for Helm."""

from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
VALUES = sorted(EXAMPLES.rglob("values-*.yaml"))
"""By their name: a manifest whose kind was forgotten must not be taken for values."""
_ALL = {path for form in ("*.yaml", "*.yml") for path in EXAMPLES.rglob(form)}
MANIFESTS = sorted(_ALL - set(VALUES))
