"""The programs of Prometheus, from Debian, and prometheus-operator, built from its Go module.

Nothing is installed: the tests start what they need and end it.
"""

import shutil
from pathlib import Path

from cluster.binaries import binaries, module_files
from cluster.packages import unpacked

_OPERATOR = "prometheus-operator"


def promtool() -> Path:
    """Checks rules, tests them, and reads what a metrics page says."""
    return _program("promtool", "prometheus")


def prometheus() -> Path:
    """The server that scrapes and evaluates rules."""
    return _program("prometheus", "prometheus")


def alertmanager() -> Path:
    """The server that alerts are sent to."""
    return _program("prometheus-alertmanager", "prometheus-alertmanager")


def prometheus_operator() -> Path:
    """Turns monitors and rules into the configuration of a Prometheus."""
    return binaries(_OPERATOR) / _OPERATOR


def monitoring_crds() -> list[Path]:
    """The CRDs of prometheus-operator, too large for client-side apply."""
    module = "github.com/prometheus-operator/prometheus-operator"
    return module_files(_OPERATOR, module, "example/prometheus-operator-crd/*.yaml")


def _program(name: str, package: str) -> Path:
    """Debian's; without apt-get the one on PATH."""
    if shutil.which("apt-get") is None and (found := shutil.which(name)):
        return Path(found)
    return unpacked(package) / "usr" / "bin" / name
