"""Trials of a job whose guardrails fire: how one is made, and what is told of it."""

from collections.abc import Callable
from typing import Any

from rlhf_api.names import GuardrailAction, GuardrailRule, Reason
from rlhf_api.v1alpha1 import HealthVerdict

MakeTrial = Callable[..., Any]
BASE = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://a/b"}}
PPO = BASE | {"rewardModel": {"uri": "hf://a/c"}}
KL, DIVERGING = GuardrailRule.KL_ABOVE_LIMIT, GuardrailRule.CRITIC_LOSS_DIVERGING
NUMBERS = "12.5 against a threshold of 10 at update 40"


def verdict(action: GuardrailAction = GuardrailAction.SUSPEND, **changes: Any) -> HealthVerdict:
    """The KL is above its limit at update 40."""
    given = {"rule": KL, "action": action, "step": 40, "value": 12.5, "threshold": 10.0}
    return HealthVerdict(**(given | changes))


def fires(trial: Any, *verdicts: HealthVerdict, name: str = "ppo", **said: Any) -> None:
    """The current attempt ends since a guardrail fired."""
    told = {"verdicts": verdicts or (verdict(),), "reason": Reason.GUARDRAIL}
    trial.end(name, 42, said=told | said)


def alone(trial: MakeTrial, **spec: Any) -> Any:
    """A job of PPO alone that runs."""
    return trial(stages={"ppo": PPO}, **spec).running("ppo")


def told(trial: Any, kind: str) -> tuple[str, str]:
    """Status and reason of a condition."""
    found = trial.condition(kind)
    return found.status, str(found.reason)
