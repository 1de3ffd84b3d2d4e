"""The base of every model of the contract, and the rules that one field cannot say.

A rule stands once, beside its fields: as CEL for the API server and as a predicate for everyone who
reads the same object without one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema


@dataclass(frozen=True)
class CelRule:
    """A condition that the API server checks; its Python twin, if any, is a validator.

    Attributes:
        cel: the expression over `self`, for `x-kubernetes-validations`.
        message: one sentence naming the fields and the remedy.
    """

    cel: str
    message: str


@dataclass(frozen=True)
class Rule(CelRule):
    """A condition over several fields of one object, for both readers.

    Attributes:
        holds: the same condition over the parsed model.
        explain: the message with the model's own values, where they help.
    """

    holds: Callable[[Any], bool]
    explain: Callable[[Any], str] | None = None

    def sentence(self, model: Any) -> str:
        """What is wrong with `model`."""
        return self.message if self.explain is None else self.explain(model)


@dataclass(frozen=True)
class ListMap:
    """Marks a list whose items differ in one field: `Annotated[tuple[Item, ...], ListMap("name")]`.

    The API server merges such lists item by item and refuses a key that stands twice; so does the
    model.
    """

    key: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, items: tuple[Any, ...]) -> tuple[Any, ...]:
        seen: set[Any] = set()
        for item in items:
            value = item.model_dump(by_alias=True).get(self.key)
            if value in seen:
                raise ValueError(f"{self.key} {value} stands twice; keep one of them")
            seen.add(value)
        return items

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = handler(schema)
        found["x-kubernetes-list-type"] = "map"
        found["x-kubernetes-list-map-keys"] = [self.key]
        return found


class Contract(BaseModel):
    """Immutable, strict about types and unknown fields, camelCase outside and snake_case inside."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        frozen=True,
        populate_by_name=True,
        use_attribute_docstrings=True,
        use_enum_values=False,
    )

    RULES: ClassVar[tuple[Rule, ...]] = ()
    """Checked here and by the API server."""
    API_RULES: ClassVar[tuple[CelRule, ...]] = ()
    """Checked by the API server; here by a validator of the model, or not at all."""

    @classmethod
    def parse_json(cls, text: str | bytes) -> Self:
        """The object that a person, the API server or another process has written.

        Only camelCase names are read: the API server knows no others.

        Raises:
            ValidationError: not JSON, or against the schema.
        """
        return cls.model_validate_json(text, strict=True, by_alias=True, by_name=False)

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        # Not before the fields are validated: strict JSON would be Python's lists by then, which
        # tuples refuse. And not as fields that were set: only what was written counts as that.
        self.__dict__.update(self.stand_ins())
        broken = [rule.sentence(self) for rule in type(self).RULES if not rule.holds(self)]
        if broken:
            raise ValueError("; also: ".join(broken))
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = handler(schema)
        rules = (*cls.RULES, *cls.API_RULES)
        if rules:
            handler.resolve_ref_schema(found)["x-kubernetes-validations"] = [
                {"rule": rule.cel, "message": rule.message} for rule in rules
            ]
        return found

    def stand_ins(self) -> Mapping[str, Any]:
        """What stands in for fields that were not set where it is not their default, by name.

        Valid values already, since no validator sees them. Rules are judged on the result.
        """
        return {}

    def to_document(self) -> dict[str, Any]:
        """The explicit fields as plain JSON values under their camelCase names."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)

    def to_resolved_document(self) -> dict[str, Any]:
        """As `to_document`, with every default written out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
