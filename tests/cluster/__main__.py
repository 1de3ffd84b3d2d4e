"""The test cluster by hand: `python -m cluster build|up|down`, called by the Makefile."""

import argparse
import subprocess
import sys

from cluster import packages
from cluster.binaries import binaries
from cluster.images import TARGETS, image, pause_image
from cluster.nodes import NodeCluster, state_folder
from cluster.tools import KUBECTL, helm, link_helm


def build() -> None:
    """Everything that needs a network, so that no test does."""
    for family in ("etcd", "kubernetes"):
        binaries(family)
    for major in (3, 4):
        helm(major)
    link_helm()
    if reason := packages.reason_against():
        sys.stderr.write(f"{reason}; tests on nodes are left out\n")
        return
    packages.require()
    for family in ("containerd", "coredns"):
        binaries(family)
    pause_image()
    for target in TARGETS:
        image(target)


def up() -> None:
    """Start a cluster in the background, unless it runs; load both images into its nodes."""
    cluster = NodeCluster(state_folder(), lasting=True)
    if not (cluster.marker.exists() and _answers(cluster)):
        packages.require()
        build()
        cluster.start()
        cluster.marker.touch()
    for target in TARGETS:
        name, archive = image(target)
        cluster.load_image(archive)
        sys.stderr.write(f"both nodes have the image {name}\n")
    sys.stdout.write(f"export KUBECONFIG={cluster.kubeconfig}\n")


def down() -> None:
    """End the cluster, if there is one, and leave nothing behind."""
    NodeCluster(state_folder()).clean()


def _answers(cluster: NodeCluster) -> bool:
    command = [str(KUBECTL), f"--kubeconfig={cluster.kubeconfig}", "get", "nodes"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def main() -> None:
    """Run one command."""
    commands = {"build": build, "up": up, "down": down}
    parser = argparse.ArgumentParser(prog="python -m cluster", description=__doc__)
    parser.add_argument("command", choices=commands)
    try:
        commands[parser.parse_args().command]()
    except (packages.PackagesError, RuntimeError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
