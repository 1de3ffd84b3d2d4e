"""The base of the models, and every rule from both sides: as CEL and as a predicate."""

from collections.abc import Iterator, Mapping
from typing import Any

import cel
import pytest
from pydantic import BaseModel, ValidationError

from rlhf_api.contract import CelRule, Contract, Rule
from rlhf_api.v1alpha1 import affinity, pod, sources, spec, stages, template, volumes
from rlhf_api.v1alpha1.job import RLHFJob
from rlhf_api.v1alpha1.spec import MUTABLE_FIELDS, RLHFJobSpec

LLAMA = {"layers": 2, "hiddenSize": 64, "heads": 4, "tokenizer": "file://tokenizer"}
STAGE = {"model": {"uri": "hf://org/base"}, "dataset": {"uri": "file://rows.jsonl"}}
PPO = STAGE | {"rewardModel": {"uri": "hf://org/reward"}}
VOLUME = {"name": "data", "emptyDir": {}}
KEY = {"name": "n", "key": "k"}

# For each model: an object, and which of the model's rules it breaks, counted from 0.
CASES: dict[type[Contract], list[tuple[dict[str, Any], set[int]]]] = {
    pod.EnvVarSource: [
        ({"secretKeyRef": KEY}, set()),
        ({"configMapKeyRef": KEY}, set()),
        ({"secretKeyRef": KEY, "configMapKeyRef": KEY}, {0}),
        ({}, {0}),
    ],
    pod.EnvVar: [
        ({"name": "A"}, set()),
        ({"name": "A", "value": "b"}, set()),
        ({"name": "A", "valueFrom": {"secretKeyRef": KEY}}, set()),
        ({"name": "A", "value": "b", "valueFrom": {"secretKeyRef": KEY}}, {0}),
        ({"name": "RLHF_X"}, {1}),
        ({"name": "RANK"}, {1}),
        ({"name": "RANKS"}, set()),
    ],
    pod.EnvFromSource: [
        ({"secretRef": {"name": "n"}}, set()),
        ({"configMapRef": {"name": "n"}, "prefix": "P_"}, set()),
        ({"secretRef": {"name": "n"}, "configMapRef": {"name": "n"}}, {0}),
        ({}, {0}),
    ],
    pod.Toleration: [
        ({"key": "gpu", "value": "yes", "effect": "NoSchedule"}, set()),
        ({"operator": "Exists"}, set()),
        ({"key": "gpu", "operator": "Equal", "value": "yes"}, set()),
        ({"key": "gpu", "operator": "Exists", "value": ""}, set()),
        ({"key": "gpu", "effect": "NoExecute", "tolerationSeconds": 5}, set()),
        ({}, {0}),
        ({"operator": "Equal"}, {0}),
        ({"key": "gpu", "operator": "Exists", "value": "yes"}, {1}),
        ({"key": "gpu", "tolerationSeconds": 5}, {2}),
        ({"key": "gpu", "effect": "NoSchedule", "tolerationSeconds": 5}, {2}),
    ],
    affinity.NodeSelectorRequirement: [
        ({"key": "k", "operator": "In", "values": ["a", "b"]}, set()),
        ({"key": "k", "operator": "Gt", "values": ["1"]}, set()),
        ({"key": "k", "operator": "Exists"}, set()),
        ({"key": "k", "operator": "DoesNotExist", "values": []}, set()),
        ({"key": "k", "operator": "NotIn"}, {0}),
        ({"key": "k", "operator": "In", "values": []}, {0}),
        ({"key": "k", "operator": "Lt", "values": ["1", "2"]}, {0}),
        ({"key": "k", "operator": "Gt", "values": ["1", "2"]}, {0}),
        ({"key": "k", "operator": "Lt"}, {0}),
        ({"key": "k", "operator": "Exists", "values": ["a"]}, {0}),
    ],
    affinity.LabelSelectorRequirement: [
        ({"key": "k", "operator": "In", "values": ["a", "b"]}, set()),
        ({"key": "k", "operator": "Exists"}, set()),
        ({"key": "k", "operator": "NotIn", "values": []}, {0}),
        ({"key": "k", "operator": "In"}, {0}),
        ({"key": "k", "operator": "DoesNotExist", "values": ["a"]}, {0}),
    ],
    volumes.Volume: [
        (VOLUME, set()),
        ({"name": "v", "persistentVolumeClaim": {"claimName": "c"}}, set()),
        ({"name": "v", "configMap": {"name": "c"}}, set()),
        ({"name": "v", "secret": {"secretName": "c"}}, set()),
        ({"name": "v"}, {0}),
        ({"name": "v", "emptyDir": {}, "secret": {"secretName": "c"}}, {0}),
        ({"name": "rlhf-config", "emptyDir": {}}, {1}),
    ],
    volumes.VolumeMount: [
        ({"name": "v", "mountPath": "/data"}, set()),
        ({"name": "v", "mountPath": "/etc/rlhf2"}, set()),
        ({"name": "v", "mountPath": "data"}, {0}),
        ({"name": "v", "mountPath": "/a:b"}, {0}),
        ({"name": "v", "mountPath": "/etc/rlhf"}, {1}),
        ({"name": "v", "mountPath": "/mnt/claims/c"}, {1}),
    ],
    volumes.SeccompProfile: [
        ({"type": "RuntimeDefault"}, set()),
        ({"type": "Localhost", "localhostProfile": "p.json"}, set()),
        ({"type": "Localhost"}, {0}),
        ({"type": "Unconfined", "localhostProfile": "p.json"}, {0}),
    ],
    template.PodTemplate: [
        ({}, set()),
        ({"volumes": [VOLUME], "volumeMounts": [{"name": "data", "mountPath": "/d"}]}, set()),
        ({"labels": {"team": "a"}}, set()),
        ({"volumeMounts": [{"name": "data", "mountPath": "/d"}]}, {0}),
        ({"volumes": [VOLUME], "volumeMounts": [{"name": "dat", "mountPath": "/d"}]}, {0}),
        ({"labels": {"rlhf.dev/job": "a"}}, {1}),
        ({"labels": {"team": "a", "app.kubernetes.io/managed-by": "me"}}, {1}),
        ({"labels": {"kueue.x-k8s.io/queue-name": "q"}}, {1}),
    ],
    sources.ScratchModel: [
        (LLAMA, set()),
        (LLAMA | {"keyValueHeads": 2}, set()),
        (LLAMA | {"heads": 5}, {0}),
        (LLAMA | {"keyValueHeads": 3}, {1}),
    ],
    sources.ModelSource: [
        ({"uri": "hf://org/model"}, set()),
        ({"fromStage": "sft"}, set()),
        ({"uri": "scratch://llama", "scratch": LLAMA}, set()),
        ({}, {0}),
        ({"uri": "hf://org/model", "fromStage": "sft"}, {0}),
        ({"uri": "s3://b/m"}, {1}),
        ({"uri": "scratch://llama"}, {2}),
        ({"uri": "hf://org/model", "scratch": LLAMA}, {2}),
        ({"fromStage": "sft", "scratch": LLAMA}, {2}),
        ({"uri": "scratch://bert", "scratch": LLAMA}, {3}),
    ],
    sources.Dataset: [
        ({"uri": "file://rows.jsonl"}, set()),
        ({"uri": "s3://b/rows"}, {0}),
        ({"uri": "scratch://llama"}, {1}),
    ],
    stages.SFTStage: [
        (STAGE, set()),
        (STAGE | {"epochs": 1}, set()),
        (STAGE | {"maxSteps": 1}, set()),
        (STAGE | {"epochs": 1, "maxSteps": 1}, {0}),
    ],
    stages.RewardStage: [
        (STAGE, set()),
        (STAGE | {"epochs": 1, "maxSteps": 1}, {0}),
    ],
    stages.PPOStage: [
        (PPO, set()),
        (PPO | {"epochs": 1, "maxSteps": 1}, {0}),
        (PPO | {"klController": "Fixed"}, set()),
        (PPO | {"klController": "Adaptive", "klTarget": 6}, set()),
        (PPO | {"klController": "Adaptive"}, {1}),
        (PPO | {"klController": "Adaptive", "klTarget": 6, "klHorizon": 7}, set()),
        (PPO | {"klController": "Adaptive", "klTarget": 6, "klHorizon": 6}, {2}),
        (PPO | {"klController": "Adaptive", "klTarget": 6, "batchSize": 50_000}, {2}),
        (PPO | {"klController": "Fixed", "klHorizon": 1}, set()),
        (PPO | {"minibatchSize": 16}, set()),
        (PPO | {"minibatchSize": 64}, {3}),
        (PPO | {"minibatchSize": 64, "batchSize": 128}, set()),
        (PPO | {"minibatchSize": 5}, {3}),
    ],
    stages.Stages: [
        ({"sft": STAGE}, set()),
        ({"reward": STAGE}, set()),
        ({"ppo": PPO}, set()),
        ({}, {0}),
    ],
    spec.Storage: [
        ({"uri": "pvc://claim"}, set()),
        ({"uri": "pvc://claim/a..b/c"}, set()),
        ({"uri": "s3://b/p"}, {0}),
        ({"uri": "file://p"}, {1}),
        ({"uri": "pvc://claim/../p"}, {2}),
        ({"uri": "pvc://claim/p/.."}, {2}),
    ],
}


def models_with_rules(root: type[BaseModel] = Contract) -> Iterator[type[Contract]]:
    for model in root.__subclasses__():
        ours = model.__module__.startswith("rlhf_api.") and model is not stages.StageSpec
        if ours and issubclass(model, Contract) and model.RULES:
            yield model
        yield from models_with_rules(model)


def cel_says(rule: CelRule, document: Mapping[str, Any], old: Any = None) -> bool:
    scope = {"self": dict(document)} | ({"oldSelf": old} if old is not None else {})
    verdict = cel.evaluate(rule.cel, scope)
    assert isinstance(verdict, bool)
    return verdict


def lift_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets an object that breaks rules become a model, so that predicates can look at it."""
    for model in models_with_rules():
        monkeypatch.setattr(model, "RULES", ())


@pytest.mark.parametrize(
    ("model", "document", "broken"),
    [
        pytest.param(model, document, broken, id=f"{model.__name__}-{number}")
        for model, cases in CASES.items()
        for number, (document, broken) in enumerate(cases)
    ],
)
def test_rules_from_both_sides(
    monkeypatch: pytest.MonkeyPatch,
    model: type[Contract],
    document: dict[str, Any],
    broken: set[int],
) -> None:
    rules = model.RULES
    if broken:
        with pytest.raises(ValidationError) as caught:
            model.model_validate(document)
        assert all(rules[i].sentence for i in broken)
        assert len(caught.value.errors()) == 1
    else:
        model.model_validate(document)
    lift_rules(monkeypatch)
    parsed = model.model_validate(document)
    assert {i for i, rule in enumerate(rules) if not rule.holds(parsed)} == broken
    assert {i for i, rule in enumerate(rules) if not cel_says(rule, document)} == broken


def test_every_rule_is_hit_from_both_sides() -> None:
    assert set(CASES) == set(models_with_rules())
    for model, cases in CASES.items():
        assert set().union(*(broken for _, broken in cases)) == set(range(len(model.RULES))), model
        assert any(not broken for _, broken in cases), model


def all_rules() -> list[CelRule]:
    rules: list[CelRule] = [rule for model in models_with_rules() for rule in model.RULES]
    return [*rules, *RLHFJobSpec.API_RULES, *RLHFJob.API_RULES]


@pytest.mark.parametrize("rule", all_rules())
def test_messages_are_sentences_for_people(rule: CelRule) -> None:
    assert rule.message
    assert "\n" not in rule.message
    assert not rule.message.endswith(".")
    assert "self." not in rule.message
    assert rule.cel.count("(") == rule.cel.count(")")


def test_several_broken_rules_are_all_told() -> None:
    with pytest.raises(ValidationError) as caught:
        sources.ScratchModel.model_validate(LLAMA | {"heads": 5, "keyValueHeads": 2})
    said = str(caught.value)
    assert "hiddenSize 64 is no multiple of heads 5" in said
    assert "heads 5 is no multiple of keyValueHeads 2" in said


def test_a_rule_without_explanation_says_its_message() -> None:
    assert Rule(cel="true", message="m", holds=lambda _: True).sentence(None) == "m"


def test_models_are_frozen_and_strict() -> None:
    stage = stages.SFTStage.model_validate(STAGE)
    with pytest.raises(ValidationError, match="frozen"):
        stage.epochs = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        stages.SFTStage.model_validate(STAGE | {"learning_rat": 1})


def test_documents_hold_what_was_said_and_resolved_ones_all_defaults() -> None:
    stage = stages.SFTStage.model_validate(STAGE | {"learningRate": 1e-6})
    assert stage.to_document() == STAGE | {"learningRate": 1e-6}
    resolved = stage.to_resolved_document()
    assert resolved["batchSize"] == 32
    assert "evalDataset" not in resolved
    assert stages.SFTStage.model_validate(resolved) == stage


RANKS = [
    # nodes and processes of the template, those of the stage, batchSize, minibatchSize
    (None, None, None, None, None, None),
    (2, 8, None, None, None, None),
    (2, None, None, 4, 64, 16),
    (3, 8, None, None, None, None),
    (3, 8, 1, 1, None, None),
    (3, None, None, 8, 48, None),
    (None, 5, None, None, 25, 25),
    (None, 5, None, None, 30, 15),
    (None, 4, None, None, 32, 2),
    (None, None, 2, 2, 16, 8),
    (None, None, 2, 2, 16, 2),
    (7, 1, None, None, None, 8),
    (8, 8, None, None, None, None),
    (8, 8, None, None, 64, None),
]


@pytest.mark.parametrize("name", ["sft", "reward", "ppo"])
@pytest.mark.parametrize("numbers", RANKS)
def test_batches_and_ranks_from_both_sides(name: str, numbers: tuple[int | None, ...]) -> None:
    names = ("nodes", "processesPerNode")
    common = {n: value for n, value in zip(names, numbers[:2], strict=True) if value}
    own = {n: value for n, value in zip(names, numbers[2:4], strict=True) if value}
    sizes = {"batchSize": numbers[4]} | ({"minibatchSize": numbers[5]} if name == "ppo" else {})
    stage = (PPO if name == "ppo" else STAGE) | own
    stage |= {field: size for field, size in sizes.items() if size}
    document = ({"template": common} if common else {}) | {"stages": {name: stage}}
    rules = [rule for rule in RLHFJobSpec.API_RULES if "oldSelf" not in rule.cel]
    if all(cel_says(rule, document) for rule in rules):
        RLHFJobSpec.model_validate(document)
    else:
        with pytest.raises(ValidationError, match="is no multiple of the stage's"):
            RLHFJobSpec.model_validate(document)


def test_ranks_are_tried_from_both_sides() -> None:
    """The table above would be satisfied by two sides that refuse nothing."""
    spec_of = RLHFJobSpec.model_validate
    assert (
        spec_of({"stages": {"sft": STAGE | {"processesPerNode": 8}}}).processes_per_node("sft") == 8
    )
    with pytest.raises(ValidationError, match="32 is no multiple of the stage's 24 ranks"):
        spec_of({"stages": {"sft": STAGE | {"nodes": 3, "processesPerNode": 8}}})


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("a", True),
        ("a" * 40, True),
        ("a" * 41, False),
        ("zh-reviews-2", True),
        ("2nd", False),
        ("a.b", False),
        ("a-", False),
    ],
)
def test_job_names_from_both_sides(make_document: Any, name: str, holds: bool) -> None:
    document = make_document({"metadata.name": name})
    assert all(cel_says(rule, document) for rule in RLHFJob.API_RULES) is holds
    if holds:
        RLHFJob.from_document(document)
    else:
        with pytest.raises(ValidationError):
            RLHFJob.model_validate(document)


TRANSITIONS = [
    ("suspend", True, False, True),
    ("suspend", None, True, True),
    ("runPolicy", {"maxRestarts": 1}, {"maxRestarts": 2}, True),
    ("runPolicy", {"maxRestarts": 1}, None, True),
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


@pytest.mark.parametrize(("field", "old", "new", "allowed"), TRANSITIONS)
def test_what_may_change(field: str, old: Any, new: Any, allowed: bool) -> None:
    def document(value: Any) -> dict[str, Any]:
        return {"stages": {"sft": STAGE}} | ({} if value is None else {field: value})

    rules = [rule for rule in RLHFJobSpec.API_RULES if "oldSelf" in rule.cel]
    verdicts = [cel_says(rule, document(new), document(old)) for rule in rules]
    assert all(verdicts) is allowed


def test_every_field_is_mutable_or_frozen() -> None:
    frozen = {
        rule.cel.split(")")[0].removeprefix("has(self.")
        for rule in RLHFJobSpec.API_RULES
        if "oldSelf" in rule.cel
    }
    fields = {info.alias for info in RLHFJobSpec.model_fields.values()}
    assert frozen == fields - set(MUTABLE_FIELDS)
