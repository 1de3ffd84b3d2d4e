"""No field of a stage, nor of what stands in one, is without a test that fails where it is ignored.

Fields that decide about weights have a case in `training_cases`. All others are declared by
`pytest.mark.field` at a test, which `ignored_fields` runs once more without the field.
"""

import ast
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, TypeGuard, get_args

import pytest
import worlds
from pydantic import BaseModel

from rlhf_api.v1alpha1 import PPOStage, RewardStage, SFTStage
from rlhf_api.v1alpha1.stages import StageSpec

cases: Any = worlds.load(Path(__file__).with_name("training_cases.py"))

TESTS = Path(__file__).parents[2]
STAGES: dict[str, type[StageSpec]] = {"sft": SFTStage, "reward": RewardStage, "ppo": PPOStage}
POD = frozenset(("resources", "node_selector", "tolerations", "env"))
"""What lies below these the operator hands to Kubernetes as it is."""
BY_THE_SPEC = frozenset(("PPOStage.preset", "Reward.type"))
"""What the spec itself reads, and nobody else: a preset gives values to other fields, and a type
says which of the others there must be (rlhf_api/v1alpha1/test_presets.py, rule_cases.py)."""
MARK = "pytest.mark.field"


@pytest.fixture(scope="module")
def declared() -> Set[str]:
    """`Class.name` of each field that a test is run without."""
    sources = {path: path.read_text() for path in TESTS.rglob("test_*.py")}
    found = {path: marked(source) for path, source in sources.items() if MARK in source}
    assert found
    return frozenset().union(*found.values())


def marked(source: str) -> set[str]:
    """What the marks in a test file name; all of them must be in use."""
    tree = ast.parse(source)
    loaded = {each.id for each in ast.walk(tree) if _is_loaded(each)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith(MARK):
            assert {ast.unparse(target) for target in node.targets} <= loaded, "a mark of no test"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == MARK:
            assert all(isinstance(each, ast.Constant) for each in node.args), "read by this list"
            names |= {ast.literal_eval(each) for each in node.args}
    return names


def _is_loaded(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)


def below(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Models of the fields of a model, and of theirs."""
    for name, field in model.model_fields.items():
        if name not in POD:
            for inner in _models(field.annotation):
                yield inner
                yield from below(inner)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def without_test(model: type[BaseModel], tested: Set[str]) -> set[str]:
    """Fields of a model that no test is of, be it under the name of a class that it is made of."""
    owners = [each.__name__ for each in model.__mro__]
    return {
        name
        for name in model.model_fields
        if not any(f"{owner}.{name}" in tested for owner in owners)
    }


@pytest.mark.parametrize("stage", STAGES)
def test_every_field_has_a_test(declared: Set[str], stage: str) -> None:
    model = STAGES[stage]
    trained = {f"{model.__name__}.{name}" for name in cases.trained(stage)}
    tested = declared | trained | BY_THE_SPEC
    assert without_test(model, tested) == set()
    assert without_test(model, tested - trained) == cases.trained(stage), "one place for each field"


def test_every_nested_field_has_a_test(declared: Set[str]) -> None:
    for model in {each for stage in STAGES.values() for each in below(stage)}:
        assert without_test(model, declared | BY_THE_SPEC) == set(), model.__name__


def test_a_mark_of_no_test_is_told() -> None:
    one = 'SEEN = pytest.mark.field("PPOStage.gamma")\n'
    assert marked(f"{one}\n@SEEN\ndef test_it(): ...\n") == {"PPOStage.gamma"}
    with pytest.raises(AssertionError, match="a mark of no test"):
        marked(one)


def test_a_new_field_has_none(declared: Set[str]) -> None:
    class New(PPOStage):
        another: int = 1

    assert "another" in without_test(New, declared)


@pytest.mark.parametrize("stage", STAGES)
def test_no_case_is_of_a_field_that_is_gone(stage: str) -> None:
    assert cases.trained(stage) <= set(STAGES[stage].model_fields)


@pytest.mark.parametrize(("stage", "case"), cases.cases())
def test_a_case_changes_its_field_alone(stage: str, case: str) -> None:
    field = case.partition("[")[0]
    beside = cases.BESIDE.get(case, {})
    change = cases.change(stage, case)
    assert set(change) - {field} == set(beside) - {field}
    assert all(change[name] == value for name, value in beside.items() if name != field)
