"""LoRA: what a stage trains in place of all weights."""

from typing import Annotated

from pydantic import Field, StringConstraints

from rlhf_api.contract import Contract

ModuleName = Annotated[
    str, StringConstraints(max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)*$")
]


class LoRA(Contract):
    """Low-rank adapters beside frozen linear layers, merged into the model that is left."""

    rank: int = Field(ge=1, le=4096)
    """Rank of each adapter: a layer of m inputs and n outputs gets rank * (m + n) numbers."""
    alpha: int = Field(ge=1, le=65_536)
    """What an adapter adds to its layer's output is scaled by alpha / rank."""
    target_modules: Annotated[tuple[ModuleName, ...], Field(max_length=64)] = ()
    """Last parts of the names of the layers that get one, such as q_proj; all linear layers but the
    output head when left out."""
