"""Releases, namespaces and values that YAML would not read as texts, and what all objects carry."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_renders import REQUIRED, SETS, of_kind, rendered, run_helm, template, values_of
from releases import CHART, set_options

from rlhf_api.loading import parse_yaml

Raw = dict[str, Any]
DIGEST = f"sha256:{'0a' * 32}"
EVERYTHING = ("--values", str(values_of("everything")), "--set", "crds.enabled=false")
# As YAML 1.1 and kubectl read them: numbers, booleans, null.
NO_TEXTS = ["123", "1e3", "0x1f", "0o17", "on", "no", "y", "true", "null"]

IMAGE = 'include "rlhf-operator.image" .'
WITHIN_TEXTS = {
    "deployment.yaml": {IMAGE, 'include "rlhf-operator.checks" .'},
    "connection.yaml": {IMAGE, "$service", ".Release.Namespace"},
    "grafana-alerts.yaml": {"$name"},
}
"""What is printed as it is: within a text or a key, quoted already, or nothing at all."""
OBJECTS = [
    path for path in sorted((CHART / "templates").rglob("*.yaml")) if path.name != "crd.yaml"
]


@pytest.fixture(params=[3, 4], ids=["helm3", "helm4"])
def major(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def loaded(major: int, release: str, namespace: str, *given: str) -> list[Raw]:
    """The objects as kubectl reads them."""
    options = ("--namespace", namespace, "--api-versions=monitoring.coreos.com/v1", *given)
    done = run_helm(major, "template", release, str(CHART), *options)
    assert done.returncode == 0, done.stderr
    found: list[Raw] = [each for each in parse_yaml(done.stdout, "chart") if each]
    return found


def named(word: str) -> tuple[str, ...]:
    """Values in which everything that has a name has this one."""
    values = {
        "watch": {"namespaces": [word]},
        "crds": {"enabled": False},
        "serviceAccount": {"name": word, "annotations": {word: word}},
        "imagePullSecrets": [{"name": word}],
        "priorityClassName": word,
        "image": {"repository": f"r/{word}", "tag": word},
        "trainerImage": f"r/{word}:{word}",
        "nodeSelector": {word: word},
        "podLabels": {word: word},
        "podAnnotations": {word: word},
        "commonLabels": {word: word},
        "commonAnnotations": {word: word},
        "networkPolicy": {"enabled": True},
        "replicas": 2,
        "extraEnv": [{"name": word, "value": word}],
        "grafana": {
            "dashboard": {"enabled": True, "namespace": word, "labels": {word: word}},
            "alerts": {"enabled": True, "folder": word, "datasourceUid": word},
        },
        "metrics": {
            each: {"enabled": True, "namespace": word, "additionalLabels": {word: word}}
            for each in ("serviceMonitor", "podMonitor")
        },
        "prometheusRule": {
            "enabled": True,
            "alerts": {"NonFinite": {"severity": word, "runbookUrl": word}},
        },
    }
    return tuple(f"--set-json={key}={json.dumps(value)}" for key, value in values.items())


def types_in(value: Any, word: str) -> Any:
    """The same with its types in place of scalars, and without the word where it is a key."""
    if isinstance(value, dict):
        return {
            re.sub(rf"^{word}(?=-|$)", "?", str(key)): types_in(each, word)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [types_in(each, word) for each in value]
    return type(value).__name__


def printed(template: Path) -> list[str]:
    """The expressions of a template whose value it prints."""
    actions = re.findall(r"\{\{-? *(.*?) *-?\}\}", template.read_text(), re.S)
    words = ("if ", "else", "end", "with ", "range ", "define ", "/*", "$_ ", "fail ")
    found = [each for each in actions if not each.startswith(words)]
    return [each for each in found if not re.match(r"\$\w+ :?= ", each)]


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.name)
def test_what_a_template_prints_is_quoted(path: Path) -> None:
    """By a function that writes YAML, or as a whole number."""
    unquoted = [
        each
        for each in printed(path)
        if not re.search(r"\| (quote|int64|toJson|nindent \d+)$|^toJson ", each)
    ]
    assert set(unquoted) <= WITHIN_TEXTS.get(path.name, set())


@pytest.mark.parametrize("word", NO_TEXTS)
def test_a_name_is_a_text_whatever_yaml_takes_it_for(major: int, word: str) -> None:
    plain = loaded(major, "plain", "plain", *named("plain"))
    assert {each["kind"] for each in plain} >= {"Role", "PrometheusRule", "NetworkPolicy", "Pod"}
    odd = loaded(major, word, word, *named(word))
    assert types_in(odd, word) == types_in(plain, "plain")


def test_a_large_number_is_written_without_an_exponent(major: int, tmp_path: Path) -> None:
    """A number of a file is a float for Helm, and Go prints one of seven digits as 1e+06."""
    many = {"replicas": 2_000_000, "podDisruptionBudget": {"maxUnavailable": 1_000_000}}
    many |= {"config": {"apiRequestsPerSecond": 5_000_000, "jobMetricsSeconds": 2_000_000}}
    file = tmp_path / "values.yaml"
    file.write_text(json.dumps(many))
    objects = template(major, "--values", str(values_of("default")), "--values", str(file))
    (deployment,) = of_kind(objects, "Deployment")
    (budget,) = of_kind(objects, "PodDisruptionBudget")
    assert (deployment["spec"]["replicas"], budget["spec"]["maxUnavailable"]) == (2000000, 1000000)
    (config,) = of_kind(objects, "ConfigMap")
    settings = yaml.safe_load(config["data"]["settings.yaml"])
    assert (settings["apiRequestsPerSecond"], settings["jobMetricsSeconds"]) == (5000000, 2000000)


def test_no_name_is_longer_than_its_kind_allows(major: int) -> None:
    longest = "a" * 53  # What Helm takes.
    objects = template(major, *EVERYTHING, release=longest)
    (service,) = of_kind(objects, "Service")
    assert len(service["metadata"]["name"]) <= 63
    (test,) = of_kind(objects, "Pod")
    (url, _) = test["spec"]["containers"][0]["args"]
    assert url == f"http://{service['metadata']['name']}.ops.svc:8080"
    labels = {text for each in objects for text in each["metadata"]["labels"].values()}
    assert max(len(label) for label in labels) <= 63


def test_a_name_that_is_cut_ends_in_a_hash_and_others_stay(major: int) -> None:
    """Names that begin alike are never one, whatever Helm lets a release be called."""

    def names(release: str) -> tuple[str, str]:
        objects = template(major, *EVERYTHING, release=release)
        found = [of_kind(objects, kind)[0] for kind in ("Deployment", "Service")]
        deployment, service = (each["metadata"]["name"] for each in found)
        return deployment, service

    whole = "a" * 41
    assert names(whole) == (f"{whole}-rlhf-operator", f"{whole}-rlhf-operator-metrics")
    longest = "a" * 49
    deployment, service = names(longest)
    assert deployment == f"{longest}-rlhf-operator"
    assert re.fullmatch(r"a{46}-[0-9a-f]{8}-metrics", service)
    seen = {names("a" * 52 + last) for last in "ab"}
    assert len({each for each, _ in seen}) == len({each for _, each in seen}) == 2
    for deployment, service in seen:
        assert re.fullmatch(r"a{52}[ab]-[0-9a-f]{8}", deployment)
        assert re.fullmatch(r"a{46}-[0-9a-f]{8}-metrics", service)


@pytest.mark.parametrize("name", SETS)
def test_every_object_carries_the_common_labels_and_annotations(major: int, name: str) -> None:
    common = ("--set-string=commonLabels.example\\.com/unit=7", "--set=commonAnnotations.by=us")
    objects = template(major, "--values", str(values_of(name)), *common)
    for each in objects:
        if each["kind"] == "CustomResourceDefinition":
            continue
        assert each["metadata"]["labels"]["example.com/unit"] == "7", each["kind"]
        assert each["metadata"]["annotations"]["by"] == "us", each["kind"]
    (deployment,) = of_kind(objects, "Deployment")
    pod = deployment["spec"]["template"]["metadata"]
    assert (pod["labels"]["example.com/unit"], pod["annotations"]["by"]) == ("7", "us")
    assert "example.com/unit" not in deployment["spec"]["selector"]["matchLabels"]


def test_what_is_nearer_to_an_object_wins(major: int) -> None:
    objects = rendered(
        major,
        *("commonLabels.release=common", "commonLabels.team=common", "commonAnnotations.a=common"),
        *("metrics.serviceMonitor.enabled=true", "podLabels.team=pod", "podAnnotations.a=pod"),
        "metrics.serviceMonitor.additionalLabels.release=prometheus",
    )
    (monitor,) = of_kind(objects, "ServiceMonitor")
    labels = monitor["metadata"]["labels"]
    assert (labels["release"], labels["team"]) == ("prometheus", "common")
    (deployment,) = of_kind(objects, "Deployment")
    pod = deployment["spec"]["template"]["metadata"]
    assert (pod["labels"]["team"], pod["annotations"]["a"]) == ("pod", "pod")


def containers_of(objects: list[Raw]) -> list[tuple[Raw, Raw]]:
    """The pods of the operator and of `helm test`, each with its container."""
    (deployment,) = of_kind(objects, "Deployment")
    (test,) = of_kind(objects, "Pod")
    pods = [deployment["spec"]["template"]["spec"], test["spec"]]
    return [(pod, *pod["containers"]) for pod in pods]


def test_a_digest_wins_over_the_tag(major: int) -> None:
    objects = rendered(major, f"image.digest={DIGEST}", "image.tag=1.2.3")
    images = [container["image"] for _, container in containers_of(objects)]
    assert images == [f"registry.test/operator@{DIGEST}"] * 2


def test_the_trainer_image_may_have_a_digest(major: int) -> None:
    image = f"registry.test/trainer:1@{DIGEST}"
    (operator, _) = containers_of(rendered(major, f"trainerImage={image}"))
    variables = {each["name"]: each.get("value") for each in operator[1]["env"]}
    assert variables["RLHF_OPERATOR_TRAINER_IMAGE"] == image


@pytest.mark.parametrize("above", [False, True], ids=["chart", "dependency"])
def test_a_user_is_left_to_the_cluster(major: int, above: bool, tmp_path: Path) -> None:
    """As OpenShift asks for; a dependency's values pass through the chart above it."""
    fields = ("runAsUser", "runAsGroup")
    given: Raw = {"podSecurityContext": dict.fromkeys(fields)}
    chart = CHART
    required = REQUIRED
    if above:
        chart = tmp_path / "parent"
        (chart / "charts").mkdir(parents=True)
        (chart / "charts" / "rlhf-operator").symlink_to(CHART)
        dependency = {"name": "rlhf-operator", "version": "*"}
        (chart / "Chart.yaml").write_text(
            json.dumps(
                {"apiVersion": "v2", "name": "p", "version": "1.0.0", "dependencies": [dependency]}
            )
        )
        given = {"rlhf-operator": given}
        required = tuple(f"rlhf-operator.{each}" for each in REQUIRED)
    file = tmp_path / "values.json"
    file.write_text(json.dumps(given))
    done = run_helm(
        major, "template", "demo", str(chart), *set_options(*required), f"--values={file}"
    )
    assert done.returncode == 0, done.stderr
    objects = [each for each in yaml.load_all(done.stdout, yaml.CSafeLoader) if each]
    for pod, container in containers_of(objects):
        context = pod["securityContext"]
        assert [context.get(field) for field in fields] == [None, None]
        assert (context["runAsNonRoot"], context["seccompProfile"]["type"]) == (
            True,
            "RuntimeDefault",
        )
        assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_a_security_context_can_be_dropped_whole(major: int) -> None:
    objects = rendered(major, "podSecurityContext=null", "securityContext=null")
    for pod, container in containers_of(objects):
        assert "securityContext" not in pod
        assert "securityContext" not in container
