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
    "workers: 0": "settings.yaml: workers: is 0; write an integer from 1 to 256",
    "workers: many": "settings.yaml: workers: is 'many'; write an integer from 1 to 256",
    "workers: 1.5": "settings.yaml: workers: is 1.5; write an integer from 1 to 256",
    "workers:": "settings.yaml: workers: is None; write an integer from 1 to 256",
    "port: 70000": "settings.yaml: port: is 70000; write an integer from 0 to 65535",
    "resyncSeconds: 5m": "settings.yaml: resyncSeconds: is '5m'; write a number of at least 1",
    "apiRequestsPerSecond: 0": "apiRequestsPerSecond: is 0; write a number above 0",
    "logLevel: loud": (
        "settings.yaml: logLevel: is 'loud'; write one of DEBUG, INFO, WARNING, ERROR"
    ),
    "leaseName: 5": "settings.yaml: leaseName: is 5; write a text",
    "namespace: Team_A": "namespace: is 'Team_A'; write the name of a namespace (a-z, ",
    "namespaces: team-a": "namespaces: is 'team-a'; write a JSON list of namespaces (a-z, ",
    "namespaces: [team-a, Team_B]": "namespaces: holds 'Team_B'; write a JSON list of namespaces",
    f"namespaces: [{'a' * 64}]": f"namespaces: holds '{'a' * 64}'; write a JSON list of namespaces",
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


@pytest.mark.parametrize("value", ["team-a,team-b", "team-a", "", '"team-a"', "[team-a]", "{}"])
def test_a_list_that_is_no_json_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(f"{PREFIX}TRAINER_IMAGE", "variable:1")
    monkeypatch.setenv(f"{PREFIX}NAMESPACES", value)
    with pytest.raises(ConfigError) as caught:
        read_settings()
    told = str(caught.value)
    assert told.startswith(f"{PREFIX}NAMESPACES: is ")
    assert value.strip('"') in told
    assert told.endswith(
        "write a JSON list of namespaces (a-z, 0-9 and -, at most "
        '63), for example ["team-a", "team-b"]'
    )
    assert "Settings" not in told


@pytest.mark.parametrize("name", ["WORKRES", "APIREQUESTSPERSECOND", "METRICS_PORT"])
def test_an_unknown_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"{PREFIX}TRAINER_IMAGE", "variable:1")
    monkeypatch.setenv(f"{PREFIX}{name}", "4")
    with pytest.raises(ConfigError) as caught:
        read_settings()
    assert str(caught.value).startswith(f"{PREFIX}{name}: unknown; unset it, known are {CONFIG}, ")


def test_what_kubernetes_tells_of_services_is_let_through(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("trainerImage: file:1\nport: 9000\n")
    # As the kubelet writes them for the Services rlhf-operator and rlhf-operator-metrics.
    for service in ("RLHF_OPERATOR", "RLHF_OPERATOR_METRICS"):
        port = f"{service}_PORT_8080_TCP"
        of_service = {
            f"{service}_SERVICE_HOST": "10.0.0.1",
            f"{service}_SERVICE_PORT": "8080",
            f"{service}_SERVICE_PORT_METRICS": "8080",
            f"{service}_PORT": "tcp://10.0.0.1:8080",
            port: "tcp://10.0.0.1:8080",
            f"{port}_PROTO": "tcp",
            f"{port}_PORT": "8080",
            f"{port}_ADDR": "10.0.0.1",
        }
        for name, value in of_service.items():
            monkeypatch.setenv(name, value)
    assert read_settings().port == 9000


def test_mistakes_of_file_and_environment_are_told_together(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("workres: 4\nresyncSeconds: 0\n")
    monkeypatch.setenv(f"{PREFIX}WORKRES", "4")
    monkeypatch.setenv(f"{PREFIX}NAMESPACES", "team-a")
    with pytest.raises(ConfigError) as caught:
        read_settings()
    assert [line.partition(";")[0] for line in str(caught.value).splitlines()] == [
        f"{path}: workres: unknown",
        f"{PREFIX}WORKRES: unknown",
        f"{PREFIX}TRAINER_IMAGE: is missing",
        f"{PREFIX}NAMESPACES: is 'team-a'",
        f"{path}: resyncSeconds: is 0",
    ]


def test_a_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG, "/nowhere/settings.yaml")
    with pytest.raises(ConfigError, match=r"^/nowhere/settings\.yaml: no such file"):
        read_settings()


def run_operator(**variables: str) -> subprocess.CompletedProcess[str]:
    """The process, which is to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "rlhf_operator"],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_process_ends_with_what_it_lacks(write: Write) -> None:
    path = write("trainerImage: file:1\nworkres: 4\n")
    done = run_operator()
    assert done.returncode == 78
    assert done.stderr.startswith(f"{path}: workres: unknown; ")


def test_the_process_ends_without_an_api_server(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("trainerImage: file:1\nport: 0\n")
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    missing = tmp_path / "kubeconfig"
    done = run_operator(KUBECONFIG=str(missing))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert f"no API server is known: there is no kubeconfig '{missing}'" in last
    assert last.endswith("set KUBECONFIG to a kubeconfig, or run the operator in a pod")
    assert "Warning" not in done.stderr
    assert "Traceback" not in done.stderr
