"""The training metrics: names, labels and which of them status keeps.

Read by all packages; imports nothing but `names` and the standard library, and decides nothing.
"""

from enum import StrEnum
from typing import Literal

from rlhf_api.names import StageName

METRIC_PREFIX = "rlhf_train_"

BUILD_INFO = METRIC_PREFIX + "build_info"
BUILD_INFO_HELP = "Versions of what trains; always 1."
BUILD_PACKAGES = {
    "version": "rlhf-operator",
    "torch": "torch",
    "deepspeed": "deepspeed",
    "transformers": "transformers",
}
"""Labels of `BUILD_INFO`, and the distribution whose version each holds."""


class MetricLabel:
    """Labels of every training series; `job`, `namespace`, `pod`, `instance` are the scrape's."""

    JOB = "rlhfjob"
    STAGE = "stage"
    ATTEMPT = "attempt"
    RULE = "rule"
    """Of the series of health verdicts."""
    REWARD = "reward"
    """Of the series of single rewards: the reward's name."""
    PHASE = "phase"
    """Of the seconds by phase."""
    DATASET = "dataset"
    """Of the numbers of rows: the dataset's field in the stage."""


class Phase(StrEnum):
    """What rank 0 spends its time on: values of the label `phase`."""

    DATA = "data"
    ROLLOUT = "rollout"
    SCORING = "scoring"
    LEARNING = "learning"
    CHECKPOINT = "checkpoint"
    EVALUATION = "evaluation"


PHASE_HELP: dict[Phase, str] = {
    Phase.DATA: "Rows are read, and batches made of them.",
    Phase.ROLLOUT: "Responses are sampled.",
    Phase.SCORING: "All models and rewards judge the responses.",
    Phase.LEARNING: "Losses, their gradients, and the optimizers' steps.",
    Phase.CHECKPOINT: "A checkpoint is looked for, loaded or written.",
    Phase.EVALUATION: "The held-out rows are evaluated.",
}


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
    TOKENS = "tokens_total"
    SAMPLES = "samples_total"
    LAST_CHECKPOINT_STEP = "last_checkpoint_step"
    LAST_CHECKPOINT_TIMESTAMP = "last_checkpoint_timestamp_seconds"
    NONFINITE = "nonfinite_total"
    # SFT
    EVAL_LOSS = "eval_loss"
    PERPLEXITY = "perplexity"
    # reward model
    ACCURACY = "accuracy"
    CHOSEN_SCORE = "chosen_score"
    REJECTED_SCORE = "rejected_score"
    SCORE_MARGIN = "score_margin"
    EVAL_ACCURACY = "eval_accuracy"
    EVAL_CHOSEN_SCORE = "eval_chosen_score"
    EVAL_REJECTED_SCORE = "eval_rejected_score"
    EVAL_SCORE_MARGIN = "eval_score_margin"
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
    TRUNCATED_SHARE = "truncated_share"
    DISTINCT_2 = "distinct_2"
    SAMPLER_DRIFT = "sampler_drift"
    EVAL_REWARD = "eval_reward"
    EVAL_REWARD_STD = "eval_reward_std"
    EVAL_KL = "eval_kl"
    EVAL_EOS_RATE = "eval_eos_rate"
    EVAL_DISTINCT_2 = "eval_distinct_2"
    RESPONSE_TOKENS_P05_START = "response_tokens_p05_start"
    RESPONSE_TOKENS_P50_START = "response_tokens_p50_start"
    RESPONSE_TOKENS_P95_START = "response_tokens_p95_start"


class LabelledMetric(StrEnum):
    """Families of training metrics with one more label, `LABEL_OF`."""

    PHASE_SECONDS = "phase_seconds_total"
    REWARD_COMPONENT = "reward_component"
    EVAL_REWARD_COMPONENT = "eval_reward_component"
    HEALTH_VALUE = "health_value"
    HEALTH_THRESHOLD = "health_threshold"
    HEALTH_VERDICT = "health_verdict"
    HEALTH_START = "health_start"
    HEALTH_BEST = "health_best"
    ROWS_KEPT = "rows_kept"
    ROWS_TRUNCATED = "rows_truncated"
    ROWS_ENCODED_APART = "rows_encoded_apart"
    ROWS_OVER_LONG = "rows_over_long"
    ROWS_IDENTICAL = "rows_identical"
    ROWS_EMPTY_LIST = "rows_empty_list"
    ROWS_NOT_LEARNED = "rows_not_learned"


ROW_METRICS: dict[LabelledMetric, str] = {
    LabelledMetric.ROWS_KEPT: "kept",
    LabelledMetric.ROWS_TRUNCATED: "truncated",
    LabelledMetric.ROWS_ENCODED_APART: "encoded_apart",
    LabelledMetric.ROWS_OVER_LONG: "over_long",
    LabelledMetric.ROWS_IDENTICAL: "identical",
    LabelledMetric.ROWS_EMPTY_LIST: "empty_list",
    LabelledMetric.ROWS_NOT_LEARNED: "not_learned",
}
"""Fields of status' RowCounts, by the family that tells them."""


LABEL_OF: dict[LabelledMetric, str] = {
    LabelledMetric.PHASE_SECONDS: MetricLabel.PHASE,
    LabelledMetric.REWARD_COMPONENT: MetricLabel.REWARD,
    LabelledMetric.EVAL_REWARD_COMPONENT: MetricLabel.REWARD,
    LabelledMetric.HEALTH_VALUE: MetricLabel.RULE,
    LabelledMetric.HEALTH_THRESHOLD: MetricLabel.RULE,
    LabelledMetric.HEALTH_VERDICT: MetricLabel.RULE,
    LabelledMetric.HEALTH_START: MetricLabel.RULE,
    LabelledMetric.HEALTH_BEST: MetricLabel.RULE,
    **dict.fromkeys(ROW_METRICS, MetricLabel.DATASET),
}


METRIC_HELP: dict[Metric | LabelledMetric, str] = {
    Metric.STEP: "Steps done.",
    Metric.TOTAL_STEPS: "Steps in all.",
    Metric.EPOCH: "Passes over the dataset done, with fractions.",
    Metric.PROGRESS: "Share of the steps done, 0 to 1.",
    Metric.ETA: (
        "Estimated time to the stage's end in seconds, evaluations that are left included as soon "
        "as one has been timed."
    ),
    Metric.LOSS: "Training loss of the last step, in nats a token or a pair.",
    Metric.LEARNING_RATE: "Learning rate of the last step; of the actor in PPO.",
    Metric.GRADIENT_NORM: "Global norm of the gradient before clipping; of the actor in PPO.",
    Metric.TOKENS_PER_SECOND: "Real tokens trained on a second, over all ranks.",
    Metric.SAMPLES_PER_SECOND: "Sequences, pairs or prompts a second, over all ranks.",
    Metric.STEP_SECONDS: "Time of the last step in seconds.",
    Metric.TOKENS: "Real tokens in the steps of this attempt, over all ranks.",
    Metric.SAMPLES: "Sequences, pairs or prompts in the steps of this attempt, over all ranks.",
    Metric.LAST_CHECKPOINT_STEP: (
        "Step of the newest complete checkpoint, be it of an earlier attempt."
    ),
    Metric.LAST_CHECKPOINT_TIMESTAMP: (
        "Unix time in seconds at which the newest complete checkpoint was written."
    ),
    Metric.NONFINITE: "Metric values of this attempt that were NaN or infinite.",
    Metric.EVAL_LOSS: "Loss on the held-out rows, in nats a token.",
    Metric.PERPLEXITY: "Perplexity on the held-out rows.",
    Metric.ACCURACY: "Share of pairs whose chosen response scores higher, 0 to 1.",
    Metric.CHOSEN_SCORE: "Mean score of chosen responses.",
    Metric.REJECTED_SCORE: "Mean score of rejected responses.",
    Metric.SCORE_MARGIN: "Mean difference of the scores of a pair.",
    Metric.EVAL_ACCURACY: ("Share of held-out pairs whose chosen response scores higher, 0 to 1."),
    Metric.EVAL_CHOSEN_SCORE: "Mean score of chosen responses of the held-out pairs.",
    Metric.EVAL_REJECTED_SCORE: "Mean score of rejected responses of the held-out pairs.",
    Metric.EVAL_SCORE_MARGIN: "Mean difference of the scores of a held-out pair.",
    Metric.REWARD: "Mean score of the last rollout.",
    Metric.REWARD_STD: "Standard deviation of the scores of the last rollout.",
    Metric.REWARD_SCALE: "What scores, or whole token rewards, are divided by.",
    Metric.KL: "KL of actor against reference in nats an answer.",
    Metric.KL_COEF: "Weight of the KL penalty.",
    Metric.APPROX_KL: "Drift of the actor within the last update in nats a token.",
    Metric.POLICY_LOSS: "Clipped policy loss of the last update.",
    Metric.PTX_LOSS: "Loss on ptxDataset in the last update before its weight, in nats a token.",
    Metric.CRITIC_LOSS: (
        "Value loss of the last update, before its weight; in units of value_scale under PopArt."
    ),
    Metric.CRITIC_LOSS_BASELINE: "Median value loss at the start, which its growth is judged by.",
    Metric.CRITIC_LOSS_OF_MEAN: (
        "Value loss that the mean return as every value would have: half the returns' variance."
    ),
    Metric.CRITIC_LEARNING_RATE: "Learning rate of the critic.",
    Metric.CRITIC_GRADIENT_NORM: "Global norm of the critic's gradient before clipping.",
    Metric.EXPLAINED_VARIANCE: "Share of the returns' variance that the critic explains.",
    Metric.VALUE_MEAN: "Running mean of the returns, which PopArt takes off the critic's target.",
    Metric.VALUE_SCALE: "Running deviation of the returns, which PopArt divides the target by.",
    Metric.ENTROPY: "Mean entropy of the actor in nats a token.",
    Metric.CLIP_SHARE: "Share of tokens whose ratio was clipped, 0 to 1.",
    Metric.RATIO_MEAN: "Mean probability ratio of the last update.",
    Metric.RETURNS_MEAN: "Mean return over tokens.",
    Metric.RETURNS_STD: "Standard deviation of the returns over tokens.",
    Metric.RETURNS_ABS_MEAN: "Mean absolute return over tokens.",
    Metric.ADVANTAGES_STD: "Standard deviation of the advantages before normalisation.",
    Metric.RESPONSE_TOKENS: "Mean length of a response in tokens, EOS included.",
    Metric.RESPONSE_TOKENS_P05: "5 % quantile of the length of a response in tokens.",
    Metric.RESPONSE_TOKENS_P50: "Median length of a response in tokens.",
    Metric.RESPONSE_TOKENS_P95: "95 % quantile of the length of a response in tokens.",
    Metric.EOS_RATE: "Share of responses that end by themselves, 0 to 1.",
    Metric.TRUNCATED_SHARE: (
        "Share of responses cut off at maxResponseLength, judged as truncatedAnswers says, 0 to 1."
    ),
    Metric.DISTINCT_2: "Share of distinct pairs of neighbouring tokens in responses, 0 to 1.",
    Metric.SAMPLER_DRIFT: "Mean absolute log-probability gap of sampler and trainer in nats.",
    Metric.EVAL_REWARD: "Mean score of the answers to held-out prompts.",
    Metric.EVAL_REWARD_STD: "Standard deviation of the scores of the answers to held-out prompts.",
    Metric.EVAL_KL: "KL of actor against reference on held-out prompts in nats an answer.",
    Metric.EVAL_EOS_RATE: ("Share of answers to held-out prompts that end by themselves, 0 to 1."),
    Metric.EVAL_DISTINCT_2: (
        "Share of distinct pairs of neighbouring tokens in answers to held-out prompts, 0 to 1."
    ),
    Metric.RESPONSE_TOKENS_P05_START: (
        "Median at the start of response_tokens_p05, which LengthOutOfRange compares with."
    ),
    Metric.RESPONSE_TOKENS_P50_START: (
        "Median at the start of response_tokens_p50, which LengthOutOfRange compares with."
    ),
    Metric.RESPONSE_TOKENS_P95_START: (
        "Median at the start of response_tokens_p95, which LengthOutOfRange compares with."
    ),
    LabelledMetric.PHASE_SECONDS: (
        "Seconds of this attempt that rank 0 was in a phase, the one it is in included."
    ),
    LabelledMetric.REWARD_COMPONENT: "Mean of one reward of the last rollout, before its weight.",
    LabelledMetric.EVAL_REWARD_COMPONENT: (
        "Mean of one reward of the answers to held-out prompts, before its weight."
    ),
    LabelledMetric.HEALTH_VALUE: "Quantity that a guardrail's rule compares with its threshold.",
    LabelledMetric.HEALTH_THRESHOLD: "Threshold of a guardrail's rule that is in force.",
    LabelledMetric.HEALTH_VERDICT: (
        "Whether a guardrail's rule is broken: 1 if it is, else 0; absent during its warm-up."
    ),
    LabelledMetric.HEALTH_START: "Median at the start of the metric that a rule of health judges.",
    LabelledMetric.HEALTH_BEST: "Best level so far of the metric that a rule of health judges.",
    LabelledMetric.ROWS_KEPT: "Rows of a dataset that are used; pairs in the reward stage.",
    LabelledMetric.ROWS_TRUNCATED: "Used rows that were cut to the stage's limits.",
    LabelledMetric.ROWS_ENCODED_APART: (
        "Used rows of which a prompt and a response were encoded apart, since a token would "
        "straddle their boundary."
    ),
    LabelledMetric.ROWS_OVER_LONG: "Rows left out, since longer than the stage's limits.",
    LabelledMetric.ROWS_IDENTICAL: (
        "Pairs left out, since chosen and rejected are the same tokens."
    ),
    LabelledMetric.ROWS_EMPTY_LIST: (
        "MIRACL rows left out, since without positive or without negative passages."
    ),
    LabelledMetric.ROWS_NOT_LEARNED: (
        "Rows left out, since they say so themselves, by weight 0 or train false."
    ),
}
"""What each series tells, with its unit: the HELP text wherever it is exported."""


def metric_name(metric: Metric | LabelledMetric) -> str:
    """The Prometheus series of `metric`."""
    return METRIC_PREFIX + metric.value


def metric_type(metric: Metric | LabelledMetric) -> Literal["counter", "gauge"]:
    """The Prometheus type of `metric`; counters begin at 0 with each attempt."""
    return "counter" if metric.value.endswith("_total") else "gauge"


_OF_ALL = frozenset(
    {
        Metric.STEP,
        Metric.TOTAL_STEPS,
        Metric.EPOCH,
        Metric.PROGRESS,
        Metric.ETA,
        Metric.LEARNING_RATE,
        Metric.GRADIENT_NORM,
        Metric.TOKENS_PER_SECOND,
        Metric.SAMPLES_PER_SECOND,
        Metric.STEP_SECONDS,
        Metric.TOKENS,
        Metric.SAMPLES,
        Metric.LAST_CHECKPOINT_STEP,
        Metric.LAST_CHECKPOINT_TIMESTAMP,
        Metric.NONFINITE,
        LabelledMetric.PHASE_SECONDS,
        *ROW_METRICS,
    }
)
_OF_SFT = frozenset({Metric.LOSS, Metric.EVAL_LOSS, Metric.PERPLEXITY})
_OF_REWARD = frozenset(
    {
        Metric.LOSS,
        Metric.ACCURACY,
        Metric.CHOSEN_SCORE,
        Metric.REJECTED_SCORE,
        Metric.SCORE_MARGIN,
        Metric.EVAL_ACCURACY,
        Metric.EVAL_CHOSEN_SCORE,
        Metric.EVAL_REJECTED_SCORE,
        Metric.EVAL_SCORE_MARGIN,
    }
)


def stages_of(metric: Metric | LabelledMetric) -> tuple[StageName, ...]:
    """The stages that tell `metric`."""
    if metric in _OF_ALL:
        return tuple(StageName)
    named = {StageName.SFT: _OF_SFT, StageName.REWARD: _OF_REWARD}
    return tuple(stage for stage, told in named.items() if metric in told) or (StageName.PPO,)


def phases_of(stage: StageName) -> tuple[Phase, ...]:
    """The phases that `stage` has."""
    of_ppo = () if stage is StageName.PPO else (Phase.ROLLOUT, Phase.SCORING)
    return tuple(phase for phase in Phase if phase not in of_ppo)


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
    Metric.EVAL_LOSS,
    Metric.EVAL_ACCURACY,
    Metric.EVAL_REWARD,
    Metric.EVAL_KL,
    Metric.SAMPLES_PER_SECOND,
    Metric.TOKENS_PER_SECOND,
)
"""The last metrics that status keeps for a stage."""
