"""From the values' schema to the chart's README: how to install it, and every value."""

import json
from collections.abc import Iterator
from typing import Any

from rlhf_chart.values_schema import values_schema
from rlhf_chart.values_sentences import Schema

_HEAD = """\
# rlhf-operator

Runs RLHF (supervised fine-tuning, reward model, PPO) as `RLHFJob` resources on Kubernetes 1.31 or
newer, by Helm 3 or 4. This page is made from `charts/rlhf_chart` by `make generate`.

```console
$ helm install rlhf-operator charts/rlhf-operator --namespace rlhf-system --create-namespace \\
    -f examples/values-monitoring.yaml
$ helm test rlhf-operator --namespace rlhf-system
```

[`docs/install.md`](../../docs/install.md) shows how to build the two images, what the operator may
do, how to upgrade and how to uninstall.

Monitors and the PrometheusRule need the CRDs of prometheus-operator. `helm template` knows no
cluster, so it has to be told:

```console
$ helm template rlhf-operator charts/rlhf-operator --namespace rlhf-system --skip-tests \\
    -f examples/values-monitoring.yaml --api-versions monitoring.coreos.com/v1
```

Always on: the operator elects a leader by a Lease, a single replica too, and has a Service,
`<release>-rlhf-operator-metrics`, whose `/metrics` the ServiceMonitor reads. The label `method` of
`rlhf_operator_api_requests_total` is the HTTP method, as GET or PATCH, not the verb of Kubernetes.

## Values

A key that is not in the table is refused, with its name, and so is a value of another type, with
what to write: a text that looks like a number or like `on` needs quotes in a file and
`--set-string` on the command line.

Each of `prometheusRule.alerts` has the fields `enabled`, `severity` (the label by which
Alertmanager routes it), `for` (a duration of Prometheus, such as `90s` or `1h30m`), `threshold` and
`runbookUrl` (empty: its heading at `prometheusRule.runbookBaseUrl`). The threshold of
`ProgressStalled`, `PendingTooLong`, `CheckpointStale` and `OperatorLagging` is in seconds, that of
`RestartStorm` in restarts within an hour, that of `NonFinite` in values; the others are in the unit
of their rule of [`docs/guardrails.md`](../../docs/guardrails.md). `RLHFJobFailed` and
`OperatorDown` have none.
"""


def readme_text() -> str:
    """The whole page as Markdown."""
    lines = [_HEAD, "| value | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in values_schema()["properties"].items():
        lines += _rows(name, field)
    return "\n".join(lines) + "\n"


def _rows(path: str, field: Schema) -> Iterator[str]:
    default: Any = field.get("default")
    # Of an object of Kubernetes only some are named, and none has a default of its own.
    fields = field.get("properties", {}) if "required" in field else {}
    if "default" not in field:
        for name, inner in fields.items():
            yield from _rows(f"{path}.{name}", inner)
        return
    text = field.get("description", "").replace("|", "\\|")
    yield f"| `{path}` | {_type(field)} | {'' if fields else _code(default)} | {text} |"
    # One row for each entry of a map whose names are given.
    for name in fields:
        yield f"| `{path}.{name}` | object | {_code(default[name])} | |"


def _type(field: Schema) -> str:
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    kind = field["type"]
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        return f"list of {field['items']['type']}s"
    if kind == "object" and isinstance(field.get("additionalProperties"), dict):
        return f"map of {field['additionalProperties']['type']}s"
    return f"{kind}{_bounds(field)}"


def _bounds(field: Schema) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "maximum": "<="}
    found = [f"{sign} {field[key]}" for key, sign in signs.items() if key in field]
    return f", {', '.join(found)}" if found else ""


def _code(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"
