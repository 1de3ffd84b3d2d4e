"""A Prometheus that has all series of trainer and operator."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import prometheus_server
import pytest
from interpreters import import_path

PROGRAM = Path(__file__).with_name("played_exporter.py")
NAMESPACE = "team"
RULES = [
    {"alert": name, "expr": "vector(1)", "labels": labels | {"severity": "critical"}}
    for name, labels in {
        "CriticLossDiverging": {"namespace": NAMESPACE, "rlhfjob": "demo", "stage": "sft"},
        "OperatorDown": {},
    }.items()
]


@pytest.fixture(scope="package")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, str(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | import_path(),
    ) as exporter:
        assert exporter.stdout is not None
        assert exporter.stdin is not None
        ports = json.loads(exporter.stdout.readline())
        targets = {
            f"127.0.0.1:{ports['trainer']}": {"namespace": NAMESPACE},
            f"127.0.0.1:{ports['operator']}": {"namespace": "ops"},
        }
        with prometheus_server.running(tmp_path_factory.mktemp("data"), targets, RULES) as server:
            yield server
        exporter.stdin.close()
