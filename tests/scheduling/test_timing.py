from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpa_serve.errors import InvalidConfigError, InvalidProfileError
from alpa_serve.profiles import maveriq
from alpa_serve.profiling import ParallelConfig, load_test_prof_result_v2
from alpa_serve.scheduling import ALPASERVE, MAVERIQ, ReplicaTiming, replica_timing
from alpa_serve.scheduling.timing import declared_timing

PIPELINE = ParallelConfig(1, 4, 2)
FALCON = maveriq.load("falcon-40b")


def test_the_stage_penalty_grows_with_the_stages(profile_of):
    profile = profile_of({(1, 1, 2): {1: [0.1, 0.2]}})
    timing = replica_timing(profile, ParallelConfig(1, 1, 2), ALPASERVE)
    assert timing.latency == pytest.approx([0.1 * 1.018, 0.2 * 1.018], rel=1e-15)
    assert (timing.input_rate, timing.further_rate) == (0, 0)


def test_the_request_overhead_is_spread_over_the_stages_and_takes_no_penalty(profile_of):
    profile = profile_of({(1, 1, 2): {1: [0.1, 0.2]}})
    timing = replica_timing(profile, ParallelConfig(1, 1, 2), replace(ALPASERVE, request_overhead_s=0.02))
    assert timing.latency == pytest.approx([0.1 * 1.018 + 0.01, 0.2 * 1.018 + 0.01], rel=1e-15)


@given(st.integers(0, 5000), st.integers(1, 500))
def test_service_by_tokens_adds_up_to_the_profiles_law(input_tokens, output_tokens):
    rules = replace(MAVERIQ, request_overhead_s=0.0)
    timing = replica_timing(FALCON, PIPELINE, rules)
    stage = timing.input_rate * input_tokens + timing.further_rate * (output_tokens - 1)
    expected = FALCON.prefill_decode(PIPELINE).service_s(input_tokens, output_tokens)
    assert sum(timing.latency) + 2 * stage == pytest.approx(expected, rel=1e-12)


def test_the_stage_penalty_applies_to_service_by_tokens_too():
    plain = replica_timing(FALCON, PIPELINE, replace(MAVERIQ, stage_penalty=0.0))
    slowed = replica_timing(FALCON, PIPELINE, replace(MAVERIQ, stage_penalty=0.1))
    assert slowed.further_rate == pytest.approx(1.2 * plain.further_rate)


def test_what_a_profile_lacks_is_named():
    with pytest.raises(InvalidProfileError, match=r"'falcon-40b'.*\(1, 1, 1\).*not profiled"):
        replica_timing(FALCON, ParallelConfig(1, 1, 1), ALPASERVE)
    with pytest.raises(InvalidProfileError, match=r"'falcon-40b'.*prefill and decode"):
        replica_timing(load_test_prof_result_v2("falcon-40b"), PIPELINE, MAVERIQ)


def test_a_model_that_declares_its_latency_is_timed_by_batch_size_1():
    assert declared_timing("a", {4: [9.0], 1: [1, 0.5]}) == ReplicaTiming((1.0, 0.5))


@pytest.mark.parametrize(
    ("latencies", "message"),
    [
        ({2: [1.0]}, r"model 'a': get_latency_dict\(\) has no batch size 1, .*; it has \[2\]"),
        ([1.0], "model 'a'.*must return a dict"),
        ({1: 0.5}, "model 'a'.*must list the seconds of each stage, got 0.5"),
        ({1: []}, "model 'a'.*must list the seconds of each stage"),
        ({1: [-1.0]}, r"model 'a'.*\[1\] \(s\) must be a finite number >= 0, got -1.0"),
        ({1: ["soon"]}, "model 'a'.*must be a finite number >= 0, got 'soon'"),
        ({1: [float("nan")]}, "model 'a'.*must be a finite number >= 0, got nan"),
    ],
)
def test_a_declared_latency_that_is_none_names_its_model(latencies, message):
    with pytest.raises(InvalidConfigError, match=message):
        declared_timing("a", latencies)
