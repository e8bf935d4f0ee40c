import numpy as np
import pytest

from alpa_serve.errors import AlpaServeError, InvalidConfigError, InvalidWorkloadError
from alpa_serve.profiling import load_test_prof_result
from alpa_serve.replay.traffic import Traffic, latency_alone, model_slos, named_numbers
from alpa_serve.simulator.workload import DeterministicProcess, GammaProcess, PoissonProcess, Workload
from alpa_serve.trace.llm import load_llm_trace

SLOS = {"m0": 1.0, "m1": np.inf}


@pytest.mark.parametrize(
    ("text", "process"),
    [
        ("gamma:rate=2,cv=4", GammaProcess(2, 4)),
        ("gamma:cv=4,rate=2", GammaProcess(2, 4)),
        ("poisson:rate=2", PoissonProcess(2)),
        ("uniform:rate=2", DeterministicProcess(2)),
    ],
)
def test_each_model_has_the_process_for_itself(text, process):
    workload = Traffic(trace=text, duration=50, seed=3).workload(SLOS)
    expected = Workload.merge(
        process.generate_workload("m0", 0, 50, 1.0, seed=3), process.generate_workload("m1", 0, 50, seed=4)
    )
    assert workload.model_names == ("m0", "m1")
    for column in ("arrivals", "model_ids", "slos"):
        assert np.array_equal(getattr(workload, column), getattr(expected, column))


def test_scales_change_rate_and_time_of_a_process():
    traffic = Traffic(trace="uniform:rate=2", duration=10, rate_scale=2.0, time_scale=3.0)
    workload = traffic.workload({"m0": 1.0})
    assert np.diff(workload.arrivals) == pytest.approx(0.75)
    assert workload.arrivals[-1] <= 30


def test_the_first_request_of_a_trace_comes_at_once():
    workload = Traffic(trace="coding", start="600", end="900", time_scale=0.5).workload(SLOS)
    trace = load_llm_trace("Coding", start=600, end=900)
    assert workload.arrivals == pytest.approx((trace.arrival_s - trace.arrival_s[0]) / 2)
    assert np.array_equal(workload.input_tokens, trace.input_tokens)
    assert np.array_equal(workload.output_tokens, trace.output_tokens)
    assert set(workload.model_ids) == {0, 1}
    assert np.array_equal(workload.slos, np.where(workload.model_ids == 0, 1.0, np.inf))


def test_a_date_may_begin_a_part_of_a_trace():
    whole = Traffic(trace="Conversation").workload(SLOS)
    part = Traffic(trace="Conversation", start="2023-11-16T18:30").workload(SLOS)
    assert 0 < len(part) < len(whole)


def test_the_poisson_trace_is_another_thing_than_the_process():
    assert len(Traffic(trace="poisson", head=7).workload(SLOS)) == 7
    with pytest.raises(InvalidConfigError, match="duration goes with a process"):
        Traffic(trace="poisson", duration=5.0).workload(SLOS)


def test_weights_share_the_requests_out():
    workload = Traffic(trace="coding", assign="weights", weights={"m0": 0.0, "m1": 1.0}).workload(SLOS)
    assert set(workload.model_ids) == {1}


def test_the_rate_of_a_trace_is_scaled_by_the_number_of_its_requests():
    whole = len(Traffic(trace="coding").workload(SLOS))
    assert len(Traffic(trace="coding", rate_scale=2.0).workload(SLOS)) == 2 * whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trace": "gamma:rate=2", "duration": 5.0}, "is spelled gamma:rate=2,cv=2"),
        ({"trace": "gamma", "duration": 5.0}, "is spelled"),
        ({"trace": "poisson:rate=x", "duration": 5.0}, "NAME=NUMBER is wanted, got 'rate=x'"),
        ({"trace": "poisson:rate=1"}, "needs a duration"),
        ({"trace": "poisson:rate=1", "duration": 5.0, "start": "1"}, "start goes with a trace"),
        ({"trace": "poisson:rate=1", "duration": 5.0, "assign": "column"}, "assign"),
        ({"trace": "nothing"}, "unknown trace 'nothing'"),
        ({"trace": "coding", "start": "1e9"}, "no request is left"),
        ({"trace": "coding", "head": 0}, "head"),
        ({"trace": "coding", "rate_scale": 0.0}, "rate scale"),
        ({"trace": "coding", "time_scale": 0.0}, "time scale"),
        ({"trace": "coding", "seed": -1}, "seed"),
        ({"trace": "coding", "assign": "column"}, "name no model"),
    ],
)
def test_what_is_wrong_with_traffic_is_said(changes, message):
    with pytest.raises(AlpaServeError, match=message):
        Traffic(**changes).workload(SLOS)


def test_slos_are_for_all_models_or_for_one():
    assert model_slos(["a", "b"]) == {"a": np.inf, "b": np.inf}
    assert model_slos(["a", "b"], ["2"]) == {"a": 2.0, "b": 2.0}
    assert model_slos(["a", "b=c"], ["b=c=3", "2"]) == {"a": 2.0, "b=c": 3.0}


def test_an_slo_scale_is_a_factor_on_the_time_alone_on_the_fewest_devices(profile_of):
    profile = profile_of({(1, 1, 2): {1: [0.1, 0.1]}, (1, 2, 1): {1: [0.15]}, (1, 2, 2): {1: [0.05, 0.05]}})
    assert latency_alone(profile) == pytest.approx(0.15)
    assert latency_alone(load_test_prof_result("test-2GB-100ms")) == pytest.approx(0.1)
    assert model_slos(["a", "b"], ["b=9"], 5.0, {"a": profile}) == {"a": pytest.approx(0.75), "b": 9.0}


@pytest.mark.parametrize(
    ("given", "scale", "message"),
    [
        (["1", "2"], None, "more than one"),
        (["1"], 2.0, "more than one"),
        (["a=1", "a=2"], None, "given twice"),
        (["c=1"], None, "unknown model 'c'"),
        (["-1"], None, "SLO"),
        (["x"], None, "NAME=NUMBER"),
        ([], 5.0, "needs a profile of model 'a'"),
        ([], 0.0, "SLO scale"),
    ],
)
def test_what_is_wrong_with_slos_is_said(given, scale, message):
    with pytest.raises(AlpaServeError, match=message):
        model_slos(["a", "b"], given, scale)


def test_numbers_have_names():
    assert named_numbers(["a=1", "b=2.5"], "weights") == {"a": 1.0, "b": 2.5}
    for wrong in (["a"], ["=1"], ["a=nan"], ["a=1", "a=1"]):
        with pytest.raises(InvalidConfigError, match="weights"):
            named_numbers(wrong, "weights")


def test_no_request_is_an_error():
    with pytest.raises(InvalidWorkloadError, match="no request"):
        Traffic(trace="poisson:rate=0.001", duration=0.01).workload({"m0": 1.0})
