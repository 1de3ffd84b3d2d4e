"""What PPO scores responses by beside the reward model: Python functions and HTTP endpoints."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from rlhf_api.contract import Contract, Rule
from rlhf_api.v1alpha1.sources import URI

RewardType = Literal["RewardModel", "Function", "Endpoint"]

FunctionName = Annotated[
    str,
    StringConstraints(max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$"),
]
EndpointURL = Annotated[
    str, StringConstraints(max_length=1024, pattern=r"^https?://[^\s/]+(/\S*)?$")
]
RewardName = Annotated[
    str, StringConstraints(min_length=1, max_length=32, pattern=r"^[a-z][a-z0-9_]*$")
]


class FunctionReward(Contract):
    """A Python function that scores responses; every rank calls it with its own rows."""

    name: FunctionName
    """module:function; takes prompts and responses as lists of strings, gives as many floats."""
    uri: URI | None = None
    """Folder that holds the module, file:// or pvc://; the image's own modules when left out."""


class EndpointReward(Contract):
    """An HTTP service that scores responses."""

    url: EndpointURL
    """Is sent POST {"prompts": [...], "responses": [...]} and answers {"scores": [...]}."""
    timeout_seconds: float = Field(30.0, gt=0, le=3600)
    """Seconds to wait for an answer."""
    retries: int = Field(5, ge=0, le=100)
    """Further tries, after growing pauses, before the stage ends with exit code 69."""
    batch_size: int = Field(64, ge=1, le=65536)
    """Largest number of responses in one request."""
    token_env: (
        Annotated[str, StringConstraints(max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
        | None
    ) = None
    """Environment variable that holds a bearer token; no token is sent when left out."""


class Reward(Contract):
    """One of the rewards whose weighted sum is a response's score."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="(self.type == 'Function') == has(self.function) "
            "&& (self.type == 'Endpoint') == has(self.endpoint)",
            message="function must be set if and only if type is Function, and endpoint if and "
            "only if type is Endpoint",
            holds=lambda m: (
                (m.type == "Function") == (m.function is not None)
                and (m.type == "Endpoint") == (m.endpoint is not None)
            ),
        ),
    )

    name: RewardName
    """Name in metrics and samples; each only once."""
    type: RewardType
    """What gives the score."""
    weight: float = Field(1.0, ge=-1e6, le=1e6)
    """Factor of the score in the sum."""
    function: FunctionReward | None = None
    """The function, for type Function."""
    endpoint: EndpointReward | None = None
    """The service, for type Endpoint."""
