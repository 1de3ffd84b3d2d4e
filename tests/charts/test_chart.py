"""The chart as Helm 3 and Helm 4 render it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_renders import (
    REQUIRED,
    identity_of,
    of_kind,
    rendered,
    run_helm,
    template,
    values_of,
)
from releases import CHART, set_options

from rlhf_api.names import OPERATOR_NAME, Label, Port
from rlhf_chart.values import GIVEN_BY_THE_CHART
from rlhf_operator.settings import CONFIG, PREFIX, Settings, read_settings

CRD = Path(__file__).parents[2] / "crds" / "rlhfjobs.yaml"
MONITORS = ("metrics.serviceMonitor.enabled=true", "metrics.podMonitor.enabled=true")

Raw = dict[str, Any]


@pytest.fixture(params=[3, 4], ids=["helm3", "helm4"])
def major(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def roles_bound_to(account: str, objects: list[Raw]) -> list[Raw]:
    """The roles that a ServiceAccount has."""
    bindings = of_kind(objects, "RoleBinding") + of_kind(objects, "ClusterRoleBinding")
    names = {
        (each["roleRef"]["kind"], each["metadata"].get("namespace"), each["roleRef"]["name"])
        for each in bindings
        if [subject["name"] for subject in each["subjects"]] == [account]
    }
    return [
        each
        for each in objects
        if (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) in names
    ]


def rules_of(objects: list[Raw]) -> list[Raw]:
    roles = of_kind(objects, "Role") + of_kind(objects, "ClusterRole")
    return [rule for role in roles for rule in role["rules"]]


def test_lint_finds_nothing(major: int) -> None:
    for given in (set_options(*REQUIRED), ["--values", str(values_of("everything"))]):
        done = run_helm(major, "lint", "--strict", str(CHART), *given)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("missing", range(2))
def test_what_must_be_set_is_asked_for_by_a_sentence(major: int, missing: int) -> None:
    given = REQUIRED[1 - missing]
    done = run_helm(major, "template", "demo", str(CHART), "--set", given)
    assert done.returncode != 0
    name = REQUIRED[missing].partition("=")[0]
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
    subject = "demo-rlhf-operator"
    objects = roles_bound_to(subject, rendered(major, *filter(None, [scope])))
    rules = rules_of(objects)
    for rule in rules:
        assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
        assert "secrets" not in rule["resources"]
        if "pods" in rule["resources"]:
            assert set(rule["verbs"]) <= {"get", "list", "watch"}
        if rule["resources"] == ["leases"] and rule["verbs"] != ["create"]:
            assert rule["resourceNames"] == ["demo-rlhf-operator"]
    roles = sorted((role["metadata"].get("namespace", ""), role["kind"]) for role in objects)
    if scope:
        assert roles == [("ops", "Role"), ("team-a", "Role"), ("team-b", "Role")]
    else:
        assert roles == [("", "ClusterRole"), ("ops", "Role")]


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


def pod_of(objects: list[Raw]) -> Raw:
    """The operator's pod."""
    (deployment,) = of_kind(objects, "Deployment")
    return dict(deployment["spec"]["template"]["spec"])


def container_of(objects: list[Raw]) -> Raw:
    """The operator's container."""
    (container,) = pod_of(objects)["containers"]
    return dict(container)


def test_the_operator_reads_what_the_values_say(
    major: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    objects = template(major, "--values", str(values_of("everything")))
    container = container_of(objects)
    configs = {each["metadata"]["name"]: each for each in of_kind(objects, "ConfigMap")}
    variables = {each["name"]: each.get("value", "from-the-pod") for each in container["env"]}
    (volume,) = (each for each in pod_of(objects)["volumes"] if each["name"] == "config")
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "config")
    folder, _, file = variables[CONFIG].rpartition("/")
    assert mount["mountPath"] == folder
    config = configs[volume["configMap"]["name"]]
    (tmp_path / file).write_text(config["data"][file])
    for name, value in (variables | {CONFIG: str(tmp_path / file)}).items():
        monkeypatch.setenv(name, value)
    settings = read_settings()
    assert (settings.workers, settings.api_requests_per_second) == (8, 200.5)
    assert (settings.resync_seconds, settings.job_metrics_seconds) == (600, 3600)
    assert settings.trainer_image == "registry.test/trainer:1"
    assert settings.trainer_image_pull_policy == "Always"
    assert (settings.lease_name, settings.deployment) == ("demo-rlhf-operator",) * 2
    assert settings.log_level == "DEBUG"
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"metrics": settings.port}


def test_config_has_every_setting_that_the_chart_does_not_give(major: int) -> None:
    container = container_of(rendered(major))
    names = {each["name"] for each in container["env"] if each["name"].startswith(PREFIX)}
    names -= {CONFIG}
    given = {name.removeprefix(PREFIX).lower() for name in names}
    # The port is the one that the container names.
    assert given | {"port"} == GIVEN_BY_THE_CHART
    assert set(Settings.model_fields) > GIVEN_BY_THE_CHART


def test_a_change_of_the_config_rolls_the_pods_and_nothing_else_does(major: int) -> None:
    def checksum(*values: str) -> str:
        (deployment,) = of_kind(rendered(major, *values), "Deployment")
        return str(deployment["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    assert checksum() == checksum("replicas=2")
    assert checksum() != checksum("config.workers=8")


@pytest.mark.parametrize("scope", ["", "watch.namespaces={team-a,team-b}"])
def test_the_monitors_select_what_has_metrics(major: int, scope: str) -> None:
    objects = rendered(major, *MONITORS, *filter(None, [scope]))
    (monitor,) = of_kind(objects, "ServiceMonitor")
    (service,) = of_kind(objects, "Service")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    assert wanted <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in service["spec"]["ports"]]
    assert endpoint["honorLabels"] is True
    (training,) = of_kind(objects, "PodMonitor")
    # As the operator labels pods, and the Job controller its first one.
    assert training["spec"]["selector"]["matchLabels"] == {
        Label.MANAGED_BY: OPERATOR_NAME,
        "batch.kubernetes.io/job-completion-index": "0",
    }
    (endpoint,) = training["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == Port.METRICS_NAME
    expected = {"matchNames": ["team-a", "team-b"]} if scope else {"any": True}
    assert training["spec"]["namespaceSelector"] == expected


def test_without_the_api_of_the_monitors_a_sentence_says_so(major: int) -> None:
    settings = set_options(*REQUIRED, MONITORS[1])
    done = run_helm(major, "template", "demo", str(CHART), *settings)
    assert done.returncode != 0
    assert "metrics.podMonitor.enabled: the cluster does not serve" in done.stderr
    assert "install the CRDs of prometheus-operator first" in done.stderr


def test_the_network_policy_lets_through_what_the_operator_needs(major: int) -> None:
    objects = template(major, "--values", str(values_of("namespaced")))
    (policy,) = of_kind(objects, "NetworkPolicy")
    (deployment,) = of_kind(objects, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["spec"]["ingress"] == [{"ports": [{"protocol": "TCP", "port": "metrics"}]}]
    *_, training = policy["spec"]["egress"]
    assert training["ports"] == [{"protocol": "TCP", "port": Port.METRICS}]
    (peer,) = training["to"]
    assert peer["podSelector"]["matchLabels"] == {Label.MANAGED_BY: OPERATOR_NAME}
    assert peer["namespaceSelector"]["matchExpressions"][0]["values"] == ["team-a", "team-b"]


def test_two_replicas_have_a_budget_and_one_has_none(major: int) -> None:
    assert not of_kind(rendered(major), "PodDisruptionBudget")
    (budget,) = of_kind(rendered(major, "replicas=2"), "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1
    off = ("replicas=2", "podDisruptionBudget.enabled=false")
    assert not of_kind(rendered(major, *off), "PodDisruptionBudget")


def test_users_get_the_rights_that_their_role_stands_for(major: int) -> None:
    roles = {each["metadata"]["name"]: each for each in of_kind(rendered(major), "ClusterRole")}
    edit, view = (roles[f"demo-rlhf-operator-{name}"] for name in ("edit", "view"))
    verbs = {verb for rule in rules_of([view]) for verb in rule["verbs"]}
    assert verbs == {"get", "list", "watch"}
    assert verbs < {verb for rule in rules_of([edit]) for verb in rule["verbs"]}
    to = "rbac.authorization.k8s.io/aggregate-to-"
    assert {key for key in edit["metadata"]["labels"] if key.startswith(to)} == {
        f"{to}admin",
        f"{to}edit",
    }
    assert {key for key in view["metadata"]["labels"] if key.startswith(to)} == {f"{to}view"}


def test_nothing_is_cluster_wide_where_namespaces_are_watched_and_the_crd_is_there(
    major: int,
) -> None:
    objects = template(major, "--values", str(values_of("namespaced")))
    assert [each["kind"] for each in objects if "namespace" not in each["metadata"]] == []


def test_accounts_and_roles_of_ones_own_are_left_to_their_owner(major: int) -> None:
    objects = template(major, "--values", str(values_of("own-accounts")))
    assert pod_of(objects)["serviceAccountName"] == "trained"
    assert not of_kind(objects, "ServiceAccount")
    group = "rbac.authorization.k8s.io/"
    assert [each["kind"] for each in objects if each["apiVersion"].startswith(group)] == []


def test_no_role_is_added_to_those_of_users_when_not_wanted(major: int) -> None:
    roles = of_kind(rendered(major, "rbac.aggregatedRoles=false"), "ClusterRole")
    assert [each["metadata"]["name"] for each in roles] == ["demo-rlhf-operator"]


def test_no_pod_but_the_operators_gets_a_token(major: int) -> None:
    objects = rendered(major)
    (account,) = of_kind(objects, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    (deployment,) = of_kind(objects, "Deployment")
    assert deployment["spec"]["template"]["spec"]["automountServiceAccountToken"] is True
    (test,) = of_kind(objects, "Pod")
    assert test["spec"]["automountServiceAccountToken"] is False
    # The operator's Service and its policies must not take it for the operator.
    labels = deployment["spec"]["selector"]["matchLabels"]
    assert not labels.items() <= test["metadata"]["labels"].items()


def test_the_example_is_one_that_it_takes(major: int) -> None:
    example = Path(__file__).parents[2] / "examples" / "values-monitoring.yaml"
    made = {identity_of(each) for each in template(major, "--values", str(example))}
    assert made >= {
        ("Deployment", "ops", "demo-rlhf-operator"),
        ("ServiceMonitor", "ops", "demo-rlhf-operator"),
        ("PodMonitor", "ops", "demo-rlhf-operator-training"),
        ("PrometheusRule", "ops", "demo-rlhf-operator"),
        ("ConfigMap", "ops", "demo-rlhf-operator-dashboard"),
    }
