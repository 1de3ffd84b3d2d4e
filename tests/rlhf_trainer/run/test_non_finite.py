"""What ends a stage for good, and how it is put."""

import math

from rlhf_api.metrics import Metric
from rlhf_api.names import GuardrailAction, GuardrailRule, StageName
from rlhf_api.v1alpha1 import HealthVerdict
from rlhf_trainer.run.non_finite import non_finite_error, spoilt_metrics


def verdict(rule: GuardrailRule, step: int) -> HealthVerdict:
    return HealthVerdict(
        rule=rule, action=GuardrailAction.OBSERVE, step=step, value=1.0, threshold=0.5
    )


def test_metrics_without_a_number_are_named() -> None:
    metrics = {
        Metric.LOSS: math.nan,
        Metric.LEARNING_RATE: 0.0,
        Metric.GRADIENT_NORM: math.inf,
        Metric.EVAL_LOSS: -math.inf,
    }
    assert spoilt_metrics(metrics) == [
        Metric.LOSS.value,
        Metric.GRADIENT_NORM.value,
        Metric.EVAL_LOSS.value,
    ]


def test_the_error_says_what_where_and_which_checkpoint_is_left() -> None:
    error = non_finite_error(StageName.SFT, ["loss", "model's head"], 7, 5, ())
    assert str(error).startswith(
        "spec.stages.sft: NaN or infinite at step 7: loss, model's head; the last checkpoint is of "
        "step 5, and nothing after it is kept; "
    )
    assert (error.step, error.last_checkpoint_step) == (7, 5)
    assert "; there is no checkpoint, and" in str(
        non_finite_error(StageName.SFT, ["loss"], 1, None, ())
    )


def test_the_first_eight_are_named_and_the_others_counted() -> None:
    eight = [f"w{at}" for at in range(8)]
    assert f": {', '.join(eight)}; " in str(non_finite_error(StageName.SFT, eight, 1, None, ()))
    ten = str(non_finite_error(StageName.SFT, [*eight, "w8", "w9"], 1, None, ()))
    assert f": {', '.join(eight)} and 2 more; " in ten


def test_its_verdict_stands_before_the_others_and_replaces_an_earlier_one() -> None:
    other = verdict(GuardrailRule.CRITIC_LOSS_DIVERGING, 3)
    earlier = verdict(GuardrailRule.NON_FINITE, 2)
    error = non_finite_error(StageName.PPO, ["loss", "kl"], 4, None, [earlier, other])
    first, second = error.verdicts
    assert (first.rule, first.action) == (GuardrailRule.NON_FINITE, GuardrailAction.FAIL)
    assert (first.step, first.value) == (4, 2.0)
    assert second == other
