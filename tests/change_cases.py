"""Which changes of a spec are refused once a job exists, and in which words."""

from typing import Any

from rule_cases import PPO, STAGE, VOLUME

# A field of spec, its value before and after, and whether it may change so.
TRANSITIONS: list[tuple[str, Any, Any, bool]] = [
    ("suspend", True, False, True),
    ("suspend", None, True, True),
    ("runPolicy", {"maxRestarts": 1}, {"maxRestarts": 2}, True),
    ("suspend", True, None, True),
    ("runPolicy", {"maxRestarts": 1}, None, True),
    ("runPolicy", None, {"maxRestarts": 1}, True),
    ("guardrails", None, [{"rule": "NegativeKL"}], True),
    ("guardrails", [{"rule": "NegativeKL"}], [{"rule": "NegativeKL", "action": "Fail"}], True),
    ("guardrails", [{"rule": "NegativeKL"}], None, True),
    *(
        (field, old, new, False)
        for field, one, other in [
            ("image", "a:1", "a:2"),
            ("storage", {"uri": "pvc://a"}, {"uri": "pvc://b"}),
            ("template", {"nodes": 1}, {"nodes": 1, "processesPerNode": 2}),
            ("queueName", "a", "b"),
        ]
        for old, new in [(one, other), (one, None), (None, one)]
    ),
    ("image", "a:1", "a:1", True),
    ("image", None, None, True),
    ("stages", {"sft": STAGE}, {"sft": STAGE}, True),
    ("stages", {"sft": STAGE}, {"sft": STAGE | {"seed": 1}}, False),
    ("stages", {"sft": STAGE}, {"sft": STAGE, "reward": STAGE}, False),
]

CPU = {"requests": {"memory": "1Gi"}, "limits": {"cpu": 4}}
"""Quantities as an integer and as text."""


def _sized(limit: Any) -> dict[str, Any]:
    return {"volumes": [VOLUME, {"name": "cache", "emptyDir": {"sizeLimit": limit}}]}


# A spec before and after, beside the stages where none are named, and the field that the refusal
# names because its quantities are compared as written; empty if it is not about quantities.
WRITTEN: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    *(
        (
            {"template": {"resources": CPU}},
            {"template": {"resources": CPU | {"limits": {"cpu": other}}}},
            "template.resources",
        )
        for other in ("4", "4000m", 5)
    ),
    ({"template": {"resources": CPU}}, {"template": {"nodes": 2, "resources": CPU}}, ""),
    ({"template": {"resources": CPU}}, {"template": {"nodes": 1}}, ""),
    ({"template": {"resources": CPU}}, {}, ""),
    *(
        (
            {"stages": {name: stage | {"resources": CPU}}},
            {"stages": {name: stage | {"resources": CPU | {"requests": {"memory": "1024Mi"}}}}},
            f"stages.{name}.resources",
        )
        for name, stage in (("sft", STAGE), ("reward", STAGE), ("ppo", PPO))
    ),
    ({"template": _sized("1Gi")}, {"template": _sized("1024Mi")}, "template.volumes[].emptyDir"),
    ({"template": _sized(1024)}, {"template": _sized("1024")}, "template.volumes[].emptyDir"),
    ({"template": _sized("1Gi")}, {"template": {"volumes": [VOLUME]}}, ""),
    ({"template": {"volumes": [VOLUME]}}, {"template": _sized("1Gi")}, ""),
]
