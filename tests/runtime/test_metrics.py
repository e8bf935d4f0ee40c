import asyncio
import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from alpa_serve.errors import GroupLostError, ModelFailedError, OverloadedError
from alpa_serve.runtime.metrics import ServingMetrics, outcome_of

LABELS = ("model", "group", "outcome", "le")


def samples(metrics):
    return {
        (sample.name, *(sample.labels[label] for label in LABELS if label in sample.labels)): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


@pytest.fixture
def metrics():
    metrics = ServingMetrics()
    metrics.add_model("m0")
    return metrics


def test_answered_request_is_counted_and_timed(metrics):
    metrics.observe("m0", "1", "answered", latency_s=0.25, queue_s=0.05, slo_s=0.25)
    metrics.observe("m0", "1", "answered", latency_s=0.5, queue_s=0.15, slo_s=0.25)
    metrics.observe("m0", "1", "answered", latency_s=1.0)
    found = samples(metrics)
    assert found["alpa_serve_requests_total", "m0", "1", "answered"] == 3
    assert found["alpa_serve_slo_requests_total", "m0"] == 2
    assert found["alpa_serve_slo_attained_total", "m0"] == 1
    assert found["alpa_serve_latency_seconds_count", "m0", "1"] == 3
    assert found["alpa_serve_latency_seconds_sum", "m0", "1"] == pytest.approx(1.75)
    assert found["alpa_serve_queue_seconds_sum", "m0", "1"] == pytest.approx(0.2)
    assert found["alpa_serve_latency_seconds_bucket", "m0", "1", "0.3"] == 1


@pytest.mark.parametrize("outcome", ["rejected", "failed", "overloaded", "timeout", "not_found", "invalid", "lost"])
def test_request_without_answer_misses_its_slo_and_is_not_timed(metrics, outcome):
    metrics.observe("m0", "", outcome, latency_s=0.0, slo_s=1.0)
    found = samples(metrics)
    assert found["alpa_serve_requests_total", "m0", "", outcome] == 1
    assert found["alpa_serve_slo_requests_total", "m0"] == 1
    assert found["alpa_serve_slo_attained_total", "m0"] == 0
    assert not [key for key in found if key[0].startswith("alpa_serve_latency")]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "answered"),
        (OverloadedError("full"), "overloaded"),
        (GroupLostError("dead"), "lost"),
        (ModelFailedError("broken"), "failed"),
        (KeyError("k"), "failed"),
        (asyncio.CancelledError(), "cancelled"),
        (GeneratorExit(), "cancelled"),
    ],
)
def test_outcome_says_why_there_is_no_answer(error, outcome):
    assert outcome_of(error) == outcome


def test_names_that_clients_make_up_add_no_series(metrics):
    metrics.observe("made up", "", "not_found")
    size = len(samples(metrics))
    for i in range(100):
        metrics.observe(f"made up {i}", "", "not_found", slo_s=math.inf)
    found = samples(metrics)
    assert len(found) == size
    assert found["alpa_serve_requests_total", "", "", "not_found"] == 101


def test_what_groups_have_and_how_often_they_died_is_shown(metrics):
    metrics.set_in_flight("m0", "1", 2)
    metrics.set_in_flight("m0", "1", 1)
    metrics.set_group_restarts("1", 2)
    metrics.observe_first_token("m0", 0.5)
    found = samples(metrics)
    assert found["alpa_serve_in_flight", "m0", "1"] == 1
    assert found["alpa_serve_group_restarts", "1"] == 2
    assert found["alpa_serve_time_to_first_token_seconds_sum", "m0"] == 0.5


def test_two_runtimes_in_a_process_count_apart(metrics):
    metrics.observe("m0", "1", "answered", latency_s=1.0)
    assert samples(ServingMetrics()) == {}
