import random
import re
from functools import cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidConfigError, InvalidTraceError, UnknownNameError
from alpa_serve.experiments.maveriq import model_list
from alpa_serve.simulator.workload import WorkloadFromTrace
from alpa_serve.trace.llm import BUILT_IN_TRACES, load_azure_llm_trace, load_llm_trace, minute_counts, token_percentiles

REAL_FILES = {
    "Conversation": "AzureLLMInferenceTrace_conv.csv",
    "Coding": "AzureLLMInferenceTrace_code.csv",
}
TOKENS = ["ContextTokens", "GeneratedTokens"]
SHORT = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:59.0319600,3180,8
2023-11-16 18:20:04.0781490,110,27
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module")
def read(folder):
    """Return read(content) -> the trace read from a file of this content."""

    def write_and_load(content):
        path = folder / "trace.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_azure_llm_trace(path)

    return write_and_load


@pytest.mark.parametrize("name", BUILT_IN_TRACES)
def test_built_in_trace_has_the_minute_counts_and_token_percentiles_of_the_real_file(name, shared_data):
    real, built_in = load_azure_llm_trace(shared_data(REAL_FILES[name])), load_azure_llm_trace(name)
    assert len(built_in) == len(real)
    by_minute = [frame["TIMESTAMP"].dt.round("min").value_counts().sort_index() for frame in (real, built_in)]
    pd.testing.assert_series_equal(*by_minute, check_index_type=False)
    assert WorkloadFromTrace(1, real).minute_counts.tolist() == minute_counts(name).tolist()
    for tokens in TOKENS:
        levels = np.arange(0, 101)
        expected = np.percentile(real[tokens], levels)
        assert np.percentile(built_in[tokens], levels) == pytest.approx(expected, rel=0.02, abs=3)


@pytest.mark.parametrize("name", BUILT_IN_TRACES)
def test_rounding_a_built_in_trace_to_minutes_gives_its_counts_back(name):
    trace = load_azure_llm_trace(name)
    assert list(trace.columns) == ["TIMESTAMP", *TOKENS]
    assert trace["TIMESTAMP"].is_monotonic_increasing
    assert WorkloadFromTrace(1, trace).minute_counts.tolist() == minute_counts(name).tolist()
    assert (trace[TOKENS] > 0).all(axis=None)


@pytest.mark.parametrize("name", BUILT_IN_TRACES)
def test_token_counts_are_near_the_shipped_percentiles(name, shared_data):
    table = pd.read_csv(shared_data("azure_llm_2023_token_percentiles.csv"))
    column = {"Conversation": "conversation", "Coding": "code"}[name]
    trace = load_azure_llm_trace(name)
    for tokens, kind in zip(TOKENS, ("context", "generated"), strict=True):
        found = np.percentile(trace[tokens], table["percentile"])
        assert found == pytest.approx(table[f"{column}_{kind}_tokens"].to_numpy(), rel=0.02, abs=2)


@pytest.mark.parametrize("name", BUILT_IN_TRACES)
def test_the_shipped_percentiles_are_those_of_the_table(name, shared_data):
    table = pd.read_csv(shared_data("azure_llm_2023_token_percentiles.csv"))
    column = {"Conversation": "conversation", "Coding": "code"}[name]
    percentiles = token_percentiles(name)
    for found, kind in ((percentiles.input_tokens, "context"), (percentiles.output_tokens, "generated")):
        assert list(found) == table.set_index("percentile")[f"{column}_{kind}_tokens"].loc[0:100].tolist()
    assert token_percentiles(name.lower()) == percentiles
    assert token_percentiles("code") == token_percentiles("Coding")


@pytest.mark.parametrize("name", BUILT_IN_TRACES)
def test_workloads_take_tokens_from_a_built_in_trace_or_from_its_percentiles(name):
    trace = load_azure_llm_trace(name)
    process = WorkloadFromTrace(1, trace)
    for source in ("trace", token_percentiles(name)):
        workload = process.generate_workload(model_list("regular"), tokens=source)
        for tokens, column in zip(workload.require_tokens(), TOKENS, strict=True):
            assert tokens.mean() == pytest.approx(trace[column].mean(), rel=0.1)


def test_built_in_traces_are_the_same_each_time_and_known_by_several_names(random_state_untouched):
    first = load_azure_llm_trace("Coding")
    for name in ("Coding", "coding", "code", "CODE"):
        pd.testing.assert_frame_equal(load_azure_llm_trace(name), first)
    assert minute_counts("code").tolist() == minute_counts("Coding").tolist()


NUM_GOLDEN = 24


def test_every_golden_trace_workload_is_tested(golden):
    assert len(golden("trace_workloads")) == NUM_GOLDEN


@pytest.fixture(scope="module")
def traces_of(shared_data):
    """Return traces_of(name) -> the built-in trace as a table and in columns, and the real file likewise."""

    @cache
    def load(name):
        real = shared_data(REAL_FILES["Coding" if name == "code" else "Conversation"])
        return [load(source) for source in (name, real) for load in (load_azure_llm_trace, load_llm_trace)]

    return load


@pytest.mark.parametrize("number", range(NUM_GOLDEN))
def test_workloads_of_built_in_traces_and_of_the_real_files_equal_the_golden_one(number, golden, traces_of):
    case = golden("trace_workloads")[number]
    for trace in traces_of(case["trace"]):
        process = WorkloadFromTrace(case["scale"], trace)
        workload = process.generate_workload(model_list(case["model_set"]), slo=case["slo"])
        assert len(workload) == case["count"]
        assert workload.arrivals[:5] == pytest.approx(case["first"], abs=1e-9)
        assert workload.arrivals[-1] == pytest.approx(case["last"], abs=1e-9)
        assert workload.arrivals.sum() == pytest.approx(case["sum"], rel=1e-12)
        assert [request.model_name for request in workload.requests[:12]] == case["first_models"]
        counts = {name: workload.num_model_requests(name) for name in workload.model_names}
        assert {name: count for name, count in counts.items() if count} == case["per_model"]
        for name, slo in case["slo_by_model"].items():
            of_model = workload.select_models([name]).slos
            assert of_model == pytest.approx(slo, rel=1e-12)


def test_tokens_of_a_workload_are_the_same_from_a_table_and_from_columns(shared_data):
    path = shared_data(REAL_FILES["Coding"])
    workloads = [
        WorkloadFromTrace(1, load(path)).generate_workload(model_list("large"), tokens="trace")
        for load in (load_azure_llm_trace, load_llm_trace)
    ]
    for found, expected in zip(*(workload.require_tokens() for workload in workloads), strict=True):
        assert found.tolist() == expected.tolist()


def test_a_file_is_read_with_its_dates_and_tokens(read):
    trace = read(SHORT)
    assert trace["TIMESTAMP"].tolist() == [
        pd.Timestamp("2023-11-16 18:17:03.979960"),
        pd.Timestamp("2023-11-16 18:17:59.031960"),
        pd.Timestamp("2023-11-16 18:20:04.078149"),
    ]
    assert trace[TOKENS].to_numpy().tolist() == [[4808, 10], [3180, 8], [110, 27]]


def test_requests_come_out_in_the_order_of_time_with_their_own_tokens(read):
    header, *rows = SHORT.splitlines()
    pd.testing.assert_frame_equal(read("\n".join([header, *reversed(rows)])), read(SHORT))


def test_a_file_needs_no_token_columns_and_may_have_others(read):
    trace = read("who, TIMESTAMP \na,2023-11-16T18:17:03Z\nb,2023-11-16 18:18\n")
    assert list(trace.columns) == ["TIMESTAMP"]
    assert trace["TIMESTAMP"].tolist() == [pd.Timestamp("2023-11-16 18:17:03"), pd.Timestamp("2023-11-16 18:18")]


HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
GOOD = "2023-11-16 18:17:03,1,2\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("\n\n", "empty|no column|no request"),
        (HEADER, "no request"),
        (HEADER + "\n\n", "no request"),
        ("time,tokens\n2023-11-16,3\n", "line 1: no column TIMESTAMP; found time, tokens"),
        (HEADER + GOOD + "yesterday,1,2\n" + GOOD, "line 3, column TIMESTAMP: not a date: 'yesterday'"),
        (HEADER + GOOD + "\n" + "2023-13-45,1,2\n", "line 4, column TIMESTAMP: not a date: '2023-13-45'"),
        (HEADER + GOOD + ",1,2\n", "line 3, column TIMESTAMP: not a date"),
        (HEADER + GOOD + "2023-11-16,NaN,2\n", "line 3, column ContextTokens: not a number of tokens: 'NaN'"),
        (HEADER + GOOD + "2023-11-16,1,\n", "line 3, column GeneratedTokens: not a number of tokens"),
        (HEADER + GOOD + "2023-11-16,1,-4\n", "line 3, column GeneratedTokens: not a number of tokens: '-4'"),
        (HEADER + GOOD + "2023-11-16,1.5,4\n", "line 3, column ContextTokens: not a number of tokens: '1.5'"),
        (HEADER + GOOD + "2023-11-16,many,4\n", "line 3, column ContextTokens: not a number of tokens: 'many'"),
        (HEADER + GOOD + "2023-11-16,inf,4\n", "line 3, column ContextTokens: not a number of tokens: 'inf'"),
        (HEADER + GOOD + "2023-11-16,1,2,3,4\n", "line 3, column 4: the row has 5 cells"),
        (b"\x80\x81\xff\xfe\x00\x01" * 40, "not a CSV file"),
        (b"PK\x03\x04\x14\x00\x00\x00\x08\x00\x00\x00", "not a CSV file|no column TIMESTAMP"),
    ],
)
def test_a_bad_file_is_refused_with_file_line_and_column(content, message, read):
    with pytest.raises(InvalidTraceError, match=message) as caught:
        read(content)
    assert "trace.csv" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        HEADER + "2023-11-16 18:17:03,48,10,\n",
        HEADER + "2023-11-16 18:17:03,2023,10,5\n",
        HEADER + "2023-11-16 18:17:03,48,10,5,6\n",
    ],
)
def test_rows_wider_than_the_header_are_refused_with_their_line_or_read_by_the_header(content, read):
    try:
        trace = read(content)
    except InvalidTraceError as error:
        message = str(error)
    else:
        assert trace["TIMESTAMP"].tolist() == [pd.Timestamp("2023-11-16 18:17:03")]
        return
    assert "line 2" in message


def test_two_columns_of_one_name_are_refused(read):
    with pytest.raises(InvalidTraceError, match="TIMESTAMP"):
        read("TIMESTAMP, TIMESTAMP\n2023-11-16 18:17:03,2023\n")


def test_an_unknown_name_or_a_missing_file_lists_the_built_in_traces(tmp_path):
    for unknown in ("Poetry", tmp_path / "missing.csv", tmp_path, ""):
        with pytest.raises(
            UnknownNameError, match=re.escape(repr(str(unknown))) + ".*Conversation, Coding.*poisson.*nor a file"
        ):
            load_azure_llm_trace(unknown)
    with pytest.raises(UnknownNameError, match="'Poetry'; known: Conversation, Coding"):
        minute_counts("Poetry")
    with pytest.raises(UnknownNameError, match="'Poetry'; known: Conversation, Coding"):
        token_percentiles("Poetry")


def damaged(content, seed, num_changes):
    """Some bytes overwritten, inserted, removed or moved, at random."""
    rng = random.Random(seed)
    data = bytearray(content)
    for _ in range(num_changes):
        at = rng.randrange(len(data) + 1)
        junk = bytes(rng.choice(b'0123456789-: ,."\n\r\tTZ\x00\xffeE+nai') for _ in range(rng.randint(1, 4)))
        match rng.randrange(4):
            case 0:
                data[at : at + len(junk)] = junk
            case 1:
                data[at:at] = junk
            case 2:
                del data[at : at + rng.randint(1, 12)]
            case 3:
                data += data[: rng.randint(0, 60)]
    return bytes(data)


def assert_valid_or_refused(read, content):
    try:
        trace = read(content)
    except InvalidTraceError:
        return
    assert len(trace)
    assert trace["TIMESTAMP"].notna().all()
    assert pd.api.types.is_datetime64_any_dtype(trace["TIMESTAMP"])
    assert trace["TIMESTAMP"].is_monotonic_increasing
    for tokens in set(TOKENS) & set(trace.columns):
        assert (trace[tokens] >= 0).all()


@settings(deadline=None, max_examples=400)
@given(seed=st.integers(0, 2**32), num_changes=st.integers(1, 6))
def test_a_damaged_file_is_read_as_valid_dates_or_refused(read, seed, num_changes):
    assert_valid_or_refused(read, damaged(SHORT.encode(), seed, num_changes))


@settings(deadline=None, max_examples=200)
@given(stamp=st.text(max_size=25), tokens=st.text(max_size=12))
def test_any_text_in_a_cell_is_read_as_valid_or_refused(read, stamp, tokens):
    assert_valid_or_refused(read, (SHORT + f"{stamp},{tokens},3\n").encode(errors="replace"))


@settings(deadline=None, max_examples=100)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_as_valid_or_refused(read, content):
    assert_valid_or_refused(read, content)


@pytest.mark.parametrize("word", ["now", "today", "2023", "2023-11"])
def test_words_and_parts_of_dates_are_no_dates(tmp_path, word):
    path = tmp_path / "trace.csv"
    path.write_text(f"TIMESTAMP\n{word}\n", encoding="utf-8")
    with pytest.raises(InvalidTraceError, match="line 2, column TIMESTAMP: not a date"):
        load_azure_llm_trace(path)
    with pytest.raises(InvalidTraceError, match="no date"):
        WorkloadFromTrace(1, pd.DataFrame({"TIMESTAMP": [word]}))


@pytest.mark.parametrize("name", BUILT_IN_TRACES)
def test_a_built_in_trace_in_columns_is_that_of_the_table(name):
    trace, table = load_llm_trace(name.lower()), load_azure_llm_trace(name)
    pd.testing.assert_frame_equal(trace.to_frame(), table)
    assert (trace.name, trace.start_time, trace.arrival_s[0]) == (name, table["TIMESTAMP"][0], 0)
    part = load_llm_trace(name, start=60, end="2023-11-16 18:30", max_rows=7)
    whole = trace.slice(60, "2023-11-16 18:30")
    assert part.arrival_s.tolist() == whole.arrival_s[:7].tolist()
    assert part.input_tokens.tolist() == whole.input_tokens[:7].tolist()


def test_the_poisson_trace_steps_between_a_rate_and_two_and_a_half_times_it(random_state_untouched):
    trace = load_llm_trace("poisson", scale=40, seed=3)
    stages = np.bincount((trace.arrival_s // 120).astype(int), minlength=15)
    expected = 40 / 0.2 * 120 * np.where(np.arange(15) % 2, 2.5, 1.0)
    assert stages == pytest.approx(expected, abs=5 * np.sqrt(expected).max())
    assert trace.arrival_s[-1] < 1800
    assert trace.input_tokens is None
    assert (load_llm_trace("Poisson", scale=40, seed=3).arrival_s == trace.arrival_s).all()
    assert len(load_llm_trace("poisson", scale=40, seed=4)) != len(trace)
    assert len(load_llm_trace("poisson")) == pytest.approx(5 * 1800 * (8 + 7 * 2.5) / 15, rel=0.05)
    with pytest.raises(InvalidConfigError, match=r"scale is for the trace 'poisson' only; use scale_rate\(2\)"):
        load_llm_trace("Coding", scale=2)
    with pytest.raises(InvalidConfigError, match="scale"):
        load_llm_trace("poisson", scale=0)


def test_a_built_in_trace_may_be_named_with_its_form(tmp_path, monkeypatch):
    assert len(load_llm_trace("code", "azure_llm")) == len(load_llm_trace("Coding"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code").write_text("TIMESTAMP\n2024-01-01\n")
    assert len(load_llm_trace("code", "azure_llm")) == 1
