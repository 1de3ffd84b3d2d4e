"""A control plane with two nodes: kubelets, containerd, DNS, a service network.

Runs inside a sandbox, whose end takes back everything that it makes of the machine.
"""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cluster import machine, provisioner
from cluster.binaries import binaries
from cluster.bounded import client_by
from cluster.control_plane import ControlPlane, free_port
from cluster.images import pause_image
from cluster.node_files import (
    Node,
    cni_config,
    containerd_config,
    dns_config,
    kubelet_config,
    proxy_config,
)
from cluster.sandbox import INSIDE, Sandbox
from interpreters import import_path
from kubernetes import client
from waiting import eventually

ADDRESSES = {"node-a": "198.18.0.1", "node-b": "198.18.0.2"}
READY_SECONDS = 180
REQUEST_SECONDS = 20
IMAGE_SECONDS = 300


@dataclass
class NodeCluster(ControlPlane):
    """A running cluster of two nodes.

    Attributes:
        cgroup_prefix: begins the names of its cgroups, and of no other cluster's.
    """

    cgroup_prefix: str = "rlhf-"

    def __post_init__(self) -> None:
        self.address = next(iter(ADDRESSES.values()))
        self.nodes = {
            name: Node(name, address, self.folder / name, f"{self.cgroup_prefix}{name}")
            for name, address in ADDRESSES.items()
        }

    @classmethod
    def of(cls, sandbox: Sandbox, **more: Any) -> "NodeCluster":
        """The cluster of a sandbox; started by a process inside."""
        return cls(folder_of(sandbox), cgroup_prefix=sandbox.cgroup_prefix, **more)

    def start(self) -> None:
        """Start it anew; gives control back when both nodes are ready.

        Raises:
            RuntimeError: not in a sandbox, or something is not ready in time.
        """
        if current_sandbox() is None:
            raise RuntimeError("a cluster of nodes is started in a sandbox only: see `make help`")
        machine.make_network(ADDRESSES.values())
        super().start()
        try:
            self._start_cluster_programs()
            for node in self.nodes.values():
                machine.make_cgroup(node.cgroup)
                node.folder.mkdir()
                self._write_node_files(node)
                self.start_node(node.name)
            self._wait_for_nodes()
            self._start_proxy()
            self.api_client.close()
        except BaseException:
            self.stop()
            raise

    def start_node(self, name: str) -> None:
        """Start a node's containerd and kubelet."""
        node = self.nodes[name]
        programs, containerd = binaries("kubernetes"), binaries("containerd")
        self.run(
            f"containerd-{name}",
            [str(containerd / "containerd"), "--config", str(node.folder / "config.toml")],
        )
        self._wait_for_containerd(node)
        self.load_image(pause_image()[1], node)
        kubeconfig = self.kubeconfig_for(f"system:node:{name}", ("system:nodes",))
        self.run(
            f"kubelet-{name}",
            [
                str(programs / "kubelet"),
                f"--config={node.folder}/kubelet.yaml",
                f"--kubeconfig={kubeconfig}",
                f"--hostname-override={name}",
                f"--node-ip={node.address}",
                f"--root-dir={node.folder}/kubelet",
                f"--cert-dir={node.folder}/kubelet-pki",
            ],
        )

    def kill_node(self, name: str) -> None:
        """Lose a node: nobody answers for it any more, while its containers live on."""
        for program in (f"kubelet-{name}", f"containerd-{name}"):
            process = self.processes.pop(program)
            process.kill()
            process.wait(machine.KILL_SECONDS)

    def restart_node(self, name: str) -> None:
        """Bring a lost node back, without the containers that it had."""
        machine.kill_cgroup(self.nodes[name].cgroup)
        self.start_node(name)

    def load_image(self, archive: Path, node: Node | None = None) -> None:
        """Import an OCI archive into a node, or into all."""
        for each in [node] if node is not None else self.nodes.values():
            self.ctr(each, "images", "import", str(archive))

    def ctr(self, node: Node, *arguments: str) -> str:
        """Run containerd's client on a node."""
        program = str(binaries("containerd") / "ctr")
        command = [program, "-a", str(node.socket), "-n", "k8s.io", *arguments]
        return machine.run(*command, seconds=IMAGE_SECONDS)

    def _start_cluster_programs(self) -> None:
        programs = binaries("kubernetes")
        scheduler = self.kubeconfig_for("system:kube-scheduler")
        self.run(
            "kube-scheduler",
            [
                str(programs / "kube-scheduler"),
                f"--kubeconfig={scheduler}",
                f"--authentication-kubeconfig={scheduler}",
                f"--authorization-kubeconfig={scheduler}",
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
                f"--secure-port={free_port()}",
            ],
        )
        corefile = self.folder / "Corefile"
        corefile.write_text(dns_config(self.address, self.kubeconfig))
        self.run("coredns", [str(binaries("coredns") / "coredns"), "-conf", str(corefile)])
        self.api_client = client_by(self.kubeconfig)
        client.StorageV1Api(self.api_client).create_storage_class(provisioner.CLASS)
        found_by = [f"{name}={value}" for name, value in import_path().items()]
        command = ["env", *found_by, sys.executable, "-m", provisioner.__name__]
        self.run("provisioner", [*command, str(self.kubeconfig), str(self.folder / "volumes")])

    def _start_proxy(self) -> None:
        """One for both nodes, whose rules are the sandbox's; it needs its node to be there."""
        kubeconfig = self.kubeconfig_for("system:kube-proxy")
        path = self.folder / "kube-proxy.yaml"
        path.write_text(yaml.safe_dump(proxy_config(kubeconfig, self.nodes["node-a"])))
        self.run("kube-proxy", [str(binaries("kubernetes") / "kube-proxy"), f"--config={path}"])

    def _write_node_files(self, node: Node) -> None:
        cni = self.folder / "cni"
        cni.mkdir(exist_ok=True)
        network = cni_config(self.folder / "cni-state")
        (cni / "10-pods.conflist").write_text(json.dumps(network))
        text = containerd_config(node, cni, binaries("containerd"))
        (node.folder / "config.toml").write_text(text)
        kubelet = kubelet_config(node, self.authority.certificate, self.address, free_port())
        (node.folder / "kubelet.yaml").write_text(yaml.safe_dump(kubelet))

    def _wait_for_containerd(self, node: Node) -> None:
        def answers() -> bool:
            self.ctr(node, "version")
            return True

        what = f"containerd of {node.name} answers"
        eventually(answers, READY_SECONDS, what=what, not_yet=RuntimeError, error=RuntimeError)

    def _wait_for_nodes(self) -> None:
        api = client.CoreV1Api(self.api_client)

        def ready() -> bool:
            self.check_processes()
            return sum(map(_is_ready, _nodes(api))) == len(self.nodes)

        what = f"the nodes are ready (see {self.folder}/kubelet-*.log)"
        eventually(ready, READY_SECONDS, 0.2, what=what, error=RuntimeError)


def folder_of(sandbox: Sandbox) -> Path:
    """Where the files of a sandbox's cluster lie."""
    return sandbox.folder / "cluster"


def current_sandbox() -> Sandbox | None:
    """The sandbox that this process runs in; None if it runs in none."""
    folder = os.environ.get(INSIDE)
    return None if folder is None else Sandbox(Path(folder))


def remove_files(sandbox: Sandbox) -> None:
    """Remove what an ended cluster has written."""
    shutil.rmtree(folder_of(sandbox), ignore_errors=True)


def _nodes(api: client.CoreV1Api) -> list[Any]:
    return list(api.list_node(_request_timeout=REQUEST_SECONDS).items)


def _is_ready(node: Any) -> bool:
    conditions = node.status.conditions or ()
    return any(each.type == "Ready" and each.status == "True" for each in conditions)
