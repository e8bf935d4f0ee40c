import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpa_serve.errors import InvalidProfileError
from alpa_serve.profiling import LatencyMemData, ParallelConfig, ProfilingResult

PIPELINE = ParallelConfig(1, 1, 2)
latencies = st.lists(st.floats(0, 100), min_size=2, max_size=2)


def test_a_parallel_config_is_dp_op_pp():
    assert ParallelConfig._fields == ("dp", "op", "pp")
    assert ParallelConfig(1, 2, 4) == (1, 2, 4)
    assert ParallelConfig(2, 2, 4).num_devices == 16


def test_the_classes_say_that_they_live_where_pickles_look_for_them():
    assert {cls.__module__ for cls in (ParallelConfig, LatencyMemData, ProfilingResult)} == {"alpa_serve.profiling"}


@given(st.lists(latencies, min_size=1, max_size=6))
def test_the_measurement_with_the_smallest_slowest_stage_stays(measured):
    profile = ProfilingResult("model")
    for i, stages in enumerate(measured):
        profile.add_result(PIPELINE, 1, stages, [i, i], [i, i], metadata=i)
    data = profile.para_dict[PIPELINE]
    best = min(range(len(measured)), key=lambda i: max(measured[i]))
    assert (data.latency[1], data.act_mem[1], data.weight_mem, data.metadata) == (
        measured[best],
        [best, best],
        [best, best],
        best,
    )


def test_each_batch_size_keeps_its_own_measurement():
    data = LatencyMemData({}, {}, [])
    data.add_result(1, [0.1], [1], [10])
    data.add_result(4, [0.3], [4], [10])
    data.add_result(4, [0.5], [5], [11])
    assert data.latency == {1: [0.1], 4: [0.3]}
    assert data.act_mem == {1: [1], 4: [4]}
    assert data.weight_mem == [10]


def test_alpaserves_positional_constructors_work():
    data = LatencyMemData({1: [0.1]}, {1: [0.0]}, [7.0], "metadata")
    profile = ProfilingResult("model", {ParallelConfig(1, 1, 1): data}, 0.25, 0.5)
    assert (data.metadata, profile.preprocess_cpu, profile.postprocess_cpu) == ("metadata", 0.25, 0.5)
    assert profile.stage_latency(ParallelConfig(1, 1, 1)) == [0.1]


def test_profiles_do_not_share_their_dict():
    ProfilingResult("a").add_result(PIPELINE, 1, [1, 1], [0, 0], [0, 0])
    assert ProfilingResult("b").para_dict == {}


def test_weight_bytes_are_those_of_the_fullest_stage():
    profile = ProfilingResult("model")
    profile.add_result(PIPELINE, 1, [1, 1], [100, 100], [3, 5])
    assert profile.weight_bytes(PIPELINE) == 5


GOOD = {"parallel_config": PIPELINE, "batch_size": 1, "stage_latency": [1, 1], "act_mem": [0, 0], "weight_mem": [2, 2]}


@pytest.mark.parametrize(
    ("field", "bad", "message"),
    [
        ("parallel_config", (1, 1), "dp, op, pp"),
        ("parallel_config", (1, 0, 2), "op of"),
        ("parallel_config", (1, 1, 2.0), "pp of"),
        ("batch_size", 0, "batch size"),
        ("batch_size", 1.5, "batch size"),
        ("stage_latency", [1], "latency must list 2 figures"),
        ("stage_latency", 1.0, "latency must list one figure per stage"),
        ("stage_latency", [1, math.nan], "latency must be a finite number"),
        ("stage_latency", [1, -1], "latency must be a finite number >= 0"),
        ("stage_latency", [1, "1"], "latency must be a finite number"),
        ("act_mem", [0, 0, 0], "activation memory must list 2 figures"),
        ("act_mem", [0, math.inf], "activation memory must be a finite number"),
        ("weight_mem", [], "weight memory must list 2 figures"),
        ("weight_mem", [2, -2], "weight memory must be a finite number >= 0"),
    ],
)
def test_a_malformed_measurement_is_refused_and_adds_nothing(field, bad, message):
    profile = ProfilingResult("some model")
    with pytest.raises(InvalidProfileError, match=rf"profile of 'some model'.*{message}"):
        profile.add_result(**{**GOOD, field: bad})
    assert profile.para_dict == {}


def test_what_is_not_profiled_is_refused_with_what_is(profile_of):
    profile = profile_of({PIPELINE: {1: [1, 1], 2: [1, 1]}}, "some model")
    with pytest.raises(InvalidProfileError, match=r"'some model', config \(1, 8, 1\): not profiled.*\(1, 1, 2\)"):
        profile.stage_latency(ParallelConfig(1, 8, 1))
    with pytest.raises(InvalidProfileError, match=r"'some model', config \(1, 8, 1\): not profiled"):
        profile.weight_bytes(ParallelConfig(1, 8, 1))
    with pytest.raises(InvalidProfileError, match=r"no batch size 4; profiled: \[1, 2\]"):
        profile.stage_latency(PIPELINE, 4)


def test_figures_that_were_put_in_by_hand_are_checked_when_used():
    profile = ProfilingResult("model", {PIPELINE: LatencyMemData({1: [0.1]}, {1: [0]}, [-1, 1])})
    with pytest.raises(InvalidProfileError, match="latency must list 2 figures"):
        profile.stage_latency(PIPELINE)
    with pytest.raises(InvalidProfileError, match="weight memory"):
        profile.weight_bytes(PIPELINE)
