"""What Helm 3 and Helm 4 say of a value of another type than it seems: what to write, in words."""

from pathlib import Path

import pytest
from chart_renders import REQUIRED, run_helm, values_of
from releases import CHART, set_options

TEXT = "a text: in quotes in a file, by --set-string on the command line"
LIST = "a list: [a, b] in a file, {a,b} after --set, in quotes for the shell"
SWITCH = "true or false, without quotes"

IN_A_FILE = {
    "image: {tag: 20241125}": ("image.tag", TEXT),
    "image: {tag: 2.10}": ("image.tag", TEXT),
    "image: {tag: 1e3}": ("image.tag", TEXT),
    "image: {digest: 0x0a}": ("image.digest", TEXT),
    "image: {tag: v1:2}": ("image.tag", "a tag (letters, digits, -, _ and ., at most 128), or em"),
    "image: registry.test/operator:1": ("image", "a map of repository, tag, digest, pullPolicy"),
    "image: {pullPolicy: always}": ("image.pullPolicy", "IfNotPresent"),
    "trainerImage: 20241125": ("trainerImage", TEXT),
    "trainerImage: registry.test/Trainer:1": ("trainerImage", "an image such as registry.example"),
    "trainerImagePullPolicy: false": ("trainerImagePullPolicy", "IfNotPresent"),
    "logLevel: off": ("logLevel", "WARNING"),
    "logLevel: 10": ("logLevel", "DEBUG"),
    "replicas: '2'": ("replicas", "a whole number of at least 0: without quotes in a file"),
    "replicas: 1.5": ("replicas", "a whole number of at least 0: without quotes in a file"),
    "config: {workers: 1000}": ("config.workers", "a whole number of at least 1 and at most 256"),
    "config: {resyncSeconds: 5m}": ("config.resyncSeconds", "a number of at least 1: without quo"),
    "crds: {enabled: 'yes'}": ("crds.enabled", SWITCH),
    "rbac: {create: 1}": ("rbac.create", SWITCH),
    "watch: {namespaces: team-a}": ("watch.namespaces", LIST),
    "watch: {namespaces: [123]}": ("watch.namespaces.0", TEXT),
    "watch: {namespaces: [on]}": ("watch.namespaces.0", TEXT),
    "watch: {namespaces: ['']}": ("watch.namespaces.0", "for all of them leave the list empty"),
    "serviceAccount: {name: no}": ("serviceAccount.name", TEXT),
    "serviceAccount: {annotations: {a: 1}}": ("serviceAccount.annotations.a", TEXT),
    "podLabels: {canary: on}": ("podLabels.canary", TEXT),
    "commonLabels: {cost-center: 0042}": ("commonLabels.cost-center", TEXT),
    "commonLabels: [team]": ("commonLabels", "a map: name: value in a file"),
    "nodeSelector: {gpu: true}": ("nodeSelector.gpu", TEXT),
    "grafana: {dashboard: {labels: {grafana_dashboard: 1}}}": (
        "grafana.dashboard.labels.grafana_dashboard",
        TEXT,
    ),
    "metrics: {podMonitor: {interval: 30}}": ("metrics.podMonitor.interval", TEXT),
    "metrics: {podMonitor: {interval: 30sec}}": (
        "metrics.podMonitor.interval",
        "a duration such as 30s or 1m30s, each unit once and the largest first",
    ),
    "extraEnv: [{name: PORT, value: 3128}]": ("extraEnv.0.value", TEXT),
    "extraEnv: [{name: RLHF_OPERATOR_WORKERS, value: '8'}]": (
        "extraEnv.0.name",
        "a variable without =, neither one of RLHF_OPERATOR_*, which are values of this chart, nor "
        "POD_ID, which it sets",
    ),
    "extraEnv: [{name: A, value: b, valueFrom: {fieldRef: {fieldPath: c}}}]": (
        "extraEnv.0",
        "a name with value or valueFrom, not both",
    ),
    "extraEnv: [{name: A, valueFrom: {}}]": (
        "extraEnv.0.valueFrom",
        "a map with one of secretKeyRef, ",
    ),
    "extraVolumes: [{name: a}]": ("extraVolumes.0", "one thing that it is, such as secret"),
    "extraEnv: [{name: A, valueFrom: {secretKeyRef: {name: a, key: 1}}}]": (
        "extraEnv.0.valueFrom.secretKeyRef.key",
        TEXT,
    ),
    "tolerations: [{key: on, operator: Exists}]": ("tolerations.0.key", TEXT),
    "tolerations: [{key: a, operator: Exists, value: b}]": (
        "tolerations.0",
        "a toleration whose value goes with a key and another operator than Exists",
    ),
    "tolerations: [{key: a, effect: noexecute}]": ("tolerations.0.effect", "NoExecute"),
    "topologySpreadConstraints: [{maxSkew: 1, topologyKey: a, whenUnsatisfiable: sometimes}]": (
        "topologySpreadConstraints.0.whenUnsatisfiable",
        "ScheduleAnyway",
    ),
    "networkPolicy: {ingressFrom: [{podSelector: {matchLabels: {a: 20241125}}}]}": (
        "networkPolicy.ingressFrom.0.podSelector.matchLabels.a",
        TEXT,
    ),
    "networkPolicy: {ingressFrom: [{ipBlock: {cidr: 10.0.0.1}}]}": (
        "networkPolicy.ingressFrom.0.ipBlock.cidr",
        "addresses with the length of their prefix, such as 192.0.2.1/32",
    ),
    "podSecurityContext: {seccompProfile: RuntimeDefault}": (
        "podSecurityContext.seccompProfile",
        "a map of type, and of localhostProfile with type Localhost alone; or null",
    ),
    "podSecurityContext: {seccompProfile: {type: Localhost}}": (
        "podSecurityContext.seccompProfile",
        "a map of type, and of localhostProfile with type Localhost alone; or null",
    ),
    "securityContext: {privileged: true}": (
        "securityContext",
        "a map of fields of the securityContext of a container, in which privileged goes with "
        "allowPrivilegeEscalation: true; or null",
    ),
    "securityContext: {capabilities: {drop: ALL}}": (
        "securityContext.capabilities.drop",
        f"{LIST}; or null",
    ),
    "podSecurityContext: {runAsUser: '1000'}": ("podSecurityContext.runAsUser", "; or null"),
    "resources: {limits: {memory: 1 Gi}}": (
        "resources.limits.memory",
        "a quantity such as 500m, 2 or 1Gi",
    ),
}
ON_THE_COMMAND_LINE = {
    "image.tag=20241125": ("image.tag", TEXT),
    "image.tag=true": ("image.tag", TEXT),
    "image=registry.test/operator:1": ("image", "a map of repository, tag, digest, pullPolicy"),
    "watch.namespaces={}": (
        "watch.namespaces.0",
        "for all of them leave the list empty, --set-json watch.namespaces=[] on the command line",
    ),
    "watch.namespaces=": ("watch.namespaces", LIST),
    "watch.namespaces=team-a": ("watch.namespaces", LIST),
    "watch.namespaces={team-a,Team_B}": ("watch.namespaces.1", "the name of a namespace (a-z, 0-9"),
    "imagePullSecrets={registry}": (
        "imagePullSecrets.0",
        "a map of name: - name: ... in a file, imagePullSecrets[0].name=... after --set",
    ),
    "extraEnv={A=1}": ("extraEnv.0", "- name: ... in a file, extraEnv[0].name=... after --set"),
    "extraEnv=A": ("extraEnv", "a list of maps: - name: ... in a file, extraEnv[0].name=... after"),
    "logLevel=debug": ("logLevel", "DEBUG"),
    "trainerImagePullPolicy=always": ("trainerImagePullPolicy", "Always"),
    "crds.keep=no": ("crds.keep", SWITCH),
    "podLabels.canary=true": ("podLabels.canary", TEXT),
    "podLabels.app\\.kubernetes\\.io/name=x": (
        "podLabels",
        "a map with keys of labels (letters, digits, -, _ and ., at most 63, after a domain "
        "and / if you like), and none that the chart sets itself",
    ),
    "prometheusRule.alerts.KLAboveLimit.threshold=0.5": (
        "prometheusRule.alerts.KLAboveLimit.threshold",
        "a number of at least 0: without quotes in a file, by --set-json on the command line",
    ),
}


@pytest.fixture(params=[3, 4], ids=["helm3", "helm4"])
def major(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def told(major: int, *given: str) -> list[str]:
    """What the schema says; Helm 4 writes the path `a.0.b` as `/a/0/b`, and brackets in a row."""
    done = run_helm(major, "template", "demo", str(CHART), *given)
    assert done.returncode != 0
    _, headline, told = done.stderr.partition("values don't meet the specifications of the schema")
    assert headline
    return told.splitlines()


def assert_said(lines: list[str], path: str, sentence: str) -> None:
    """One of the lines names the path and says the sentence."""
    inner = path.replace(".", "/")
    named = [f"- {path or '(root)'}: ", f"- at '{inner and f'/{inner}'}': "]
    assert any(sentence in line for line in lines if any(each in line for each in named)), lines


@pytest.mark.parametrize("given", IN_A_FILE)
def test_of_a_file(major: int, given: str, tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(given)
    lines = told(major, f"--values={values_of('default')}", f"--values={file}")
    assert_said(lines, *IN_A_FILE[given])


@pytest.mark.parametrize("given", ON_THE_COMMAND_LINE)
def test_of_the_command_line(major: int, given: str) -> None:
    lines = told(major, *set_options(*REQUIRED, given))
    assert_said(lines, *ON_THE_COMMAND_LINE[given])


@pytest.mark.parametrize(
    "path", ["image.tag", "logLevel", "watch", "replicas", "config.workers", "tolerations"]
)
def test_a_value_of_null_is_missed_by_its_name(major: int, path: str) -> None:
    """Helm takes a default away where null is given."""
    above, _, name = path.rpartition(".")
    asked = {3: f"{name} is required", 4: f"missing property '{name}'"}
    lines = told(major, *set_options(*REQUIRED, f"{path}=null"))
    assert any(asked[major] in line for line in lines), lines
    assert_said(lines, above, "leave that out for its default, or give a value")


@pytest.mark.parametrize("given", ["podLabels: {a b: x}", "podAnnotations: {checksum/config: x}"])
def test_a_key_is_told_where_it_stands(major: int, given: str, tmp_path: Path) -> None:
    """Of `propertyNames` Helm 4 names another map."""
    file = tmp_path / "values.yaml"
    file.write_text(given)
    lines = told(major, f"--values={values_of('default')}", f"--values={file}")
    name, _, key = given.removesuffix(": x}").partition(": {")
    assert all(name in line for line in lines if line.startswith("- ")), lines
    shown = (key, key.replace("/", "~1"))
    assert any(each in line for line in lines for each in shown), lines
    assert_said(lines, name, "a map with keys of ")


def test_the_sentence_itself_is_no_value(major: int, tmp_path: Path) -> None:
    """Helm is told that the value must be the sentence; it must not be taken at its word."""
    file = tmp_path / "values.yaml"
    _, sentence = IN_A_FILE["metrics: {podMonitor: {interval: 30sec}}"]
    file.write_text(f"metrics: {{podMonitor: {{interval: '{sentence}'}}}}")
    lines = told(major, f"--values={values_of('default')}", f"--values={file}")
    assert any("does not match pattern" in line.lower() for line in lines), lines
