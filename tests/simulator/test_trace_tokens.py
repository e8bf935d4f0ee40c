import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import AlpaServeError, InvalidConfigError, InvalidTraceError, UnknownNameError
from alpa_serve.simulator.workload import TokenPercentiles, WorkloadFromTrace

MODELS = [
    {"id": 1, "name": "gptj-6b", "load_time": 0, "output_length": 20},
    {"id": 2, "name": "llama-2-7b", "load_time": 2, "output_length": 30, "input_length": 512},
]


def trace_of(minutes, **columns):
    stamps = pd.Timestamp("2023-11-16") + pd.to_timedelta(minutes, unit="min")
    return pd.DataFrame({"TIMESTAMP": stamps, **columns})


def with_tokens(minutes):
    """A trace whose prompts tell the minute and the row, and whose answers are one longer."""
    context = 1000 * np.array(minutes) + np.arange(len(minutes))
    return trace_of(minutes, ContextTokens=context, GeneratedTokens=context + 1)


def generate(trace, scale=1.0, **options):
    return WorkloadFromTrace(scale, trace).generate_workload(MODELS, **options)


def test_tokens_are_those_of_the_model_list_unless_asked_otherwise():
    workload = generate(trace_of([0, 0, 1, 2] * 20))
    by_model = {(r.model_name, r.input_tokens, r.output_tokens) for r in workload.requests}
    assert by_model == {("m1", 0, 20), ("m2", 512, 30)}


@pytest.mark.parametrize(("length", "tokens"), [(20.4, 20), (20.6, 21), (0, 0), (20.5, 20), (21.5, 22)])
def test_a_broken_output_length_is_rounded_for_the_tokens_but_not_for_the_slo(length, tokens):
    models = [{**MODELS[0], "output_length": length}]
    workload = WorkloadFromTrace(1, trace_of([0, 0])).generate_workload(models, slo=1)
    assert workload.output_tokens.tolist() == [tokens] * 4
    assert workload.slos[0] == pytest.approx(0.092631068 + 0.020843485 * length)


@pytest.mark.parametrize("key", ["input_length", "output_length"])
@pytest.mark.parametrize("bad", [-1, float("nan"), "20", 2**31])
def test_a_bad_length_is_refused(key, bad):
    with pytest.raises(InvalidConfigError, match=f"{key} of entry 0 of model_list"):
        WorkloadFromTrace(1, trace_of([0])).generate_workload([{**MODELS[0], key: bad}])


minutes_with_requests = st.lists(st.integers(0, 6), min_size=1, max_size=25)


@given(minutes_with_requests, st.sampled_from([0.4, 1, 2.5]), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_tokens_of_the_trace_come_jointly_from_a_row_of_the_same_minute(minutes, scale, seed):
    trace = with_tokens(minutes)
    workload = generate(trace, scale, tokens="trace", seed=seed)
    shift = np.array([90 if arrival < 90 + 60 else 180 for arrival in workload.arrivals])
    span = max(minutes) - min(minutes) + 1
    expected = ((workload.arrivals - shift) // 30).astype(int) % span + min(minutes)
    rows = set(zip(trace["ContextTokens"], trace["GeneratedTokens"], strict=True))
    for request, minute in zip(workload.requests, expected, strict=True):
        assert (request.input_tokens, request.output_tokens) in rows
        assert request.input_tokens // 1000 == minute


def test_every_row_of_a_minute_is_drawn_about_as_often():
    workload = generate(with_tokens([0] * 10), 500.0, tokens="trace")
    counts = np.bincount(workload.input_tokens)
    assert len(counts) == 10
    # 10,000 draws: 5 standard deviations of a binomial count
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(10_000 * 0.1 * 0.9)


def test_tokens_of_the_trace_are_taken_when_the_process_is_made():
    trace = with_tokens([0, 0, 1])
    process = WorkloadFromTrace(1, trace)
    before = process.generate_workload(MODELS, tokens="trace")
    trace["ContextTokens"] = 0
    after = process.generate_workload(MODELS, tokens="trace")
    assert after.input_tokens.tolist() == before.input_tokens.tolist()


PERCENTILES = TokenPercentiles((10, 20, 20, 400), [1, 101])


def test_percentiles_are_drawn_by_linear_interpolation_and_independently():
    workload = generate(trace_of([0] * 20_000), tokens=PERCENTILES)
    ranks = np.arange(1, 100)
    expected = np.interp(ranks, [0, 100 / 3, 200 / 3, 100], [10, 20, 20, 400])
    assert np.percentile(workload.input_tokens, ranks) == pytest.approx(expected, abs=8)
    assert np.percentile(workload.output_tokens, ranks) == pytest.approx(1 + ranks, abs=2)
    assert (workload.input_tokens.min(), workload.input_tokens.max()) == (10, 400)
    assert abs(np.corrcoef(workload.input_tokens, workload.output_tokens)[0, 1]) < 0.03


def test_ranks_on_a_percentile_give_just_that_one():
    tokens = PERCENTILES.at(np.array([0, 50, 100.0]), np.array([0, 50, 100.0]))
    assert tokens.tolist() == [[10, 20, 400], [1, 51, 101]]


@pytest.mark.parametrize("tokens", ["trace", PERCENTILES])
def test_the_seed_decides_the_tokens_and_nothing_else_depends_on_them(tokens, random_state_untouched):
    trace = with_tokens(sorted([0, 1, 3] * 30))
    default, again, other = (generate(trace, tokens=tokens, seed=seed) for seed in (42, 42, 1))
    plain = generate(trace)
    assert default.requests == again.requests
    assert default.input_tokens.tolist() != other.input_tokens.tolist()
    for name in ("arrivals", "model_ids", "slos"):
        assert getattr(default, name).tolist() == getattr(plain, name).tolist()


@pytest.mark.parametrize("tokens", ["output_length", "trace", PERCENTILES])
def test_a_workload_without_requests_needs_no_tokens(tokens):
    late = [{**MODELS[0], "load_time": 99}]
    for models, scale in ((late, 1), (MODELS, 0.1), ([], 1)):
        workload = WorkloadFromTrace(scale, with_tokens([0, 1])).generate_workload(models, tokens=tokens)
        assert len(workload) == 0
        assert [len(column) for column in workload.require_tokens()] == [0, 0]


@pytest.mark.parametrize("unknown", ["Trace", "Conversation", None, 20, ["trace"], np.array(["trace"])])
def test_other_sources_of_tokens_are_refused_with_what_is_possible(unknown):
    with pytest.raises(UnknownNameError, match=r"unknown tokens .*; known: output_length, trace, or a TokenPer"):
        generate(trace_of([0]), tokens=unknown)


STAMPS = [0, 0]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "no column ContextTokens and no column GeneratedTokens to take tokens from; it has TIMESTAMP"),
        ({"ContextTokens": [1, 2]}, "no column GeneratedTokens to take"),
        ({"GeneratedTokens": [1, 2]}, "no column ContextTokens to take"),
        ({"ContextTokens": [1, np.nan], "GeneratedTokens": 1}, "row 1 of the trace: ContextTokens nan is no number"),
        ({"ContextTokens": [1, 2], "GeneratedTokens": [-1, 2]}, "row 0 of the trace: GeneratedTokens .*-1"),
        ({"ContextTokens": [1, 2.5], "GeneratedTokens": 1}, "row 1 of the trace: ContextTokens .*2.5"),
        ({"ContextTokens": [1, np.inf], "GeneratedTokens": 1}, "row 1 of the trace: ContextTokens .*inf"),
        ({"ContextTokens": [1, 2**31], "GeneratedTokens": 1}, "row 1 of the trace: ContextTokens .*2147483648"),
        ({"ContextTokens": ["1", "many"], "GeneratedTokens": 1}, "row 1 of the trace: ContextTokens 'many'"),
        ({"ContextTokens": [1, [2]], "GeneratedTokens": 1}, "row 1 of the trace: ContextTokens"),
        ({"ContextTokens": pd.array([1, None], "Int64"), "GeneratedTokens": 1}, "row 1 of the trace: ContextTokens"),
    ],
)
def test_bad_token_columns_are_refused_when_they_are_asked_for(columns, message):
    process = WorkloadFromTrace(1, trace_of(STAMPS, **columns))
    assert process.generate_workload(MODELS).output_tokens.tolist() == [20] * 4
    with pytest.raises(InvalidTraceError, match=message):
        process.generate_workload(MODELS, tokens="trace")


def test_two_token_columns_of_one_name_are_refused():
    trace = with_tokens([0])
    trace.columns = ["TIMESTAMP", "ContextTokens", "ContextTokens"]
    trace["GeneratedTokens"] = 1
    with pytest.raises(InvalidTraceError, match="more than one column ContextTokens"):
        generate(trace, tokens="trace")


def test_token_columns_may_be_text_or_nullable():
    trace = trace_of(STAMPS, ContextTokens=["7", "7"], GeneratedTokens=pd.array([3, 3], "Int64"))
    requests = generate(trace, tokens="trace").requests
    assert {(r.input_tokens, r.output_tokens) for r in requests} == {(7, 3)}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([1], "at least two"),
        ([], "at least two"),
        (5, "at least two"),
        ([[1, 2]], "at least two"),
        ("long", "must be numbers"),
        ([1, "x"], "must be numbers"),
        ([1, 3, 2], r"percentile 2 of \w+ \(2\) is below the one before \(3\)"),
        ([-1, 2], "percentile 0 of .* is -1"),
        ([1, float("nan")], "percentile 1 of .* is nan"),
        ([1, float("inf")], "percentile 1 of .* is inf"),
    ],
)
def test_bad_percentiles_are_refused(bad, message):
    for arguments in ((bad, [1, 2]), ([1, 2], bad)):
        with pytest.raises(AlpaServeError, match=message):
            TokenPercentiles(*arguments)


def test_percentiles_are_kept_as_tuples_and_compare_by_value():
    assert TokenPercentiles([1, 2], np.array([3.5, 4])) == TokenPercentiles((1, 2), (3.5, 4))
    assert TokenPercentiles([1, 2], [3, 4]).input_tokens == (1.0, 2.0)
