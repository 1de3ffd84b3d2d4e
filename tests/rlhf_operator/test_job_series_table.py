"""The table of a job's series, and the words that their labels are taken from."""

import math
from collections.abc import Mapping
from datetime import UTC

from hypothesis import given
from hypothesis import strategies as st

from rlhf_api.metrics import METRIC_HELP, METRIC_PREFIX, LabelledMetric, Metric, metric_name
from rlhf_api.names import ConditionType, GuardrailRule, Reason, StageName, StageState
from rlhf_api.v1alpha1 import Condition, Progress, RLHFJobStatus, StageStatus, StageStatuses
from rlhf_operator.job_series import CONDITION, JOB_METRICS, JOB_PREFIX, job_series
from rlhf_operator.metrics import UNKNOWN
from rlhf_operator.planning.observed import ObservedProgress, ObservedVerdict
from rlhf_operator.scraper import Reading

ALL = (*Metric, *LabelledMetric)
WORDS = st.text("abcXYZ", min_size=1, max_size=9)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TIMES = st.datetimes(timezones=st.just(UTC))
CONDITIONS = st.builds(
    Condition,
    type=st.sampled_from(ConditionType) | WORDS,
    status=st.sampled_from(["True", "False", "Unknown"]),
    reason=st.sampled_from(Reason) | st.sampled_from(GuardrailRule) | WORDS,
    message=st.just(""),
    last_transition_time=TIMES,
)
STAGES = st.builds(
    StageStatus,
    state=st.sampled_from(StageState) | WORDS,
    attempt=st.integers(0, 5),
    reported_attempt=st.none() | st.integers(0, 5),
    attempt_start_time=st.none() | TIMES,
    last_progress_time=st.none() | TIMES,
    progress=st.none()
    | st.builds(
        Progress, step=st.integers(0, 9), total_steps=st.integers(0, 9), percent=st.just(0)
    ),
    metrics=st.none() | st.dictionaries(st.sampled_from(Metric) | WORDS, NUMBERS, max_size=8),
    verdicts=st.none() | st.dictionaries(st.sampled_from(GuardrailRule) | WORDS, WORDS, max_size=5),
    reason=st.none() | st.sampled_from(Reason) | WORDS,
)
STATUSES = st.builds(
    RLHFJobStatus,
    conditions=st.lists(CONDITIONS, max_size=5, unique_by=lambda each: str(each.type)).map(tuple),
    stages=st.builds(
        StageStatuses, sft=st.none() | STAGES, reward=st.none() | STAGES, ppo=st.none() | STAGES
    ),
)
VERDICTS = st.builds(
    ObservedVerdict, st.booleans(), st.none() | NUMBERS, st.none() | NUMBERS, st.none()
)
READINGS = st.dictionaries(
    st.sampled_from(StageName),
    st.builds(
        Reading,
        st.integers(1, 5),
        st.builds(
            ObservedProgress,
            st.integers(0, 9),
            st.integers(0, 9),
            metrics=st.dictionaries(st.sampled_from(Metric).map(str), NUMBERS, max_size=8),
            verdicts=st.dictionaries(st.sampled_from(GuardrailRule), VERDICTS),
        ),
    ),
)
VOCABULARY: Mapping[str, set[str]] = {
    "stage": set(StageName),
    "rule": set(GuardrailRule),
    "type": set(ConditionType),
    "reason": {*Reason, *GuardrailRule, UNKNOWN},
    "attempt": {str(number) for number in range(1, 6)},
    "namespace": {"team"},
    "rlhfjob": {"demo"},
}


@given(STATUSES, READINGS)
def test_every_series_is_in_the_table_and_every_label_in_the_vocabulary(
    status: RLHFJobStatus, readings: dict[StageName, Reading]
) -> None:
    found = list(job_series("team", "demo", status, readings))
    assert len({(metric, labels) for metric, labels, _ in found}) == len(found)
    attempts: dict[str, set[str]] = {}
    for metric, labels, value in found:
        assert metric in JOB_METRICS
        named = dict(zip(metric.labels, labels, strict=True))
        if metric is CONDITION and not named["stage"]:
            del named["stage"]
        assert all(text in VOCABULARY[label] for label, text in named.items()), named
        assert math.isfinite(value)
        assert not isinstance(value, bool)
        if "attempt" in named:
            attempts.setdefault(named["stage"], set()).add(named["attempt"])
    assert all(len(numbers) == 1 for numbers in attempts.values())


def test_the_table_has_the_trainers_names_and_texts() -> None:
    names = [metric.name for metric in JOB_METRICS]
    assert len(set(names)) == len(names)
    texts = {metric_name(each).removeprefix(METRIC_PREFIX): METRIC_HELP[each] for each in ALL}
    mirrored = [metric for metric in JOB_METRICS if "attempt" in metric.labels]
    assert len(mirrored) == 18
    for metric in mirrored:
        assert metric.help.startswith(texts[metric.name.removeprefix(JOB_PREFIX)])
