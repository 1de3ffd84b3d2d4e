"""Types of values that Kubernetes itself defines: where pods run, and who they may talk to.

Imported by `values`. The API server checks such objects, too; here a text that YAML reads as a
number, and a word that is misspelt, are refused before anything is rendered.
"""

from typing import Annotated

from pydantic import WithJsonSchema

from rlhf_chart.value_types import ADDRESSES, LABELS, WANTED, Object, described, refusing


def _object(*required: str, **fields: Object) -> Object:
    found: Object = {"type": "object", "properties": fields, "additionalProperties": False}
    return found | ({"required": list(required)} if required else {})


def _list(of: Object, description: str) -> Object:
    return described("array", description, items=of)


def _texts(description: str) -> Object:
    return _list({"type": "string"}, description)


def _one_of(description: str, *words: str) -> Object:
    return described("string", description, enum=list(words))


def _told(description: str, of: Object) -> Object:
    return of | {"description": description}


_KEY = described("string", "Key of a label.", minLength=1, **{WANTED: "the key of a label"})
_IN = ("In", "NotIn", "Exists", "DoesNotExist")


def _conditions(values: Object, *operators: str) -> Object:
    """What a list of conditions on labels holds."""
    return _object(
        "key",
        "operator",
        key=_KEY,
        operator=_one_of("How it is compared.", *operators),
        values=values,
    ) | refusing(
        "a condition of key, operator and values, these with any operator but Exists and "
        "DoesNotExist",
        {
            "properties": {
                "operator": {"enum": [each for each in operators if "Exist" not in each]},
                "values": {"maxItems": 0},
            },
            "required": ["operator"],
        },
        {
            "properties": {
                "operator": {"enum": ["Exists", "DoesNotExist"]},
                "values": {"minItems": 1},
            },
            "required": ["operator", "values"],
        },
    )


_SELECTOR = _object(
    matchLabels=_told("Labels that they have.", LABELS),
    matchExpressions=_list(
        _conditions(_list(LABELS["additionalProperties"], "With what."), *_IN),
        "Conditions on labels.",
    ),
)

_VALUE_OF_ANY: Object = {
    "properties": {"operator": {"const": "Exists"}, "value": {"minLength": 1}},
    "required": ["operator", "value"],
}
_SECONDS_OF_OTHERS: Object = {
    "properties": {"effect": {"not": {"const": "NoExecute"}}},
    "required": ["tolerationSeconds"],
}
_WITHOUT_KEY: Object = {
    "properties": {"key": {"maxLength": 0}, "operator": {"not": {"const": "Exists"}}},
}
Toleration = Annotated[
    Object,
    WithJsonSchema(
        _object(
            key=described("string", "Of the taint; any when left out."),
            operator=_one_of("How it is compared.", "Exists", "Equal", "Lt", "Gt"),
            value=described("string", "Of the taint."),
            effect=_one_of(
                "Of the taint; any when empty.", "NoSchedule", "PreferNoSchedule", "NoExecute", ""
            ),
            tolerationSeconds=described("integer", "For how long, with NoExecute."),
        )
        | refusing(
            "a toleration whose value goes with a key and another operator than Exists, "
            "whose tolerationSeconds go with effect NoExecute, and which without a key has "
            "operator Exists",
            _VALUE_OF_ANY,
            _SECONDS_OF_OTHERS,
            _WITHOUT_KEY,
        )
    ),
]

_NODE = _list(
    _conditions(_texts("With what."), *_IN, "Gt", "Lt"),
    "Conditions on a node.",
)
_NODES = _object(matchExpressions=_NODE, matchFields=_NODE)
_PODS = _object(
    "topologyKey",
    topologyKey=_told("Within what.", _KEY),
    labelSelector=_told("Pods by their labels.", _SELECTOR),
    namespaceSelector=_told("Their namespaces by labels.", _SELECTOR),
    namespaces=_texts("Their namespaces."),
    matchLabelKeys=_texts("Labels that they have alike."),
    mismatchLabelKeys=_texts("Labels that they do not have alike."),
)
_WEIGHT = described("integer", "What it counts.", minimum=1, maximum=100)
_NEEDED, _PREFERRED = (
    f"{how}DuringSchedulingIgnoredDuringExecution" for how in ("required", "preferred")
)
_OF_PODS = _object(
    **{
        _NEEDED: _list(_PODS, "What must hold."),
        _PREFERRED: _list(
            _object(
                "weight",
                "podAffinityTerm",
                weight=_WEIGHT,
                podAffinityTerm=_told("Which pods.", _PODS),
            ),
            "What had better hold.",
        ),
    }
)
Affinity = Annotated[
    Object,
    WithJsonSchema(
        _object(
            nodeAffinity=_told(
                "Which nodes.",
                _object(
                    **{
                        _NEEDED: _told(
                            "What must hold.",
                            _object(nodeSelectorTerms=_list(_NODES, "One of them must hold.")),
                        ),
                        _PREFERRED: _list(
                            _object(
                                "weight",
                                "preference",
                                weight=_WEIGHT,
                                preference=_told("Which nodes.", _NODES),
                            ),
                            "What had better hold.",
                        ),
                    }
                ),
            ),
            podAffinity=_told("Beside which pods.", _OF_PODS),
            podAntiAffinity=_told("Apart from which pods.", _OF_PODS),
        )
    ),
]
SpreadConstraint = Annotated[
    Object,
    WithJsonSchema(
        _object(
            "maxSkew",
            "topologyKey",
            "whenUnsatisfiable",
            maxSkew=described("integer", "How uneven it may be.", minimum=1),
            minDomains=described("integer", "Over how many at least.", minimum=1),
            topologyKey=_told("Over what.", _KEY),
            whenUnsatisfiable=_one_of(
                "What follows where it cannot be.", "DoNotSchedule", "ScheduleAnyway"
            ),
            labelSelector=_told("Pods by their labels.", _SELECTOR),
            matchLabelKeys=_texts("Labels that they have alike."),
            nodeAffinityPolicy=_one_of("Whether affinity counts.", "Honor", "Ignore"),
            nodeTaintsPolicy=_one_of("Whether taints count.", "Honor", "Ignore"),
        )
    ),
]

_PEER = _object(
    namespaceSelector=_told("Namespaces by their labels.", _SELECTOR),
    podSelector=_told("Pods by their labels.", _SELECTOR),
    ipBlock=_told(
        "Addresses outside of the cluster.",
        _object(
            "cidr",
            cidr=_told("Which.", ADDRESSES),
            **{"except": _list(ADDRESSES, "But for these.")},
        ),
    ),
) | {"minProperties": 1}
Peer = Annotated[Object, WithJsonSchema(_PEER)]
"""One end of a connection, as a NetworkPolicy has it."""
EgressRule = Annotated[
    Object,
    WithJsonSchema(
        _object(
            to=_list(_PEER, "Where to; anywhere when left out."),
            ports=_list(
                _object(
                    protocol=_one_of("TCP when left out.", "TCP", "UDP", "SCTP"),
                    port={
                        "type": ["integer", "string"],
                        "description": "A number or a name; all when left out.",
                        "minimum": 1,
                        "maximum": 65535,
                        "minLength": 1,
                        WANTED: "a port: a number from 1 to 65535, or its name",
                    },
                    endPort=described("integer", "Last of a range.", minimum=1, maximum=65535),
                ),
                "Which ports; all when left out.",
            ),
        )
    ),
]
