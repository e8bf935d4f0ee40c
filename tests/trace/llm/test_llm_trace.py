import gzip
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidConfigError, InvalidTraceError
from alpa_serve.trace.llm import LLMTrace, load_llm_trace

START_NS = pd.Timestamp("2024-05-10 00:00:00.0099300").value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("written")


def columns_of(trace):
    columns = (trace.arrival_s, trace.model, trace.input_tokens, trace.output_tokens, trace.num_images)
    return [None if column is None else column.tolist() for column in columns]


@st.composite
def traces(draw, dated=None, fewest_tokens=0):
    length = draw(st.integers(1, 30))
    ticks = sorted(draw(st.lists(st.integers(0, 10**10), min_size=length, max_size=length)))
    # 100 ns apart or a multiple of it, the resolution of the Azure form
    tokens = st.lists(st.integers(fewest_tokens, 2**31 - 1), min_size=length, max_size=length)
    has_date = draw(st.booleans()) if dated is None else dated
    return LLMTrace(
        (np.array(ticks) - (ticks[0] if has_date else 0)) / 1e7,
        model_codes=draw(st.lists(st.integers(0, 2), min_size=length, max_size=length)),
        model_names=["a", "b", "c"],
        input_tokens=draw(tokens),
        output_tokens=draw(tokens),
        start_ns=START_NS if has_date else None,
    )


@settings(deadline=None, max_examples=50)
@given(trace=traces(fewest_tokens=1), suffix=st.sampled_from([".csv", ".csv.gz"]))
def test_the_vidur_form_gives_back_the_trace_exactly(trace, suffix, folder):
    trace.write_vidur(folder / f"vidur{suffix}")
    found = load_llm_trace(folder / f"vidur{suffix}")
    assert columns_of(found) == [*columns_of(trace)[:1], None, *columns_of(trace)[2:]]


@settings(deadline=None, max_examples=50)
@given(trace=traces(dated=True))
def test_the_azure_form_gives_back_a_dated_trace_exactly(trace, folder):
    trace.write_azure(folder / "azure.csv")
    found = load_llm_trace(folder / "azure.csv")
    assert columns_of(found) == [*columns_of(trace)[:1], None, *columns_of(trace)[2:]]
    assert found.start_ns == trace.start_ns


def test_the_azure_form_is_that_of_the_public_files(folder, shared_data):
    path = shared_data("AzureLLMInferenceTrace_code.csv")
    trace = load_llm_trace(path)
    trace.write_azure(folder / "azure.csv")
    assert (folder / "azure.csv").read_text().splitlines() == path.read_text().splitlines()
    assert [found.name for found in folder.iterdir() if found.name.startswith(".")] == []


def test_images_are_written_and_a_clock_without_dates_starts_in_1970(folder):
    trace = LLMTrace([1.5, 3], input_tokens=[1, 2], output_tokens=[3, 4], num_images=[0, 5])
    trace.write_azure(folder / "images.csv.gz")
    text = gzip.decompress((folder / "images.csv.gz").read_bytes()).decode()
    assert text == (
        "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
        "1970-01-01 00:00:01.5000000,0,1,3\n1970-01-01 00:00:03.0000000,5,2,4\n"
    )
    assert load_llm_trace(folder / "images.csv.gz").num_images.tolist() == [0, 5]
    assert trace.to_frame()["TIMESTAMP"].tolist() == [pd.Timestamp(1.5, unit="s"), pd.Timestamp(3, unit="s")]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("old")
    without = LLMTrace([0.0], input_tokens=[1], name="here")
    for write in (without.write_vidur, without.write_azure):
        with pytest.raises(InvalidTraceError, match="here: this trace has no output_tokens"):
            write(path)
    empty = LLMTrace([], input_tokens=[], output_tokens=[])
    with pytest.raises(InvalidTraceError, match="no request to write"):
        empty.write_azure(path)
    with pytest.raises(InvalidTraceError, match="no request for Vidur"):
        empty.write_vidur(path)
    for tokens, what in (([[1, 1], [5, 0]], "output"), ([[1, 0], [0, 0]], "input")):
        short = LLMTrace([0, 1], input_tokens=tokens[0], output_tokens=tokens[1], name="here")
        with pytest.raises(InvalidTraceError, match=f"here: request 1 has 0 {what} tokens; Vidur needs at least one"):
            short.write_vidur(path)
    late = LLMTrace([0.0, 1e12], input_tokens=[1, 1], output_tokens=[1, 1])
    with pytest.raises(InvalidTraceError, match="has no date"):
        late.write_azure(path)
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("trace.csv", "old")]


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_a_trace_is_written_through_a_link_and_an_error_names_its_file(tmp_path, suffix):
    real, link = tmp_path / f"real{suffix}", tmp_path / f"link{suffix}"
    link.symlink_to(real)
    trace = LLMTrace([0.5], input_tokens=[1], output_tokens=[2])
    trace.write_vidur(link)
    assert link.is_symlink()
    assert columns_of(load_llm_trace(real))[2:] == columns_of(trace)[2:]
    absent = tmp_path / "absent" / link.name
    with pytest.raises(FileNotFoundError, match=f"'{absent}'$"):
        trace.write_vidur(absent)


@given(
    gaps=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    factor=st.sampled_from([0.25, 0.5, 1.0, 1.5, 2.0, 3.7]),
    seed=st.integers(0, 9),
)
def test_scaled_rate_repeats_each_request_up_to_the_next_arrival(gaps, factor, seed):
    arrivals = np.cumsum(gaps).astype(float)
    trace = LLMTrace(arrivals, input_tokens=np.arange(len(gaps)), start_ns=7)
    scaled = trace.scale_rate(factor, seed)
    assert (np.diff(scaled.arrival_s) >= 0).all()
    assert scaled.start_ns == 7
    copies = np.bincount(scaled.input_tokens, minlength=len(gaps))
    assert set(copies) <= {math.floor(factor), math.ceil(factor)}
    bounds = np.append(arrivals, arrivals[-1] + (np.diff(arrivals).mean() if len(gaps) > 1 else 0))
    assert (scaled.arrival_s >= bounds[scaled.input_tokens]).all()
    assert (scaled.arrival_s <= bounds[scaled.input_tokens + 1]).all()
    if factor >= 1:
        assert set(arrivals) <= set(scaled.arrival_s)
    assert columns_of(scaled) == columns_of(trace.scale_rate(factor, seed))


def test_scaled_rate_has_the_expected_number_of_requests(random_state_untouched):
    trace = LLMTrace(np.arange(20_000.0))
    for factor in (0.1, 1.3, 2.5):
        assert len(trace.scale_rate(factor)) == pytest.approx(20_000 * factor, rel=0.03)
    with pytest.raises(InvalidConfigError, match="factor of scale_rate"):
        trace.scale_rate(0)


def test_scaled_time_stretches_about_the_first_arrival():
    trace = LLMTrace([10, 11, 14], start_ns=3)
    scaled = trace.scale_time(2)
    assert (scaled.arrival_s.tolist(), scaled.start_ns) == ([10, 12, 18], 3)
    assert trace.scale_time(0.5).describe().rate == pytest.approx(2 * trace.describe().rate)
    with pytest.raises(InvalidConfigError, match="factor of scale_time"):
        trace.scale_time(float("nan"))


def test_a_slice_keeps_the_axis_and_is_a_copy():
    trace = LLMTrace([0, 1, 1, 2], input_tokens=[1, 2, 3, 4], start_ns=START_NS)
    part = trace.slice(1, 2)
    assert (part.arrival_s.tolist(), part.input_tokens.tolist()) == ([1, 1], [2, 3])
    second = trace.start_time + pd.Timedelta(seconds=1)
    for moment in (second, second.to_datetime64(), str(second), second.tz_localize("UTC").tz_convert("Asia/Tokyo")):
        assert trace.slice(moment).input_tokens.tolist() == [2, 3, 4]
    part.input_tokens[:] = 9
    assert trace.input_tokens.tolist() == [1, 2, 3, 4]
    assert len(trace.slice(5)) == 0
    assert len(trace.slice("2023-01-01", "2023-02-01")) == 0
    assert len(trace.slice()) == 4
    with pytest.raises(InvalidConfigError, match="no dates"):
        LLMTrace([0.0]).slice("2024-05-10")


def test_a_part_of_a_trace_does_not_claim_the_failures_of_the_whole():
    trace = LLMTrace([0, 1, 2], num_failed=5)
    assert [part.num_failed for part in (trace.slice(1), trace.head(1), trace.scale_rate(3))] == [0, 0, 0]
    assert [part.num_failed for part in (trace.slice(), trace.head(3), trace.scale_time(2))] == [5, 5, 5]


@pytest.mark.parametrize("seed", [-1, None, 0.5])
def test_a_seed_that_is_none_is_refused(seed):
    trace = LLMTrace([0, 1])
    with pytest.raises(InvalidConfigError, match="seed must be a whole number >= 0"):
        trace.scale_rate(2, seed=seed)
    with pytest.raises(InvalidConfigError, match="seed must be a whole number >= 0"):
        trace.to_workload(["a"], seed=seed)


@pytest.mark.parametrize(("arrival_s", "start_ns"), [(1e12, None), (1e12, START_NS), (8e9, START_NS), (-1e10, None)])
def test_an_arrival_without_a_date_is_refused(arrival_s, start_ns):
    trace = LLMTrace([arrival_s], start_ns=start_ns)
    with pytest.raises(InvalidTraceError, match=r"a request .* s after \d{4}-\d\d-\d\dT.* has no date"):
        trace.to_frame()
    assert LLMTrace([9.1e9]).to_frame()["TIMESTAMP"].dt.year.tolist() == [2258]


def test_a_summary_tells_rate_cv_models_and_tokens():
    trace = LLMTrace(
        [0, 1, 1, 4],
        model_codes=[0, 1, 0, 0],
        model_names=["x", "y"],
        input_tokens=[1, 2, 3, 10],
        start_ns=START_NS,
        num_failed=2,
        name="short",
    )
    found = trace.describe()
    assert (found.num_requests, found.num_failed, found.duration_s, found.rate) == (4, 2, 4, 0.75)
    assert found.cv == pytest.approx(np.std([1, 0, 3]) * 0.75)
    assert (found.requests_by_model, found.output_tokens) == ({"x": 3, "y": 1}, None)
    assert (found.input_tokens[0], found.input_tokens[50], found.input_tokens[100]) == (1, 2.5, 10)
    text = str(found)
    for part in ("short: 4 requests (2 more failed)", "2024-05-10", "0.75 requests/s", "p50 2.5", "x: 3", "not known"):
        assert part in text


@pytest.mark.parametrize(("arrivals", "rate"), [([], 0), ([3], 0), ([3, 3], math.inf)])
def test_traces_of_hardly_a_request_are_summarised(arrivals, rate):
    found = LLMTrace(arrivals, input_tokens=[1] * len(arrivals)).describe()
    assert (found.rate, found.cv, found.duration_s) == (rate, 0, 0)
    assert str(found)
    scaled = LLMTrace(arrivals).scale_rate(2).scale_time(2)
    assert len(scaled) == 2 * len(arrivals)


def test_plots_show_rate_and_tokens(tmp_path):
    figures = pytest.importorskip("matplotlib.figure")
    trace = load_llm_trace("Coding")
    figure = trace.plot()
    assert [axes.get_xlabel() for axes in figure.axes] == ["time (s)", "input tokens", "output tokens"]
    figure.savefig(tmp_path / "trace.png")
    ax = figures.Figure().add_subplot()
    assert LLMTrace([1.0, 1.0]).plot(ax) is ax.figure
    assert ax.get_ylabel() == "requests/s"
    with pytest.raises(InvalidTraceError, match="no request to draw"):
        LLMTrace([]).plot()


def test_a_table_of_a_trace_is_exact_to_the_nanosecond():
    ns = np.sort(np.random.default_rng(0).integers(0, 97 * 86400 * 10**9, 1000))
    frame = LLMTrace(ns / 1e9, output_tokens=np.arange(1000), start_ns=START_NS).to_frame()
    assert list(frame.columns) == ["TIMESTAMP", "GeneratedTokens"]
    assert (frame["TIMESTAMP"].to_numpy().astype(np.int64) == ns + START_NS).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arrival_s": [2, 1]}, "must not descend"),
        ({"arrival_s": [float("nan")]}, "finite"),
        ({"arrival_s": [[1.0]]}, "list of numbers"),
        ({"arrival_s": ["1"]}, "list of numbers"),
        ({"arrival_s": [1], "input_tokens": [1, 2]}, "2 input_tokens for 1 arrivals"),
        ({"arrival_s": [1], "output_tokens": [-1]}, "output_tokens must be whole numbers"),
        ({"arrival_s": [1], "num_images": [0.5]}, "num_images must be whole numbers"),
        ({"arrival_s": [1], "model_codes": [1], "model_names": ["a"]}, "model_codes must be below 1"),
    ],
)
def test_columns_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(InvalidTraceError, match=message):
        LLMTrace(**arguments)


def test_the_summary_of_no_request_says_so():
    assert str(load_llm_trace("Coding").slice(1e9).describe()) == "Coding: 0 requests"
