"""PromQL of the dashboard, as text."""

import pytest

from rlhf_api.metrics import LabelledMetric, Metric
from rlhf_chart.panel_queries import either, filled, names_in, of_stage, since

PICKED = '{namespace=~"$namespace",rlhfjob=~"$rlhfjob"}'
BY = "max by (namespace, rlhfjob, stage"


@pytest.mark.parametrize(
    ("metric", "more", "expected"),
    [
        (Metric.KL_COEF, (), f"{BY}) (rlhf_train_kl_coef{PICKED})"),
        (Metric.KL, (), f"{BY}) (rlhf_train_kl{PICKED}) or {BY}) (rlhf_job_kl{PICKED})"),
        (
            LabelledMetric.REWARD_COMPONENT,
            ("attempt",),
            f"{BY}, reward, attempt) (rlhf_train_reward_component{PICKED})",
        ),
    ],
)
def test_the_trainers_series_come_before_the_operators(
    metric: Metric, more: tuple[str, ...], expected: str
) -> None:
    assert either(metric, *more) == expected


def test_variables_are_filled_in() -> None:
    expr = f"rate(x{PICKED}[$__rate_interval])"
    found = filled(expr, namespace="a|b", rlhfjob=".+", rate_interval="1m")
    assert found == 'rate(x{namespace=~"a|b",rlhfjob=~".+"}[1m])'


@pytest.mark.parametrize("expr", ["x[$__range]", 'x{y="${stage}"}'])
def test_a_variable_without_a_value_is_named(expr: str) -> None:
    with pytest.raises(ValueError, match=r"has no value; give it one in filled\(\)"):
        filled(expr, namespace=".+", rlhfjob=".+", rate_interval="1m")


def test_legends_tell_series_apart() -> None:
    assert of_stage(Metric.KL).who == "{{namespace}}/{{rlhfjob}} {{stage}}"
    assert of_stage(LabelledMetric.HEALTH_VERDICT).who.endswith(" {{stage}} {{rule}}")


def test_an_age_is_time_since() -> None:
    found = since(of_stage(Metric.LAST_CHECKPOINT_TIMESTAMP), "age", "Seconds.")
    assert (found.name, found.help) == ("age", "Seconds.")
    assert found.expr == f"time() - ({either(Metric.LAST_CHECKPOINT_TIMESTAMP)})"


def test_names_are_found_in_queries() -> None:
    assert names_in(['sum(rate(rlhf_operator_x_total[1m])) + rlhf_job_y{rlhfjob="rlhf"}']) == {
        "rlhf_operator_x_total",
        "rlhf_job_y",
    }
