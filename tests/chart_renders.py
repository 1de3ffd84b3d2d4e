"""What Helm makes of the chart, and the renders of the main value sets that are kept.

`PYTHONPATH=tests .venv/bin/python -m chart_renders` writes those anew.
"""

import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from cluster.tools import helm
from releases import CHART, set_options

from rlhf_api.loading import dump_yaml, parse_yaml, read_yaml

GOLDEN = Path(__file__).parent / "charts" / "golden"
SETS = sorted(path.stem for path in (GOLDEN / "values").glob("*.yaml"))
REQUIRED = ("image.repository=registry.test/operator", "trainerImage=registry.test/trainer:1")
MONITORING = "--api-versions=monitoring.coreos.com/v1"
LONGEST_TEXT = 4000
"""Of what a golden file holds; longer ones are files of the chart as they are."""

Raw = dict[str, Any]


def run_helm(major: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Helm of that major version, whatever its exit status."""
    return subprocess.run(
        [str(helm(major)), *arguments], capture_output=True, text=True, check=False, timeout=300
    )


def template(
    major: int, *arguments: str, release: str = "demo", namespace: str = "ops"
) -> list[Raw]:
    """The objects that a release consists of."""
    place = ["--namespace", namespace, MONITORING]
    done = run_helm(major, "template", release, str(CHART), *place, *arguments)
    assert done.returncode == 0, done.stderr
    # The CRD takes the loader in Python more than a second.
    return [each for each in yaml.load_all(done.stdout, yaml.CSafeLoader) if each]


def rendered(major: int, *values: str, given: Iterable[str] = REQUIRED) -> list[Raw]:
    """The same with values of the command line."""
    return template(major, *set_options(*given, *values))


def of_kind(objects: list[Raw], kind: str) -> list[Raw]:
    """Those of a kind."""
    return [each for each in objects if each["kind"] == kind]


def values_of(name: str) -> Path:
    """The values of a set."""
    return GOLDEN / "values" / f"{name}.yaml"


def golden(major: int, name: str) -> list[Raw]:
    """The objects of a set but for the CRD, without what is longer than a person reads.

    What a ConfigMap holds as YAML is taken apart, so that a review sees its fields.
    """
    objects = template(major, "--values", str(values_of(name)))
    kept = [each for each in objects if each["kind"] != "CustomResourceDefinition"]
    return sorted((_shortened(_taken_apart(each)) for each in kept), key=identity_of)


def identity_of(found: Raw) -> tuple[str, str, str]:
    """Kind, namespace and name."""
    metadata = found["metadata"]
    return found["kind"], metadata.get("namespace", ""), metadata["name"]


def kept_golden(name: str) -> list[Raw]:
    """The golden render of a set."""
    return read_yaml(GOLDEN / f"{name}.yaml")


def leaves(values: Raw, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its path, for instance `image.tag`."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _taken_apart(found: Raw) -> Raw:
    if found["kind"] != "ConfigMap":
        return found
    data = {
        name: parse_yaml(text, name)[0] if name.endswith(".yaml") else text
        for name, text in found["data"].items()
    }
    return found | {"data": data}


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shortened(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_shortened(each) for each in value]
    too_long = isinstance(value, str) and len(value) > LONGEST_TEXT
    return "(left out: a file of the chart)" if too_long else value


def main() -> None:
    """Write the golden renders of all sets."""
    for name in SETS:
        texts = [dump_yaml(each, compact=True) for each in golden(4, name)]
        (GOLDEN / f"{name}.yaml").write_text("---\n".join(texts))


if __name__ == "__main__":
    main()
