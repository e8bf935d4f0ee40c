import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpa_serve.errors import InvalidConfigError
from alpa_serve.profiles import Finding, load, maveriq, validate
from alpa_serve.profiles.synthetic import PROFILES
from alpa_serve.profiling import LatencyMemData, ParallelConfig, PrefillDecode, ProfilingResult

WEIGHTS = 16e9
CONFIGS = [(1, op, pp) for op in (1, 2, 4) for pp in (1, 2)]


def sound():
    """Return a profile that nothing is wrong with: six configs, three batch sizes, all figures known."""
    result = ProfilingResult("m")
    for _, op, pp in CONFIGS:
        for batch_size in (1, 2, 4):
            figures = PrefillDecode(0.02 * batch_size / op, 0.01 / op, 512)
            result.add_result(
                ParallelConfig(1, op, pp),
                batch_size,
                stage_latency=[figures.service_s(512, 20) / pp] * pp,
                act_mem=[1e8 * batch_size] * pp,
                weight_mem=[WEIGHTS / op / pp] * pp,
                prefill_decode=figures,
                kv_bytes_per_token=[1e5 / op / pp] * pp,
            )
    return result


def changed(config, **fields):
    """Return the sound profile with some figures of a config replaced."""
    result = sound()
    config = ParallelConfig(*config)
    result.para_dict[config] = replace(result.para_dict[config], **fields)
    return result


def latency_of(config, batch_size, *stages):
    data = sound().para_dict[ParallelConfig(*config)]
    return changed(config, latency=data.latency | {batch_size: list(stages)})


def single(latency=0.3, weights=WEIGHTS):
    result = ProfilingResult("m")
    result.add_result(ParallelConfig(1, 1, 1), 1, [latency], [0], [weights])
    return result


def found(result, severity, config, batch_size, **arguments):
    """Return the messages of the findings of this kind, one line each."""
    return "\n".join(
        finding.message
        for finding in validate(result, **arguments)
        if (finding.severity, finding.config, finding.batch_size) == (severity, config, batch_size)
    )


def test_nothing_is_found_in_a_sound_profile():
    assert validate(sound()) == []


@pytest.mark.parametrize("variant", maveriq.variants(), ids=str)
def test_no_error_is_found_in_maveriq_profiles(variant):
    assert [str(finding) for finding in validate(maveriq.load(*variant)) if finding.severity == "error"] == []


@pytest.mark.parametrize("name", [*maveriq.model_names(), *PROFILES])
def test_no_error_is_found_in_published_and_test_profiles(name):
    result = load(name, "test" if name in PROFILES else "maveriq-published")
    assert [str(finding) for finding in validate(result) if finding.severity == "error"] == []


def test_the_unlike_batch_table_of_maveriq_is_found():
    assert "less than batch size 1" in found(maveriq.load("gptj-6b"), "warning", (1, 1, 1), 8)


@pytest.mark.parametrize(
    ("result", "config", "batch_size", "message"),
    [
        (ProfilingResult("m"), None, None, "no config is profiled"),
        (ProfilingResult("m", {(1, 0, 1): LatencyMemData()}), None, None, "op of (1, 0, 1) must be"),
        (ProfilingResult("m", {ParallelConfig(1, 1, 1): LatencyMemData()}), (1, 1, 1), None, "no batch size is"),
        (latency_of((1, 1, 2), 2, 0.1), (1, 1, 2), 2, "latency must list 2 figures, one per stage, got 1"),
        (latency_of((1, 1, 1), 2, 0.1, 0.1), (1, 1, 1), 2, "latency must list 1 figures, one per stage, got 2"),
        (latency_of((1, 1, 1), 2, math.nan), (1, 1, 1), 2, "latency must be a finite number >= 0, got nan"),
        (latency_of((1, 1, 2), 4, 0.1, -1.0), (1, 1, 2), 4, "latency must be a finite number >= 0, got -1.0"),
        (latency_of((1, 1, 2), 4, 0.1, 0.0), (1, 1, 2), 4, "stage 1 takes no time"),
        (changed((1, 1, 2), weight_mem=[1e9]), (1, 1, 2), 4, "weight memory must list 2 figures"),
        (changed((1, 1, 2), kv_bytes_per_token=[1e9]), (1, 1, 2), 1, "KV cache per token must list 2 figures"),
        (changed((1, 1, 2), act_mem={1: [0, 0], 2: [0, 0]}), (1, 1, 2), 4, "activation memory must list 2 figures"),
    ],
)
def test_what_no_simulation_can_use_is_an_error(result, config, batch_size, message):
    assert message in found(result, "error", config, batch_size)


@pytest.mark.parametrize(
    ("result", "config", "batch_size", "message"),
    [
        (changed((1, 2, 1), weight_mem=[WEIGHTS]), (1, 2, 1), None, "no less than with config (1, 1, 1)"),
        (changed((1, 2, 2), weight_mem=[WEIGHTS, 1e8]), (1, 2, 2), None, "no less than with config (1, 2, 1)"),
        (changed((1, 4, 1), kv_bytes_per_token=[7e4]), (1, 4, 1), None, "is more than with config (1, 2, 1)"),
        (changed((1, 4, 1), kv_bytes_per_token=None), (1, 4, 1), None, "no KV cache per token"),
        (changed((1, 4, 1), prefill_decode={}), (1, 4, 1), 2, "no prefill and decode time"),
        (latency_of((1, 1, 1), 4, 0.1), (1, 1, 1), 4, "takes 0.1 s, less than batch size 2 with 0.24 s"),
        (latency_of((1, 1, 2), 1, 0.05, 0.05), (1, 1, 2), 1, "a pipeline does not quicken a request"),
        (latency_of((1, 1, 1), 1, 0.01), (1, 1, 1), 1, "at -1 output tokens, which cannot be"),
        (latency_of((1, 1, 1), 1, 220.0), (1, 1, 1), 1, "output tokens, which cannot be"),
        (latency_of((1, 1, 1), 4, 2.2), (1, 1, 1), 4, "at 212 output tokens, but at 20 elsewhere"),
        (
            changed((1, 1, 1), prefill_decode={1: PrefillDecode(9, 0, 1)}),
            (1, 1, 1),
            1,
            "without decode time contradicts",
        ),
        (single(latency=300), (1, 1, 1), 1, "is it in milliseconds?"),
        (single(latency=1e-5), (1, 1, 1), 1, "is too short to read"),
        (single(weights=16), (1, 1, 1), None, "are they given in GiB or MiB?"),
        (single(weights=2e12), (1, 1, 1), None, "more than any device has"),
        (single(weights=0), (1, 1, 1), None, "weights of 0 bytes"),
    ],
)
def test_what_is_probably_wrong_is_a_warning(result, config, batch_size, message):
    assert message in found(result, "warning", config, batch_size)


def test_a_profile_without_batch_size_1_is_a_warning():
    result = ProfilingResult("m")
    result.add_result(ParallelConfig(1, 1, 1), 8, [0.3], [0], [WEIGHTS])
    assert "batch size 1, which searches go by, is not profiled; 8 are" in found(result, "warning", (1, 1, 1), None)


def test_latency_that_grows_with_tensor_parallelism_is_a_note_within_a_node_only():
    result = latency_of((1, 4, 1), 1, 0.3)
    result.para_dict[1, 4, 1].prefill_decode.clear()
    message = "takes 0.3 s, longer than 0.11 s with config (1, 2, 1) within a node"
    assert message in found(result, "note", (1, 4, 1), 1)
    assert message in found(result, "note", (1, 4, 1), 1, devices_per_node=4)
    assert found(result, "note", (1, 4, 1), 1, devices_per_node=2) == ""


def test_kv_cache_that_stays_the_same_is_a_note():
    result = changed((1, 4, 1), kv_bytes_per_token=[5e4])
    assert "is no less than with config (1, 2, 1)" in found(result, "note", (1, 4, 1), None)


def test_memory_beyond_a_device_is_a_note_where_the_device_is_told():
    result = sound()
    assert "needs 1.61e+10 bytes on a device" in found(result, "note", (1, 1, 1), 1, device_memory=1e10)
    assert found(result, "note", (1, 2, 1), 1, device_memory=1e10) == ""


def test_unknown_activation_memory_counts_nothing():
    result = changed((1, 1, 1), act_mem={1: [math.nan], 2: [0.0], 4: [0.0]})
    assert validate(result, device_memory=1.61e10) == []


def test_a_broken_config_does_not_hide_the_others():
    result = latency_of((1, 1, 1), 1, 0.0)
    result.para_dict[1, 4, 1].weight_mem = [WEIGHTS]
    severities = [finding.severity for finding in validate(result)]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    assert "no less than" in found(result, "warning", (1, 4, 1), None)


def test_a_finding_says_where_it_is():
    config = ParallelConfig(1, 2, 4)
    assert str(Finding("warning", config, 8, "so")) == "warning: config (1, 2, 4), batch size 8: so"
    assert str(Finding("error", None, None, "so")) == "error: so"


@pytest.mark.parametrize(
    ("result", "arguments"),
    [({}, {}), (sound(), {"device_memory": 0}), (sound(), {"device_memory": "80"}), (sound(), {"devices_per_node": 0})],
)
def test_arguments_out_of_range_are_refused(result, arguments):
    with pytest.raises(InvalidConfigError):
        validate(result, **arguments)


numbers = st.one_of(st.floats(), st.integers(-2, 10), st.none(), st.text(max_size=2))
lists = st.lists(numbers, max_size=3)


@given(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)),
    st.dictionaries(st.integers(-1, 4), lists),
    lists,
    st.none() | lists,
)
def test_anything_can_be_validated(config, latency, weights, kv_bytes_per_token):
    data = LatencyMemData(latency, dict(latency), weights, kv_bytes_per_token=kv_bytes_per_token)
    result = sound()
    result.para_dict[config] = data
    assert all(isinstance(finding, Finding) for finding in validate(result))
