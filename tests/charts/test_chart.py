"""The chart as Helm 3 and Helm 4 render it."""

import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.tools import helm

CHART = Path(__file__).parents[2] / "charts" / "rlhf-operator"
CRD = Path(__file__).parents[2] / "crds" / "rlhfjobs.yaml"
SET = ("image.repository=registry.test/operator", "trainerImage=registry.test/trainer:1")

Raw = dict[str, Any]


@pytest.fixture(params=[3, 4], ids=["helm3", "helm4"])
def major(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def run_helm(major: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(helm(major)), *arguments], capture_output=True, text=True, check=False, timeout=300
    )


def rendered(major: int, *values: str, given: Iterable[str] = SET) -> list[Raw]:
    settings = [part for value in (*given, *values) for part in ("--set", value)]
    done = run_helm(major, "template", "demo", str(CHART), "--namespace", "ops", *settings)
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def of_kind(objects: list[Raw], kind: str) -> list[Raw]:
    return [each for each in objects if each["kind"] == kind]


def rules_of(objects: list[Raw]) -> list[Raw]:
    roles = of_kind(objects, "Role") + of_kind(objects, "ClusterRole")
    return [rule for role in roles for rule in role["rules"]]


def test_lint_finds_nothing(major: int) -> None:
    settings = [part for value in SET for part in ("--set", value)]
    done = run_helm(major, "lint", "--strict", str(CHART), *settings)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("missing", range(2))
def test_what_must_be_set_is_asked_for_by_a_sentence(major: int, missing: int) -> None:
    given = SET[1 - missing]
    done = run_helm(major, "template", "demo", str(CHART), "--set", given)
    assert done.returncode != 0
    name = SET[missing].partition("=")[0]
    assert f"{name} is not set" in done.stderr
    assert f"--set {name}=registry.example.com/" in done.stderr


def test_the_crd_is_the_generated_one(major: int) -> None:
    expected = yaml.safe_load(CRD.read_text())
    (kept,) = of_kind(rendered(major), "CustomResourceDefinition")
    assert kept["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert kept == expected
    (loose,) = of_kind(rendered(major, "crds.keep=false"), "CustomResourceDefinition")
    assert loose == expected
    assert not of_kind(rendered(major, "crds.enabled=false"), "CustomResourceDefinition")


@pytest.mark.parametrize("scope", ["", "watch.namespaces={team-a,team-b}"])
def test_it_may_no_more_than_it_needs(major: int, scope: str) -> None:
    objects = rendered(major, *filter(None, [scope]))
    rules = rules_of(objects)
    for rule in rules:
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        assert "secrets" not in rule["resources"]
        if "pods" in rule["resources"]:
            assert set(rule["verbs"]) <= {"get", "list", "watch"}
        if rule["resources"] == ["leases"] and rule["verbs"] != ["create"]:
            assert rule["resourceNames"] == ["demo-rlhf-operator"]
    roles = [
        (role["metadata"].get("namespace"), role["kind"]) for role in objects if "rules" in role
    ]
    if scope:
        assert sorted(roles) == [("ops", "Role"), ("team-a", "Role"), ("team-b", "Role")]
    else:
        assert roles == [(None, "ClusterRole"), ("ops", "Role")]


def test_the_pod_is_restricted_and_told_its_settings(major: int) -> None:
    objects = rendered(major, "replicas=2", "watch.namespaces={team-a}", "logLevel=DEBUG")
    (deployment,) = of_kind(objects, "Deployment")
    assert deployment["spec"]["replicas"] == 2
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["image"] == "registry.test/operator:0.1.0"
    values = {each["name"]: each.get("value") for each in container["env"]}
    assert values["RLHF_OPERATOR_NAMESPACES"] == '["team-a"]'
    assert values["RLHF_OPERATOR_LEASE_NAME"] == "demo-rlhf-operator"
    assert values["RLHF_OPERATOR_LOG_LEVEL"] == "DEBUG"


def test_every_setting_that_it_gives_is_one_of_the_operator(major: int) -> None:
    from rlhf_operator.settings import Settings

    (deployment,) = of_kind(rendered(major), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    prefix = Settings.model_config["env_prefix"]
    given = {each["name"].removeprefix(prefix).lower() for each in container["env"]}
    assert given <= set(Settings.model_fields)
