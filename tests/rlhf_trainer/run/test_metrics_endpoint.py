"""The endpoint over real HTTP, read back by prometheus_client's own parser."""

import logging
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from rlhf_api.metrics import METRIC_HELP, LabelledMetric, Metric, Phase
from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import Dataset, JobReference, ModelSource, SFTStage, StageConfig
from rlhf_trainer.run.metrics_endpoint import MetricsEndpoint

LABELS = {"rlhfjob": "demo", "stage": "sft", "attempt": "3"}


def config(port: int = 0) -> StageConfig:
    return StageConfig(
        job=JobReference(name="demo", uid="12345678-aaaa"),
        stage=StageName.SFT,
        attempt=3,
        metrics_port=port,
        storage="/nowhere",
        sft=SFTStage(model=ModelSource(uri="hf://a/b"), dataset=Dataset(uri="hf://a/c")),
    ).with_digest()


@pytest.fixture
def endpoint() -> Iterator[MetricsEndpoint]:
    endpoint = MetricsEndpoint(config())
    yield endpoint
    endpoint.close()


def scrape(endpoint: MetricsEndpoint) -> dict[str, Family]:
    url = f"http://127.0.0.1:{endpoint.port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        assert response.status == 200
        text = response.read().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_a_value_is_served_with_its_labels_type_and_help(endpoint: MetricsEndpoint) -> None:
    endpoint.set({Metric.KL: 1.5})
    endpoint.set({Metric.KL: 2.5, Metric.STEP: 7})

    families = scrape(endpoint)

    (sample,) = families["rlhf_train_kl"].samples
    assert (sample.name, sample.value, sample.labels) == ("rlhf_train_kl", 2.5, LABELS)
    assert families["rlhf_train_kl"].type == "gauge"
    assert families["rlhf_train_kl"].documentation == METRIC_HELP[Metric.KL]
    assert families["rlhf_train_step"].samples[0].value == 7


def test_series_that_were_never_set_are_absent(endpoint: MetricsEndpoint) -> None:
    endpoint.set_labelled(LabelledMetric.HEALTH_START, {})
    counters = {"rlhf_train_nonfinite", "rlhf_train_samples", "rlhf_train_tokens"}
    assert set(scrape(endpoint)) == {"rlhf_train_build_info"} | counters


def test_seconds_by_phase_are_asked_for_at_each_scrape() -> None:
    seconds = {Phase.DATA: 0.5, Phase.LEARNING: 0.0}
    endpoint = MetricsEndpoint(config(), lambda: seconds)
    try:
        first = scrape(endpoint)["rlhf_train_phase_seconds"]
        seconds[Phase.LEARNING] = 2.5
        second = scrape(endpoint)["rlhf_train_phase_seconds"]
    finally:
        endpoint.close()
    assert first.type == "counter"
    assert {sample.name for sample in first.samples} == {"rlhf_train_phase_seconds_total"}
    assert first.samples[0].labels == LABELS | {"phase": "data"}
    assert [sample.value for sample in first.samples] == [0.5, 0.0]
    assert [sample.value for sample in second.samples] == [0.5, 2.5]


def test_counters_start_at_zero_and_have_the_total_suffix(endpoint: MetricsEndpoint) -> None:
    (start,) = scrape(endpoint)["rlhf_train_nonfinite"].samples
    endpoint.count({Metric.NONFINITE: 2})
    endpoint.count({Metric.NONFINITE: 1, Metric.TOKENS: 5})
    family = scrape(endpoint)["rlhf_train_nonfinite"]

    assert start.value == 0
    assert family.type == "counter"
    (sample,) = family.samples
    assert (sample.name, sample.value, sample.labels) == ("rlhf_train_nonfinite_total", 3, LABELS)
    assert scrape(endpoint)["rlhf_train_tokens"].samples[0].value == 5


def test_build_info_names_the_versions(endpoint: MetricsEndpoint) -> None:
    (sample,) = scrape(endpoint)["rlhf_train_build_info"].samples

    assert sample.value == 1
    assert sample.labels.keys() == LABELS.keys() | {"version", "torch", "deepspeed", "transformers"}
    assert sample.labels["torch"].startswith("2.")


def test_nan_is_served_as_nan(endpoint: MetricsEndpoint) -> None:
    endpoint.set({Metric.LOSS: float("nan")})

    value = scrape(endpoint)["rlhf_train_loss"].samples[0].value
    assert value != value


def test_the_process_wide_registry_stays_out_of_it(endpoint: MetricsEndpoint) -> None:
    endpoint.set({Metric.KL: 1.0})

    names = {family.name for family in REGISTRY.collect()}
    assert not any(name.startswith("rlhf_train") for name in names)


def test_two_endpoints_do_not_meet(endpoint: MetricsEndpoint) -> None:
    other = MetricsEndpoint(config())
    try:
        other.set({Metric.KL: 9.0})
        endpoint.set({Metric.KL: 1.0})
        assert other.port != endpoint.port
        assert scrape(other)["rlhf_train_kl"].samples[0].value == 9
        assert scrape(endpoint)["rlhf_train_kl"].samples[0].value == 1
    finally:
        other.close()


def test_a_free_port_is_on_the_loopback_and_a_fixed_one_on_all_interfaces(
    endpoint: MetricsEndpoint,
) -> None:
    assert endpoint._server is not None
    assert endpoint._server.server_address[0] == "127.0.0.1"

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    fixed = MetricsEndpoint(config(free))
    try:
        assert fixed.port == free
        assert fixed._server is not None
        assert fixed._server.server_address[0] == "0.0.0.0"
    finally:
        fixed.close()


def test_a_port_in_use_is_a_warning_and_the_rest_works(
    endpoint: MetricsEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    assert endpoint.port is not None
    with caplog.at_level(logging.WARNING):
        second = MetricsEndpoint(config(endpoint.port))

    assert second.port is None
    assert f"metricsPort {endpoint.port}" in caplog.text
    assert "training goes on" in caplog.text
    second.set({Metric.KL: 1.0})
    second.count({Metric.NONFINITE: 1})
    second.close()


def test_closing_frees_the_port_and_may_be_repeated() -> None:
    endpoint = MetricsEndpoint(config())
    assert endpoint.port is not None
    endpoint.close()
    endpoint.close()

    again = MetricsEndpoint(config(endpoint.port))
    assert again.port == endpoint.port
    again.close()


def test_a_job_name_is_escaped_by_the_format(tmp_path: Path) -> None:
    odd = config().model_copy(update={"job": JobReference(name='a"b\\c\n', uid="12345678")})
    endpoint = MetricsEndpoint(odd)
    try:
        endpoint.set({Metric.KL: 1.0})
        assert scrape(endpoint)["rlhf_train_kl"].samples[0].labels["rlhfjob"] == 'a"b\\c\n'
    finally:
        endpoint.close()
