"""A real Prometheus that scrapes what a test serves, and evaluates the test's rules."""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import yaml
from cluster.monitoring import prometheus
from launching import free_port
from waiting import eventually

Raw = dict[str, Any]

INTERVAL = "1s"
_END_SECONDS = 30


@contextmanager
def running(
    folder: Path, targets: Mapping[str, Mapping[str, str]], rules: list[Raw] | None = None
) -> Iterator[str]:
    """Gives the URL of a Prometheus that ends with the block.

    Args:
        folder: for its files.
        targets: by `host:port` the labels that its series get, as a PodMonitor would add them.
        rules: recording and alerting rules.
    """
    configuration = {
        "global": {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [
            {
                "job_name": "test",
                "honor_labels": True,
                "static_configs": [
                    {"targets": [target], "labels": dict(labels)}
                    for target, labels in targets.items()
                ],
            }
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
    groups = [{"name": "test", "rules": rules}] if rules else []
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": groups}))
    port = free_port()
    command = [
        str(prometheus()),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        eventually(
            lambda: _is_ready(process, url),
            what=lambda: f"Prometheus is ready; its log: {(folder / 'log').read_text()}",
            not_yet=requests.ConnectionError,
        )
        yield url
    finally:
        process.terminate()
        process.wait(_END_SECONDS)


def _is_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    assert process.poll() is None, f"Prometheus ended with {process.returncode}"
    return requests.get(f"{url}/-/ready", timeout=5).ok
