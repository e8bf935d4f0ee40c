import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpa_serve.errors import InvalidConfigError, InvalidTraceError, UnknownNameError
from alpa_serve.simulator.trace_workload import TokenLatency
from alpa_serve.trace.llm import LLMTrace

TRACE = LLMTrace(
    np.arange(6.0),
    model_codes=[0, 1, 1, 0, 1, 0],
    model_names=["x", "y", "unused"],
    input_tokens=np.arange(6),
    output_tokens=10 * np.arange(6),
    name="six",
)
LONG = LLMTrace(np.arange(30_000.0))


def names_of(workload):
    return [workload.model_names[model_id] for model_id in workload.model_ids]


def test_requests_keep_their_arrivals_and_tokens():
    workload = TRACE.to_workload(["a", "b"])
    assert workload.arrivals.tolist() == TRACE.arrival_s.tolist()
    assert [tokens.tolist() for tokens in workload.require_tokens()] == [list(range(6)), list(range(0, 60, 10))]
    assert (workload.model_names, set(workload.slos)) == (("a", "b"), {np.inf})
    assert LONG.to_workload(["a"]).input_tokens is None


def test_models_are_drawn_uniformly_or_by_weight(random_state_untouched):
    uniform = np.bincount(LONG.to_workload(["a", "b", "c"]).model_ids)
    assert uniform == pytest.approx([10_000] * 3, rel=0.05)
    weighted = LONG.to_workload(["a", "b", "c"], "weights", weights={"c": 6, "a": 3, "b": 0})
    assert np.bincount(weighted.model_ids) == pytest.approx([10_000, 0, 20_000], rel=0.05)
    seeds = [LONG.to_workload(["a", "b"], seed=seed).model_ids.tolist() for seed in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]


@given(
    loads=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    weights=st.lists(st.sampled_from([0.0, 0.1, 1.0, 7.0]), min_size=4, max_size=4),
)
def test_a_model_takes_requests_from_its_load_time_on_and_none_are_left_out_after(loads, weights):
    models = [f"m{i}" for i in range(len(loads))]
    weights = weights[: len(loads)]
    trace = LLMTrace(np.arange(40.0))
    if not any(weights):
        with pytest.raises(InvalidConfigError, match="weight > 0"):
            trace.to_workload(models, "weights", weights=weights)
        return
    workload = trace.to_workload(models, "weights", weights=weights, load_times=loads)
    first = min(load for load, weight in zip(loads, weights, strict=True) if weight)
    assert workload.arrivals.tolist() == list(range(first, 40))
    assert (np.array(loads)[workload.model_ids] <= workload.arrivals).all()
    assert (np.array(weights)[workload.model_ids] > 0).all()


def test_the_trace_names_the_models_or_what_serves_them():
    assert names_of(TRACE.to_workload(["y", "x", "z"], "column")) == list("xyyxyx")
    mapped = TRACE.to_workload({"x": "big", "y": "small"}, "column", load_times={"big": 2, "small": 0})
    assert names_of(mapped) == ["small", "small", "big", "small", "big"]
    assert mapped.arrivals.tolist() == [1, 2, 3, 4, 5]
    assert set(names_of(TRACE.to_workload({"x": "one", "y": "one"}, "column"))) == {"one"}
    with pytest.raises(InvalidTraceError, match="six: no model given for y, which requests name"):
        TRACE.to_workload(["x"], "column")
    with pytest.raises(InvalidTraceError, match="requests name no model"):
        LONG.to_workload(["x"], "column")


def test_slos_are_fixed_or_by_the_output_tokens_of_the_request():
    latency = TokenLatency(0.5, 0.1)
    assert TRACE.to_workload(["a"], slo=2).slos.tolist() == [2.0] * 6
    assert TRACE.to_workload(["a"], slo=latency).slos == pytest.approx(0.5 + np.arange(6))
    mixed = TRACE.to_workload(["x", "y"], "column", slo={"x": latency, "y": 3})
    assert mixed.slos == pytest.approx([0.5, 3, 3, 3.5, 3, 5.5])
    assert TRACE.to_workload(["x", "y"], "column", slo=[latency, 3]).slos == pytest.approx(mixed.slos)
    with pytest.raises(InvalidTraceError, match="no output tokens"):
        LONG.to_workload(["a"], slo=latency)


@pytest.mark.parametrize(
    ("models", "arguments", "error", "message"),
    [
        ("abc", {}, InvalidConfigError, "sequence of names, got 'abc'"),
        ([], {}, InvalidConfigError, "at least one"),
        ([1], {}, InvalidConfigError, "must be names"),
        (["a", "a"], {}, InvalidConfigError, "must differ"),
        ({"x": "a"}, {}, InvalidConfigError, "mapping only with"),
        (["a"], {"assign": "random"}, UnknownNameError, "unknown assign 'random'; known: uniform, weights, column"),
        (["a"], {"assign": "weights"}, InvalidConfigError, "weights go with"),
        (["a"], {"weights": [1]}, InvalidConfigError, "weights go with"),
        (["a", "b"], {"assign": "weights", "weights": [1]}, InvalidConfigError, "weights has 1 values for 2 models"),
        (["a"], {"assign": "weights", "weights": [-1]}, InvalidConfigError, "weight of model 'a'"),
        (["a"], {"load_times": {"b": 1}}, InvalidConfigError, "load_times must have a value for each of 'a'; got 'b'"),
        (["a"], {"load_times": {1: 1}}, InvalidConfigError, "a value for each of 'a'; got 1"),
        (["a", "b"], {"load_times": [1]}, InvalidConfigError, "load_times has 1 values for 2 models"),
        (["a", "b"], {"slo": [1]}, InvalidConfigError, "slo has 1 values for 2 models"),
        (["a"], {"load_times": ["soon"]}, InvalidConfigError, "load time .s. of model 'a'"),
        (["a"], {"slo": -1}, InvalidConfigError, "SLO .* of model 'a'"),
        (["a"], {"slo": TokenLatency(0.1, -1)}, InvalidConfigError, "TPOT .s. of model 'a'"),
    ],
)
def test_bad_arguments_are_refused(models, arguments, error, message):
    with pytest.raises(error, match=message):
        TRACE.to_workload(models, **arguments)


def test_an_empty_trace_makes_an_empty_workload():
    assert len(TRACE.slice(100).to_workload(["a"])) == 0
