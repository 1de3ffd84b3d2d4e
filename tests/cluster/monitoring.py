"""Prometheus, Alertmanager and promtool, and prometheus-operator, which configures the first two.

From Debian, or built from Go modules. Nothing is installed: tests start what they need and end it.
"""

import shutil
from pathlib import Path

from cluster.binaries import binaries, module_files
from cluster.packages import unpacked

_OPERATOR = "prometheus-operator"


def promtool() -> Path:
    """Debian's, which checks rules, tests them, and judges a metrics page."""
    return _program("promtool", "prometheus")


def prometheus() -> Path:
    """Debian's server that scrapes and evaluates rules; it cannot find what is in a cluster."""
    return _program("prometheus", "prometheus")


def cluster_prometheus() -> Path:
    """The same as its module has it, with the discovery of Kubernetes."""
    return binaries("prometheus") / "prometheus"


def alertmanager() -> Path:
    """Debian's server that alerts are sent to."""
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
