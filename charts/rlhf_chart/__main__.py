"""`python -m rlhf_chart` writes what is made from the code, or tells which files are stale.

Called by `make generate` and `make verify`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf_api.generated import Outputs, write_or_check
from rlhf_chart.alerts import alerts_text
from rlhf_chart.chart_readme import readme_text
from rlhf_chart.dashboard import dashboard_json
from rlhf_chart.metrics_reference import metrics_reference
from rlhf_chart.values_file import values_text
from rlhf_chart.values_schema import schema_text

_ROOT = Path(__file__).resolve().parents[2]
_CHART = _ROOT / "charts" / "rlhf-operator"

OUTPUTS: Outputs = {
    "values": (values_text, _CHART / "values.yaml"),
    "values-schema": (schema_text, _CHART / "values.schema.json"),
    "chart-readme": (readme_text, _CHART / "README.md"),
    "dashboard": (dashboard_json, _CHART / "files" / "dashboard.json"),
    "metrics-reference": (metrics_reference, _ROOT / "docs" / "metrics.md"),
    "alerts": (alerts_text, _CHART / "files" / "alerts.yaml"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, 1 when `--check` finds a stale file."""
    return write_or_check("python -m rlhf_chart", OUTPUTS, arguments)


if __name__ == "__main__":
    sys.exit(main())
