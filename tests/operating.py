"""The operator as a process, and a kubelet played by hand, for tests on a control plane."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.control_plane import free_port
from cluster.kube_fixtures import Access
from kubernetes import client
from kubernetes.client.exceptions import NotFoundException
from prometheus_client.parser import text_string_to_metric_families
from waiting import PATIENCE, eventually

from rlhf_api.names import CONTRACT_VERSION, GROUP, PLURAL, VERSION, Label

Raw = dict[str, Any]

END_SECONDS = 60.0


class OperatorProcess:
    """`python -m rlhf_operator`, watching one namespace."""

    def __init__(
        self,
        access: Access,
        namespace: str,
        folder: Path,
        kubeconfig: str | None = None,
        started_by: Sequence[str] = (),
        **settings: str,
    ) -> None:
        self.port = free_port()
        self.log = folder / f"operator-{self.port}.log"
        given = {
            "TRAINER_IMAGE": "registry.test/trainer:1",
            "NAMESPACES": json.dumps([namespace]),
            "NAMESPACE": namespace,
            "IDENTITY": f"operator-{self.port}",
            "PORT": str(self.port),
        } | settings
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RLHF_OPERATOR_")}
        environment["KUBECONFIG"] = kubeconfig or str(access.kubeconfig)
        environment |= {f"RLHF_OPERATOR_{name}": value for name, value in given.items()}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*started_by, sys.executable, "-m", "rlhf_operator"],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of its HTTP endpoint."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()

    def probe(self, path: str) -> tuple[int, str]:
        """The same, whatever the status."""
        try:
            return self.get(path)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def is_ready(self) -> bool:
        """Whether its readiness probe would pass."""
        return self.probe("/readyz")[0] == 200

    def metric(self, name: str, **labels: str) -> float:
        """A sample of /metrics; 0 where there is none."""
        return self.find_metric(name, **labels) or 0.0

    def find_metric(self, name: str, **labels: str) -> float | None:
        """A sample of /metrics; None where there is none."""
        families = text_string_to_metric_families(self.get("/metrics")[1])
        found = [
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        ]
        return found[0] if found else None

    def wait_until_leading(self) -> None:
        """Until it watches."""
        eventually(lambda: " leads" in self.log.read_text() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()

    def end_well(self) -> None:
        """End it, and see that it never complained of a fault of its own."""
        assert self.end() == 0
        log = self.log.read_text()
        assert "Traceback" not in log, log
        assert "fault of the operator" not in log, log

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; gives the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(END_SECONDS)


class Jobs:
    """RLHFJobs and their children in one namespace, and the kubelet's part."""

    def __init__(self, access: Access, namespace: str) -> None:
        self.access, self.namespace = access, namespace
        self.core = client.CoreV1Api(access.api)
        self.batch = client.BatchV1Api(access.api)
        self._custom = client.CustomObjectsApi(access.api)
        self._where = (GROUP, VERSION, namespace, PLURAL)

    def claim(self, name: str = "runs") -> None:
        """Make a PersistentVolumeClaim."""
        spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        claim = {"metadata": {"name": name}, "spec": spec}
        self.core.create_namespaced_persistent_volume_claim(self.namespace, claim)

    def create(self, name: str, **spec: Any) -> Raw:
        """Make an RLHFJob of one stage, sft, unless `stages` says otherwise."""
        whole = {"storage": {"uri": "pvc://runs/runs"}, "stages": {"sft": stage()}} | spec
        document = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "RLHFJob",
            "metadata": {"name": name},
            "spec": {key: value for key, value in whole.items() if value is not None},
        }
        made: Raw = self._custom.create_namespaced_custom_object(*self._where, document)
        return made

    def get(self, name: str) -> Raw:
        """The RLHFJob."""
        found: Raw = self._custom.get_namespaced_custom_object(*self._where, name)
        return found

    def patch(self, name: str, **spec: Any) -> None:
        """Change its spec."""
        self._custom.patch_namespaced_custom_object(*self._where, name, {"spec": spec})

    def label(self, name: str, **labels: str) -> None:
        """Give it labels."""
        patch = {"metadata": {"labels": labels}}
        self._custom.patch_namespaced_custom_object(*self._where, name, patch)

    def relabel(self, child: str, value: str | None) -> None:
        """Set, or remove, the label by which the operator watches one of its batch Jobs."""
        body = {"metadata": {"labels": {Label.MANAGED_BY: value}}}
        self.batch.patch_namespaced_job(child, self.namespace, body)

    def relabel_pod(self, pod: Any, value: str | None) -> None:
        """The same of a pod."""
        body = {"metadata": {"labels": {Label.MANAGED_BY: value}}}
        self.core.patch_namespaced_pod(pod.metadata.name, self.namespace, body)

    def own(self, child: str, owners: list[Raw]) -> list[Raw]:
        """Let these own one of its batch Jobs; gives those that did."""
        path = f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{child}"
        before = json.loads(self.access.kubectl("get", "--raw", path).stdout)["metadata"]
        patch = json.dumps(
            [{"op": "replace", "path": "/metadata/ownerReferences", "value": owners}]
        )
        where = (f"--namespace={self.namespace}", "--type=json", f"--patch={patch}")
        self.access.kubectl("patch", "job", child, *where)
        found: list[Raw] = before.get("ownerReferences") or []
        return found

    def patch_status(self, name: str, **status: Any) -> None:
        """Write to its status, as another operator would."""
        body = {"status": status}
        self._custom.patch_namespaced_custom_object_status(*self._where, name, body)

    def delete(self, name: str) -> None:
        """Delete it."""
        self._custom.delete_namespaced_custom_object(*self._where, name)

    def phase(self, name: str) -> str:
        """Its phase; empty before it has one."""
        return str(self.get(name).get("status", {}).get("phase", ""))

    def condition(self, name: str, kind: str) -> Raw:
        """One of its conditions; empty if it is not there."""
        return condition_of(self.get(name).get("status", {}), kind)

    def stage(self, name: str, stage: str = "sft") -> Raw:
        """Status of a stage; empty before it has one."""
        found: Raw = self.get(name).get("status", {}).get("stages", {}).get(stage, {})
        return found

    def reaches(
        self, name: str, state: str, stage: str = "sft", attempt: int = 1, seconds: float = PATIENCE
    ) -> Raw:
        """Wait until that attempt of a stage is in that state."""

        def arrived() -> Raw | None:
            found = self.stage(name, stage)
            there = (found.get("state"), found.get("attempt")) == (state, attempt)
            return found if there else None

        return eventually(arrived, seconds)

    def pods(self, name: str, stage: str = "sft", attempt: int = 1) -> list[Any]:
        """Pods of an attempt, by index."""
        labels = {Label.JOB: name, Label.STAGE: stage, Label.ATTEMPT: str(attempt)}
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        found = self.core.list_namespaced_pod(self.namespace, label_selector=selector).items
        return sorted(found, key=lambda pod: pod.metadata.name)

    def wait_for_pods(
        self, name: str, stage: str = "sft", attempt: int = 1, n: int = 1, seconds: float = PATIENCE
    ) -> None:
        """Until the Job controller has made them."""
        eventually(lambda: len(self.pods(name, stage, attempt)) == n, seconds)

    def run(
        self, name: str, stage: str = "sft", attempt: int = 1, n: int = 1, seconds: float = PATIENCE
    ) -> None:
        """As the kubelet: the attempt's pods run, which may take so long to be made."""
        self.wait_for_pods(name, stage, attempt, n, seconds)
        for pod in self.pods(name, stage, attempt):
            self._set(pod, "Running", {"running": {"startedAt": now()}}, ready=True)

    def finish(
        self, name: str, stage: str = "sft", attempt: int = 1, code: int = 0, message: str = ""
    ) -> None:
        """As the kubelet: the attempt's pods end with `code`, a result or `message`."""
        for pod in self.pods(name, stage, attempt):
            self.end_pod(pod, code, message or self.result(name, stage, attempt, code))

    def end_pod(self, pod: Any, code: int, message: str = "", reason: str = "Error") -> None:
        """As the kubelet: one pod ends."""
        ended = {"exitCode": code, "reason": reason, "finishedAt": now(), "message": message}
        phase = "Succeeded" if code == 0 else "Failed"
        self._set(pod, phase, {"terminated": ended}, ready=False)

    def end_trainer(
        self, pod: Any, code: int, message: str, beside: str, fails: int | None = None
    ) -> None:
        """As the kubelet: the trainer of a pod ends; the container `beside` runs on, or fails."""
        ended = {"exitCode": code, "reason": "Completed", "finishedAt": now(), "message": message}
        other: Raw = {"running": {"startedAt": now()}}
        if fails is not None:
            other = {"terminated": {"exitCode": fails, "reason": "Error", "finishedAt": now()}}
        phase = "Running" if fails is None else "Failed"
        self._set(pod, phase, {"terminated": ended}, ready=False, others={beside: other})

    def result(self, name: str, stage: str, attempt: int, code: int, **more: Any) -> str:
        """The termination message of an attempt's launcher."""
        uid = self.get(name)["metadata"]["uid"]
        document = {
            "contractVersion": CONTRACT_VERSION,
            "stage": stage,
            "attempt": attempt,
            "configDigest": self.stage(name, stage)["configDigest"],
            "exitCode": code,
            "reason": "Finished" if code == 0 else "Crashed",
            "message": "done" if code == 0 else "it broke",
            "step": 4,
            "totalSteps": 4,
        }
        if code == 0:
            folder = f"{name}-{uid[:8]}/{stage}/attempt-{attempt}/artifact"
            document["artifact"] = {"uri": folder, "digest": "sha256:" + "a" * 64}
        return json.dumps(document | more)

    def wait(self, pod: Any, reason: str, message: str = "") -> None:
        """As the kubelet: the pod's container waits."""
        state = {"waiting": {"reason": reason, "message": message}}
        self._set(pod, "Pending", state, ready=False)

    def warn(self, pod: Any, reason: str, message: str) -> None:
        """As the kubelet: an Event about a pod."""
        about = {"kind": "Pod", "name": pod.metadata.name, "namespace": self.namespace}
        event = {
            "metadata": {"generateName": f"{pod.metadata.name}."},
            "involvedObject": about | {"uid": pod.metadata.uid},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "lastTimestamp": now(),
        }
        self.core.create_namespaced_event(self.namespace, event)

    def evict(self, pod: Any, message: str) -> None:
        """As the kubelet: it ends a pod that it evicts."""
        patch = {"status": {"reason": "Evicted", "message": message}}
        self.core.patch_namespaced_pod_status(pod.metadata.name, self.namespace, patch)
        self.end_pod(pod, 137)

    def disrupt(self, pod: Any, **status: Any) -> None:
        """Add a condition DisruptionTarget, as whoever preempts or drains does."""
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": "preempted",
            "lastTransitionTime": now(),
        }
        patch = {"status": {"conditions": [condition]} | status}
        self.core.patch_namespaced_pod_status(pod.metadata.name, self.namespace, patch)

    def bind(self, pod: Any, node: str = "node-1") -> None:
        """As the scheduler: the pod is on a node, and what deletes it waits for its end."""
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        body = {"metadata": {"name": pod.metadata.name}, "target": target}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod.metadata.name}/binding"
        self.access.kubectl("create", "--raw", path, "-f", "-", text=json.dumps(body))

    def reach(self, pod: Any, address: str) -> None:
        """As the kubelet: the pod has an address."""
        status = {"podIP": address, "podIPs": [{"ip": address}]}
        self.core.patch_namespaced_pod_status(pod.metadata.name, self.namespace, {"status": status})

    def remove_pod(self, pod: Any) -> None:
        """Delete a pod at once, whatever it does, unless a controller was faster."""
        with suppress(NotFoundException):
            self.core.delete_namespaced_pod(
                pod.metadata.name, self.namespace, grace_period_seconds=0
            )

    def job_turns(self, name: str, kind: str, stage: str = "sft", attempt: int = 1) -> None:
        """Wait until the Job of an attempt has a condition."""

        def turned() -> bool:
            child = f"{name}-{stage}-{attempt}"
            found = self.batch.read_namespaced_job(child, self.namespace).status.conditions or ()
            return any(each.type == kind and each.status == "True" for each in found)

        eventually(turned)

    def events(self, name: str) -> list[tuple[str, str]]:
        """Type and reason of the Events about an RLHFJob."""
        found = self.core.list_namespaced_event(
            self.namespace, field_selector=f"involvedObject.name={name}"
        )
        return [(each.type, each.reason) for each in found.items]

    def wait_for_events(self, name: str, *told: tuple[str, str]) -> None:
        """Until there are such Events about an RLHFJob, which come after its status."""
        eventually(lambda: {*told} <= {*self.events(name)})

    def _set(
        self, pod: Any, phase: str, state: Raw, *, ready: bool, others: Raw | None = None
    ) -> None:
        containers = [
            container_status(name, each, ready=ready)
            for name, each in ((others or {}) | {"trainer": state}).items()
        ]
        conditions = [
            {"type": "Ready", "status": str(ready), "lastTransitionTime": now()},
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": now()},
        ]
        status = {"phase": phase, "containerStatuses": containers, "conditions": conditions}
        body = {"status": status | {"startTime": now()}}
        self.core.patch_namespaced_pod_status(pod.metadata.name, self.namespace, body)


def children_ready(jobs: Jobs, name: str, reason: str, stage_reason: str = "") -> str:
    """Wait until ChildrenReady says `reason`; gives its message."""

    def refused() -> Raw | None:
        found: Raw = jobs.get(name).get("status", {})
        return found if condition_of(found, "ChildrenReady").get("reason") == reason else None

    status = eventually(refused)
    assert status["summary"]["reason"] == reason
    if stage_reason:
        assert condition_of(status, "Running")["reason"] == stage_reason
    return str(condition_of(status, "ChildrenReady")["message"])


def condition_of(status: Raw, kind: str) -> Raw:
    """One condition of a status; empty if it is not there."""
    return next((each for each in status.get("conditions", []) if each["type"] == kind), {})


def stage(**more: Any) -> Raw:
    """A stage that reads nothing of another one."""
    given = {"model": {"uri": "hf://org/base"}, "dataset": {"uri": "pvc://runs/rows.jsonl"}}
    return given | more


def now() -> str:
    """The time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def container_status(name: str, state: Raw, *, ready: bool) -> Raw:
    """Of a container of a pod, as the kubelet would write it."""
    told = {"name": name, "state": state, "ready": ready, "restartCount": 0}
    return told | {"image": f"registry.test/{name}:1", "imageID": ""}
