import copy
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpa_serve.errors import InvalidProfileError, InvalidWorkloadError
from alpa_serve.profiling import LatencyMemData, ParallelConfig, PrefillDecode, ProfilingResult

PIPELINE = ParallelConfig(1, 1, 2)
latencies = st.lists(st.floats(0, 100), min_size=2, max_size=2)
seconds = st.floats(0, 100)
tokens = st.integers(1, 10_000)


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


@given(seconds, seconds, tokens, tokens)
def test_prompts_as_measured_give_the_measured_line(prefill, decode, prompt_tokens, n):
    figures = PrefillDecode(prefill, decode, prompt_tokens)
    assert figures.service_s(prompt_tokens, n) == pytest.approx(prefill + n * decode, rel=1e-12)


@given(seconds, seconds, st.integers(0, 10_000), tokens)
def test_prompts_of_unknown_length_give_the_measured_line_for_every_prompt(prefill, decode, input_tokens, n):
    figures = PrefillDecode(prefill, decode, None)
    assert figures.service_s(input_tokens, n) == pytest.approx(prefill + n * decode, rel=1e-12)


@given(seconds, seconds, tokens, tokens, st.integers(2, 9))
def test_the_time_to_the_first_token_is_proportional_to_the_prompt(prefill, decode, prompt_tokens, input_tokens, k):
    figures = PrefillDecode(prefill, decode, prompt_tokens)
    assert figures.first_token_s(prompt_tokens) == pytest.approx(prefill + decode, rel=1e-12)
    assert figures.first_token_s(k * input_tokens) == pytest.approx(k * figures.first_token_s(input_tokens), rel=1e-12)
    assert figures.first_token_s(0) == 0


@given(seconds, seconds, st.none() | tokens, st.integers(0, 10_000), tokens)
def test_each_further_token_takes_the_decode_time(prefill, decode, prompt_tokens, input_tokens, n):
    figures = PrefillDecode(prefill, decode, prompt_tokens)
    first = figures.first_token_s(input_tokens)
    assert figures.service_s(input_tokens, n) == pytest.approx(first + (n - 1) * decode, rel=1e-12)
    # the prefill runs whether or not its token is wanted
    assert figures.service_s(input_tokens, 0) == figures.service_s(input_tokens, 1) == first


@given(seconds, seconds, st.none() | tokens, st.integers(0, 10_000), st.integers(0, 10_000))
def test_the_coefficients_are_those_of_the_service_time(prefill, decode, prompt_tokens, input_tokens, output_tokens):
    figures = PrefillDecode(prefill, decode, prompt_tokens)
    fixed, per_input, per_further = figures.coefficients
    expected = fixed + per_input * input_tokens + per_further * max(output_tokens - 1, 0)
    assert figures.service_s(input_tokens, output_tokens) == expected


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ((-0.1, 0.1, None), "prefill_s must be a finite number >= 0, got -0.1"),
        ((0.1, math.nan, None), "decode_s_per_token must be a finite number >= 0, got nan"),
        ((0.1, "0.1", 5), "decode_s_per_token must be a finite number"),
        ((0.1, 0.1, 0), "prompt_tokens must be a whole number >= 1, got 0"),
        ((0.1, 0.1, 5.0), "prompt_tokens must be a whole number"),
    ],
)
def test_malformed_prefill_and_decode_times_are_refused(figures, message):
    with pytest.raises(InvalidProfileError, match=message):
        PrefillDecode(*figures)


@pytest.mark.parametrize("request_tokens", [(-1, 5), (5, -1), (1.5, 5), (5, None)])
def test_numbers_of_tokens_are_whole_and_not_negative(request_tokens):
    with pytest.raises(InvalidWorkloadError, match="put_tokens must be a whole number >= 0"):
        PrefillDecode(0.1, 0.1, 5).service_s(*request_tokens)


def test_prefill_and_decode_times_stay_with_the_faster_measurement():
    slow, fast = PrefillDecode(1.0, 0.5, None), PrefillDecode(0.5, 0.25, 100)
    profile = ProfilingResult("model")
    for latency, figures in [(2, slow), (1, fast), (3, slow), (4, None)]:
        profile.add_result(PIPELINE, 1, [latency] * 2, [0, 0], [1, 1], prefill_decode=figures)
        profile.add_result(PIPELINE, 4, [latency] * 2, [0, 0], [1, 1], prefill_decode=slow)
    assert profile.prefill_decode(PIPELINE) == fast
    assert profile.prefill_decode(PIPELINE, 4) == slow
    # those that were there belong to the slower measurement
    profile.add_result(PIPELINE, 1, [0.5, 0.5], [0, 0], [1, 1])
    assert profile.para_dict[PIPELINE].prefill_decode == {4: slow}


def test_a_copy_has_the_prefill_and_decode_times_and_shares_none():
    profile = ProfilingResult("model")
    profile.add_result(PIPELINE, 1, [1, 1], [0, 0], [1, 1], prefill_decode=PrefillDecode(1.0, 0.5, None))
    copied = copy.deepcopy(profile)
    assert copied == profile
    copied.para_dict[PIPELINE].prefill_decode.clear()
    assert profile.prefill_decode(PIPELINE) == PrefillDecode(1.0, 0.5, None)


def test_prefill_and_decode_times_of_another_kind_are_refused():
    profile = ProfilingResult("some model")
    with pytest.raises(InvalidProfileError, match=r"'some model'.*must be a PrefillDecode, got \(1.0, 0.5, None\)"):
        profile.add_result(**GOOD, prefill_decode=(1.0, 0.5, None))
    assert profile.para_dict == {}


def test_absent_prefill_and_decode_times_are_refused_with_what_is_there():
    profile = ProfilingResult("some model")
    profile.add_result(PIPELINE, 1, [1, 1], [0, 0], [1, 1])
    where = r"'some model', config \(1, 1, 2\), batch size"
    with pytest.raises(
        InvalidProfileError, match=rf"{where} 1: no prefill and decode.*stage latency only.*maveriq\.load"
    ):
        profile.prefill_decode(PIPELINE)
    profile.add_result(PIPELINE, 8, [1, 1], [0, 0], [1, 1], prefill_decode=PrefillDecode(1.0, 0.5, None))
    with pytest.raises(InvalidProfileError, match=rf"{where} 1: no prefill and decode.*for batch sizes \[8\]"):
        profile.prefill_decode(PIPELINE)
    with pytest.raises(InvalidProfileError, match=r"config \(1, 2, 1\): not profiled; profiled: \[\(1, 1, 2\)\]"):
        profile.prefill_decode(ParallelConfig(1, 2, 1))


def profile_with_kv(kv_bytes_per_token):
    profile = ProfilingResult("model")
    profile.add_result(PIPELINE, 1, [1, 1], [0, 0], [10.0, 12.0], kv_bytes_per_token=kv_bytes_per_token)
    return profile


def test_the_kv_cache_of_concurrent_tokens_adds_to_the_weights_of_each_stage():
    profile = profile_with_kv([3.0, 2.0])
    assert profile.memory_bytes(PIPELINE) == profile.weight_bytes(PIPELINE) == 12
    # with one token the second stage is fuller, with ten the first
    assert profile.memory_bytes(PIPELINE, 1) == 14
    assert profile.memory_bytes(PIPELINE, 10) == 40


def test_concurrent_tokens_need_a_profile_that_knows_its_kv_cache():
    profile = profile_with_kv(None)
    assert profile.memory_bytes(PIPELINE, 0) == 12
    with pytest.raises(InvalidProfileError, match=r"config \(1, 1, 2\): no KV cache per token.*concurrent_tokens=5"):
        profile.memory_bytes(PIPELINE, 5)


@pytest.mark.parametrize("per_token", [[1.0], [1.0, -1.0], [1.0, math.nan], 3.0])
def test_kv_cache_per_token_is_one_figure_per_stage(per_token):
    with pytest.raises(InvalidProfileError, match="KV cache per token"):
        profile_with_kv(per_token)


def test_a_faster_measurement_without_kv_cache_leaves_the_known_one():
    profile = profile_with_kv([3.0, 2.0])
    profile.add_result(PIPELINE, 1, [0.5, 0.5], [0, 0], [10.0, 12.0])
    assert profile.para_dict[PIPELINE].kv_bytes_per_token == [3.0, 2.0]


def test_a_profile_knows_where_its_figures_come_from_and_their_units():
    profile = ProfilingResult("model", source="measured", hardware="H100", dtype="float16")
    assert (profile.source, profile.hardware, profile.dtype) == ("measured", "H100", "float16")
    assert profile.units == {"latency": "s", "memory": "bytes", "kv_bytes_per_token": "bytes/token"}
    assert copy.deepcopy(profile) == profile
    with pytest.raises(InvalidProfileError, match="hardware must be text, got 8"):
        ProfilingResult("model", hardware=8)


def test_what_alpaserve_does_not_know_is_left_out_of_its_pickles():
    plain = ProfilingResult("model")
    plain.add_result(PIPELINE, 1, [1, 1], [0, 0], [1, 1])
    assert set(plain.__getstate__()) == {"model_name", "para_dict", "preprocess_cpu", "postprocess_cpu"}
    assert set(plain.para_dict[PIPELINE].__getstate__()) == {"latency", "act_mem", "weight_mem", "metadata"}
