"""The operator's own metrics, in the default registry; each is fed where the thing happens.

Those of single jobs stand in `job_series`.
"""

import importlib.metadata

from prometheus_client import Counter, Gauge, Histogram

from rlhf_api.names import DISRUPTIONS, OPERATOR_NAME, Phase, Reason, StageName

PREFIX = "rlhf_operator_"

UNKNOWN = "Unknown"
"""Stands in a label for a word that this release does not know, or that is not there yet."""

_HOUR = 3600.0
_STAGE_HOURS = (1 / 60, 1 / 12, 1 / 4, 1 / 2, 1, 2, 4, 8, 12, 24, 48, 96, 168)

API_REQUESTS = Counter(
    f"{PREFIX}api_requests_total",
    "Requests to the API server, by HTTP method and status code.",
    ["method", "code"],
)
RECONCILE_SECONDS = Histogram(
    f"{PREFIX}reconcile_duration_seconds",
    "Seconds that one pass over one job took, its requests included.",
)
CONFLICT = "conflict"
RECONCILE_ERRORS = Counter(
    f"{PREFIX}reconcile_errors_total",
    "Passes that did not come to their end, by what stopped them: http-<status>, bug, or "
    f"{CONFLICT} where somebody else wrote to the job.",
    ["reason"],
)
EVENTS_DROPPED = Counter(
    f"{PREFIX}events_dropped_total", "Events that were not made, since too many waited."
)
WATCH_STARTS = Counter(
    f"{PREFIX}watch_starts_total", "Times that the watches of a namespace were begun.", ["watch"]
)
NAMESPACE_MISSING = Gauge(
    f"{PREFIX}namespace_missing",
    "1 while a watched namespace does not exist, or none of its objects may be seen.",
    ["watch"],
)
SCRAPE_ERRORS = Counter(f"{PREFIX}scrape_errors_total", "Training pods that could not be read.")
QUEUE_DEPTH = Gauge(f"{PREFIX}queue_depth", "Jobs that wait to be looked at, now or later.")
QUEUE_AGE = Gauge(
    f"{PREFIX}queue_age_seconds",
    "Seconds by which the job that is due longest waits to be looked at; 0 when none is due.",
)
LEADER = Gauge(f"{PREFIX}leader", "1 while this replica leads.")
JOBS = Gauge(
    f"{PREFIX}jobs",
    f"Jobs by phase, told by the leader; {UNKNOWN} before a job has one.",
    ["phase"],
)
STAGE_SECONDS = Histogram(
    f"{PREFIX}stage_duration_seconds",
    "Seconds from a stage's first attempt to its end, without those in which nothing was to run; "
    "a stage that is resumed after a failure ends again.",
    ["stage", "outcome"],
    buckets=[hours * _HOUR for hours in _STAGE_HOURS],
)
STAGE_RESTARTS = Counter(
    f"{PREFIX}stage_restarts_total",
    "Restarts of stages that count against runPolicy.maxRestarts, by their reason.",
    ["stage", "reason"],
)
STAGE_DISRUPTIONS = Counter(
    f"{PREFIX}stage_disruptions_total",
    "Restarts of stages that do not count: by preemption, drained nodes and suspension.",
    ["stage"],
)
BUILD_INFO = Gauge(f"{PREFIX}build_info", "Version of the operator; always 1.", ["version"])

RESTART_REASONS = (
    Reason.ARTIFACT_INVALID,
    Reason.CRASHED,
    *sorted(DISRUPTIONS),
    Reason.IO_ERROR,
    Reason.OUT_OF_MEMORY,
    Reason.PEER_LOST,
    Reason.POD_REJECTED,
    Reason.PROGRESS_DEADLINE_EXCEEDED,
    Reason.SERVICE_UNAVAILABLE,
    Reason.START_ERROR,
    Reason.STOPPED,
)
"""Why stages are restarted at a cost; every other reason ends them or costs nothing."""

PHASES = (*(phase.value for phase in Phase), UNKNOWN)


def _version() -> str:
    try:
        return importlib.metadata.version(OPERATOR_NAME)
    except importlib.metadata.PackageNotFoundError:
        return UNKNOWN


BUILD_INFO.labels(_version()).set(1)
for _stage in StageName:
    # From 0, so that the first one is an increase.
    STAGE_DISRUPTIONS.labels(_stage.value)
    for _reason in RESTART_REASONS:
        STAGE_RESTARTS.labels(_stage.value, _reason.value)
