"""The Debian packages that nodes and images need."""

import os
import shutil
import subprocess
import sys

from cluster.binaries import cache_folder, locked

INSTALL_SECONDS = 1800

PROGRAMS = {
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "conntrack": "conntrack",
    "busybox": "busybox-static",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}
"""Package by a program in it."""


class PackagesError(Exception):
    """Packages are missing, and only root can install them."""


def missing() -> list[str]:
    """Packages that are not installed."""
    return sorted({package for program, package in PROGRAMS.items() if not shutil.which(program)})


def reason_against() -> str | None:
    """Why no node can run here, in a sentence; None if it can."""
    if os.geteuid() == 0:
        return None
    line = f"; first: sudo apt-get install --no-install-recommends {' '.join(missing())}"
    return f"nodes need root; run the tests as root{line if missing() else ''}"


def require() -> None:
    """Install what is missing.

    Raises:
        PackagesError: not root; the message is the line to type.
    """
    if reason := reason_against():
        raise PackagesError(reason)
    if not missing():
        return
    with locked(cache_folder() / "packages.lock"):
        _install(missing())


def _install(wanted: list[str]) -> None:
    if not wanted:
        return
    sys.stderr.write(f"installing Debian packages: {' '.join(wanted)}\n")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *wanted]
    for command in (["apt-get", "update", "--quiet"], install):
        subprocess.run(
            command, check=True, env=environment, stdout=subprocess.DEVNULL, timeout=INSTALL_SECONDS
        )
