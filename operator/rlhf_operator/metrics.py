"""The operator's own metrics, in the default registry; each is fed where the thing happens."""

from prometheus_client import Counter, Gauge, Histogram

PREFIX = "rlhf_operator_"

API_REQUESTS = Counter(
    f"{PREFIX}api_requests_total", "Requests to the API server.", ["method", "code"]
)
RECONCILE_SECONDS = Histogram(f"{PREFIX}reconcile_duration_seconds", "Time of one pass.")
RECONCILE_ERRORS = Counter(
    f"{PREFIX}reconcile_errors_total", "Passes that did not come to their end.", ["reason"]
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
QUEUE_DEPTH = Gauge(f"{PREFIX}queue_depth", "Jobs that wait to be looked at.")
LEADER = Gauge(f"{PREFIX}leader", "1 while this replica leads.")
