"""Tests that declare a field of the spec are run once more without it, and have to fail then.

A plugin of pytest. `@pytest.mark.field("PPOStage.ema_decay")`, on a test or on one of its
parameters, says that the test sees what the field does; a mark may name several. Beside the test
itself there is then one for each field, in which trainer, operator and command line read the
field's default, or what `instead` gives, in place of what the test wrote. What passes all the same
does not see the field, and is reported as failed.
"""

import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from rlhf_api import v1alpha1
from rlhf_api.errors import RLHFError
from rlhf_api.v1alpha1.stages import StageSpec

MARKER = "field"
IGNORING = "ignores_a_field"
"""Marks those that are run without a field, and fail."""
READERS = re.compile(r"rlhf_(trainer|operator|cli)(\..*)?|rlhf_api\.v1alpha1\.spec")
"""Who reads the spec to do what it says; tests and most of the spec's own rules see it as it is
written."""
SEEN = (AssertionError, pytest.fail.Exception, RLHFError, LookupError, ValueError)
"""How a test fails that sees the field: by what it compares, or since what is read in its place is
refused or leaves out what is asked for. Any other crash is a mistake of the test's own."""
MODELS: dict[str, type[BaseModel]] = {
    name: model
    for name, model in {**vars(v1alpha1), StageSpec.__name__: StageSpec}.items()
    if isinstance(model, type) and issubclass(model, BaseModel)
}


def replaced(field: str, mark: pytest.Mark) -> tuple[type[BaseModel], str, Any]:
    """The class of `Class.name`, the field's name, and what is read in its place.

    Raises:
        pytest.UsageError: there is no such field, or it has no default and the mark gives nothing.
    """
    owner, _, name = field.partition(".")
    if owner not in MODELS or name not in MODELS[owner].model_fields:
        raise pytest.UsageError(f"field({field!r}): there is no such field; correct the mark")
    default = MODELS[owner].model_fields[name].get_default(call_default_factory=True)
    value = mark.kwargs.get("instead", default)
    if value is PydanticUndefined:
        raise pytest.UsageError(f"field({field!r}): has no default; give `instead`")
    return MODELS[owner], name, value


def ignore(monkeypatch: pytest.MonkeyPatch, field: str, mark: pytest.Mark) -> None:
    """Let `READERS` see what `replaced` gives in every object."""
    model, name, value = replaced(field, mark)

    def is_read() -> bool:
        return READERS.fullmatch(str(sys._getframe(2).f_globals["__name__"])) is not None

    def read(instance: BaseModel) -> Any:
        return value if is_read() else vars(instance)[name]

    # A property of the class goes before what an object holds under its name.
    monkeypatch.setattr(model, name, property(read), raising=False)
    if (written := getattr(model, "to_document", None)) is None:
        return

    def to_document(instance: BaseModel) -> Any:
        return written(instance.model_copy(update={name: value}) if is_read() else instance)

    monkeypatch.setattr(model, "to_document", to_document)


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker."""
    config.addinivalue_line("markers", f"{IGNORING}: a test without a field that it sees")
    config.addinivalue_line(
        "markers",
        f"{MARKER}(*names, instead=...): sees what the field does, and fails where it is not read",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test as it is, and one more for each field that it declares."""
    names: set[str] = set()
    for mark in _declared(metafunc.definition):
        for name in mark.args:
            # Told here: what fails in a test that has to fail is told by nobody.
            replaced(name, mark)
            names.add(name)
    if names:
        parameters = [
            pytest.param(None, id="read"),
            *(pytest.param(name, id=f"without {name}") for name in sorted(names)),
        ]
        metafunc.parametrize("ignored_field", parameters, indirect=True)


def _declared(definition: pytest.Item) -> Iterator[pytest.Mark]:
    """Marks of a test and of its parameters."""
    yield from definition.iter_markers(MARKER)
    for parametrized in definition.iter_markers("parametrize"):
        for values in parametrized.args[1]:
            marks = (getattr(each, "mark", each) for each in getattr(values, "marks", ()))
            yield from (mark for mark in marks if mark.name == MARKER)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what ignores a field that others of its parameters declare; the rest must fail."""
    kept = []
    for item in items:
        name = _ignored(item)
        if name is None:
            kept.append(item)
        elif any(name in mark.args for mark in item.iter_markers(MARKER)):
            reason = f"{name} is not read"
            item.add_marker(pytest.mark.xfail(strict=True, reason=reason, raises=SEEN))
            item.add_marker(IGNORING)
            kept.append(item)
    items[:] = kept


def _ignored(item: pytest.Item) -> str | None:
    call = getattr(item, "callspec", None)
    return None if call is None else call.params.get("ignored_field")


@pytest.fixture(autouse=True)
def ignored_field(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignore the field that the test is parametrized with, if any."""
    name = getattr(request, "param", None)
    if name is not None:
        marks = request.node.iter_markers(MARKER)
        ignore(monkeypatch, name, next(mark for mark in marks if name in mark.args))
