"""The series that trainer and operator export, by the objects that define them in code.

Read by what builds the dashboard; a name is written where it is exported, and nowhere else.
"""

from prometheus_client.metrics import MetricWrapperBase

from rlhf_api.metrics import BUILD_INFO, METRIC_HELP, metric_name
from rlhf_chart.promql import series_name
from rlhf_operator import metrics as operator_metrics
from rlhf_operator.job_series import JOB_METRICS


def operator_series(collector: MetricWrapperBase) -> tuple[str, str]:
    """Name and help of the series that queries read of an operator's metric.

    Of a histogram that is the one of its buckets.
    """
    (family,) = collector.describe()
    suffix = "_bucket" if family.type == "histogram" else ""
    return series_name(collector) + suffix, family.documentation


def exported() -> frozenset[str]:
    """All series of both programs; a histogram by that of its buckets."""
    defined = vars(operator_metrics).values()
    collectors = [each for each in defined if isinstance(each, MetricWrapperBase)]
    return frozenset(
        {
            BUILD_INFO,
            *map(metric_name, METRIC_HELP),
            *(metric.name for metric in JOB_METRICS),
            *(operator_series(each)[0] for each in collectors),
        }
    )
