"""The converter, on small models; the whole CRD is looked at in tests/architecture."""

from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field, StringConstraints

from rlhf_api.contract import CelRule, Contract, ListMap, Rule
from rlhf_api.schema import custom_resource_definition, structural
from rlhf_api.v1alpha1.pod import Quantity


class Inner(Contract):
    """What a type says of itself."""

    RULES: ClassVar[tuple[Rule, ...]] = (Rule(cel="true", message="m", holds=lambda _: True),)
    API_RULES: ClassVar[tuple[CelRule, ...]] = (CelRule(cel="false", message="n"),)

    name: Annotated[str, StringConstraints(max_length=9)]
    """Name."""


class Model(Contract):
    """A model."""

    share: float = Field(1e-6, gt=0, lt=1)
    """Share, over
    two lines."""
    count: int = Field(3, ge=1, le=10)
    """Count."""
    large: int | None = Field(None, ge=1, le=2**40)
    """Large count; none when left out."""
    betas: Annotated[tuple[float, ...], Field(max_length=2)] = (0.9, 0.95)
    """Betas."""
    flag: bool = True
    """Flag."""
    choice: Literal["A", "B"] = "A"
    """Choice; chosen when left out."""
    rows: Literal["Drop", "Keep"] = "Drop"
    """What becomes of rows: they are left out or kept."""
    inner: Inner
    """What the field says."""
    items: Annotated[tuple[Inner, ...], Field(max_length=4), ListMap("name")] = ()
    """Items."""
    amounts: (
        Annotated[
            dict[Annotated[str, StringConstraints(pattern="^a")], Quantity], Field(max_length=5)
        ]
        | None
    ) = None
    """Amounts."""


FIELDS: dict[str, Any] = structural(Model)["properties"]


def test_numbers() -> None:
    assert FIELDS["share"] == {
        "description": "Share, over two lines. Default: 1e-6.",
        "type": "number",
        "minimum": 0,
        "exclusiveMinimum": True,
        "maximum": 1,
        "exclusiveMaximum": True,
        "format": "double",
    }
    assert FIELDS["count"]["format"] == "int32"
    assert FIELDS["count"]["description"] == "Count. Default: 3."


def test_optional_fields_have_neither_null_nor_default() -> None:
    assert FIELDS["large"] == {
        "description": "Large count; none when left out.",
        "type": "integer",
        "minimum": 1,
        "maximum": 2**40,
        "format": "int64",
    }


def test_defaults_are_written_as_people_type_them() -> None:
    assert FIELDS["betas"]["description"] == "Betas. Default: [0.9, 0.95]."
    assert FIELDS["flag"]["description"] == "Flag. Default: true."
    assert FIELDS["choice"] == {
        "description": "Choice; chosen when left out.",
        "type": "string",
        "enum": ["A", "B"],
    }
    assert FIELDS["rows"]["description"].endswith("they are left out or kept. Default: Drop.")
    assert structural(Model, with_defaults=False)["properties"]["flag"]["description"] == "Flag."


def test_objects_are_written_out_where_they_stand() -> None:
    assert FIELDS["inner"] == {
        "description": "What the field says.",
        "x-kubernetes-validations": [
            {"rule": "true", "message": "m"},
            {"rule": "false", "message": "n"},
        ],
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"description": "Name.", "type": "string", "maxLength": 9}},
    }
    assert structural(Model)["required"] == ["inner"]


def test_lists() -> None:
    assert FIELDS["betas"]["x-kubernetes-list-type"] == "atomic"
    assert FIELDS["items"]["x-kubernetes-list-type"] == "map"
    assert FIELDS["items"]["x-kubernetes-list-map-keys"] == ["name"]
    assert FIELDS["items"]["items"]["description"] == "What a type says of itself."


def test_maps_and_quantities() -> None:
    assert FIELDS["amounts"]["maxProperties"] == 5
    amount = FIELDS["amounts"]["additionalProperties"]
    assert amount["x-kubernetes-int-or-string"] is True
    assert amount["anyOf"] == [{"type": "integer"}, {"type": "string"}]
    assert "type" not in amount


class Union(Contract):
    """A union."""

    either: int | str
    """Either."""


class Anything(Contract):
    """No type at all."""

    thing: Any
    """Thing."""


@pytest.mark.parametrize(("model", "said"), [(Union, "unions"), (Anything, "no type")])
def test_what_an_api_server_cannot_take_is_refused(model: type[Contract], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        structural(model)


def test_names_and_columns() -> None:
    crd = custom_resource_definition()
    assert crd["metadata"]["name"] == "rlhfjobs.rlhf.dev"
    (version,) = crd["spec"]["versions"]
    columns = version["additionalPrinterColumns"]
    narrow = [column["name"] for column in columns if "priority" not in column]
    wide = [column["name"] for column in columns if column.get("priority") == 1]
    assert narrow == ["Phase", "Stage", "Progress", "Restarts", "Age"]
    assert wide == ["Reward", "KL", "CriticLoss", "Reason"]
    assert version["subresources"] == {"status": {}}


def test_columns_show_fields_that_are_there() -> None:
    (version,) = custom_resource_definition()["spec"]["versions"]
    for column in version["additionalPrinterColumns"]:
        path = column["jsonPath"].strip(".").split(".")
        if path[0] == "metadata":
            continue
        schema = version["schema"]["openAPIV3Schema"]
        for part in path:
            schema = schema["properties"][part]
        assert schema["type"] == "string"
