"""The Debian packages that nodes and images need, and those that are only unpacked."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

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


def unpacked(package: str) -> Path:
    """Folder with the files of a package that is not installed: no daemon starts, no root needed.

    Raises:
        PackagesError: this system has no apt-get.
        subprocess.CalledProcessError: the package is not to be had; apt-get has said why.
    """
    folder = cache_folder() / "debian" / package
    if folder.is_dir():
        return folder
    if shutil.which("apt-get") is None:
        raise PackagesError(f"no apt-get to fetch Debian's {package}: put its programs on PATH")
    with locked(folder.with_name(f"{package}.lock")):
        if not folder.is_dir():
            _unpack(package, folder)
    return folder


def _unpack(package: str, folder: Path) -> None:
    sys.stderr.write(f"unpacking Debian package: {package}\n")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{package}-") as scratch:
        try:
            _apt_get("download", package, place=scratch)
        except subprocess.CalledProcessError:
            # The system's lists are missing or old, and only root may renew those.
            for place in ("lists/partial", "cache/archives/partial"):
                Path(scratch, place).mkdir(parents=True)
            own = ("-o", f"Dir::State::Lists={scratch}/lists", "-o", f"Dir::Cache={scratch}/cache")
            _apt_get("update", *own, place=scratch)
            _apt_get("download", *own, package, place=scratch)
        (archive,) = Path(scratch).glob("*.deb")
        extract = ["dpkg-deb", "--extract", str(archive), f"{scratch}/files"]
        subprocess.run(extract, check=True, timeout=INSTALL_SECONDS)
        os.rename(f"{scratch}/files", folder)


def _apt_get(*arguments: str, place: str) -> None:
    """Run apt-get in a folder; as root without a user of its own, who could not write there."""
    command = ["apt-get", "--quiet", "-o", "APT::Sandbox::User=root", *arguments]
    subprocess.run(
        command, check=True, cwd=place, stdout=subprocess.DEVNULL, timeout=INSTALL_SECONDS
    )
