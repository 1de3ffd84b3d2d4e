"""The children of a job, as plain objects."""

from collections.abc import Callable
from typing import Any

import pytest

from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_operator.manifests import (
    claims_of,
    cluster_placement,
    config_map,
    service,
    stage_job,
)
from rlhf_operator.planning.configs import stage_config
from rlhf_operator.planning.plan import StartAttempt

UID = "0123456789abcdef"


def made(job: RLHFJob, **more: Any) -> tuple[StartAttempt, dict[str, Any]]:
    config = stage_config(job, StageName.SFT, 2, {}, cluster_placement(job))
    action = StartAttempt(StageName.SFT, 2, config, **more)
    return action, stage_job(job, action, "registry.test/trainer:1", "IfNotPresent")


@pytest.fixture
def job() -> Callable[..., RLHFJob]:
    def make(stage: dict[str, Any] | None = None, **spec: Any) -> RLHFJob:
        sft = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "pvc://data/x"}} | (stage or {})
        whole = {"storage": {"uri": "pvc://runs/a/b/"}, "stages": {"sft": sft}} | spec
        return RLHFJob.from_document(
            {
                "apiVersion": "rlhf.dev/v1alpha1",
                "kind": "RLHFJob",
                "metadata": {"name": "demo", "namespace": "team", "uid": UID},
                "spec": whole,
            }
        )

    return make


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("uri", ["pvc://runs", None])
def test_where_stages_leave_their_work(job: Callable[..., RLHFJob], uri: str | None) -> None:
    given = job(storage={"uri": uri or "pvc://runs"})
    if uri is None:
        spec = given.spec.model_copy(update={"storage": None})
        given = given.model_copy(update={"spec": spec})
    assert cluster_placement(given).storage == ("/mnt/claims/runs" if uri else "")


def test_pods_find_each_other_and_their_claims(job: Callable[..., RLHFJob]) -> None:
    action, manifest = made(job())
    config = action.config
    assert config.master_address == "demo-sft-2-0.demo.team.svc"
    assert (config.storage, config.claims) == ("/mnt/claims/runs/a/b", {"data": "/mnt/claims/data"})
    pod = pod_of(manifest)
    assert (manifest["metadata"]["name"], pod["subdomain"]) == ("demo-sft-2", "demo")
    assert (
        service(job())["spec"]["selector"].items()
        <= manifest["spec"]["template"]["metadata"]["labels"].items()
    )
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert set(mounts.values()) == set(volumes)
    for claim in claims_of(job(), StageName.SFT):
        volume = volumes[mounts[f"/mnt/claims/{claim}"]]
        assert volume["persistentVolumeClaim"]["claimName"] == claim
    name = volumes[mounts["/etc/rlhf"]]["configMap"]["name"]
    stage = config_map(job(), action)
    assert (stage["metadata"]["name"], stage["immutable"]) == (name, True)
    assert stage["data"]["stage.json"] == config.to_json()


def test_a_gang_fails_as_a_whole_and_is_never_made_twice(job: Callable[..., RLHFJob]) -> None:
    _, manifest = made(job(stage={"nodes": 4}))
    spec = manifest["spec"]
    assert (spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (4, 4, 0)
    assert spec["completionMode"] == "Indexed"
    assert "podFailurePolicy" not in spec
    assert pod_of(manifest)["restartPolicy"] == "Never"


def test_every_child_is_owned_and_labelled(job: Callable[..., RLHFJob]) -> None:
    action, manifest = made(job())
    for child in (manifest, service(job()), config_map(job(), action)):
        (owner,) = child["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (UID, True, True)
        assert child["metadata"]["labels"]["rlhf.dev/job-uid"] == UID


def test_the_pod_is_restricted_unless_the_job_says_otherwise(job: Callable[..., RLHFJob]) -> None:
    pod = pod_of(made(job())[1])
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    own = pod["containers"][0]["securityContext"]
    assert own["readOnlyRootFilesystem"] is True
    assert own["capabilities"] == {"drop": ["ALL"]}
    given = job(template={"securityContext": {"runAsUser": 5, "fsGroup": 7}})
    context = pod_of(made(given)[1])["securityContext"]
    assert (context["runAsUser"], context["fsGroup"], context["runAsNonRoot"]) == (5, 7, True)
    # One manifest leaves no trace in the next.
    assert pod_of(made(job())[1])["securityContext"]["fsGroup"] == 10001


def test_a_stage_overrides_the_template(job: Callable[..., RLHFJob]) -> None:
    given = job(
        stage={
            "resources": {"limits": {"memory": "2Gi"}},
            "env": [{"name": "A", "value": "stage"}],
            "nodeSelector": {"gpu": "h100"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "priorityClassName": "high",
        },
        template={
            "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}},
            "env": [{"name": "A", "value": "job"}, {"name": "B", "value": "job"}],
            "nodeSelector": {"gpu": "a100"},
            "priorityClassName": "low",
            "terminationGracePeriodSeconds": 60,
            "labels": {"team": "a"},
        },
    )
    _, manifest = made(given)
    pod = pod_of(manifest)
    container = pod["containers"][0]
    values = {each["name"]: each.get("value") for each in container["env"]}
    assert (values["A"], values["B"], values["RLHF_GRACE_PERIOD_SECONDS"]) == ("stage", "job", "60")
    assert container["resources"]["limits"] == {"memory": "2Gi"}
    assert pod["nodeSelector"] == {"gpu": "h100"}
    assert pod["priorityClassName"] == "high"
    assert {"key": "gpu", "operator": "Exists"} in pod["tolerations"]
    assert pod["terminationGracePeriodSeconds"] == 60
    assert manifest["spec"]["template"]["metadata"]["labels"]["team"] == "a"


def test_image_queue_and_checkpoint(job: Callable[..., RLHFJob]) -> None:
    _, plain = made(job())
    assert pod_of(plain)["containers"][0]["image"] == "registry.test/trainer:1"
    assert plain["spec"]["suspend"] is False
    assert "rlhf.dev/checkpoint-step" not in plain["metadata"]["annotations"]
    _, queued = made(job(image="own:2", queueName="team-a"), checkpoint_step=40)
    assert pod_of(queued)["containers"][0]["image"] == "own:2"
    assert queued["spec"]["suspend"] is True
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert queued["metadata"]["annotations"]["rlhf.dev/checkpoint-step"] == "40"


def test_the_guardrails_are_kept_beside_the_attempt(job: Callable[..., RLHFJob]) -> None:
    def kept(*rules: dict[str, str]) -> str:
        _, child = made(job(guardrails=list(rules)))
        return child["metadata"]["annotations"]["rlhf.dev/guardrails"]

    one, other = {"rule": "NegativeKL"}, {"rule": "NonFinite", "action": "Suspend"}
    assert kept(one, other) == kept(other, one)
    assert len({kept(), kept(one), kept(one, other), kept(one | {"action": "Fail"})}) == 4
