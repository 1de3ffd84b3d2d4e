"""Histories for each alert, and when it is to fire."""

from alert_histories import Case
from guardrail_alert_cases import NONFINITE, verdict_cases
from job_alert_cases import CHECKPOINT, FAILED, PENDING, STALLED, STORM
from operator_alert_cases import DOWN, LAGGING

CASES: dict[str, list[Case]] = {
    **{
        rule: verdict_cases(rule)
        for rule in ("CriticLossDiverging", "KLAboveLimit", "RewardCollapse")
    },
    "NonFinite": NONFINITE,
    "RLHFJobFailed": FAILED,
    "ProgressStalled": STALLED,
    "RestartStorm": STORM,
    "PendingTooLong": PENDING,
    "CheckpointStale": CHECKPOINT,
    "OperatorDown": DOWN,
    "OperatorLagging": LAGGING,
}
