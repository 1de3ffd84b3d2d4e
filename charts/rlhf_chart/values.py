"""The chart's values: names, types, defaults and texts. values.yaml, its schema and the chart's
README are made from them by `values_schema`, `values_file` and `chart_readme`.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

from rlhf_chart.alerts import ALERTS
from rlhf_chart.placement_types import Affinity, EgressRule, Peer, SpreadConstraint, Toleration
from rlhf_chart.security_types import ContainerSecurity, PodSecurity
from rlhf_chart.value_types import (
    CIDR,
    URL,
    Annotations,
    CommonAnnotations,
    CommonLabels,
    Digest,
    Duration,
    EnvVar,
    ImageReference,
    Labels,
    LabelValue,
    Object,
    ObjectName,
    OptionalURL,
    OwnNamespace,
    PodAnnotations,
    PodLabels,
    Port,
    Resources,
    SecretName,
    Tag,
    Text,
    Volume,
    VolumeMount,
    WatchedNamespaces,
)
from rlhf_operator.settings import LogLevel, PullPolicy, Settings

GIVEN_BY_THE_CHART = frozenset(
    {
        "deployment",
        "identity",
        "lease_name",
        "log_level",
        "namespace",
        "namespaces",
        "port",
        "trainer_image",
        "trainer_image_pull_policy",
    }
)
"""Settings that follow from the release, from its pod or from another value; `config` has the rest.
"""

_SECONDS = {"exclusiveMinimum": 0, "maximum": 30 * 24 * 3600}
THRESHOLDS: dict[str, Object] = {
    "ProgressStalled": _SECONDS,
    "PendingTooLong": _SECONDS,
    # It is a duration as well, and those have no fractions.
    "CheckpointStale": {"type": ["integer", "null"], **_SECONDS},
    "RestartStorm": {"exclusiveMinimum": 0, "maximum": 1000},
}
"""What of its threshold's schema an alert has of its own."""


class Part(BaseModel):
    """Values that stand together; a key that is none of them is refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        extra="forbid",
        use_attribute_docstrings=True,
    )


class Image(Part):
    repository: ImageReference = ""
    """In your registry, without a tag, for example registry.example.com/rlhf/operator. Required."""
    tag: Tag = ""
    """The chart's appVersion when empty."""
    digest: Digest = ""
    """Wins over the tag, for example sha256: and the 64 digits that the registry tells."""
    pull_policy: PullPolicy = "IfNotPresent"
    """When a node pulls it."""


class PullSecret(Part):
    name: SecretName
    """Name of a Secret in the release's namespace."""


class Watch(Part):
    namespaces: WatchedNamespaces = []
    """Namespaces in which RLHFJobs are run, which must exist; all when empty."""


class CRDs(Part):
    enabled: bool = True
    """Whether the chart brings the CRD."""
    keep: bool = True
    """Whether the CRD, and with it every RLHFJob, outlives `helm uninstall`."""


class RBAC(Part):
    create: bool = True
    """Whether the chart makes the operator's roles and their bindings."""
    aggregated_roles: bool = True
    """Whether it adds RLHFJobs to the ClusterRoles admin, edit and view. None is made where
    watch.namespaces is set and crds.enabled is false: then nothing of the release is cluster-wide.
    """


class ServiceAccount(Part):
    create: bool = True
    """Whether the chart makes it."""
    name: ObjectName = ""
    """The release's full name when empty; must be given where the chart makes none."""
    annotations: Annotations = {}
    """On the ServiceAccount."""


class Monitor(Part):
    enabled: bool = False
    """Whether it is made. Needs the CRDs of prometheus-operator."""
    namespace: OwnNamespace = ""
    """Where it is made; the release's own namespace when empty."""
    additional_labels: Labels = {}
    """By which your Prometheus selects it. That of kube-prometheus-stack takes only those with
    `release: <name of its release>`.
    """
    interval: Duration = "30s"
    """How often Prometheus scrapes, for example 30s or 1m30s; not 0."""
    scrape_timeout: Duration = "10s"
    """After how long a scrape is given up; not 0, and no longer than the interval."""


class Metrics(Part):
    service_monitor: Monitor = Monitor()
    """ServiceMonitor for the operator."""
    pod_monitor: Monitor = Monitor()
    """PodMonitor for rank 0 of every training job in the watched namespaces."""


class Alert(Part):
    enabled: bool = True
    """Whether there is such an alert."""
    severity: LabelValue = "warning"
    """Label by which Alertmanager routes it."""
    for_: Annotated[Duration, Field(alias="for")] = "1m"
    """How long its condition must hold, for example 5m or 1h30m."""
    threshold: Annotated[
        int | float | None, WithJsonSchema({"type": ["number", "null"], "minimum": 0})
    ] = None
    """Beyond which it fires, in the unit that docs/runbook.md names."""
    runbook_url: OptionalURL = ""
    """Link in its annotations; made of runbookBaseUrl when empty."""


class PrometheusRule(Part):
    enabled: bool = False
    """Whether the alerts are made as a PrometheusRule. Needs the CRDs of prometheus-operator."""
    namespace: OwnNamespace = ""
    """Where it is made; the release's own namespace when empty."""
    additional_labels: Labels = {}
    """By which your Prometheus selects it."""
    runbook_base_url: URL = "docs/runbook.md"
    """URL at which your people read docs/runbook.md; each alert links to its heading there."""
    alerts: dict[str, Alert] = Field(
        default_factory=lambda: {each.name: Alert.model_validate(each.values()) for each in ALERTS}
    )
    """The alerts, one by one; docs/runbook.md says what each means. A threshold of null is that of
    the trainer's guardrail, or there is none.
    """


class Dashboard(Part):
    enabled: bool = False
    """Whether the dashboard is made as a ConfigMap for Grafana's sidecar."""
    namespace: OwnNamespace = ""
    """Where it is made; the release's own namespace when empty."""
    labels: Labels = {"grafana_dashboard": "1"}
    """By which the sidecar finds it."""
    annotations: Annotations = {}
    """For instance the folder that the sidecar puts it into."""


class GrafanaAlerts(Part):
    enabled: bool = False
    """Whether the alerts are made as Grafana-managed rules, in a ConfigMap for its sidecar."""
    namespace: OwnNamespace = ""
    """Where it is made; the release's own namespace when empty."""
    labels: Labels = {"grafana_alert": "1"}
    """By which the sidecar finds it."""
    datasource_uid: Text = "prometheus"
    """Uid of the data source by which Grafana asks Prometheus."""
    folder: Text = "RLHF"
    """Grafana's folder for the rules."""


class Grafana(Part):
    dashboard: Dashboard = Dashboard()
    """The dashboard."""
    alerts: GrafanaAlerts = GrafanaAlerts()
    """The same alerts as those of prometheusRule, for who has no Alertmanager."""


class APIServerPeer(Part):
    ports: Annotated[list[Port], Field(min_length=1)] = [443, 6443]
    """Ports of the API server: of its Service, and behind it."""
    cidrs: list[CIDR] = []
    """Its addresses, for example 192.0.2.1/32; any when empty, since a policy cannot name it
    otherwise.
    """


class NetworkPolicy(Part):
    enabled: bool = False
    """Whether the operator's traffic is limited to what it needs."""
    ingress_from: list[Peer] = []
    """Peers that may read /metrics, as in a NetworkPolicy; all when empty."""
    api_server: APIServerPeer = APIServerPeer()
    """Where the operator finds the API server."""
    extra_egress: list[EgressRule] = []
    """More rules of egress, for instance to a proxy."""


class PodDisruptionBudget(Part):
    enabled: bool = True
    """Whether it is made when replicas is above 1."""
    max_unavailable: Annotated[int, Field(ge=1)] = 1
    """Replicas that a drain may take away at once."""


class Probe(Part):
    initial_delay_seconds: Annotated[int, Field(ge=0)] = 0
    """Seconds before the first one."""
    period_seconds: Annotated[int, Field(ge=1)] = 10
    """Seconds between two."""
    timeout_seconds: Annotated[int, Field(ge=1)] = 1
    """Seconds until one has failed."""
    failure_threshold: Annotated[int, Field(ge=1)] = 3
    """Failures in a row that count."""


def _stays(key: str) -> Object:
    return {
        "key": f"node.kubernetes.io/{key}",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 30,
    }


def _config() -> Object:
    return {
        to_camel(name): field.default
        for name, field in Settings.model_fields.items()
        if name not in GIVEN_BY_THE_CHART
    }


class Values(Part):
    """All of them."""

    image: Image = Image()
    """Image of the operator."""
    image_pull_secrets: list[PullSecret] = []
    """For the operator's image. Training pods use those of their job or of their service account.
    """
    trainer_image: ImageReference = ""
    """Image of training pods whose RLHFJob names none, with its tag or digest. Required."""
    trainer_image_pull_policy: PullPolicy = "IfNotPresent"
    """When a node pulls the trainer image."""
    replicas: Annotated[int, Field(ge=0)] = 1
    """Two are safe: one leads, and the other takes over."""
    watch: Watch = Watch()
    """What the operator looks after."""
    config: Object = Field(default_factory=_config)
    """Settings of the operator, which it reads from a file; a change rolls its pods."""
    log_level: LogLevel = "INFO"
    """What is logged."""
    crds: CRDs = CRDs()
    """The CRD of RLHFJobs."""
    rbac: RBAC = RBAC()
    """Rights of the operator, and of users over RLHFJobs."""
    service_account: ServiceAccount = ServiceAccount()
    """As whom the operator talks to the API server."""
    metrics: Metrics = Metrics()
    """How Prometheus finds the metrics; docs/metrics.md lists them."""
    prometheus_rule: PrometheusRule = PrometheusRule()
    """Alerts for Prometheus."""
    grafana: Grafana = Grafana()
    """Dashboard and alerts for Grafana."""
    network_policy: NetworkPolicy = NetworkPolicy()
    """Traffic of the operator's pods; that of training pods is not touched."""
    pod_disruption_budget: PodDisruptionBudget = PodDisruptionBudget()
    """So that no drain takes all replicas at once."""
    common_labels: CommonLabels = {}
    """More labels of every object but the CRD, and of the operator's pods."""
    common_annotations: CommonAnnotations = {}
    """More annotations of every object but the CRD, and of the operator's pods."""
    pod_security_context: PodSecurity = {
        "runAsNonRoot": True,
        "runAsUser": 10001,
        "runAsGroup": 10001,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    """Of the operator's pods and of that of `helm test`. A field that is null is left to the
    cluster, as OpenShift asks for runAsUser and runAsGroup; null alone leaves all of it.
    """
    security_context: ContainerSecurity = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    """Of their containers, likewise."""
    resources: Resources = {
        "requests": {"cpu": "100m", "memory": "192Mi"},
        "limits": {"memory": "512Mi"},
    }
    """Of the operator's container; docs/performance.md says what it takes."""
    liveness_probe: Probe = Probe(initial_delay_seconds=10, period_seconds=20)
    """Of /healthz: watches and passes move on."""
    readiness_probe: Probe = Probe(period_seconds=5)
    """Of /readyz: it works, or could take over."""
    pod_annotations: PodAnnotations = {}
    """More annotations of the operator's pods."""
    pod_labels: PodLabels = {}
    """More labels of the operator's pods."""
    node_selector: Labels = {}
    """Labels of the nodes that they may run on."""
    tolerations: list[Toleration] = [_stays("not-ready"), _stays("unreachable")]
    """A lost node costs 30 seconds, not the five minutes of Kubernetes' own default."""
    affinity: Affinity = {}
    """Where they had better run."""
    topology_spread_constraints: list[SpreadConstraint] = []
    """How replicas are spread over nodes and zones."""
    priority_class_name: ObjectName = ""
    """Of the operator's pods; the cluster's default when empty."""
    extra_env: list[EnvVar] = []
    """More variables of the operator's container, for instance those of a proxy."""
    extra_volumes: list[Volume] = []
    """More volumes of the operator's pods."""
    extra_volume_mounts: list[VolumeMount] = []
    """Where its container finds them."""
