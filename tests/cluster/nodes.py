"""A control plane with two nodes on this machine: kubelets, containerd, DNS, a service network.

Needs root. Only one can run at a time, since a machine has one network.
"""

import json
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from cluster import machine, packages, provisioner
from cluster.binaries import binaries, cache_folder
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
from kubernetes import client, config

ADDRESSES = {"node-a": "198.18.0.1", "node-b": "198.18.0.2"}
READY_SECONDS = 90


@dataclass
class NodeCluster(ControlPlane):
    """A running cluster of two nodes."""

    def __post_init__(self) -> None:
        self.address = next(iter(ADDRESSES.values()))
        self.nodes = {
            name: Node(name, address, self.folder / name) for name, address in ADDRESSES.items()
        }

    def start(self) -> None:
        """Start it anew; gives control back when both nodes are ready."""
        packages.require()
        if not self.lasting and self.marker.exists():
            raise RuntimeError(
                "a cluster of `make cluster-up` is running on this machine; end it with "
                "`make cluster-down`, or test on it by RLHF_TEST_KUBECONFIG"
            )
        self.clean()
        machine.save_sysctls(_sysctl_file())
        try:
            machine.make_network(ADDRESSES.values())
            super().start()
            self._start_cluster_programs()
            for node in self.nodes.values():
                machine.make_cgroup(node.cgroup.strip("/"))
                node.folder.mkdir()
                self._write_node_files(node)
                self.start_node(node.name)
            self._wait_for_nodes()
            self._start_proxy()
            self.api_client.close()
        except BaseException:
            self.stop()
            raise

    @property
    def marker(self) -> Path:
        """There while a cluster is one that lasts."""
        return self.folder / "lasting"

    def stop(self) -> None:
        """End everything and leave nothing behind."""
        super().stop()
        self.clean()

    def clean(self) -> None:
        """Take back what this cluster, or one before it, has made."""
        machine.clean(self.folder)
        machine.restore_sysctls(_sysctl_file())
        shutil.rmtree(self.folder, ignore_errors=True)

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
            process.wait()

    def restart_node(self, name: str) -> None:
        """Bring a lost node back, without the containers that it had."""
        node = self.nodes[name]
        machine.kill(
            process
            for process in psutil.process_iter()
            if machine.mentions(process, str(node.socket))
        )
        for hierarchy in machine.own_cgroups():
            if hierarchy.name == node.cgroup.strip("/"):
                machine.kill_cgroup(hierarchy)
        self.start_node(name)

    def load_image(self, archive: Path, node: Node | None = None) -> None:
        """Import an OCI archive into a node, or into all."""
        for each in [node] if node is not None else self.nodes.values():
            self.ctr(each, "images", "import", str(archive))

    def ctr(self, node: Node, *arguments: str) -> str:
        """Run containerd's client on a node."""
        program = str(binaries("containerd") / "ctr")
        return machine.run(program, "-a", str(node.socket), "-n", "k8s.io", *arguments)

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
        self.api_client = config.new_client_from_config(str(self.kubeconfig))
        client.StorageV1Api(self.api_client).create_storage_class(provisioner.CLASS)
        command = [sys.executable, provisioner.__file__]
        self.run("provisioner", [*command, str(self.kubeconfig), str(self.folder / "volumes")])

    def _start_proxy(self) -> None:
        """One for both nodes, whose rules are the machine's; it needs its node to be there."""
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
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                self.ctr(node, "version")
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def _wait_for_nodes(self) -> None:
        api = client.CoreV1Api(self.api_client)
        deadline = time.monotonic() + READY_SECONDS
        while sum(map(_is_ready, api.list_node().items)) < len(self.nodes):
            self.check_processes()
            if time.monotonic() > deadline:
                raise RuntimeError(f"the nodes are not ready: see {self.folder}/kubelet-*.log")
            time.sleep(0.2)


def state_folder() -> Path:
    """Where the files of the only cluster with nodes lie."""
    return cache_folder() / "cluster"


def _sysctl_file() -> Path:
    path = cache_folder() / "sysctls"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _is_ready(node: Any) -> bool:
    conditions = node.status.conditions or ()
    return any(each.type == "Ready" and each.status == "True" for each in conditions)
