"""Causes for which a job does not run, each brought about on a control plane.

What the API server, its admission and the controllers refuse is refused by them; the scheduler, the
kubelet and the trainer are played. What is shown is what `docs/troubleshooting.md` tells of.
"""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from admission import Webhook
from cluster.control_plane import ControlPlane
from cluster.kube_fixtures import RESTRICTED, Access, new_namespace
from cluster.tools import KUBECTL
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from operating import END_SECONDS, Jobs, OperatorProcess, now
from waiting import eventually

from rlhf_api.names import GROUP, PLURAL, VERSION
from rlhf_api.schema import custom_resource_definition

Raw = dict[str, Any]

NAME = "demo"
NODE = "gpu-node-3"


@dataclass(frozen=True)
class Shown:
    """What a person sees of a cause.

    Attributes:
        phase: in the column of `kubectl get rlhf`.
        reason: in the column of `kubectl get rlhf -o wide`.
        condition: type, status, reason and message; None if none tells of it.
        event: type, reason and message; None if none tells of it.
    """

    phase: str
    reason: str
    condition: tuple[str, str, str, str] | None = None
    event: tuple[str, str, str] | None = None


class Diary:
    """Every version of the job, from its creation on: some reasons stand for a second."""

    def __init__(self, jobs: Jobs, made: Raw, file: Path) -> None:
        self._file = file
        path = f"/apis/{GROUP}/{VERSION}/namespaces/{jobs.namespace}/{PLURAL}"
        query = f"watch=1&resourceVersion={made['metadata']['resourceVersion']}"
        options = (f"--kubeconfig={jobs.access.kubeconfig}", "--raw", f"{path}?{query}")
        with file.open("w") as out:
            self._watch = subprocess.Popen([str(KUBECTL), "get", *options], stdout=out)

    def versions(self) -> list[Raw]:
        """All of them."""
        lines = self._file.read_text(encoding="utf-8").splitlines(keepends=True)
        # The last line may not be written to its end.
        return [json.loads(line)["object"] for line in lines if line.endswith("\n")]

    def first(self, match: Callable[[Raw], bool]) -> Raw:
        """The first version that is as it should be."""
        found: Raw = eventually(
            lambda: next((each for each in self.versions() if match(each)), None),
            what=lambda: "\n".join(json.dumps(each.get("status")) for each in self.versions()),
        )
        return found

    def close(self) -> None:
        """Write no more."""
        self._watch.kill()
        self._watch.wait(END_SECONDS)


@dataclass
class Scene:
    """A namespace with an operator, and one job in it.

    Attributes:
        jobs: RLHFJobs of the namespace.
        operator: it leads.
        own: the control plane.
        folder: for files.
        undo: what is to be taken back at the end.
        diary: of the job, once it is made.
    """

    jobs: Jobs
    operator: OperatorProcess
    own: ControlPlane
    folder: Path
    undo: ExitStack = field(default_factory=ExitStack)
    diary: Diary | None = None

    @classmethod
    @contextmanager
    def open(cls, access: Access, own: ControlPlane, folder: Path) -> Iterator["Scene"]:
        """A namespace of its own, in which nothing has happened."""
        for namespace in new_namespace(access):
            jobs = Jobs(access, namespace)
            jobs.claim()
            operator = OperatorProcess(access, namespace, folder)
            scene = cls(jobs, operator, own, folder)
            with scene.undo:
                scene.undo.callback(operator.end)
                operator.wait_until_leading()
                yield scene

    def create(self, **spec: Any) -> None:
        """Make the job."""
        made = self.jobs.create(NAME, **spec)
        self.diary = Diary(self.jobs, made, self.folder / f"{self.jobs.namespace}.versions")
        self.undo.callback(self.diary.close)

    def run(self) -> Any:
        """Make the job, and let its pod run on a node; gives the pod."""
        self.create()
        self.jobs.wait_for_pods(NAME)
        (pod,) = self.jobs.pods(NAME)
        self.jobs.bind(pod, NODE)
        self.jobs.run(NAME)
        self.jobs.reaches(NAME, "Running")
        return pod

    def end(self, code: int, **told: Any) -> None:
        """Let the pod end, and say so."""
        self.jobs.finish(NAME, code=code, message=self.jobs.result(NAME, "sft", 1, code, **told))

    def patch_pod(self, pod: Any, **condition: str) -> None:
        """Set a condition of the pod."""
        body = {"status": {"conditions": [{"lastTransitionTime": now()} | condition]}}
        self.jobs.core.patch_namespaced_pod_status(pod.metadata.name, self.jobs.namespace, body)

    def refuses_jobs(self) -> bool:
        """Whether no Job can be made here."""
        pod = {"restartPolicy": "Never", "containers": [{"name": "a", "image": "b"}]}
        probe = {"metadata": {"name": "probe"}, "spec": {"template": {"spec": pod}}}
        try:
            self.jobs.batch.create_namespaced_job(self.jobs.namespace, probe, dry_run="All")
        except ApiException:
            return True
        return False

    def webhook(self) -> Webhook:
        """A webhook that is asked about Jobs and denies them."""
        hook = Webhook(self.jobs.access, self.own, self.jobs.namespace, "jobs")
        hook.answer(lambda _: "images must come from registry.example.com")
        self.undo.callback(hook.close)
        return hook

    def steady(self, text: str) -> str:
        """The text with the names that differ from run to run replaced."""
        text = text.replace(self.jobs.namespace, "team-a")
        text = re.sub(rf"({NAME}-sft-\d+-\d+-)[a-z0-9]{{5}}\b", r"\1x7k2p", text)
        return re.sub(r"(127\.0\.0\.1:)\d+", r"\g<1>9443", text)


def shown(scene: Scene, condition: str, reason: str) -> Shown:
    """What is shown when that condition has that reason for the first time."""
    assert scene.diary is not None

    def told(job: Raw) -> Raw:
        conditions = job.get("status", {}).get("conditions", [])
        return next((each for each in conditions if each["type"] == condition), {})

    job = scene.diary.first(lambda job: told(job).get("reason") == reason)
    found = told(job)
    words = _without_stage(found["message"])
    event = eventually(
        lambda: next(
            (
                each
                for each in events_of(scene)
                if (each.reason, _without_stage(each.message)) == (reason, words)
            ),
            None,
        )
    )
    return Shown(
        column(job, "Phase"),
        column(job, "Reason"),
        (str(condition), found["status"], found["reason"], scene.steady(found["message"])),
        (event.type, event.reason, scene.steady(event.message)),
    )


def events_of(scene: Scene) -> list[Any]:
    """The Events about the job."""
    selector = f"involvedObject.kind=RLHFJob,involvedObject.name={NAME}"
    found = scene.jobs.core.list_namespaced_event(scene.jobs.namespace, field_selector=selector)
    return list(found.items)


def _without_stage(message: str) -> str:
    return message.removeprefix("stage sft: ")


def column(job: Raw, name: str) -> str:
    """What a printer column of the CRD shows of the job."""
    (version,) = custom_resource_definition()["spec"]["versions"]
    found: Any = job
    path = next(
        each["jsonPath"] for each in version["additionalPrinterColumns"] if each["name"] == name
    )
    for part in path.strip(".").split("."):
        found = found.get(part, {})
    return found if isinstance(found, str) else ""


def claim_missing(scene: Scene) -> None:
    scene.create(storage={"uri": "pvc://models/runs"})


def quota(scene: Scene) -> None:
    core, namespace = scene.jobs.core, scene.jobs.namespace
    given = {"metadata": {"name": "compute"}, "spec": {"hard": {"pods": "0"}}}
    core.create_namespaced_resource_quota(namespace, given)
    read = core.read_namespaced_resource_quota
    eventually(lambda: (read("compute", namespace).status.hard or {}).get("pods"))
    scene.create()


def limit_range(scene: Scene) -> None:
    limit = {"type": "Container", "max": {"memory": "8Gi"}}
    given = {"metadata": {"name": "small"}, "spec": {"limits": [limit]}}
    scene.jobs.core.create_namespaced_limit_range(scene.jobs.namespace, given)
    scene.create(template={"resources": {"limits": {"memory": "64Gi"}}})


def pod_security(scene: Scene) -> None:
    key, _, value = RESTRICTED.partition("=")
    body = {"metadata": {"labels": {key: value}}}
    scene.jobs.core.patch_namespace(scene.jobs.namespace, body)
    scene.create(template={"securityContext": {"runAsNonRoot": False}})


def policy(scene: Scene) -> None:
    api, name = client.AdmissionregistrationV1Api(scene.jobs.access.api), "cost-center"
    name = f"{name}.{scene.jobs.namespace}"
    place = {"matchLabels": {"kubernetes.io/metadata.name": scene.jobs.namespace}}
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "resources": ["jobs"]}
    rules = [rule | {"operations": ["CREATE"]}]
    denial = {
        "expression": "has(object.metadata.labels) && 'cost-center' in object.metadata.labels",
        "message": "a Job needs the label cost-center",
    }
    spec = {"matchConstraints": {"resourceRules": rules}, "validations": [denial]}
    api.create_validating_admission_policy({"metadata": {"name": name}, "spec": spec})
    scene.undo.callback(api.delete_validating_admission_policy, name)
    bound = {
        "policyName": name,
        "validationActions": ["Deny"],
        "matchResources": {"namespaceSelector": place},
    }
    api.create_validating_admission_policy_binding({"metadata": {"name": name}, "spec": bound})
    scene.undo.callback(api.delete_validating_admission_policy_binding, name)
    eventually(scene.refuses_jobs)
    scene.create()


def webhook_down(scene: Scene) -> None:
    scene.webhook().die()
    eventually(scene.refuses_jobs)
    scene.create()


def webhook_refusing(scene: Scene) -> None:
    scene.webhook()
    eventually(scene.refuses_jobs)
    scene.create()


def priority_class(scene: Scene) -> None:
    scene.create(template={"priorityClassName": "urgent"})


def service_account(scene: Scene) -> None:
    scene.create(template={"serviceAccountName": "trainer"})


def image(scene: Scene) -> None:
    scene.create()
    scene.jobs.wait_for_pods(NAME)
    scene.jobs.wait(scene.jobs.pods(NAME)[0], "ErrImagePull", "manifest unknown")


def volume_not_mounted(scene: Scene) -> None:
    secret = {"secretName": "dataset-token"}
    mount = {"name": "token", "mountPath": "/token"}
    scene.create(
        template={"volumes": [{"name": "token", "secret": secret}], "volumeMounts": [mount]}
    )
    scene.jobs.wait_for_pods(NAME)
    (pod,) = scene.jobs.pods(NAME)
    scene.jobs.bind(pod, NODE)
    scene.jobs.wait(pod, "ContainerCreating")
    message = 'MountVolume.SetUp failed for volume "token" : secret "dataset-token" not found'
    scene.jobs.warn(pod, "FailedMount", message)


def storage_exceeded(scene: Scene) -> None:
    pod = scene.run()
    message = 'Container trainer exceeded its local ephemeral storage limit "2Gi". '
    scene.jobs.evict(pod, message)


def secret_missing(scene: Scene) -> None:
    scene.create(template={"envFrom": [{"secretRef": {"name": "hf-token"}}]})
    scene.jobs.wait_for_pods(NAME)
    reason = "CreateContainerConfigError"
    scene.jobs.wait(scene.jobs.pods(NAME)[0], reason, 'secret "hf-token" not found')


def not_started(scene: Scene) -> None:
    scene.create()
    scene.jobs.wait_for_pods(NAME)
    message = "failed to generate container spec: failed to apply OCI options: no such device"
    scene.jobs.wait(scene.jobs.pods(NAME)[0], "CreateContainerError", message)


def sidecar_crashes(scene: Scene) -> None:
    scene.create()
    scene.jobs.wait_for_pods(NAME)
    message = "back-off 20s restarting failed container=mesh-proxy"
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": message}}
    mesh = {"name": "mesh-proxy", "image": "m:1", "imageID": "", "ready": False, "restartCount": 2}
    body = {"status": {"initContainerStatuses": [mesh | {"state": waiting}]}}
    pod = scene.jobs.pods(NAME)[0].metadata.name
    scene.jobs.core.patch_namespaced_pod_status(pod, scene.jobs.namespace, body)


def unschedulable(scene: Scene) -> None:
    scene.create()
    scene.jobs.wait_for_pods(NAME)
    message = "0/4 nodes are available: 4 Insufficient nvidia.com/gpu."
    condition = {"status": "False", "reason": "Unschedulable", "message": message}
    scene.patch_pod(scene.jobs.pods(NAME)[0], type="PodScheduled", **condition)


def node_lost(scene: Scene) -> None:
    pod = scene.run()
    since = (datetime.now(UTC) - timedelta(seconds=60)).strftime("%Y-%m-%dT%H:%M:%SZ")
    scene.patch_pod(pod, type="Ready", status="False", lastTransitionTime=since)


def drained(scene: Scene) -> None:
    pod = scene.run()
    body = {"metadata": {"name": pod.metadata.name, "namespace": scene.jobs.namespace}}
    scene.jobs.core.create_namespaced_pod_eviction(pod.metadata.name, scene.jobs.namespace, body)
    scene.end(75, reason="Stopped", lastCheckpointStep=3)


def preempted(scene: Scene) -> None:
    pod = scene.run()
    message = "default-scheduler: preempting to accommodate a higher priority pod"
    condition = {"status": "True", "reason": "PreemptionByScheduler", "message": message}
    scene.patch_pod(pod, type="DisruptionTarget", **condition)
    scene.end(75, reason="Stopped", lastCheckpointStep=3)


def out_of_memory(scene: Scene) -> None:
    scene.jobs.end_pod(scene.run(), 137, reason="OOMKilled")


def bad_data(scene: Scene) -> None:
    scene.run()
    message = "sft.jsonl:3: response: is missing; the row has prompt; add it"
    scene.end(65, reason="DataError", message=message, step=0)


def disk_full(scene: Scene) -> None:
    scene.run()
    folder = "/mnt/claims/runs/runs/demo-5f0c1a2b/sft/attempt-1/checkpoints"
    message = f"{folder}: No space left on device; free space or check the volume"
    scene.end(74, reason="IOError", message=message)


def suspended(scene: Scene) -> None:
    pod = scene.run()
    scene.jobs.patch(NAME, suspend=True)
    eventually(lambda: scene.jobs.stage(NAME).get("state") == "Stopping")
    scene.end(75, reason="Stopped", lastCheckpointStep=3)
    scene.jobs.remove_pod(pod)


def queue(scene: Scene) -> None:
    scene.create(queueName="team-queue")


def operator_away(scene: Scene) -> None:
    scene.operator.end()
    scene.create()
