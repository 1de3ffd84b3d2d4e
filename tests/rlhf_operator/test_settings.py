"""Settings: the file, the environment over it, and what is told about mistakes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_api.errors import ConfigError
from rlhf_operator.settings import CONFIG, PREFIX, read_settings

Write = Callable[[str], Path]


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the settings file."""

    def _write(text: str) -> Path:
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        monkeypatch.setenv(CONFIG, str(path))
        return path

    return _write


def test_the_file_is_read_and_the_environment_wins(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("trainerImage: file:1\nworkers: 4\nnamespaces: [a, b]\nresyncSeconds: 6e2\n")
    monkeypatch.setenv(f"{PREFIX}WORKERS", "8")
    settings = read_settings()
    assert (settings.trainer_image, settings.workers) == ("file:1", 8)
    assert settings.namespaces == ("a", "b")
    assert settings.resync_seconds == 600
    assert settings.port == 8080


@pytest.mark.parametrize("text", ["", "# nothing yet\n"])
def test_an_empty_file_sets_nothing(
    write: Write, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    write(text)
    monkeypatch.setenv(f"{PREFIX}TRAINER_IMAGE", "variable:1")
    assert read_settings().workers == 32


MISTAKES = {
    "workres: 4": "settings.yaml: workres: unknown; remove it, known are trainerImage, ",
    # One spelling in the file, another one for variables.
    "api_requests_per_second: 4": "settings.yaml: api_requests_per_second: unknown; ",
    "workers: 0": "settings.yaml: workers: is 0; input should be greater than or equal to 1",
    "logLevel: loud": "settings.yaml: logLevel: is 'loud'; input should be 'DEBUG', ",
    "workers: 4\nworkers: 5": "key 'workers' stands twice; keep one",
    "[workers]": "settings.yaml: is no single mapping; ",
    "workers: 4\n---\nworkers: 5": "settings.yaml: is no single mapping; ",
    "workers: {": "settings.yaml",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_the_file_is_named(
    write: Write, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    write(text)
    monkeypatch.setenv(f"{PREFIX}TRAINER_IMAGE", "variable:1")
    with pytest.raises(ConfigError) as caught:
        read_settings()
    assert MISTAKES[text] in str(caught.value)


def test_each_mistake_has_a_line_that_says_where_it_is(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("workers: 0\nresyncSeconds: 0\n")
    monkeypatch.setenv(f"{PREFIX}WORKERS", "1000")
    monkeypatch.setenv(f"{PREFIX}PORT", "http")
    with pytest.raises(ConfigError) as caught:
        read_settings()
    image, port, workers, resync = str(caught.value).splitlines()
    assert image == (
        f"{PREFIX}TRAINER_IMAGE: is missing; set this variable, or trainerImage in {path}"
    )
    assert port.startswith(f"{PREFIX}PORT: is 'http'; ")
    assert workers.startswith(f"{PREFIX}WORKERS: is '1000'; ")
    assert resync.startswith(f"{path}: resyncSeconds: is 0; ")


def test_a_list_that_is_no_json_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{PREFIX}TRAINER_IMAGE", "variable:1")
    monkeypatch.setenv(f"{PREFIX}NAMESPACES", "team-a")
    with pytest.raises(ConfigError, match=r'"namespaces".*; write it as JSON, for example \["'):
        read_settings()


def test_a_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG, "/nowhere/settings.yaml")
    with pytest.raises(ConfigError, match=r"^/nowhere/settings\.yaml: no such file"):
        read_settings()


def test_the_process_ends_with_what_it_lacks(write: Write) -> None:
    path = write("trainerImage: file:1\nworkres: 4\n")
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_operator"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 78
    assert done.stderr.startswith(f"{path}: workres: unknown; ")
