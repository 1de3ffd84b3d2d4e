"""Prometheus and Alertmanager beside a cluster, configured by the real prometheus-operator.

Monitors and rules of the cluster become the configuration of two pods, as everywhere; these are
never started. What they would read is handed to Debian's programs on this machine instead.
"""

import base64
import gzip
import json
import re
import subprocess
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cluster.kube_fixtures import Access
from cluster.monitoring import (
    alertmanager,
    cluster_prometheus,
    monitoring_crds,
    prometheus_operator,
)
from cluster.nodes import NodeCluster
from waiting import eventually

Raw = dict[str, Any]

NAMESPACE = "monitoring"
SELECTED = {"release": "monitoring"}
"""Labels of the monitors and rules that count, as the Prometheus of a platform selects them."""
NAME = "main"
"""Of the Prometheus and of the Alertmanager."""
START_SECONDS = 120
ANSWER_SECONDS = 20

_RULES_IN_POD = f"/etc/prometheus/rules/prometheus-{NAME}-rulefiles-0"
_ENVIRONMENT = {"POD_NAME": f"prometheus-{NAME}-0", "SHARD": "0"}
"""Of the pod; the container beside Prometheus puts it into the configuration."""
_MONITORS = {"ServiceMonitor": "serviceMonitor", "PodMonitor": "podMonitor"}


@dataclass(frozen=True)
class Monitoring:
    """prometheus-operator, Prometheus and Alertmanager as processes of this machine.

    Attributes:
        access: to the cluster's API server.
        nodes: the cluster, whose pods are reached from here.
    """

    access: Access
    nodes: NodeCluster

    @property
    def url(self) -> str:
        """Of Prometheus."""
        return f"http://{self.nodes.address}:9090"

    @property
    def alertmanager_url(self) -> str:
        """Of Alertmanager."""
        return f"http://{self.nodes.address}:9093"

    @property
    def folder(self) -> Path:
        """Where the configuration that is handed over lies."""
        return self.nodes.folder / "monitoring"

    def start_operator(self) -> None:
        """Install the CRDs, start prometheus-operator and ask for both servers."""
        self.folder.mkdir()
        crds = [part for path in monitoring_crds() for part in ("-f", str(path))]
        self.access.kubectl("apply", "--server-side", *crds)
        self.access.kubectl("wait", "--for=condition=Established", "--timeout=60s", *crds)
        authority = self.nodes.authority
        certificate, key = authority.issue(
            "prometheus-operator", "prometheus-operator", ("system:masters",)
        )
        self.nodes.run(
            "prometheus-operator",
            [
                str(prometheus_operator()),
                f"--apiserver={self.nodes.server}",
                f"--ca-file={authority.certificate}",
                f"--cert-file={certificate}",
                f"--key-file={key}",
                "--kubelet-endpoints=false",
                "--web.listen-address=127.0.0.1:8079",
            ],
        )
        documents = yaml.safe_dump_all(self._objects())
        self.access.kubectl("apply", "--server-side", "-f", "-", text=documents)

    def start_servers(self) -> None:
        """Start Prometheus and Alertmanager, when their configuration holds all that is selected.

        Raises:
            AssertionError: it does not in time, or a server does not answer.
        """
        config = eventually(self._whole_config, START_SECONDS, 0.5)
        (self.folder / "prometheus.yaml").write_text(config)
        settings = self._handed_over(f"alertmanager-{NAME}-generated", "alertmanager.yaml.gz")
        (self.folder / "alertmanager.yaml").write_text(settings)
        receiver = [*_installed(alertmanager()), "--cluster.listen-address="]
        receiver.append(f"--storage.path={self.folder}/alertmanager")
        self._run("alertmanager", receiver, self.alertmanager_url)
        server = [str(cluster_prometheus()), f"--storage.tsdb.path={self.folder}/prometheus"]
        self._run("prometheus", server, self.url)

    def stop(self) -> None:
        """End everything; the cluster goes on without it."""
        for name in ("prometheus", "alertmanager", "prometheus-operator"):
            if name in self.nodes.processes:
                self.nodes.end(name)

    def query(self, expression: str, at: float | None = None) -> list[Raw]:
        """The series of an instant query.

        Args:
            expression: in PromQL.
            at: Unix time; now when left out.
        """
        parameters = {"query": expression} | ({} if at is None else {"time": str(at)})
        found = _get(f"{self.url}/api/v1/query?{urllib.parse.urlencode(parameters)}")
        return list(found["data"]["result"])

    def targets(self) -> list[Raw]:
        """What Prometheus scrapes now."""
        return list(_get(f"{self.url}/api/v1/targets?state=active")["data"]["activeTargets"])

    def alerts(self, **labels: str) -> list[Raw]:
        """What Alertmanager has been told and does not take for resolved, by labels."""
        matchers = [("filter", f'{name}="{value}"') for name, value in labels.items()]
        query = urllib.parse.urlencode(matchers)
        return list(_get(f"{self.alertmanager_url}/api/v2/alerts?{query}"))

    def _run(self, name: str, command: list[str], url: str) -> None:
        config = f"--config.file={self.folder}/{name}.yaml"
        address = f"--web.listen-address={url.removeprefix('http://')}"
        self.nodes.run(name, [*command, config, address])

        def ready() -> bool:
            self.nodes.check_processes()
            with urllib.request.urlopen(f"{url}/-/ready", timeout=ANSWER_SECONDS) as answer:
                return bool(answer.status == 200)

        what = f"{url} is ready (see {self.nodes.folder}/{name}.log)"
        eventually(ready, START_SECONDS, 0.2, what=what, not_yet=OSError)

    def _whole_config(self) -> str | None:
        """Prometheus' configuration; None while a selected object is missing in it."""
        self.nodes.check_processes()
        config = self._handed_over(f"prometheus-{NAME}", "prometheus.yaml.gz")
        rules = self._get("configmap", f"prometheus-{NAME}-rulefiles-0").get("data") or {}
        if config is None or not self._is_whole(yaml.safe_load(config), rules):
            return None
        folder = self.folder / "rules"
        folder.mkdir(exist_ok=True)
        for name, text in rules.items():
            (folder / name).write_text(text)
        for name, value in _ENVIRONMENT.items():
            config = config.replace(f"$({name})", value)
        assert _RULES_IN_POD in config
        return config.replace(_RULES_IN_POD, str(folder))

    def _is_whole(self, config: Raw, rules: Raw) -> bool:
        jobs = [each["job_name"] for each in config.get("scrape_configs") or ()]
        selected = self._selected()
        return bool(selected) and all(
            any(name.startswith(part) for name in (rules if kind == "PrometheusRule" else jobs))
            for kind, part in selected
        )

    def _selected(self) -> list[tuple[str, str]]:
        """Kind of each selected object, and how what is made from it is named at its start."""
        kinds = "servicemonitors,podmonitors,prometheusrules"
        labels = ",".join(f"{key}={value}" for key, value in SELECTED.items())
        told = self.access.kubectl("get", kinds, "-A", "-l", labels, "-o", "json").stdout
        return [(each["kind"], _part(each)) for each in json.loads(told)["items"]]

    def _handed_over(self, secret: str, key: str) -> str | None:
        data = self._get("secret", secret).get("data") or {}
        return gzip.decompress(base64.b64decode(data[key])).decode() if key in data else None

    def _get(self, kind: str, name: str) -> Raw:
        place = ("-n", NAMESPACE, "--ignore-not-found", "-o", "json")
        told = self.access.kubectl("get", kind, name, *place).stdout
        found: Raw = json.loads(told) if told else {}
        return found

    def _objects(self) -> list[Raw]:
        """What a platform's administrator would make."""
        authority = self.nodes.authority
        certificate, key = authority.issue("prometheus", "prometheus")
        files = {"caFile": authority.certificate, "certFile": certificate, "keyFile": key}
        reading = {
            "host": self.nodes.server,
            "tlsConfig": {name: str(path) for name, path in files.items()},
        }
        return [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            _view("prometheus"),
            *_leading_to(self.nodes.address, 9093),
            _custom("Prometheus", _version(cluster_prometheus()), _prometheus_spec(reading)),
            _custom("Alertmanager", _version(alertmanager()), {}),
        ]


def _prometheus_spec(api_server: Raw) -> Raw:
    """Takes the selected monitors and rules of every namespace."""
    selectors: Raw = {}
    for kind in ("serviceMonitor", "podMonitor", "rule"):
        selectors[f"{kind}Selector"] = {"matchLabels": SELECTED}
        selectors[f"{kind}NamespaceSelector"] = {}
    receiver = {"namespace": NAMESPACE, "name": "alertmanager", "port": "web"}
    return {
        "evaluationInterval": "2s",
        "alerting": {"alertmanagers": [receiver]},
        "apiserverConfig": api_server,
        **selectors,
    }


def _custom(kind: str, version: str, spec: Raw) -> Raw:
    """An object of prometheus-operator; without a replica, as no node has an image for it."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": kind,
        "metadata": {"name": NAME, "namespace": NAMESPACE},
        "spec": {"replicas": 0, "version": version} | spec,
    }


def _leading_to(address: str, port: int) -> list[Raw]:
    """A Service of Alertmanager that leads out of the cluster."""
    metadata = {"name": "alertmanager", "namespace": NAMESPACE}
    ports = [{"name": "web", "port": port}]
    subset = {"addresses": [{"ip": address}], "ports": ports}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": ports}},
        {"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": [subset]},
    ]


def _part(item: Raw) -> str:
    """How the name of an object's scrape configuration, or rule file, starts."""
    namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
    if item["kind"] == "PrometheusRule":
        return f"{namespace}-{name}-"
    return f"{_MONITORS[item['kind']]}/{namespace}/{name}/"


def _view(user: str) -> Raw:
    """A user that may read pods, Services and Endpoints of all namespaces."""
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": user},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "view"},
        "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
    }


def _installed(program: Path) -> list[str]:
    """A command line that sees its package's files, as if it were installed; needs root.

    Debian's Alertmanager reads its templates from /usr/share.
    """
    script = 'mount -t overlay -o "lowerdir=$0:/usr" overlay /usr && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(program.parents[1]), str(program)]


def _version(program: Path) -> str:
    """As prometheus-operator wants it: v2.42.0."""
    told = subprocess.run(
        [program, "--version"], capture_output=True, text=True, check=True, timeout=ANSWER_SECONDS
    )
    found = re.search(r"version (\d+\.\d+\.\d+)", told.stdout)
    assert found is not None, told.stdout
    return f"v{found[1]}"


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:
        return json.load(answer)
