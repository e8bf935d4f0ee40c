"""Readers of the published forms: what they make of good files, and that bad ones are refused by file and line."""

import bz2
import gzip
import json
import lzma
import random
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import AZURE_2023, AZURE_2024, BURSTGPT, FORMATS, FUNCTIONS_V2, MOONCAKE, SAMPLES, VIDUR, as_rows, oracle

from alpa_serve.errors import InvalidConfigError, InvalidTraceError, UnknownNameError
from alpa_serve.trace import text_batches
from alpa_serve.trace.llm import load_llm_trace

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("traces")


@pytest.fixture(scope="module")
def read(folder):
    """Return read(content, name="trace.csv", **arguments) -> the trace read from a file of this content."""

    def write_and_load(content, name="trace.csv", **arguments):
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_llm_trace(path, **arguments)

    return write_and_load


def same(found, expected):
    rows, failed = found
    expected_rows, expected_failed = expected
    assert failed == expected_failed
    assert len(rows) == len(expected_rows)
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row[1] == expected_row[1]
        assert [row[0], *row[2:]] == pytest.approx([expected_row[0], *expected_row[2:]], nan_ok=True, abs=1e-9)


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_file_of_each_form_is_told_and_read(sample, read):
    content = SAMPLES[sample]
    trace = read(content)
    same(as_rows(trace), oracle(content, FORMATS[sample]))
    same(as_rows(read(content, format=FORMATS[sample])), as_rows(trace))
    assert (trace.start_time is not None) == sample.startswith("azure")
    assert trace.name == "trace.csv"


def test_dates_count_from_the_earliest_request_and_other_clocks_stay(read):
    trace = read(AZURE_2023)
    assert trace.start_time == pd.Timestamp("2023-11-16 18:17:03.97996")
    assert trace.arrival_s == pytest.approx([0, 0.052, 0.098189, 60.0200401], abs=1e-9)
    assert read(VIDUR).arrival_s.tolist() == [0.0, 4.314579, 4.541856999]
    assert read(MOONCAKE).arrival_s.tolist() == [0.0, 3.0, 3.0, 6.001]


def test_failed_requests_are_left_out_counted_and_logged(read, caplog):
    with caplog.at_level("INFO", "alpa_serve"):
        trace = read(BURSTGPT)
    assert "trace.csv: left out 1 of 4 requests, which failed" in caplog.text
    assert (len(trace), trace.num_failed) == (3, 1)
    assert trace.model.tolist() == ["ChatGPT", "GPT-4", "GPT-4"]
    assert read(BURSTGPT, start=150).num_failed == 0
    with pytest.raises(InvalidTraceError, match="all 1 requests of this file failed"):
        read("Timestamp,Model,Request tokens,Response tokens\n5,a,3,0\n")


def test_images_are_read_and_functions_start_when_they_ended_less_what_they_took(read):
    assert read(SAMPLES["azure_lmm"]).num_images.tolist() == [1, 0, 3]
    trace = read(FUNCTIONS_V2)
    assert trace.arrival_s.tolist() == [8.0, 10.0, 11.875]
    assert trace.model.tolist() == ["7b2c/b2", "7b2c/a1", "9d0e/a1"]
    running = read("app,func,end_timestamp,duration\na,f,0.5,2.5\na,f,4,1\n")
    assert running.arrival_s.tolist() == [-2.0, 3.0]
    assert running.to_workload(["m"]).arrivals.tolist() == [0.0, 5.0]


def test_any_csv_file_is_read_with_its_columns_named(read):
    content = "when,who,in,out,note\n2000,a,3,1,x\n1500,b,4,2,y\n"
    names = {"arrival_s": "when", "model": "who", "input_tokens": "in", "output_tokens": "out"}
    for unit, first in (("ms", 1.5), ("s", 1500.0), ("us", 1.5e-3), ("ns", 1.5e-6)):
        trace = read(content, columns=names, unit=unit)
        assert as_rows(trace)[0][0] == (pytest.approx(first), "b", 4, 2)
    assert read(content, "csv", columns={"arrival_s": "when"}).input_tokens is None
    dated = read(AZURE_2024, columns={"arrival_s": "TIMESTAMP"}, unit="date")
    assert dated.arrival_s.tolist() == read(AZURE_2024).arrival_s.tolist()
    named = read(SAMPLES["splitwise"], columns={"model": "application_id"})
    assert named.model.tolist() == ["0", "1", "0"]


@pytest.mark.parametrize(("unit", "factor"), [("unix_s", 1), ("unix_ms", 10**3), ("unix_us", 10**6)])
def test_times_since_1970_become_dates(unit, factor, read):
    content = f"t\n{1_700_000_000 * factor}\n{1_700_000_001 * factor}\n"
    trace = read(content, columns={"arrival_s": "t"}, unit=unit)
    assert trace.start_time == pd.Timestamp(1_700_000_000, unit="s")
    assert trace.arrival_s.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("compress", [gzip, bz2, lzma], ids=lambda module: module.__name__)
def test_compressed_files_are_read_by_their_names(sample, compress, read):
    suffix = {gzip: "gz", bz2: "bz2", lzma: "xz"}[compress]
    content = SAMPLES[sample]
    same(as_rows(read(compress.compress(content.encode()), f"trace.csv.{suffix}")), oracle(content, FORMATS[sample]))


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("order", [[2, 0, 1, 3], [3, 2, 1, 0]])
def test_the_order_of_rows_and_columns_and_blank_lines_do_not_matter(sample, order, read):
    lines = SAMPLES[sample].splitlines()
    first = 0 if sample in ("mooncake", "bailian") else 1
    rows = [lines[first:][i] for i in order if i < len(lines) - first]
    shuffled = "\r\n\r\n".join([*lines[:first], *rows]) + "\r\n\r\n"
    same(as_rows(read(shuffled)), oracle(shuffled, FORMATS[sample]))
    if first:
        mirrored = "\n".join(",".join(reversed(line.split(","))) for line in lines)
        same(as_rows(read(mirrored)), oracle(SAMPLES[sample], FORMATS[sample]))


@settings(deadline=None, max_examples=100)
@given(
    offsets=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    bounds=st.tuples(*[st.none() | st.integers(-2, 45)] * 2),
    as_dates=st.tuples(st.booleans(), st.booleans()),
)
def test_reading_a_window_of_an_unsorted_file_equals_a_slice_of_the_whole(offsets, bounds, as_dates, read):
    stamps = [f"2024-05-10 00:00:{offset:02d},{row},1" for row, offset in enumerate(offsets)]
    content = "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *stamps])
    start, end = (
        pd.Timestamp("2024-05-10") + pd.Timedelta(seconds=bound) if bound is not None and as_date else bound
        for bound, as_date in zip(bounds, as_dates, strict=True)
    )
    try:
        expected = read(content).slice(start, end)
    except InvalidConfigError:
        with pytest.raises(InvalidConfigError, match="before start"):
            read(content, start=start, end=end)
        return
    found = read(content, start=start, end=end)
    assert found.arrival_s.tolist() == expected.arrival_s.tolist()
    assert found.input_tokens.tolist() == expected.input_tokens.tolist()
    assert found.start_time == expected.start_time


def test_batches_make_no_difference(read, monkeypatch):
    rng = np.random.default_rng(0)
    stamps = pd.Timestamp("2024-05-10") + pd.to_timedelta(rng.integers(0, 10**6, 3000), unit="ms")
    rows = [f"{stamp}+00:00,{row},1" for row, stamp in enumerate(stamps)]
    content = "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows])
    whole, window = read(content), read(content, start=5, end=600.5)
    monkeypatch.setattr(text_batches, "BLOCK_BYTES", 1000)
    same(as_rows(read(content)), as_rows(whole))
    same(as_rows(read(content, start=5, end=600.5)), as_rows(window))
    bad = content.replace(",2500,1", ",2500,one")
    with pytest.raises(InvalidTraceError, match=r"line 2502, column GeneratedTokens: .*'one'"):
        read(bad)


def test_max_rows_takes_the_first_of_the_file_and_looks_no_further(read):
    lines = [*AZURE_2023.splitlines(), "yesterday,1,1"]
    assert len(read("\n".join(lines[:5]), max_rows=9)) == 4
    assert read(AZURE_2023, max_rows=2).input_tokens.tolist() == [4808, 3180]
    assert read(AZURE_2023, start=0.05, max_rows=1).input_tokens.tolist() == [3180]
    assert read(BURSTGPT, max_rows=2).num_failed == 0


MANY = "arrived_at,num_prefill_tokens,num_decode_tokens\n" + "".join(f"{i / 1e6},1,1\n" for i in range(1000))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": the file is empty"),
        ("\n \n", ": the file is empty"),
        ("a,b\n1,2\n", r"line 1: no known form of a trace; found the columns a, b\. Known are azure_llm, .*columns="),
        (b"\xff\xfe\x00", "not a text file"),
        ("HashOwner,HashApp,HashFunction,Trigger,1,2\n", r"AzureFunctions trace 1.*alpa_serve\.trace\.Trace"),
        (AZURE_2023.replace("GeneratedTokens", "ContextTokens"), "line 1: two columns have the same name"),
        (
            AZURE_2023.replace("110,27", "110"),
            "line 4, column GeneratedTokens: the row has 2 cells where the first row has 3",
        ),
        (
            AZURE_2023.replace("110,27", "110,-27"),
            "line 4, column GeneratedTokens: not a number of tokens: '-27'; whole",
        ),
        (AZURE_2023.replace("110,27", f"110,{2**31}"), "line 4, column GeneratedTokens"),
        (AZURE_2023.replace("110,27", "0x10,27"), "line 4, column ContextTokens: not a number of tokens: '0x10'"),
        (AZURE_2023.replace("2023-11-16 18:17:04.03", "1997-11-16 18:17:04.03"), "line 3.*more than 10 years from the"),
        (AZURE_2023.replace("2023-11-16 18:17:04.0319600", "1700158624"), "line 3, column TIMESTAMP: not a date.*ISO"),
        (AZURE_2023.encode() + b"2023-11-16 18:19:00,\xff,1", "line 6 is not UTF-8"),
        (BURSTGPT.replace("45,GPT-4", "-45,GPT-4"), "line 3, column Timestamp: negative; a trace counts from 0: '-45'"),
        (BURSTGPT.replace("45,GPT-4", "45,"), "line 3, column Model: no name: an empty cell"),
        (BURSTGPT.replace("45,GPT", "NaN,GPT"), "line 3, column Timestamp: not a finite number: 'NaN'"),
        (VIDUR.replace("4.314579", "inf"), "line 3, column arrived_at: not a finite number: 'inf'"),
        (VIDUR.replace("4.314579", "1700158624"), 'line 3.*looks like Unix time in s: .*unit="unix_s"'),
        (VIDUR.replace("4.314579", "1700158624979"), 'line 3.*looks like Unix time in ms: .*unit="unix_ms"'),
        (VIDUR.replace("4.314579", "4314579000"), 'line 3.*more than 10 years in s.*looks like ms: .*unit="ms"'),
        (VIDUR.replace("num_decode_tokens", "other"), "no column num_decode_tokens; found arrived_at, num_prefill"),
        (MANY, "column arrived_at: 1000 requests within 0.000999 s; at most 100000 a second.*unit is likely a longer"),
        (SAMPLES["splitwise"].replace("4.31,1", "4.31,2"), "line 3, column batch_size: must be 1.*'2'"),
        (FUNCTIONS_V2.replace("0.125", "-0.125"), "line 4, column duration: negative: '-0.125'"),
        (
            MOONCAKE.replace("6001", "6.001"),
            "line 4, column timestamp: not whole milliseconds: 6.001; it looks like sec",
        ),
        (
            MOONCAKE.replace("6001", "1700158624979"),
            "line 4, column timestamp: .* in ms.*it looks like Unix time in ms$",
        ),
        (MOONCAKE.replace("794", "NaN"), "line 3, column output_length: not a finite number"),
        (MOONCAKE.replace("794", "-1"), "line 3, column output_length: not a number of tokens: -1"),
        (MOONCAKE.replace("794", '"794"'), "line 3, column output_length"),
        (MOONCAKE.replace("794", "true"), "line 3, column output_length"),
        (MOONCAKE.replace("794", "1" + "0" * 400), "line 3, column output_length"),
        (MOONCAKE.replace('"output_length": 794, ', ""), "line 3, column output_length: no such key.*these are there"),
        (MOONCAKE + "[1, 2]\n", r"line 5: not a JSON object: \[1, 2\]"),
        (MOONCAKE[:-10], r"line 4, column \d+: not a line of JSON"),
        ("\r\n\n\ra,b\n1,2\n", "line 4: no known form of a trace; found the columns a, b"),
        ('\n\n{"prompt": \n', r"line 3, column \d+: not a line of JSON"),
        ('\n{"prompt": 3}\n', "line 2: neither a Mooncake nor a Bailian trace"),
        ('{"prompt": 3}\n', "line 1: neither a Mooncake nor a Bailian trace.*found prompt"),
        (MOONCAKE.encode() + b'{"timestamp": 1, "x": "\xff"}', "line 5: not UTF-8"),
    ],
)
def test_a_bad_file_is_refused_with_file_line_and_column(content, message, read):
    with pytest.raises(InvalidTraceError, match=message) as caught:
        read(content)
    assert "trace.csv" in str(caught.value)
    str(caught.value).encode()


def test_cells_over_several_lines_count_as_the_lines_they_take(read):
    content = 'arrival,note\n1,"two\nlines"\n\nx,y\n'
    with pytest.raises(InvalidTraceError, match="line 5, column arrival: not a number: 'x'"):
        read(content, columns={"arrival_s": "arrival"})


def test_what_is_no_llm_trace_is_sent_to_its_reader(tmp_path, read):
    with pytest.raises(InvalidTraceError, match=re.escape("alpa_serve.trace.Trace(")):
        load_llm_trace(tmp_path)
    with pytest.raises(InvalidTraceError, match=re.escape("alpa_serve.trace.Trace(")):
        read(b"\x80", "azure_v2.pkl")
    with pytest.raises(InvalidTraceError, match="unpack it"):
        read(b"PK", "trace.csv.zip")
    with pytest.raises(UnknownNameError, match=r"neither a built-in trace .* nor a file"):
        load_llm_trace(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"format": "cvs"}, UnknownNameError, "unknown format 'cvs'; known: azure_llm"),
        ({"format": "csv"}, InvalidConfigError, "arrival_s"),
        ({"format": "vidur", "columns": {"arrival_s": "TIMESTAMP"}}, InvalidConfigError, "'vidur'"),
        ({"columns": {"tokens": "x"}}, UnknownNameError, "unknown entry of columns 'tokens'"),
        ({"columns": {"model": 3}}, InvalidConfigError, "must be the name of a column, got 3"),
        ({"columns": {"model": "who"}}, InvalidTraceError, "no column who"),
        ({"columns": {"input_tokens": "who"}}, InvalidTraceError, "no column who"),
        ({"unit": "s"}, InvalidConfigError, "unit"),
        ({"columns": {"arrival_s": "TIMESTAMP"}, "unit": "min"}, UnknownNameError, "unknown unit 'min'; known: s, ms"),
        ({"columns": {"arrival_s": "TIMESTAMP"}}, InvalidTraceError, "line 2, column TIMESTAMP: not a number"),
        ({"start": "now"}, InvalidConfigError, "start must be seconds or a date"),
        ({"start": "2023-13-13"}, InvalidConfigError, "start must be seconds or a date"),
        ({"end": float("nan")}, InvalidConfigError, "end"),
        ({"end": True}, InvalidConfigError, "end"),
        ({"start": 3, "end": 2}, InvalidConfigError, "end .2. is before start .3."),
        ({"max_rows": 0}, InvalidConfigError, "max_rows"),
        ({"seed": -1}, InvalidConfigError, "seed"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message, read):
    with pytest.raises(error, match=message):
        read(AZURE_2023, **arguments)


def test_dates_are_no_limits_of_a_clock_without_dates(read):
    with pytest.raises(InvalidConfigError, match="no dates"):
        read(VIDUR, start="2023-11-16")
    with pytest.raises(InvalidConfigError, match="no columns to be named"):
        read(MOONCAKE, columns={"model": "x"})


WRONG = ["", "NaN", "nan", "-1", "-0.5", "1.5", "1e30", "1e400", "inf", "x", "0x10", "1_0", " 7 ", '"', '"8"', "1,2"]
WRONG += ["1700158624", "1700158624979", "now", "2023", "2023-11-16", "2023-11-16T18:17:03Z", "0001-01-01"]
WRONG += ["9999-12-31", "\x00", "\r", "\n", "null", "{}", "[]", "true", "é", "2023-11-16 18:17:03+05:30"]
JUNK = b'0123456789-: ,."\n\r\t\x00\xffeE+{}[]\\'


def trace_or_refusal(read, data, name="trace.csv", **arguments):
    """Return the trace, or None if it was refused as it should be: by the name of the file, in text that prints."""
    refusal = name
    try:
        return read(data, name, **arguments)
    except InvalidTraceError as error:
        refusal = str(error)
    assert name in refusal
    refusal.encode()
    return None


def check_read_right_or_refused(read, data, sample, name="trace.csv", plain=None):
    """Return whether it was read; then as the plain reader does."""
    trace = trace_or_refusal(read, data, name, format=FORMATS[sample])
    if trace is not None:
        same(as_rows(trace), oracle((plain or data).decode(), FORMATS[sample]))
    return trace is not None


@settings(deadline=None, max_examples=300)
@given(sample=st.sampled_from(sorted(SAMPLES)), seed=st.integers(0, 2**32), num_changes=st.integers(1, 3))
def test_a_file_with_wrong_cells_is_read_as_a_plain_reader_does_or_refused(sample, seed, num_changes, read):
    rng = random.Random(seed)
    content = SAMPLES[sample]
    for _ in range(num_changes):
        begin, end = rng.choice([match.span() for match in re.finditer(r"[^,{}\n]+", content)])
        if ": " in content[begin:end]:
            begin += content[begin:end].index(": ") + 2
        content = content[:begin] + rng.choice(WRONG) + content[end:]
    check_read_right_or_refused(read, content.encode(), sample)


@settings(deadline=None, max_examples=200)
@given(sample=st.sampled_from(sorted(SAMPLES)), seed=st.integers(0, 2**32))
def test_a_truncated_file_is_read_as_a_plain_reader_does_or_refused(sample, seed, read):
    data = SAMPLES[sample].encode()
    check_read_right_or_refused(read, data[: random.Random(seed).randrange(len(data))], sample)


@settings(deadline=None, max_examples=200)
@given(sample=st.sampled_from(sorted(SAMPLES)), seed=st.integers(0, 2**32), cut=st.booleans())
def test_a_damaged_gzip_file_is_read_in_full_or_refused(sample, seed, cut, read):
    rng = random.Random(seed)
    plain = SAMPLES[sample].encode()
    data = bytearray(gzip.compress(plain))
    at = rng.randrange(len(data))
    if cut:
        del data[at:]
    else:
        data[at] ^= 1 << rng.randrange(8)
    was_read = check_read_right_or_refused(read, bytes(data), sample, "trace.csv.gz", plain)
    assert not (cut and was_read)


@settings(deadline=None, max_examples=200)
@given(sample=st.sampled_from(sorted(SAMPLES)), seed=st.integers(0, 2**32), num_changes=st.integers(1, 4))
def test_damaged_bytes_never_raise_another_error(sample, seed, num_changes, read):
    rng = random.Random(seed)
    data = bytearray(SAMPLES[sample].encode())
    for _ in range(num_changes):
        at = rng.randrange(len(data))
        data[at : at + rng.randint(0, 3)] = bytes(
            rng.choice(b'0123456789-: ,."\n\r\t\x00\xffeE+{}[]\\') for _ in range(2)
        )
    for arguments in ({}, {"format": FORMATS[sample]}):
        trace = trace_or_refusal(read, bytes(data), **arguments)
        assert trace is None or len(trace)


@settings(deadline=None, max_examples=100)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content, read):
    for arguments in ({}, {"format": "mooncake"}, {"format": "vidur"}, {"columns": {"arrival_s": "t"}}):
        trace = trace_or_refusal(read, content, **arguments)
        assert trace is None or len(trace)


@pytest.fixture(scope="module")
def big_file(tmp_path_factory):
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from trace_reading import measure, write_azure_2024
    finally:
        sys.path.remove(str(BENCHMARKS))
    path = tmp_path_factory.mktemp("big") / "azure_2024.csv"
    return path, write_azure_2024(path, 600_000), measure


def test_memory_grows_by_few_bytes_a_request_and_not_with_the_file_for_a_window(big_file):
    path, duration, measure = big_file
    base = measure(path, max_rows=100_000)[2]
    number, _, peak, _ = measure(path)
    assert number == 600_000
    assert peak - base < 600_000 * 60 + 2**26
    number, _, peak, _ = measure(path, start=duration / 2, end=duration / 2 + 10)
    assert 500 < number < 2000
    assert peak - base < 2**26


def test_a_mooncake_file_in_whole_seconds_is_refused(tmp_path):
    path = tmp_path / "seconds.jsonl"
    row = {"input_length": 10, "output_length": 5, "hash_ids": [1]}
    path.write_text("".join(json.dumps({"timestamp": i // 3, **row}) + "\n" for i in range(3000)))
    with pytest.raises(
        InvalidTraceError, match=r"seconds\.jsonl, column timestamp: 3000 requests within 0\.999 s; at most"
    ):
        load_llm_trace(path)
