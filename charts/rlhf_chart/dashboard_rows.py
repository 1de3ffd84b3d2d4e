"""What the dashboard shows, row by row: of the picked jobs first, of the operator last."""

from rlhf_api.metrics import (
    BUILD_INFO,
    BUILD_INFO_HELP,
    BUILD_PACKAGES,
    ROW_METRICS,
    LabelledMetric,
    Metric,
    MetricLabel,
)
from rlhf_chart.panel_queries import (
    ALERTS,
    OPERATOR_ALERTS,
    PICKED,
    WHO,
    Query,
    either,
    growth_of_operator,
    of_job,
    of_operator,
    of_stage,
    quantile_of_operator,
    rate_of_operator,
    rate_of_stage,
    since,
)
from rlhf_chart.panels import AnyPanel, lines, numbers, rows, states
from rlhf_chart.promql import STAGE_LABELS, highest
from rlhf_operator import metrics as operator
from rlhf_operator.job_series import CONDITION, DISRUPTIONS, PENDING_SINCE, PROGRESS_SINCE, RESTARTS

NOT_SHOWN: dict[str, str] = {
    r"rlhf_operator_\w+_created": "when a counter began, which rates have no use for",
    r"rlhf_operator_\w+_(sum|count)": "of histograms the quantiles are shown",
    r"(process|python)_\w+": "of any Python process, on dashboards of their own",
}
"""Series that no panel shows, as regular expressions, each with the reason."""

_LIVE = MetricLabel.ATTEMPT


def all_rows() -> dict[str, list[AnyPanel]]:
    """The panels of each row, by its title."""
    return {
        "Progress": _progress(),
        "Reward and KL": _reward(),
        "Critic": _critic(),
        "Actor": _actor(),
        "Responses": _responses(),
        "Losses and optimizer": _losses(),
        "Time and throughput": _time(),
        "Restarts": _restarts(),
        "Alerts and health": _health(),
        "Operator": _operator(),
        "Stages of all jobs": _stages(),
    }


def _progress() -> list[AnyPanel]:
    age = since(
        of_stage(Metric.LAST_CHECKPOINT_TIMESTAMP, _LIVE),
        "checkpoint_age",
        "Seconds since the newest complete checkpoint was written.",
    )
    return [
        lines("Share of steps done", of_stage(Metric.PROGRESS), unit="percentunit", low=0, high=1),
        numbers("Time left", of_stage(Metric.ETA), unit="s"),
        rows(
            "Stages",
            of_stage(Metric.STEP, _LIVE),
            of_stage(Metric.TOTAL_STEPS, _LIVE),
            of_stage(Metric.EPOCH, _LIVE),
            of_stage(Metric.LAST_CHECKPOINT_STEP, _LIVE),
            age,
            units={age.name: "s"},
        ),
    ]


def _reward() -> list[AnyPanel]:
    return [
        lines(
            "Reward",
            of_stage(Metric.REWARD),
            of_stage(Metric.REWARD_STD),
            of_stage(Metric.EVAL_REWARD),
            of_stage(Metric.EVAL_REWARD_STD),
        ),
        lines(
            "Reward by component",
            of_stage(LabelledMetric.REWARD_COMPONENT),
            of_stage(LabelledMetric.EVAL_REWARD_COMPONENT),
        ),
        lines("KL to the reference", of_stage(Metric.KL), of_stage(Metric.EVAL_KL)),
        lines("Weight of the KL penalty", of_stage(Metric.KL_COEF), span=12),
        lines("Divisor of rewards", of_stage(Metric.REWARD_SCALE), span=12),
    ]


def _critic() -> list[AnyPanel]:
    return [
        lines(
            "Critic loss",
            of_stage(Metric.CRITIC_LOSS),
            of_stage(Metric.CRITIC_LOSS_BASELINE),
            of_stage(Metric.CRITIC_LOSS_OF_MEAN),
            log=True,
        ),
        lines("Explained variance", of_stage(Metric.EXPLAINED_VARIANCE), high=1),
        lines("Return range", *_return_range()),
        lines(
            "Size of returns and advantages",
            of_stage(Metric.RETURNS_ABS_MEAN),
            of_stage(Metric.RETURNS_STD),
            of_stage(Metric.ADVANTAGES_STD),
            span=12,
        ),
        lines(
            "Moments that PopArt takes off the target",
            of_stage(Metric.VALUE_MEAN),
            of_stage(Metric.VALUE_SCALE),
            span=12,
        ),
    ]


def _return_range() -> list[Query]:
    mean, deviation = either(Metric.RETURNS_MEAN), either(Metric.RETURNS_STD)
    middle = of_stage(Metric.RETURNS_MEAN)
    text = "One standard deviation {} the mean."
    return [
        middle._replace(
            expr=f"({mean}) + ({deviation})", name="mean + std", help=text.format("above")
        ),
        middle._replace(name="mean"),
        middle._replace(
            expr=f"({mean}) - ({deviation})", name="mean - std", help=text.format("below")
        ),
    ]


def _actor() -> list[AnyPanel]:
    return [
        lines("Clip share", of_stage(Metric.CLIP_SHARE), unit="percentunit", low=0),
        lines("Entropy", of_stage(Metric.ENTROPY), low=0),
        lines("Drift within an update", of_stage(Metric.APPROX_KL)),
        lines("Probability ratio", of_stage(Metric.RATIO_MEAN)),
        lines("Policy loss", of_stage(Metric.POLICY_LOSS)),
        lines("Drift of the sampler", of_stage(Metric.SAMPLER_DRIFT)),
    ]


def _responses() -> list[AnyPanel]:
    return [
        lines(
            "Response length in tokens",
            of_stage(Metric.RESPONSE_TOKENS_P95),
            of_stage(Metric.RESPONSE_TOKENS_P50),
            of_stage(Metric.RESPONSE_TOKENS_P05),
            of_stage(Metric.RESPONSE_TOKENS_P95_START),
            of_stage(Metric.RESPONSE_TOKENS_P50_START),
            of_stage(Metric.RESPONSE_TOKENS_P05_START),
            of_stage(Metric.RESPONSE_TOKENS),
            low=0,
        ),
        lines(
            "Responses that end, or are cut off",
            of_stage(Metric.EOS_RATE),
            of_stage(Metric.EVAL_EOS_RATE),
            of_stage(Metric.TRUNCATED_SHARE),
            unit="percentunit",
            low=0,
            high=1,
        ),
        lines(
            "Distinct pairs of tokens",
            of_stage(Metric.DISTINCT_2),
            of_stage(Metric.EVAL_DISTINCT_2),
            unit="percentunit",
            low=0,
            high=1,
        ),
    ]


def _losses() -> list[AnyPanel]:
    return [
        lines("Loss", of_stage(Metric.LOSS), of_stage(Metric.EVAL_LOSS)),
        lines("Perplexity", of_stage(Metric.PERPLEXITY)),
        lines("Loss on ptxDataset", of_stage(Metric.PTX_LOSS)),
        lines(
            "Pairs ranked right",
            of_stage(Metric.ACCURACY),
            of_stage(Metric.EVAL_ACCURACY),
            unit="percentunit",
            low=0,
            high=1,
        ),
        lines(
            "Scores of pairs",
            of_stage(Metric.CHOSEN_SCORE),
            of_stage(Metric.REJECTED_SCORE),
            of_stage(Metric.SCORE_MARGIN),
            of_stage(Metric.EVAL_CHOSEN_SCORE),
            of_stage(Metric.EVAL_REJECTED_SCORE),
            of_stage(Metric.EVAL_SCORE_MARGIN),
        ),
        lines(
            "Learning rate",
            of_stage(Metric.LEARNING_RATE),
            of_stage(Metric.CRITIC_LEARNING_RATE),
            unit="sci",
        ),
        lines(
            "Gradient norm",
            of_stage(Metric.GRADIENT_NORM),
            of_stage(Metric.CRITIC_GRADIENT_NORM),
            log=True,
            span=12,
        ),
        lines("Values that were not finite", of_stage(Metric.NONFINITE), low=0, span=12),
    ]


def _time() -> list[AnyPanel]:
    return [
        lines(
            "Where the time goes",
            rate_of_stage(LabelledMetric.PHASE_SECONDS),
            low=0,
            unit="percentunit",
        ),
        lines("Time of a step", of_stage(Metric.STEP_SECONDS), unit="s", low=0),
        lines("Tokens a second", of_stage(Metric.TOKENS_PER_SECOND), low=0),
        lines("Samples a second", of_stage(Metric.SAMPLES_PER_SECOND), low=0, span=12),
        rows(
            "Done in all", of_stage(Metric.TOKENS, _LIVE), of_stage(Metric.SAMPLES, _LIVE), span=12
        ),
        rows(
            "Rows of the datasets, and those left out",
            *(of_stage(metric) for metric in ROW_METRICS),
            span=24,
        ),
    ]


def _restarts() -> list[AnyPanel]:
    return [
        lines(
            "Restarts and disruptions",
            of_job(RESTARTS),
            of_job(DISRUPTIONS),
            low=0,
        ),
        lines(
            "Since the last step",
            since(
                of_job(PROGRESS_SINCE),
                "since_last_step",
                "Seconds since a running stage's step last grew, or its newest attempt began.",
            ),
            unit="s",
            low=0,
        ),
        lines(
            "Waiting for pods",
            since(
                of_job(PENDING_SINCE),
                "waiting",
                "Seconds since when a stage's newest attempt waits for its pods.",
            ),
            unit="s",
            low=0,
        ),
        rows("Conditions", of_job(CONDITION), span=24),
    ]


def _health() -> list[AnyPanel]:
    return [
        rows(
            "Alerts",
            Query(ALERTS, "jobs", WHO, "Alerts of the picked jobs that fire or are pending."),
            Query(OPERATOR_ALERTS, "operator", "", "Alerts of the operator."),
        ),
        states(
            "Health verdicts", of_stage(LabelledMetric.HEALTH_VERDICT), good="holds", bad="broken"
        ),
        rows(
            "Rules of health",
            of_stage(LabelledMetric.HEALTH_VALUE),
            of_stage(LabelledMetric.HEALTH_THRESHOLD),
            of_stage(LabelledMetric.HEALTH_VERDICT),
            of_stage(LabelledMetric.HEALTH_START),
            of_stage(LabelledMetric.HEALTH_BEST),
            span=24,
        ),
    ]


def _operator() -> list[AnyPanel]:
    passes = operator.RECONCILE_SECONDS
    return [
        lines("Leader", of_operator(operator.LEADER, "instance", how="max"), low=0, span=6),
        lines("Jobs that wait to be looked at", of_operator(operator.QUEUE_DEPTH), low=0, span=6),
        lines(
            "Age of the oldest of them",
            of_operator(operator.QUEUE_AGE, how="max"),
            unit="s",
            low=0,
            span=6,
        ),
        lines(
            "Time of a pass",
            quantile_of_operator(passes, 0.5),
            quantile_of_operator(passes, 0.99),
            unit="s",
            low=0,
            span=6,
        ),
        lines("Failed passes", rate_of_operator(operator.RECONCILE_ERRORS, "reason"), unit="ops"),
        lines(
            "Requests to the API server",
            rate_of_operator(operator.API_REQUESTS, "method", "code"),
            unit="reqps",
        ),
        lines(
            "Pods not read, Events dropped, watches begun",
            rate_of_operator(operator.SCRAPE_ERRORS),
            rate_of_operator(operator.EVENTS_DROPPED),
            rate_of_operator(operator.WATCH_STARTS),
            unit="ops",
        ),
        rows("Namespaces", of_operator(operator.NAMESPACE_MISSING, "watch", how="max"), span=12),
        rows("Versions", *_versions(), span=12),
    ]


def _stages() -> list[AnyPanel]:
    return [
        lines("Jobs by phase", of_operator(operator.JOBS, "phase", how="max"), low=0, span=6),
        lines(
            "Median time of a stage",
            quantile_of_operator(operator.STAGE_SECONDS, 0.5, "stage", "outcome", recent=False),
            unit="s",
            low=0,
            span=6,
        ),
        lines(
            "Restarts in an hour",
            growth_of_operator(operator.STAGE_RESTARTS, "reason"),
            low=0,
            span=6,
        ),
        lines(
            "Disruptions in an hour",
            growth_of_operator(operator.STAGE_DISRUPTIONS, "stage"),
            low=0,
            span=6,
        ),
    ]


def _versions() -> list[Query]:
    own = of_operator(operator.BUILD_INFO, "version", how="max")
    trainer = highest(f"{BUILD_INFO}{{{PICKED}}}", (*STAGE_LABELS, *BUILD_PACKAGES))
    return [own._replace(name="operator"), Query(trainer, "trainer", WHO, BUILD_INFO_HELP)]
