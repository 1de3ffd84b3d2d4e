"""The two images, built by buildah from a Debian that debootstrap makes; both need root.

Run as `python -m cluster.images`; prints each image's name and OCI archive.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cluster import versions
from cluster.binaries import cache_folder, locked

PROJECT = Path(__file__).parents[2]
BASE = "localhost/rlhf-base"
TARGETS = ("operator", "trainer")
SOURCES = ("Dockerfile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
PACKAGES = ("crds", "operator", "trainer")


def image(target: str) -> tuple[str, Path]:
    """Name and OCI archive of an image, built if our sources have changed since."""
    tag = _digest()
    name = f"localhost/rlhf-{target}:{tag}"
    archive = cache_folder() / "images" / f"{target}-{tag}.tar"
    if not archive.is_file():
        with locked(cache_folder() / "images" / "images.lock"):
            if not archive.is_file():
                _build(target, name, archive)
    return name, archive


def _build(target: str, name: str, archive: Path) -> None:
    _make_base()
    arguments = ["--build-arg", f"BASE={BASE}:{versions.DEBIAN}", "--target", target, "--tag", name]
    for folder in filter(Path.is_dir, map(Path, os.environ.get("PIP_FIND_LINKS", "").split())):
        arguments += [
            "--build-arg",
            f"PIP_FIND_LINKS={folder}",
            "--volume",
            f"{folder}:{folder}:ro",
        ]
    # Where a package proxy has a CA of its own, pip in the image must know it too.
    arguments += ["--volume", "/etc/ssl/certs:/etc/ssl/certs:ro"]
    for variable in ("PIP_INDEX_URL", "PIP_CERT", "HTTPS_PROXY"):
        if value := os.environ.get(variable):
            arguments += ["--env", f"{variable}={value}"]
    flags = ["--isolation", "chroot", "--network", "host", "--pull-never", "--layers"]
    _buildah("bud", *flags, *arguments, str(PROJECT))
    new = archive.with_suffix(".new")
    new.unlink(missing_ok=True)
    _buildah("push", name, f"oci-archive:{new}:{name}")
    for old in archive.parent.glob(f"{target}-*.tar"):
        old.unlink()
    new.rename(archive)


def _make_base() -> None:
    """A Debian with Python and nothing else."""
    name = f"{BASE}:{versions.DEBIAN}"
    if name in _buildah("images", "--format", "{{.Name}}:{{.Tag}}", capture=True).split():
        return
    root = cache_folder() / "images" / "base"
    shutil.rmtree(root, ignore_errors=True)
    include = "--include=python3,python3-venv,ca-certificates"
    subprocess.run(
        ["debootstrap", "--variant=minbase", include, versions.DEBIAN, str(root)],
        check=True,
        stdout=sys.stderr,
    )
    container = _buildah("from", "scratch", capture=True).strip()
    _buildah("add", "--quiet", container, str(root), "/")
    _buildah("config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", container)
    _buildah("commit", "--quiet", "--rm", container, name)
    shutil.rmtree(root)


def _buildah(*arguments: str, capture: bool = False) -> str:
    """buildah with a storage of its own, so that it meets nobody else's images."""
    storage = cache_folder() / "images" / "storage"
    command = ["buildah", "--root", str(storage), "--runroot", f"{storage}-run"]
    done = subprocess.run(
        [*command, "--storage-driver", "overlay", *arguments],
        check=True,
        text=True,
        stdout=subprocess.PIPE if capture else sys.stderr,
    )
    return done.stdout or ""


def _digest() -> str:
    found = hashlib.sha256(os.environ.get("PIP_FIND_LINKS", "").encode())
    for path in _inputs():
        found.update(str(path.relative_to(PROJECT)).encode() + path.read_bytes())
    return found.hexdigest()[:16]


def _inputs() -> Iterator[Path]:
    yield from (PROJECT / name for name in SOURCES)
    for package in PACKAGES:
        files = (path for path in (PROJECT / package).rglob("*") if path.is_file())
        yield from sorted(path for path in files if path.suffix in (".py", ".yaml"))


if __name__ == "__main__":
    for each in TARGETS:
        print(*image(each))  # noqa: T201
