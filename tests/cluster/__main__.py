"""The test cluster by hand: `python -m cluster COMMAND`, called by the Makefile.

Everything but the building of programs and images happens inside a sandbox, so that the machine
stays as it was.
"""

import argparse
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import yaml
from cluster import monitoring, packages
from cluster.binaries import binaries, cache_folder, locked
from cluster.images import TARGETS, image, pause_image
from cluster.nodes import ADDRESSES, NodeCluster, current_sandbox, folder_of, remove_files
from cluster.sandbox import INSIDE, Sandbox, SandboxError, enter, named
from cluster.tools import KUBECTL, helm, link_helm

START_SECONDS = 900
ANSWER_SECONDS = 30


def build() -> None:
    """Everything that needs a network, so that no test does."""
    for family in ("etcd", "kubernetes"):
        binaries(family)
    for major in (3, 4):
        helm(major)
    link_helm()
    for program in (monitoring.promtool, monitoring.prometheus, monitoring.alertmanager):
        program()
    monitoring.monitoring_crds()
    if reason := packages.reason_against():
        sys.stderr.write(f"{reason}; tests on nodes are left out\n")
        return
    packages.require()
    for family in ("containerd", "coredns", "prometheus", "prometheus-operator"):
        binaries(family)
    pause_image()
    for target in TARGETS:
        image(target)


def up(name: str, *, images: bool) -> None:
    """Start a cluster that outlives this process, unless it runs, and say how to reach it."""
    packages.require()
    with _turn(name):
        _up(_sandbox(name), images=images)


def _up(sandbox: Sandbox, *, images: bool) -> None:
    if not _answers(sandbox):
        build()
        # One that does not answer is ended first.
        sandbox.stop()
        remove_files(sandbox)
        sandbox.start()
        try:
            _, address = sandbox.connect()
            _start_inside(sandbox, address)
        except BaseException:
            sandbox.stop()
            raise
    if images:
        cluster = NodeCluster.of(sandbox)
        for target in TARGETS:
            image_name, archive = image(target)
            cluster.load_image(archive)
            sys.stderr.write(f"both nodes have the image {image_name}\n")
    sys.stdout.write(f"export KUBECONFIG={_outer_kubeconfig(sandbox)}\n")


def down(name: str) -> None:
    """End the cluster, if there is one, and leave nothing behind."""
    with _turn(name):
        sandbox = _sandbox(name)
        sandbox.stop()
        remove_files(sandbox)


def run_inside(name: str, argv: list[str]) -> None:
    """Become a program inside the cluster's sandbox, where its pods can be reached.

    Raises:
        SandboxError: the cluster does not run.
    """
    sandbox = _sandbox(name)
    kubeconfig = NodeCluster.of(sandbox).kubeconfig
    environment = os.environ | {"KUBECONFIG": str(kubeconfig), INSIDE: str(sandbox.folder)}
    command = sandbox.command(argv)
    os.execvpe(command[0], command, environment)


def test(arguments: list[str]) -> int:
    """Run pytest in a sandbox of its own; gives its exit code."""
    if reason := packages.reason_against():
        if os.environ.get("CI") == "true":
            sys.exit(reason)
        sys.stderr.write(f"{reason}; tests on nodes are left out\n")
        return 0
    build()
    return enter([sys.executable, "-m", "pytest", *arguments])


def start(address: str) -> None:
    """Start the cluster of the sandbox that this process runs in; called by `up`."""
    sandbox = current_sandbox()
    if sandbox is None:
        sys.exit("`start` is for the inside of a sandbox; call `up`")
    cluster = NodeCluster.of(sandbox, lasting=True, reachable=(address,))
    cluster.start()
    document = yaml.safe_load(cluster.kubeconfig.read_text())
    document["clusters"][0]["cluster"]["server"] = f"https://{address}:{cluster.port}"
    path = _outer_kubeconfig(sandbox)
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(document))


def _start_inside(sandbox: Sandbox, address: str) -> None:
    command = [sys.executable, "-m", "cluster", "start", address]
    process = sandbox.exec(command, env=os.environ | {INSIDE: str(sandbox.folder)})
    try:
        code = process.wait(START_SECONDS)
    except subprocess.TimeoutExpired as error:
        process.kill()
        raise SandboxError(f"the nodes are not ready within {START_SECONDS} s") from error
    if code:
        raise SandboxError(f"the cluster did not start; see the logs in {folder_of(sandbox)}")


def _turn(name: str) -> AbstractContextManager[None]:
    """One `up` or `down` of a name at a time: another would end what is just being started."""
    return locked(cache_folder() / "sandboxes" / f"{name}.turn.lock", START_SECONDS)


def _sandbox(name: str) -> Sandbox:
    return named(cache_folder() / "sandboxes", name, lasting=True)


def _outer_kubeconfig(sandbox: Sandbox) -> Path:
    """The administrator's, for programs of the machine."""
    return folder_of(sandbox) / "machine.kubeconfig"


def _answers(sandbox: Sandbox) -> bool:
    if sandbox.init is None or not _outer_kubeconfig(sandbox).is_file():
        return False
    ready = 'jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}'
    command = [str(KUBECTL), f"--kubeconfig={_outer_kubeconfig(sandbox)}", "get", "nodes"]
    try:
        done = subprocess.run(
            [*command, "--request-timeout=10s", "-o", ready],
            capture_output=True,
            text=True,
            check=False,
            timeout=ANSWER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return False
    # A node whose kubelet or containerd hangs is not ready.
    return done.returncode == 0 and done.stdout.split() == ["True"] * len(ADDRESSES)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cluster", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build programs and images")
    starting = commands.add_parser("up", help="start a cluster that goes on by itself")
    starting.add_argument("--bare", action="store_true", help="load no images of ours")
    ending = commands.add_parser("down", help="end it")
    inside = commands.add_parser("exec", help="run a program inside: exec -- PROGRAM ...")
    for each in (starting, ending, inside):
        each.add_argument("--name", default="up", help="up to 5 letters; `up` if not given")
    inside.add_argument("argv", nargs="+", metavar="PROGRAM")
    tests = commands.add_parser("test", help="run pytest in a sandbox: test -- ARGUMENT...")
    tests.add_argument("argv", nargs="+", metavar="ARGUMENT")
    beginning = commands.add_parser("start", help="called by `up`")
    beginning.add_argument("address")
    return parser


def main() -> None:
    """Run one command."""
    given = _parser().parse_args()
    try:
        match given.command:
            case "build":
                build()
            case "up":
                up(given.name, images=not given.bare)
            case "down":
                down(given.name)
            case "exec":
                run_inside(given.name, given.argv)
            case "test":
                sys.exit(test(given.argv))
            case "start":
                start(given.address)
    except (packages.PackagesError, RuntimeError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
