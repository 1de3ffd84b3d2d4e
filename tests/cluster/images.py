"""The two images, built by buildah from a Debian that debootstrap makes; both need root.

Run as `python -m cluster.images`; prints each image's name and OCI archive.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from cluster import versions
from cluster.binaries import BUILD_SECONDS, cache_folder, locked
from cluster.node_files import SANDBOX_IMAGE

PROJECT = Path(__file__).parents[2]
TARGETS = ("operator", "trainer")
SOURCES = ("Dockerfile", ".dockerignore", "pyproject.toml", "constraints.txt")
PACKAGES = ("crds", "operator", "trainer")
PIP_SETTINGS = ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_CERT")
KEPT = 2
"""Archives of each image."""
MOUNTED = "mounted-"
"""How the names of containers start that are no build's."""
DEBOOTSTRAP = ("--variant=minbase", "--include=python3,python3-venv,ca-certificates")


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


@contextmanager
def mounted(name: str) -> Iterator[Path]:
    """The root file system of an image, for as long as the context lasts."""
    own = ["--pull-never", "--name", f"{MOUNTED}{uuid4().hex[:8]}"]
    container = _buildah("from", *own, name, capture=True).strip()
    try:
        yield Path(_buildah("mount", container, capture=True).strip())
    finally:
        _buildah("umount", container, capture=True)
        _buildah("rm", container, capture=True)


def pause_image() -> tuple[str, Path]:
    """Name and OCI archive of what holds a pod's network; a shell is in it for tests."""
    archive = cache_folder() / "images" / "pause-1.tar"
    if not archive.is_file():
        with locked(cache_folder() / "images" / "images.lock"):
            container = _buildah("from", "scratch", capture=True).strip()
            _buildah("add", "--quiet", container, str(shutil.which("busybox")), "/bin/busybox")
            _buildah("config", "--entrypoint", '["/bin/busybox", "sleep", "inf"]', container)
            _buildah("commit", "--quiet", "--rm", container, SANDBOX_IMAGE)
            new = archive.with_suffix(".new")
            new.unlink(missing_ok=True)
            _buildah("push", SANDBOX_IMAGE, f"oci-archive:{new}:{SANDBOX_IMAGE}")
            new.rename(archive)
    return SANDBOX_IMAGE, archive


def _build(target: str, name: str, archive: Path) -> None:
    _remove_leftovers()
    _make_base()
    arguments = ["--build-arg", f"BASE_IMAGE={_base()}", "--target", target, "--tag", name]
    # Where a package proxy has a CA of its own, pip in the image must know it too.
    volumes = [Path("/etc/ssl/certs"), *_wheel_folders()]
    for folder in filter(Path.is_dir, volumes):
        arguments += ["--volume", f"{folder}:{folder}:ro"]
    for variable in PIP_SETTINGS:
        if value := os.environ.get(variable):
            arguments += ["--build-arg", f"{variable}={value}"]
    flags = ["--isolation", "chroot", "--network", "host", "--pull-never", "--layers"]
    _buildah("bud", *flags, *arguments, str(PROJECT))
    new = archive.with_suffix(".new")
    new.unlink(missing_ok=True)
    _buildah("push", name, f"oci-archive:{new}:{name}")
    new.rename(archive)
    _forget_old(target)


def _remove_leftovers() -> None:
    """Remove the containers of builds that were killed, which hold on to images and layers."""
    names = _buildah("containers", "--format", "{{.ContainerName}}", capture=True).split()
    if left := [name for name in names if not name.startswith(MOUNTED)]:
        _buildah("rm", *left, capture=True)


def _forget_old(target: str) -> None:
    """Keep the newest images only; the layers that they share stay."""
    folder = cache_folder() / "images"
    archives = sorted(folder.glob(f"{target}-*.tar"), key=lambda path: path.stat().st_mtime)
    for old in archives[:-KEPT]:
        old.unlink()
        tag = old.stem.removeprefix(f"{target}-")
        _buildah("rmi", f"localhost/rlhf-{target}:{tag}", check=False)


def _wheel_folders() -> list[Path]:
    return [Path(folder) for folder in os.environ.get("PIP_FIND_LINKS", "").split()]


def _base() -> str:
    return f"localhost/rlhf-base:{versions.DEBIAN}"


def _make_base() -> None:
    """A Debian with Python and nothing else."""
    if _base() in _buildah("images", "--format", "{{.Name}}:{{.Tag}}", capture=True).split():
        return
    root = cache_folder() / "images" / "base"
    shutil.rmtree(root, ignore_errors=True)
    command = ["debootstrap", *DEBOOTSTRAP, versions.DEBIAN, str(root)]
    subprocess.run(command, check=True, stdout=sys.stderr, timeout=BUILD_SECONDS)
    for leftover in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / leftover)
    container = _buildah("from", "scratch", capture=True).strip()
    _buildah("add", "--quiet", container, str(root), "/")
    _buildah("config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", container)
    _buildah("commit", "--quiet", "--rm", container, _base())
    shutil.rmtree(root)


def _buildah(*arguments: str, capture: bool = False, check: bool = True) -> str:
    """buildah with a storage of its own, so that it meets nobody else's images."""
    storage = cache_folder() / "images" / "storage"
    command = ["buildah", "--root", str(storage), "--runroot", f"{storage}-run"]
    done = subprocess.run(
        [*command, "--storage-driver", "overlay", *arguments],
        check=check,
        text=True,
        stdout=subprocess.PIPE if capture else sys.stderr,
        timeout=BUILD_SECONDS,
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
