"""`python -m cluster` as commands: two clusters at once, and a machine left as it was."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from cluster import packages
from cluster.binaries import cache_folder, locked
from cluster.cgroups import find_cgroups
from cluster.machine import run as told
from cluster.sandbox import instance, named
from cluster.tools import KUBECTL
from waiting import eventually

TESTS = Path(__file__).parents[1]
SECONDS = 900
PAUSE = "localhost/rlhf-pause:1"
SANDBOXES = cache_folder() / "sandboxes"
NAMES = ("tsta", "tstb")
OWN = [named(SANDBOXES, name) for name in NAMES]
INSTANCE_LINK = re.compile(r"\brlhf-\w+-[0-9a-f]{4}\b")
"""Name of the link to an instance."""

pytestmark = pytest.mark.timeout(2 * SECONDS)


@pytest.fixture(scope="module", autouse=True)
def _alone() -> Iterator[None]:
    """As root, and no other run of these tests has the clusters of these names."""
    if reason := packages.reason_against():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    packages.require()
    with locked(SANDBOXES / "commands.lock", SECONDS):
        yield


def cluster(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m cluster`, as the Makefile does."""
    return subprocess.run(
        [sys.executable, "-m", "cluster", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )


def up(name: str) -> Path:
    """Start a cluster; gives the kubeconfig that it prints."""
    done = cluster("up", "--bare", "--name", name)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"export KUBECONFIG=(\S+)\n", done.stdout)
    assert found is not None, done.stdout
    return Path(found[1])


def kubectl(kubeconfig: Path, *arguments: str) -> str:
    done = subprocess.run(
        [str(KUBECTL), f"--kubeconfig={kubeconfig}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_pod(kubeconfig: Path) -> str:
    """A pod that runs; gives its address."""
    image = [f"--image={PAUSE}", "--image-pull-policy=Never"]
    accounts = ("get", "serviceaccounts", "-o", "name")
    eventually(lambda: "default" in kubectl(kubeconfig, *accounts), what="a service account")
    kubectl(kubeconfig, "run", "one", *image)
    kubectl(kubeconfig, "wait", "--for=condition=Ready", "pod/one", "--timeout=200s")
    return kubectl(kubeconfig, "get", "pod/one", "-o", "jsonpath={.status.podIP}")


def lines(*command: str) -> list[str]:
    """What a command says, but for the links of other instances, which come and go."""
    own = {sandbox.link for sandbox in OWN}
    return [line for line in told(*command).splitlines() if own >= set(INSTANCE_LINK.findall(line))]


def trace() -> dict[str, object]:
    """What a cluster could leave on this machine, apart from its files."""
    pattern = r"^(net\.|vm\.(overcommit|panic)|kernel\.panic)"
    # Another's link may go in the meantime, and its keys with it.
    sysctls = lines("sysctl", "--all", "--ignore", "--pattern", pattern)
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return {
        "links": sorted(re.split(r"[:@]", line)[1] for line in lines("ip", "-o", "link")),
        "addresses": sorted(" ".join(line.split()[1:4]) for line in lines("ip", "-o", "address")),
        "routes": lines("ip", "route"),
        "namespaces": told("ip", "netns", "list"),
        "rules": re.findall(r"^[-:]\S.*?(?= \[|$)", told("iptables-save"), re.M),
        "mounts": sorted(line.split()[4] for line in mounts if "rlhf" in line),
        "cgroups": [path for sandbox in OWN for path in find_cgroups(sandbox.cgroup_prefix)],
        # Counters and lists grow with the machine's own use.
        "sysctls": [line for line in sysctls if not re.search(r"count|stat|random", line)],
        "processes": sorted(
            " ".join(process.info["cmdline"] or ())
            for process in psutil.process_iter(["cmdline"])
            if "/tst" in " ".join(process.info["cmdline"] or ())
        ),
    }


@pytest.fixture
def clean() -> Iterator[None]:
    """No cluster of ours before and after."""
    for name in NAMES:
        assert cluster("down", "--name", name).returncode == 0
    yield
    for name in NAMES:
        cluster("down", "--name", name)


def test_two_at_once_do_not_see_each_other_and_leave_nothing(clean: None) -> None:
    before = trace()
    # Whoever comes second waits, and finds the one that was started.
    with ThreadPoolExecutor(2) as pool:
        first, again = pool.map(up, ("tsta", "tsta"))
    assert first == again
    second = up("tstb")
    during = trace()
    assert all(during[what] != before[what] for what in ("links", "cgroups", "processes"))
    address = run_pod(first)
    assert "node-b" in kubectl(second, "get", "nodes", "-o", "name")
    assert kubectl(second, "get", "pods", "-A", "-o", "name") == ""
    # Pods are reachable inside their own cluster, and from nowhere else.
    ping = ["ping", "-c1", "-W3", address]
    if not Path("/bin/ping").exists():
        ping = ["busybox", *ping]
    assert cluster("exec", "--name", "tsta", "--", *ping).returncode == 0
    assert cluster("exec", "--name", "tstb", "--", *ping).returncode != 0
    assert subprocess.run(ping, check=False, capture_output=True, timeout=60).returncode != 0
    # KUBECONFIG of the inside is set; the exit code is passed on.
    inside = cluster("exec", "--name", "tsta", "--", str(KUBECTL), "get", "pods", "-o", "name")
    assert inside.stdout == "pod/one\n"
    assert cluster("exec", "--name", "tsta", "--", "sh", "-c", "exit 7").returncode == 7
    # A second `up` finds the one that runs.
    assert up("tsta") == first
    assert kubectl(first, "get", "pods", "-o", "name") == "pod/one\n"
    assert cluster("down", "--name", "tsta").returncode == 0
    assert "node-b" in kubectl(second, "get", "nodes", "-o", "name")
    assert cluster("down", "--name", "tstb").returncode == 0
    assert trace() == before


def test_a_trace_leaves_out_the_links_of_others(tmp_path: Path) -> None:
    before = trace()
    with instance(tmp_path) as other:
        other.connect()
        assert other.link in told("ip", "-o", "address")
        assert other.link in told("ip", "route")
        assert trace() == before
    for own in (OWN[0].link, "rlhf-nodes", "rlhf-tsta"):
        assert lines("echo", f"7: {own}@if2: <UP>") == [f"7: {own}@if2: <UP>"]


def test_up_ends_a_wedged_predecessor_with_pods(clean: None) -> None:
    before = trace()
    kubeconfig = up("tsta")
    run_pod(kubeconfig)
    server = next(
        process
        for process in psutil.process_iter(["cmdline"])
        if {"kube-apiserver"} & {Path(part).name for part in (process.info["cmdline"] or [""])[:1]}
        and str(kubeconfig.parent) in " ".join(process.info["cmdline"])
    )
    server.send_signal(signal.SIGSTOP)
    again = up("tsta")
    assert kubectl(again, "get", "pods", "-A", "-o", "name") == ""
    assert not server.is_running()
    assert cluster("down", "--name", "tsta").returncode == 0
    assert trace() == before


def test_exec_without_a_cluster_says_so(clean: None) -> None:
    done = cluster("exec", "--name", "tsta", "--", "true")
    assert done.returncode == 1
    assert "not running; start it first" in done.stderr
