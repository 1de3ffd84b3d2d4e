"""etcd, API server and controller-manager as processes of this machine: a cluster without nodes.

They end with the process that started them, however that ends, unless they are to last.
"""

import json
import shutil
import socket
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml
from cluster.binaries import binaries
from cluster.pki import Authority
from waiting import eventually

SERVICE_RANGE = "10.96.0.0/16"
READY_SECONDS = 120
STOP_SECONDS = 5
KILL_SECONDS = 20

_AUDIT_POLICY: dict[str, Any] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [{"level": "Metadata"}],
}


@dataclass
class ControlPlane:
    """A running control plane.

    Attributes:
        folder: where its files and logs lie.
        address: on which the API server listens and that it advertises.
        audit_rules: rules of the audit policy that come before the one that keeps metadata only.
    """

    folder: Path
    address: str = "127.0.0.1"
    port: int = 0
    reachable: tuple[str, ...] = ()
    """More addresses by which the API server is reached."""
    lasting: bool = False
    """Whether it outlives the process that starts it."""
    audit_rules: tuple[dict[str, Any], ...] = ()
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def server(self) -> str:
        """URL of the API server."""
        return f"https://{self.address}:{self.port}"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.folder / "admin.kubeconfig"

    @property
    def bound(self) -> str:
        """Address on which the API server listens."""
        return "0.0.0.0" if self.reachable else self.address

    @property
    def audit_log(self) -> Path:
        """Every finished request, a JSON object a line."""
        return self.folder / "audit.log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it anew; gives control back when it is ready."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.port = self.port or free_port()
        self._issue()
        try:
            self._start_etcd()
            self._start_api_server()
            self._wait_until_ready()
            self._start_controller_manager()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End all processes."""
        for name in reversed(list(self.processes)):
            self.end(name)

    def run_controllers(self, controllers: str) -> None:
        """Start kube-controller-manager anew with these, as its flag `--controllers` names them."""
        self.end("kube-controller-manager")
        self._start_controller_manager(controllers)

    def kubeconfig_for(self, user: str, groups: tuple[str, ...] = ()) -> Path:
        """A kubeconfig with a client certificate for `user`."""
        name = user.replace(":", "-")
        certificate, key = self.authority.issue(name, user, groups)
        return self._write_kubeconfig(
            name, {"client-certificate": str(certificate), "client-key": str(key)}
        )

    def audit_events(self) -> Iterator[dict[str, Any]]:
        """Every finished request so far."""
        with self.audit_log.open() as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)

    def run(self, name: str, command: list[str]) -> None:
        """Start a process of the control plane; its log is `<name>.log`."""
        with (self.folder / f"{name}.log").open("ab") as log:
            # setpriv: no process outlives a test run that is killed.
            tied = [] if self.lasting else ["setpriv", "--pdeathsig", "KILL"]
            self.processes[name] = subprocess.Popen(
                [*tied, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                start_new_session=self.lasting,
            )

    def check_processes(self) -> None:
        """See that all still run.

        Raises:
            RuntimeError: with the end of the log of one that does not.
        """
        for name, process in self.processes.items():
            if process.poll() is not None:
                log = (self.folder / f"{name}.log").read_text(errors="replace")
                raise RuntimeError(f"{name} ended with {process.returncode}: {log[-2000:]}")

    def end(self, name: str) -> None:
        """End one process."""
        process = self.processes.pop(name)
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(KILL_SECONDS)

    def _issue(self) -> None:
        self.authority = Authority(self.folder / "pki")
        hosts = (
            *dict.fromkeys((self.address, "127.0.0.1", "10.96.0.1", *self.reachable)),
            *("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"),
        )
        self._serving = self.authority.issue("apiserver", "kube-apiserver", hosts=hosts)
        self._kubelet = self.authority.issue("kubelet-client", "admin", ("system:masters",))
        self._tokens = self.authority.signing_key("service-accounts")
        self._etcd_peer = self.authority.issue("etcd", "etcd", hosts=("127.0.0.1",))
        self.etcd_client = self.authority.issue("etcd-client", "kube-apiserver")
        admin = self.kubeconfig_for("admin", ("system:masters",))
        assert admin == self.kubeconfig

    def _write_kubeconfig(self, name: str, user: dict[str, str]) -> Path:
        path = self.folder / f"{name}.kubeconfig"
        cluster = {"server": self.server, "certificate-authority": str(self.authority.certificate)}
        context = {"cluster": "test", "user": name}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "test", "context": context}],
            "current-context": "test",
        }
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(document))
        return path

    def _start_etcd(self) -> None:
        self.etcd = f"https://127.0.0.1:{free_port()}"
        peer = f"https://127.0.0.1:{free_port()}"
        certificate, key = self._etcd_peer
        self.run(
            "etcd",
            [
                str(binaries("etcd") / "etcd"),
                f"--data-dir={self.folder}/etcd",
                f"--listen-client-urls={self.etcd}",
                f"--advertise-client-urls={self.etcd}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=default={peer}",
                "--client-cert-auth",
                f"--trusted-ca-file={self.authority.certificate}",
                f"--cert-file={certificate}",
                f"--key-file={key}",
                "--peer-client-cert-auth",
                f"--peer-trusted-ca-file={self.authority.certificate}",
                f"--peer-cert-file={certificate}",
                f"--peer-key-file={key}",
                "--unsafe-no-fsync",
                "--log-level=warn",
            ],
        )

    def _start_api_server(self) -> None:
        policy = self.folder / "audit-policy.yaml"
        rules = [*self.audit_rules, *_AUDIT_POLICY["rules"]]
        policy.write_text(yaml.safe_dump(_AUDIT_POLICY | {"rules": rules}))
        certificate, key = self._serving
        public, private = self._tokens
        self.run(
            "kube-apiserver",
            [
                str(binaries("kubernetes") / "kube-apiserver"),
                f"--etcd-servers={self.etcd}",
                f"--etcd-cafile={self.authority.certificate}",
                f"--etcd-certfile={self.etcd_client[0]}",
                f"--etcd-keyfile={self.etcd_client[1]}",
                f"--bind-address={self.bound}",
                f"--advertise-address={_advertised(self.address)}",
                f"--secure-port={self.port}",
                f"--tls-cert-file={certificate}",
                f"--tls-private-key-file={key}",
                f"--client-ca-file={self.authority.certificate}",
                f"--kubelet-client-certificate={self._kubelet[0]}",
                f"--kubelet-client-key={self._kubelet[1]}",
                "--kubelet-preferred-address-types=InternalIP",
                f"--service-account-key-file={public}",
                f"--service-account-signing-key-file={private}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-cluster-ip-range={SERVICE_RANGE}",
                "--authorization-mode=Node,RBAC",
                "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
                "--allow-privileged=true",
                f"--audit-policy-file={policy}",
                f"--audit-log-path={self.audit_log}",
            ],
        )

    def _start_controller_manager(self, controllers: str = "*") -> None:
        certificate, key = self.authority.certificate, self.authority.key
        config = self.kubeconfig_for("system:kube-controller-manager")
        self.run(
            "kube-controller-manager",
            [
                str(binaries("kubernetes") / "kube-controller-manager"),
                f"--kubeconfig={config}",
                f"--authentication-kubeconfig={config}",
                f"--authorization-kubeconfig={config}",
                f"--controllers={controllers}",
                "--use-service-account-credentials",
                "--leader-elect=false",
                f"--root-ca-file={certificate}",
                f"--service-account-private-key-file={self._tokens[1]}",
                f"--cluster-signing-cert-file={certificate}",
                f"--cluster-signing-key-file={key}",
                "--bind-address=127.0.0.1",
                f"--secure-port={free_port()}",
                "--node-monitor-grace-period=8s",
                "--node-monitor-period=1s",
                "--kube-api-qps=200",
                "--kube-api-burst=300",
            ],
        )

    def _wait_until_ready(self) -> None:
        context = ssl.create_default_context(cafile=str(self.authority.certificate))

        def answers() -> bool:
            self.check_processes()
            with urllib.request.urlopen(
                f"{self.server}/readyz", timeout=2, context=context
            ) as answer:
                return bool(answer.status == 200)

        # An HTTPError, as one that is not ready answers, is an OSError.
        eventually(
            answers,
            READY_SECONDS,
            what=f"{self.server} is ready (see {self.folder}/kube-apiserver.log)",
            not_yet=OSError,
            error=RuntimeError,
        )


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _advertised(address: str) -> str:
    # The API server refuses to advertise a loopback address; without nodes nobody looks.
    return "192.0.2.1" if address.startswith("127.") else address
