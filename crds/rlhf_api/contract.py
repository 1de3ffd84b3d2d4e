"""The base of every model of the contract, and the rules that one field cannot say.

A rule stands once, beside its fields: as CEL for the API server and as a predicate for everyone who
reads the same object without one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel


@dataclass(frozen=True)
class Rule:
    """A condition over several fields of one object.

    Attributes:
        cel: the expression over `self`, for `x-kubernetes-validations`.
        message: one sentence naming the fields and the remedy.
        holds: the same condition over the parsed model.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool]


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

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        for rule in type(self).RULES:
            if not rule.holds(self):
                raise ValueError(rule.message)
        return self

    def to_document(self) -> dict[str, Any]:
        """The explicit fields as plain JSON values under their camelCase names."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)

    def to_resolved_document(self) -> dict[str, Any]:
        """As `to_document`, with every default written out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
