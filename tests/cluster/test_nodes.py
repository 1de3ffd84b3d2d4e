"""The two-node cluster itself: that it comes up after a killed one, and leaves nothing behind."""

import os
import re
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from cluster import packages
from cluster.machine import SYSCTLS, own_cgroups
from cluster.nodes import NodeCluster, state_folder
from cluster.tools import KUBECTL

pytestmark = pytest.mark.timeout(600)


def trace() -> dict[str, object]:
    """What a cluster could leave on this machine."""

    def told(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    chains = re.findall(r"(?:KUBE|CNI)-\S+", told("iptables-save") + told("ip6tables-save"))
    folder, mounts = str(state_folder()), Path("/proc/self/mounts").read_text()
    return {
        "links": sorted(re.findall(r"^\d+: ([^:@]+)", told("ip", "-o", "link"), re.M)),
        "namespaces": told("ip", "netns", "list"),
        "chains": chains,
        "mounts": [line for line in mounts.split("\n") if folder in line],
        "cgroups": own_cgroups(),
        "sysctls": [told("sysctl", name) for name in SYSCTLS],
        "processes": [
            p.info["cmdline"]
            for p in psutil.process_iter(["cmdline"])
            if folder in " ".join(p.info["cmdline"] or ())
        ],
        "files": state_folder().exists(),
    }


def test_it_comes_up_after_a_killed_one_and_leaves_nothing() -> None:
    if reason := packages.reason_against():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    packages.require()
    before = trace()
    first = NodeCluster(state_folder())
    first.start()
    for process in first.processes.values():
        process.kill()
        process.wait()
    first.processes.clear()
    with NodeCluster(state_folder()) as second:
        command = [str(KUBECTL), f"--kubeconfig={second.kubeconfig}"]
        run = ["run", "one", "--image=localhost/rlhf-pause:1", "--image-pull-policy=Never"]
        subprocess.run([*command, *run], check=True, capture_output=True)
        ready = ["wait", "--for=condition=Ready", "pod/one", "--timeout=60s"]
        subprocess.run([*command, *ready], check=True, capture_output=True)
        started = time.monotonic()
        second.kill_node("node-b")
        unready = ["wait", "--for=condition=Ready=Unknown", "node/node-b", "--timeout=60s"]
        subprocess.run([*command, *unready], check=True, capture_output=True)
        assert time.monotonic() - started < 40
    assert trace() == before
