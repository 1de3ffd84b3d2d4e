"""Which nodes a pod prefers or needs, and which other pods it wants near or far."""

from typing import Annotated, ClassVar, Literal, Protocol

from pydantic import Field, StringConstraints

from rlhf_api.contract import Contract, Rule
from rlhf_api.v1alpha1.pod import LabelKey, LabelValue, QualifiedKeys

SelectorValue = Annotated[str, StringConstraints(max_length=63)]
NamespaceName = Annotated[str, StringConstraints(min_length=1, max_length=63)]
TopologyKey = Annotated[str, StringConstraints(min_length=1, max_length=317)]
Weight = Annotated[int, Field(ge=1, le=100)]


_VALUES_OF_OPERATOR = {
    "In": range(1, 65),
    "NotIn": range(1, 65),
    "Exists": range(1),
    "DoesNotExist": range(1),
    "Gt": range(1, 2),
    "Lt": range(1, 2),
}


class _Requirement(Protocol):
    @property
    def values(self) -> tuple[str, ...] | None: ...


def _n_values(requirement: _Requirement) -> int:
    return len(requirement.values or ())


class NodeSelectorRequirement(Contract):
    """A condition on one label of a node."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.operator in ['Exists', 'DoesNotExist'] "
            "? !has(self.values) || self.values.size() == 0 "
            ": has(self.values) && self.values.size() > 0 "
            "&& (self.operator in ['In', 'NotIn'] || self.values.size() == 1)",
            message="In and NotIn need values, Gt and Lt exactly one, Exists and DoesNotExist none",
            holds=lambda m: _n_values(m) in _VALUES_OF_OPERATOR[m.operator],
        ),
    )

    key: LabelKey
    """Key of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How the label's value is compared with values."""
    values: Annotated[tuple[SelectorValue, ...], Field(max_length=64)] | None = None
    """Values for In and NotIn, one integer for Gt and Lt, left out otherwise."""


class NodeSelectorTerm(Contract):
    """Conditions on a node that must hold together."""

    match_expressions: (
        Annotated[tuple[NodeSelectorRequirement, ...], Field(max_length=16)] | None
    ) = None
    """Conditions on the node's labels; none when left out."""
    match_fields: Annotated[tuple[NodeSelectorRequirement, ...], Field(max_length=16)] | None = None
    """Conditions on the node's fields, of which metadata.name is known; none when left out."""


class NodeSelector(Contract):
    """Nodes that fulfil at least one term."""

    node_selector_terms: Annotated[tuple[NodeSelectorTerm, ...], Field(min_length=1, max_length=16)]
    """Terms of which one must hold."""


class PreferredSchedulingTerm(Contract):
    """A term and how much it counts."""

    weight: Weight
    """Weight of the term, from 1 to 100."""
    preference: NodeSelectorTerm
    """The term."""


class NodeAffinity(Contract):
    """Nodes for the pods."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """Nodes that pods may run on; any when left out."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[tuple[PreferredSchedulingTerm, ...], Field(max_length=16)] | None
    ) = None
    """Nodes that pods prefer; none when left out."""


class LabelSelectorRequirement(Contract):
    """A condition on one label of an object."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="(self.operator in ['In', 'NotIn']) "
            "== (has(self.values) && self.values.size() > 0)",
            message="In and NotIn need values, Exists and DoesNotExist take none",
            holds=lambda m: (m.operator in ("In", "NotIn")) == (_n_values(m) > 0),
        ),
    )

    key: LabelKey
    """Key of the label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How the label's value is compared with values."""
    values: Annotated[tuple[LabelValue, ...], Field(max_length=64)] | None = None
    """Values for In and NotIn, left out otherwise."""


class LabelSelector(Contract):
    """Objects whose labels fulfil everything that is said here."""

    match_labels: Annotated[dict[str, LabelValue], Field(max_length=16), QualifiedKeys()] | None = (
        None
    )
    """Labels with their values; none when left out."""
    match_expressions: (
        Annotated[tuple[LabelSelectorRequirement, ...], Field(max_length=16)] | None
    ) = None
    """Conditions on labels; none when left out."""


class PodAffinityTerm(Contract):
    """Pods, and what counts as near to them."""

    topology_key: TopologyKey
    """Label of nodes whose equal values mean near, for example kubernetes.io/hostname."""
    label_selector: LabelSelector | None = None
    """The pods by their labels; none when left out."""
    namespaces: Annotated[tuple[NamespaceName, ...], Field(max_length=16)] | None = None
    """Namespaces of the pods; the job's own when this and namespaceSelector are left out."""
    namespace_selector: LabelSelector | None = None
    """Namespaces of the pods by their labels, added to namespaces; none when left out."""


class WeightedPodAffinityTerm(Contract):
    """A term and how much it counts."""

    weight: Weight
    """Weight of the term, from 1 to 100."""
    pod_affinity_term: PodAffinityTerm
    """The term."""


class PodAffinity(Contract):
    """Other pods for or against which the scheduler decides."""

    required_during_scheduling_ignored_during_execution: (
        Annotated[tuple[PodAffinityTerm, ...], Field(max_length=16)] | None
    ) = None
    """Terms that must all hold; none when left out."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[tuple[WeightedPodAffinityTerm, ...], Field(max_length=16)] | None
    ) = None
    """Terms that should hold; none when left out."""


class Affinity(Contract):
    """Where pods run, beyond nodeSelector."""

    node_affinity: NodeAffinity | None = None
    """Nodes that pods need or prefer."""
    pod_affinity: PodAffinity | None = None
    """Pods to be near to."""
    pod_anti_affinity: PodAffinity | None = None
    """Pods to be far from."""
