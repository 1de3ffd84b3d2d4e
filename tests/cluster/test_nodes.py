"""A cluster of two nodes in a sandbox: pods run, find each other, and a node can be lost."""

import json

import pytest
from cluster.bounded import client_by
from cluster.kube_fixtures import Access
from cluster.nodes import NodeCluster
from kubernetes import client
from operating import eventually

pytestmark = pytest.mark.timeout(900)

PAUSE = "localhost/rlhf-pause:1"


def pod(name: str, node: str) -> str:
    container = {"name": "pause", "image": PAUSE, "imagePullPolicy": "Never"}
    spec = {"containers": [container], "nodeName": node, "terminationGracePeriodSeconds": 0}
    metadata = {"name": name, "labels": {"app": name}}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


def test_pods_run_on_both_nodes_and_a_lost_node_comes_back(node_cluster: NodeCluster) -> None:
    nodes = node_cluster
    api = client_by(nodes.kubeconfig)
    access = Access(nodes.kubeconfig, api, nodes)
    core = client.CoreV1Api(api)
    eventually(lambda: core.list_namespaced_service_account("default").items, seconds=60)
    for node in nodes.nodes:
        access.kubectl("apply", "-f", "-", text=pod(f"on-{node}", node))
    ready = ("wait", "--for=condition=Ready", "--timeout=120s")
    access.kubectl(*ready, "pod/on-node-a", "pod/on-node-b")
    address = core.read_namespaced_pod("on-node-b", "default").status.pod_ip
    access.kubectl("exec", "on-node-a", "--", "/bin/busybox", "ping", "-c1", "-W5", address)
    nodes.kill_node("node-b")
    access.kubectl("wait", "--for=condition=Ready=Unknown", "node/node-b", "--timeout=200s")
    nodes.restart_node("node-b")
    access.kubectl(*ready, "node/node-b")
    access.kubectl("apply", "-f", "-", text=pod("again", "node-b"))
    access.kubectl(*ready, "pod/again")
    for name in ("on-node-a", "on-node-b", "again"):
        access.kubectl("delete", "pod", name, "--ignore-not-found", "--force", "--grace-period=0")
    api.close()
