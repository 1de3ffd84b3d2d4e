"""The training metrics: names, labels and which of them status keeps.

Read by all packages; imports nothing but the standard library, and decides nothing.
"""

from enum import StrEnum

METRIC_PREFIX = "rlhf_train_"


class MetricLabel:
    """Labels of every training series; `job`, `namespace`, `pod`, `instance` are the scrape's."""

    JOB = "rlhfjob"
    STAGE = "stage"
    ATTEMPT = "attempt"
    RULE = "rule"
    """Of the series of health verdicts."""
    REWARD = "reward"
    """Of the series of single rewards: the reward's name."""


class Metric(StrEnum):
    """Training metrics: the key in `events.jsonl` and in status; `metric_name` gives the series."""

    STEP = "step"
    TOTAL_STEPS = "total_steps"
    EPOCH = "epoch"
    PROGRESS = "progress_ratio"
    ETA = "eta_seconds"
    LOSS = "loss"
    LEARNING_RATE = "learning_rate"
    GRADIENT_NORM = "gradient_norm"
    TOKENS_PER_SECOND = "tokens_per_second"
    SAMPLES_PER_SECOND = "samples_per_second"
    STEP_SECONDS = "step_seconds"
    LAST_CHECKPOINT_STEP = "last_checkpoint_step"
    NONFINITE = "nonfinite_total"
    # SFT
    EVAL_LOSS = "eval_loss"
    PERPLEXITY = "perplexity"
    # reward model
    ACCURACY = "accuracy"
    CHOSEN_SCORE = "chosen_score"
    REJECTED_SCORE = "rejected_score"
    SCORE_MARGIN = "score_margin"
    # PPO
    REWARD = "reward"
    REWARD_STD = "reward_std"
    REWARD_SCALE = "reward_scale"
    KL = "kl"
    KL_COEF = "kl_coef"
    APPROX_KL = "approx_kl"
    POLICY_LOSS = "policy_loss"
    PTX_LOSS = "ptx_loss"
    CRITIC_LOSS = "critic_loss"
    CRITIC_LOSS_BASELINE = "critic_loss_baseline"
    CRITIC_LOSS_OF_MEAN = "critic_loss_of_mean"
    CRITIC_LEARNING_RATE = "critic_learning_rate"
    CRITIC_GRADIENT_NORM = "critic_gradient_norm"
    EXPLAINED_VARIANCE = "explained_variance"
    VALUE_MEAN = "value_mean"
    VALUE_SCALE = "value_scale"
    ENTROPY = "entropy"
    CLIP_SHARE = "clip_share"
    RATIO_MEAN = "ratio_mean"
    RETURNS_MEAN = "returns_mean"
    RETURNS_STD = "returns_std"
    RETURNS_ABS_MEAN = "returns_abs_mean"
    ADVANTAGES_STD = "advantages_std"
    RESPONSE_TOKENS = "response_tokens"
    RESPONSE_TOKENS_P05 = "response_tokens_p05"
    RESPONSE_TOKENS_P50 = "response_tokens_p50"
    RESPONSE_TOKENS_P95 = "response_tokens_p95"
    EOS_RATE = "eos_rate"
    DISTINCT_2 = "distinct_2"
    SAMPLER_DRIFT = "sampler_drift"


class LabelledMetric(StrEnum):
    """Families of training metrics with one more label, `LABEL_OF`."""

    REWARD_COMPONENT = "reward_component"
    HEALTH_VALUE = "health_value"
    HEALTH_THRESHOLD = "health_threshold"
    HEALTH_VERDICT = "health_verdict"
    HEALTH_START = "health_start"
    HEALTH_BEST = "health_best"


LABEL_OF: dict[LabelledMetric, str] = {
    LabelledMetric.REWARD_COMPONENT: MetricLabel.REWARD,
    LabelledMetric.HEALTH_VALUE: MetricLabel.RULE,
    LabelledMetric.HEALTH_THRESHOLD: MetricLabel.RULE,
    LabelledMetric.HEALTH_VERDICT: MetricLabel.RULE,
    LabelledMetric.HEALTH_START: MetricLabel.RULE,
    LabelledMetric.HEALTH_BEST: MetricLabel.RULE,
}


def metric_name(metric: Metric | LabelledMetric) -> str:
    """The Prometheus series of `metric`."""
    return METRIC_PREFIX + metric.value


STATUS_METRICS = (
    Metric.LOSS,
    Metric.ACCURACY,
    Metric.PERPLEXITY,
    Metric.REWARD,
    Metric.KL,
    Metric.CRITIC_LOSS,
    Metric.EXPLAINED_VARIANCE,
    Metric.ENTROPY,
    Metric.RESPONSE_TOKENS,
    Metric.EOS_RATE,
    Metric.SAMPLES_PER_SECOND,
    Metric.TOKENS_PER_SECOND,
)
"""The last metrics that status keeps for a stage."""
