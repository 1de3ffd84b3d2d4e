"""`python -m rlhf_api` writes the files that are made from the models, or tells which are stale.

Called by `make generate` and `make verify`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf_api.generated import Outputs, write_or_check
from rlhf_api.loading import dump_yaml
from rlhf_api.names import GROUP, PLURAL
from rlhf_api.reference import spec_reference
from rlhf_api.schema import custom_resource_definition

_CRDS = Path(__file__).resolve().parent.parent
_HEADER = "# Made from the models in crds/rlhf_api by `make generate`; change those.\n"


def crd_text() -> str:
    """The text of `crds/rlhfjobs.yaml`."""
    # Innermost objects stand on one line: half of the file would be indentation.
    return _HEADER + dump_yaml(custom_resource_definition(), width=160, compact=True)


def chart_crd_text() -> str:
    """The same as a template of the Helm chart, which may leave it out or keep it."""
    name = f"{PLURAL}.{GROUP}"
    metadata = f"metadata: {{name: {name}}}\n"
    kept = (
        f"metadata:\n  name: {name}\n"
        "  {{- if .Values.crds.keep }}\n"
        "  annotations: {helm.sh/resource-policy: keep}\n"
        "  {{- end }}\n"
    )
    # Helm would read braces of the texts as its own.
    text = crd_text().replace("{{", '{{ "{{" }}')
    if text.count(metadata) != 1:
        raise ValueError(f"the CRD holds {metadata!r} {text.count(metadata)} times, not once")
    body = text.removeprefix(_HEADER).replace(metadata, kept)
    return f"{_HEADER}{{{{- if .Values.crds.enabled }}}}\n{body}{{{{- end }}}}\n"


OUTPUTS: Outputs = {
    "crd": (crd_text, _CRDS / f"{PLURAL}.yaml"),
    "chart-crd": (
        chart_crd_text,
        _CRDS.parent / "charts" / "rlhf-operator" / "templates" / "crd.yaml",
    ),
    "spec-reference": (spec_reference, _CRDS.parent / "docs" / "spec.md"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, 1 when `--check` finds a stale file."""
    return write_or_check("python -m rlhf_api", OUTPUTS, arguments)


if __name__ == "__main__":
    sys.exit(main())
