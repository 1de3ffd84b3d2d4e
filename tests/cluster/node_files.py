"""The configuration files of a node's programs. Pure: paths and addresses in, documents out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

POD_RANGE = "10.244.0.0/16"
POD_BRIDGE = "rlhf-pods"
CLUSTER_DOMAIN = "cluster.local"
SANDBOX_IMAGE = "localhost/rlhf-pause:1"


@dataclass(frozen=True)
class Node:
    """One of several nodes of this machine.

    Attributes:
        name: of the node.
        address: its own, on the bridge of the nodes.
        folder: where its files lie.
        cgroup: its part of every cgroup hierarchy, without a slash.
    """

    name: str
    address: str
    folder: Path
    cgroup: str

    @property
    def socket(self) -> Path:
        """Where its containerd listens."""
        return self.folder / "containerd.sock"


def containerd_config(node: Node, cni: Path, binaries: Path) -> str:
    """config.toml."""
    folder = node.folder
    return f"""version = 3
root = "{folder}/containerd"
state = "{folder}/containerd-state"

[grpc]
address = "{node.socket}"

[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "{SANDBOX_IMAGE}"

[plugins.'io.containerd.cri.v1.runtime']
# Only a process with CAP_SYS_RESOURCE may lower an OOM score, which virtual machines may lack.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/usr/lib/cni"]
conf_dir = "{cni}"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
runtime_path = "{binaries}/containerd-shim-runc-v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def cni_config(state: Path) -> dict[str, Any]:
    """10-pods.conflist: all pods of all nodes on one bridge."""
    ranges = [[{"subnet": POD_RANGE}]]
    return {
        "cniVersion": "1.0.0",
        "name": "rlhf-pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": POD_BRIDGE,
                "isGateway": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(state),
                    "ranges": ranges,
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }
        ],
    }


def kubelet_config(node: Node, ca: Path, dns: str, health_port: int) -> dict[str, Any]:
    """KubeletConfiguration."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(ca)},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "clusterDNS": [dns],
        "clusterDomain": CLUSTER_DOMAIN,
        "containerRuntimeEndpoint": f"unix://{node.socket}",
        "evictionHard": {
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
            "imagefs.available": "1%",
        },
        "failCgroupV1": False,
        "failSwapOn": False,
        "healthzPort": health_port,
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "imageMinimumGCAge": "24h",
        "nodeLeaseDurationSeconds": 4,
        "nodeStatusUpdateFrequency": "2s",
        "podLogsDir": str(node.folder / "pod-logs"),
        "readOnlyPort": 0,
        # The machine's name servers are none of a pod's.
        "resolvConf": "/dev/null",
        "syncFrequency": "2s",
        "volumePluginDir": str(node.folder / "volume-plugins"),
    }


def proxy_config(kubeconfig: Path, node: Node) -> dict[str, Any]:
    """KubeProxyConfiguration."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "bindAddress": node.address,
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "clusterCIDR": POD_RANGE,
        "conntrack": {"maxPerCore": 0, "min": 0},
        "healthzBindAddress": f"{node.address}:10256",
        "hostnameOverride": node.name,
        "metricsBindAddress": f"{node.address}:10249",
        "mode": "iptables",
    }


def dns_config(address: str, kubeconfig: Path) -> str:
    """Corefile."""
    return f"""{CLUSTER_DOMAIN}:53 {{
    bind {address}
    errors
    kubernetes {CLUSTER_DOMAIN} {{
        kubeconfig {kubeconfig} test
        ttl 1
    }}
}}
"""
