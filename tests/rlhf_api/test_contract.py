"""The base of the models, and every rule from both sides: as CEL and as a predicate."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import cel
import pytest
from change_cases import TRANSITIONS, WRITTEN
from pydantic import BaseModel, ValidationError
from rule_cases import CASES, KEYS, LLAMA, PPO, QUEUES, STAGE, keyed

from rlhf_api.contract import CelRule, Contract, Rule
from rlhf_api.errors import ConfigError
from rlhf_api.v1alpha1 import sources, stages
from rlhf_api.v1alpha1.job import RLHFJob
from rlhf_api.v1alpha1.pod import QualifiedKeys
from rlhf_api.v1alpha1.spec import MUTABLE_FIELDS, RLHFJobSpec


def models_with_rules(root: type[BaseModel] = Contract) -> Iterator[type[Contract]]:
    for model in root.__subclasses__():
        ours = model.__module__.startswith("rlhf_api.") and model is not stages.StageSpec
        if ours and issubclass(model, Contract) and model.RULES:
            yield model
        yield from models_with_rules(model)


def cel_says(rule: CelRule, document: Mapping[str, Any], old: Any = None) -> bool:
    # Kubernetes adds `sum` to the language.
    scope: dict[str, Any] = {"self": dict(document), "sum": sum}
    scope |= {"oldSelf": old} if old is not None else {}
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


@pytest.mark.parametrize(("field", "old", "new", "allowed"), TRANSITIONS)
def test_what_may_change(field: str, old: Any, new: Any, allowed: bool) -> None:
    def document(value: Any) -> dict[str, Any]:
        return {"stages": {"sft": STAGE}} | ({} if value is None else {field: value})

    rules = [rule for rule in RLHFJobSpec.API_RULES if "oldSelf" in rule.cel]
    verdicts = [cel_says(rule, document(new), document(old)) for rule in rules]
    assert all(verdicts) is allowed


@pytest.mark.parametrize(("old", "new", "field"), WRITTEN)
def test_quantities_are_compared_as_written(
    old: dict[str, Any], new: dict[str, Any], field: str
) -> None:
    whole = {"stages": {"sft": STAGE}}
    RLHFJobSpec.model_validate(whole | new)
    rules = [rule for rule in RLHFJobSpec.API_RULES if "oldSelf" in rule.cel]
    broken = [rule.message for rule in rules if not cel_says(rule, whole | new, whole | old)]
    assert any("cannot be changed" in message for message in broken)
    told = [message for message in broken if "quantities are compared as written" in message]
    assert [message.startswith(field) for message in told] == ([True] if field else [])


@pytest.mark.parametrize(("name", "allowed"), QUEUES)
def test_the_name_of_a_queue_can_be_a_label(make_document: Any, name: str, allowed: bool) -> None:
    document = make_document({"spec.queueName": name})
    if allowed:
        RLHFJob.from_document(document)
        return
    with pytest.raises(ConfigError, match="queueName"):
        RLHFJob.from_document(document)


@pytest.mark.parametrize(("key", "allowed"), KEYS)
def test_the_keys_of_labels(make_document: Any, key: str, allowed: bool) -> None:
    for path, spec in keyed(key):
        document = make_document({})
        document["spec"] |= spec
        if allowed:
            RLHFJob.from_document(document)
            continue
        with pytest.raises(ConfigError) as caught:
            RLHFJob.from_document(document, "job")
        said = f"job: {path}: key {json.dumps(key, ensure_ascii=False)}: {QualifiedKeys.message}"
        assert str(caught.value).startswith(said)


def test_every_field_is_mutable_or_frozen() -> None:
    frozen = {
        rule.cel.split(")")[0].removeprefix("has(self.")
        for rule in RLHFJobSpec.API_RULES
        if "oldSelf" in rule.cel and rule.cel.startswith("has(")
    }
    fields = {info.alias for info in RLHFJobSpec.model_fields.values()}
    assert frozen == fields - set(MUTABLE_FIELDS)
