"""Virtual environments of peers, made once a user and used from there.

Called by `ppo_step.py` and `supervised.py`. A peer's requirements never meet the project's own.
"""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from filelock import FileLock

TRL = "trl==1.8.0"
SHARED = ("torch", "transformers", "tokenizers", "numpy")
"""Packages that a peer has in the version of this environment: they would differ in speed."""

INSTALL_SECONDS = 3600


class PeerError(RuntimeError):
    """A peer could not be installed, or its run failed."""


def requirements(peer: str = TRL) -> tuple[str, ...]:
    """What the environment of `peer` holds."""
    # Without the local part, such as +cpu, which an index may not know.
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in SHARED}
    return (peer, *(f"{name}=={version}" for name, version in versions.items()))


def environment_folder(wanted: Sequence[str], environment: Mapping[str, str] = os.environ) -> Path:
    """Where the environment with these requirements is, or will be."""
    home = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    digest = hashlib.sha256("\n".join((sys.version, *wanted)).encode()).hexdigest()
    return Path(home) / "rlhf-operator" / "peers" / f"{wanted[0]}-{digest[:16]}"


def interpreter(wanted: Sequence[str]) -> Path:
    """The Python that has them, installed by pip if it is not there yet.

    Raises:
        PeerError: pip failed, with the end of what it said.
    """
    folder = environment_folder(wanted)
    # Moved nowhere when it is whole: the scripts of an environment hold its path.
    whole = folder / "installed"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not whole.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            sys.stderr.write(f"installing {', '.join(wanted)} in {folder}\n")
            _run([sys.executable, "-m", "venv", str(folder)])
            _run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *wanted])
            whole.touch()
    return folder / "bin" / "python"


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=INSTALL_SECONDS
    )
    if done.returncode:
        raise PeerError(
            f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-3000:]}; see that "
            "pip reaches a package index that has them"
        )
