"""The children of a job, as plain objects."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_api.v1alpha1.volumes import PARENT_PATHS
from rlhf_operator.manifests import (
    claims_of,
    cluster_placement,
    config_map,
    service,
    stage_job,
)
from rlhf_operator.planning.actions import StartAttempt
from rlhf_operator.planning.configs import stage_config

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


@pytest.mark.field(
    "StageSpec.resources",
    "StageSpec.node_selector",
    "StageSpec.tolerations",
    "StageSpec.env",
    "StageSpec.priority_class_name",
)
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


@pytest.mark.parametrize(
    ("path", "idle"),
    [
        ("/tmp", "rlhf-tmp"),
        ("/tmp/", "rlhf-tmp"),
        ("/dev/shm", "rlhf-shm"),
        ("/home/rlhf", "rlhf-home"),
        ("/home/rlhf/.cache", None),  # below one of ours
        ("/tmp/rlhf", None),  # where tokens are kept
        ("/home/other", None),
    ],
)
def test_a_mount_of_the_users_wins_over_ours(
    job: Callable[..., RLHFJob], path: str, idle: str | None
) -> None:
    volumes = [{"name": "fast", "emptyDir": {}}, {"name": "spare", "emptyDir": {}}]
    mounts = [{"name": "fast", "mountPath": path}, {"name": "fast", "mountPath": "/also"}]
    pod = pod_of(made(job(template={"volumes": volumes, "volumeMounts": mounts}))[1])
    plain = pod_of(made(job())[1])
    found = pod["containers"][0]["volumeMounts"]
    paths = [mount["mountPath"].rstrip("/") for mount in found]
    assert len(paths) == len(set(paths))
    assert {"name": "fast", "mountPath": path} in found
    ours = {volume["name"] for volume in plain["volumes"]}
    names = [volume["name"] for volume in pod["volumes"]]
    assert sorted(names) == sorted((ours - {idle}) | {"fast", "spare"})
    assert {mount["name"] for mount in found} == set(names) - {"spare"}
    # One manifest leaves no trace in the next.
    assert pod_of(made(job())[1]) == plain


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


def test_labels_of_the_template_are_on_every_child_and_ours_win(
    job: Callable[..., RLHFJob],
) -> None:
    labels = {"team": "a", "kueue.x-k8s.io/priority-class": "high"}
    given = job(template={"labels": labels, "annotations": {"cost": "42"}}, queueName="q")
    # As if an API server without our rules had let them pass.
    stolen = {
        "rlhf.dev/stage": "ppo",
        "app.kubernetes.io/managed-by": "me",
        "rlhf.dev/job-uid": "x",
    }
    theirs = {"rlhf.dev/config-digest": "x", "cost": "42"}
    template = given.spec.template.model_copy(
        update={"labels": labels | stolen, "annotations": theirs}
    )
    forged = given.model_copy(update={"spec": given.spec.model_copy(update={"template": template})})
    for one in (given, forged):
        action, child = made(one)
        pod = child["spec"]["template"]
        for each in (child, service(one), config_map(one, action), pod):
            metadata = each["metadata"]
            assert labels.items() <= metadata["labels"].items()
            assert metadata["labels"]["app.kubernetes.io/managed-by"] == "rlhf-operator"
            assert metadata["labels"]["rlhf.dev/job-uid"] == UID
            assert metadata["annotations"]["cost"] == "42"
        assert child["metadata"]["labels"]["rlhf.dev/stage"] == "sft"
        assert child["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "q"
        assert child["metadata"]["annotations"]["rlhf.dev/config-digest"].startswith("sha256:")
        assert pod["metadata"]["labels"]["rlhf.dev/stage"] == "sft"
        assert "kueue.x-k8s.io/queue-name" not in pod["metadata"]["labels"]


def test_kubectl_chooses_the_trainer_unless_the_user_says_otherwise(
    job: Callable[..., RLHFJob],
) -> None:
    """Injected containers may stand before it."""
    chosen = "kubectl.kubernetes.io/default-container"
    for notes, name in (({"cost": "42"}, "trainer"), ({chosen: "proxy"}, "proxy")):
        child = made(job(template={"annotations": notes}))[1]
        pod = child["spec"]["template"]["metadata"]
        assert pod["annotations"] == notes | {chosen: name}
        assert child["metadata"]["annotations"].get(chosen) == notes.get(chosen)
    pod = made(job())[1]["spec"]["template"]
    assert pod["metadata"]["annotations"][chosen] == pod["spec"]["containers"][0]["name"]


def volumes_of(job: RLHFJob) -> dict[str, str]:
    """Claims by the names of their volumes, each of which is mounted where it belongs."""
    pod = pod_of(made(job)[1])
    found = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert {name: mounts[name] for name in found} == {
        name: f"/mnt/claims/{claim}" for name, claim in found.items()
    }
    return found


CLAIM = st.from_regex(r"[ab]([-ab.]{0,70}[ab])?", fullmatch=True)
ALIKE = ["a.b", "a-b", "a--b", "a.-b", "a" * 52, "a" * 53, "a" * 53 + "b", "a" * 252 + "b"]


@given(st.lists(CLAIM | st.sampled_from(ALIKE), min_size=1, max_size=6))
def test_no_two_claims_have_one_volume(claims: list[str]) -> None:
    # And none is called like what another one's name was changed to.
    before = volume_names(claims)
    looks_changed = [name.removeprefix("rlhf-claim-") for name in before.values()]
    claims = [*claims, *looks_changed]
    names = volume_names(claims)
    assert len(set(names.values())) == len(set(claims))
    for claim, name in names.items():
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", name)
        assert name.startswith("rlhf-")
        assert before.get(claim, name) == name


def volume_names(claims: list[str]) -> dict[str, str]:
    spec = {
        "storage": {"uri": "pvc://runs"},
        "stages": {"sft": {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://c/d"}}},
    }
    found = {}
    for claim in claims:
        spec["stages"]["sft"]["dataset"] = {"uri": f"pvc://{claim}/x"}
        document = {
            "apiVersion": "rlhf.dev/v1alpha1",
            "kind": "RLHFJob",
            "metadata": {"name": "demo", "namespace": "team", "uid": UID},
            "spec": spec,
        }
        (name,) = [
            name
            for name, each in volumes_of(RLHFJob.from_document(document)).items()
            if each == claim
        ]
        found[claim] = name
    return found


@pytest.mark.parametrize(
    ("claim", "name"),
    [
        ("runs", "rlhf-claim-runs"),
        ("a" * 52, "rlhf-claim-" + "a" * 52),
        ("a.b", "rlhf-claim-a-b-2e7336dc8e"),
    ],
)
def test_the_name_of_a_volume_is_that_of_its_claim_where_it_can_be(claim: str, name: str) -> None:
    assert volume_names([claim])[claim] == name


def test_no_volume_of_the_user_can_lie_above_a_mount(job: Callable[..., RLHFJob]) -> None:
    """The root is refused as well."""
    _, child = made(job())
    (container,) = child["spec"]["template"]["spec"]["containers"]
    paths = [mount["mountPath"] for mount in container["volumeMounts"]]
    above = {path[:at] for path in paths for at in range(1, len(path)) if path[at] == "/"}
    allowed = {"/etc/rlhf", "/mnt/claims"}  # Nothing at or below these is the user's.
    assert above - allowed == set(PARENT_PATHS) - allowed
