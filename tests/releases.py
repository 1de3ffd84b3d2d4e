"""Releases of the chart: Helm's commands, and what lies in a cluster before and after them."""

import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any
from uuid import uuid4

from cluster.kube_fixtures import Access
from cluster.tools import helm
from waiting import eventually

CHART = Path(__file__).parents[1] / "charts" / "rlhf-operator"
EARLIER = Path(__file__).parent / "charts" / "rlhf-operator-0.1.0.tgz"
"""The chart that users of the release 0.1.0 have installed."""
HELM_SECONDS = 300

# Events tell what happened, and go away by themselves.
_PASSING = frozenset({"events", "events.events.k8s.io"})
_IDENTITY = r'{range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{"\n"}{end}'
# What the API server and its controllers add to an object.
_SERVED = ("creationTimestamp", "generation", "managedFields", "resourceVersion", "uid")

Raw = dict[str, Any]


class Release:
    """A release of the chart, in a namespace of its own.

    Attributes:
        access: to the API server.
        major: of the Helm that it is handled with.
        namespace: its namespace and its name.
        deployment: name of the operator's Deployment, and of its Lease.
        label: that all its objects have.
    """

    def __init__(self, major: int, access: Access) -> None:
        self.major, self.access = major, access
        self.namespace = f"ops-{uuid4().hex[:8]}"
        self.deployment = f"{self.namespace}-rlhf-operator"
        self.label = f"app.kubernetes.io/instance={self.namespace}"

    def create_namespace(self, *labels: str) -> None:
        """Make its namespace, with all that Kubernetes puts into one."""
        self.access.kubectl("create", "namespace", self.namespace)
        if labels:
            self.access.kubectl("label", "namespace", self.namespace, *labels)
        for each in ("serviceaccount/default", "configmap/kube-root-ca.crt"):
            # One by one: kubectl does not wait where two are missing.
            options = ("-n", self.namespace, "--for=create", "--timeout=60s")
            self.access.kubectl("wait", *options, each)

    def helm(self, verb: str, *arguments: str) -> str:
        """Run Helm on the release; gives what it says."""
        done = self.try_helm(verb, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def try_helm(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The same, whatever comes of it."""
        return subprocess.run(
            [
                str(helm(self.major)),
                f"--kubeconfig={self.access.kubeconfig}",
                f"--namespace={self.namespace}",
                *(verb, self.namespace, *arguments),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=HELM_SECONDS,
        )

    def get(self, *arguments: str) -> str:
        """Output of kubectl get in the release's namespace."""
        return self.access.kubectl("get", "-n", self.namespace, *arguments).stdout

    def objects(self) -> dict[str, Raw]:
        """The objects that Helm made for the release, by identity, as its chart has them."""
        kinds = _kinds(self.access)
        labels = ("-l", "app.kubernetes.io/managed-by=Helm")
        listed = self.access.kubectl("get", kinds, "-A", *labels, "-o", "json").stdout
        # A Service's endpoints have its labels, but not Helm's annotations.
        owner = ("meta.helm.sh/release-name", self.namespace)
        return {
            _identity(each): _as_made(each)
            for each in json.loads(listed)["items"]
            if owner in each["metadata"].get("annotations", {}).items()
        }


def everything(access: Access, namespace: str = "", selector: str = "") -> set[str]:
    """Kind, namespace and name of every object but for Events.

    Args:
        access: to the API server.
        namespace: only what lies in it; the whole cluster when empty.
        selector: only what has these labels.
    """
    where = ["-n", namespace] if namespace else ["-A"]
    labels = ["-l", selector] if selector else []
    scope = ["--namespaced=true"] if namespace else []

    def listed() -> subprocess.CompletedProcess[str] | None:
        options = (*where, *labels, "-o", f"jsonpath={_IDENTITY}")
        done = access.kubectl("get", _kinds(access, *scope), *options, check=False)
        return None if done.returncode else done

    # A kind whose CRD has just been deleted is told of for some seconds more.
    found = eventually(listed, what="every kind that the API server tells of can be listed")
    return set(found.stdout.splitlines())


def set_options(*values: str) -> list[str]:
    """Values as options of Helm."""
    return [part for value in values for part in ("--set", value)]


def values_of(package: Path) -> str:
    """The values.yaml of a packaged chart."""
    with tarfile.open(package) as archive:
        file = archive.extractfile("rlhf-operator/values.yaml")
        assert file is not None
        return file.read().decode()


def _kinds(access: Access, *options: str) -> str:
    asked = ("api-resources", "--verbs=list,delete", "-o", "name", *options)
    found = access.kubectl(*asked).stdout.split()
    return ",".join(name for name in found if name not in _PASSING)


def _identity(found: Raw) -> str:
    metadata = found["metadata"]
    return f"{found['kind']} {metadata.get('namespace', '')}/{metadata['name']}"


def _as_made(found: Raw) -> Raw:
    found.pop("status", None)
    for name in _SERVED:
        found["metadata"].pop(name, None)
    found["metadata"].get("annotations", {}).pop("deployment.kubernetes.io/revision", None)
    return found
