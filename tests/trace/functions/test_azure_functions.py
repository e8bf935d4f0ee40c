import gzip
import os
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidConfigError, InvalidTraceError, UnknownNameError
from alpa_serve.trace import Trace, load_trace, preprocess_azure_v1_trace, preprocess_azure_v2_trace
from alpa_serve.trace.functions.raw_files import V1_FILE, V2_FILE
from alpa_serve.trace.functions.table import MAX_TIME_S, TRACE_DAYS, TRACE_MINUTES

DAY1 = [("o1", "a1", "f1", {1: 5, 1440: 2}), ("o1", "a2", "f1", {3: 1}), ("o2", "a1", "idle", {})]
DAY2 = [("o2", "a3", "f2", {1: 7}), ("o1", "a1", "f1", {1: 4, 2: 1})]

SHORT = """app,func,end_timestamp,duration
a1,f1,100.5,0.5
a2,f1,50.0,60.25
a1,f1,3.25,0
a1,f2,86400,1e-3
a1,f1,3.25,0
"""


REFUSED = (
    r"(, line \d+, column \w+: the row has \d+ cells where the first row has \d+|, line \d+, column \w+: no|"
    r", line 1: (no column \w+; found |two columns have the same name: \d+$)|: the file is empty|: no row in this file)"
)
ODD = ["True", "inf", "1e999", "0x1", "NA", "1 2", "1_0", "٣", "1" + "0" * 30]


def nonzero(counts):
    return {int(minute): int(counts[minute]) for minute in np.flatnonzero(counts)}


def test_v1_days_are_joined_function_by_function(write_v1):
    folder = write_v1(DAY1, DAY2)
    path = preprocess_azure_v1_trace(folder, n_day=2)
    assert path == folder / "azure_v1_2d.npz"
    table = load_trace(path)
    assert {name: nonzero(counts) for name, counts in table.items()} == {
        "o1/a1/f1": {0: 5, 1439: 2, 1440: 4, 1441: 1},
        "o1/a2/f1": {2: 1},
        "o2/a1/idle": {},
        "o2/a3/f2": {1440: 7},
    }
    assert all(counts.dtype == np.int32 and counts.shape == (2880,) for counts in table.values())
    assert Trace("azure_v1", path).minute_counts("0.0.0", "1.0.1").tolist() == [
        {0: 5, 2: 1, 1439: 2, 1440: 11}.get(minute, 0) for minute in range(1441)
    ]


def test_v1_rows_of_one_name_are_added_up(write_v1):
    twice = [("o1", "a1", "f1", {1: 5, 2: 1}), ("o9", "a9", "f9", {1: 1}), ("o1", "a1", "f1", {1: 3, 4: 1})]
    folder = write_v1(twice, DAY2)
    assert nonzero(load_trace(preprocess_azure_v1_trace(folder, 1))["o1/a1/f1"]) == {0: 8, 1: 1, 3: 1}
    by_function = preprocess_azure_v1_trace(write_v1(DAY1, DAY2), 2, key="func")
    assert by_function.name == "azure_v1_func_2d.npz"
    assert {name: nonzero(counts) for name, counts in load_trace(by_function).items()} == {
        "f1": {0: 5, 2: 1, 1439: 2, 1440: 4, 1441: 1},
        "idle": {},
        "f2": {1440: 7},
    }


def test_v1_rows_that_add_up_to_too_many_are_refused(write_v1):
    many = ("o1", "a1", "f1", {5: 2**31 - 1})
    assert load_trace(preprocess_azure_v1_trace(write_v1([many]), 1))["o1/a1/f1"][4] == 2**31 - 1
    with pytest.raises(InvalidTraceError, match=r"d01\.csv: the rows of function 'o1/a1/f1' add up to more than"):
        preprocess_azure_v1_trace(write_v1([many, many]), 1)


def test_v1_columns_may_come_in_any_order_and_packed(write_v1):
    folder = write_v1(DAY1)
    path = folder / V1_FILE.format(day=1)
    lines = [line.split(",") for line in path.read_text().splitlines()]
    path.unlink()
    text = "".join(",".join(reversed(cells)) + "\n" for cells in lines)
    (folder / f"{path.name}.gz").write_bytes(gzip.compress(text.encode()))
    table = load_trace(preprocess_azure_v1_trace(folder, 1))
    assert nonzero(table["o1/a1/f1"]) == {0: 5, 1439: 2}


def test_v1_missing_days_are_named(write_v1):
    folder = write_v1(DAY1, DAY2)
    (folder / V1_FILE.format(day=1)).unlink()
    with pytest.raises(InvalidTraceError, match=r"1 of 2 files are missing: .*\.d01\.csv$"):
        preprocess_azure_v1_trace(folder, 2)
    with pytest.raises(InvalidTraceError, match=r"13 of 14 files are missing: .*\.d01\.csv, .*\.d14\.csv$"):
        preprocess_azure_v1_trace(folder)
    for n_day in (0, 15, 1.5):
        with pytest.raises(InvalidConfigError, match="n_day"):
            preprocess_azure_v1_trace(folder, n_day)
    assert not list(folder.glob("*.npz"))


@pytest.mark.parametrize("cell", ["", "nan", "-1", "1.5", "2147483648", "many", *ODD])
def test_v1_counts_that_are_none_are_refused_with_line_and_column(write_v1, cell):
    folder = write_v1(DAY1, [*DAY2, ("o3", "a3", "f3", {77: cell, 78: "x"})])
    with pytest.raises(InvalidTraceError) as caught:
        preprocess_azure_v1_trace(folder, 2)
    found = repr(cell) if cell else "an empty cell"
    assert str(caught.value) == (
        f"{folder / V1_FILE.format(day=2)}, line 4, column 77: not a number of invocations: {found}; whole, from 0 to "
        "2147483647"
    )
    assert not list(folder.glob("*.npz"))


def test_v1_counts_may_be_written_with_a_point_or_an_exponent(write_v1):
    folder = write_v1([("o", "a", "f", {1: "5.0", 2: "1e1", 3: '"7"', 4: " 8 "})])
    assert nonzero(load_trace(preprocess_azure_v1_trace(folder, 1))["o/a/f"]) == {0: 5, 1: 10, 2: 7, 3: 8}


def test_v1_without_a_column_of_a_minute_is_refused(write_v1):
    folder = write_v1(DAY1)
    path = folder / V1_FILE.format(day=1)
    path.write_text(path.read_text().replace(",77,", ",minute77,"))
    with pytest.raises(
        InvalidTraceError, match=r"d01\.csv, line 1: no column 77; found HashOwner, .* \(1444 columns\)"
    ):
        preprocess_azure_v1_trace(folder, 1)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(from_end=st.integers(1, 12) | st.integers(1, 20_000))
@example(from_end=9681)
def test_a_v1_file_cut_off_at_any_byte_gives_its_complete_rows_or_is_refused(write_v1, from_end):
    folder = write_v1(DAY1)
    path = folder / V1_FILE.format(day=1)
    cut = path.read_bytes()[:-from_end]
    path.write_bytes(cut)
    header, *rows = [line.split(b",") for line in cut.splitlines()] or [[]]
    if len(header) == 1444 and rows and len(rows[-1]) == 1444 and rows[-1][-1]:
        table = load_trace(preprocess_azure_v1_trace(folder, 1))
        assert [(name, counts.tolist()) for name, counts in table.items()] == [
            (b"/".join(row[:3]).decode(), [int(cell) for cell in row[4:]]) for row in rows
        ]
        return
    with pytest.raises(InvalidTraceError, match=re.escape(str(path)) + REFUSED):
        preprocess_azure_v1_trace(folder, 1)


def test_v2_arrivals_are_ends_less_durations_in_order_and_equal_rows_are_kept(write_v2):
    path = preprocess_azure_v2_trace(write_v2(SHORT))
    assert path.name == "azure_v2.npz"
    table = load_trace(path)
    assert {name: times.tolist() for name, times in table.items()} == {
        "a1/f1": [3.25, 3.25, 100.0],
        "a2/f1": [-10.25],
        "a1/f2": [86400 - 1e-3],
    }
    by_function = load_trace(preprocess_azure_v2_trace(write_v2(SHORT), key="func"))
    assert by_function["f1"].tolist() == [-10.25, 3.25, 3.25, 100.0]
    # what ran before the trace began is in no slice
    trace = Trace("azure_v2", path)
    assert trace.function_names == ["a1/f1", "a2/f1", "a1/f2"]
    assert list(trace.slice()) == ["a1/f1", "a1/f2"]
    assert trace.minute_counts("0.0.0", "0.0.3").tolist() == [2, 1, 0]


def test_v2_columns_and_rows_may_come_in_any_order(write_v2):
    lines = [line.split(",") for line in SHORT.splitlines()]
    header, *rows = [",".join(reversed(cells)) for cells in lines]
    first = load_trace(preprocess_azure_v2_trace(write_v2(SHORT)))
    shuffled = load_trace(preprocess_azure_v2_trace(write_v2("\n".join([header, *reversed(rows), ""]))))
    assert {n: t.tolist() for n, t in shuffled.items()} == {n: t.tolist() for n, t in first.items()}


@pytest.mark.parametrize(
    ("row", "column", "found"),
    [
        ("a,f,3.5,-0.5", "duration", "'-0.5'"),
        ("a,f,-3.5,0.5", "end_timestamp", "'-3.5'"),
        ("a,f,nan,0.5", "end_timestamp", "'nan'"),
        ("a,f,3.5,", "duration", "an empty cell"),
        ("a,f,1209600000,0.5", "end_timestamp", "'1209600000'"),
        ("a,f,3.5,9999999", "duration", "'9999999'"),
        ("a,f,2021-01-31 00:00:01,0.5", "end_timestamp", "'2021-01-31 00:00:01'"),
        ("a,,3.5,0.5", "func", "an empty cell"),
        (" ,f,3.5,0.5", "app", "' '"),
    ],
)
def test_v2_cells_that_are_wrong_are_refused_with_line_and_column(write_v2, row, column, found):
    folder = write_v2(SHORT + row + "\n" + "a,f,1,0\n")
    with pytest.raises(InvalidTraceError) as caught:
        preprocess_azure_v2_trace(folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / V2_FILE}, line 7, column {column}: no")
    assert f": {found}" in message
    assert not list(folder.glob("*.npz"))


def test_v2_of_another_form_is_refused(write_v2, tmp_path):
    with pytest.raises(InvalidTraceError, match="1 of 1 files are missing: AzureFunctionsInvocation"):
        preprocess_azure_v2_trace(tmp_path)
    for content, message in (
        ("", "the file is empty"),
        (SHORT.replace("func", "name"), "line 1: no column func; found app, name"),
    ):
        with pytest.raises(InvalidTraceError, match=message):
            preprocess_azure_v2_trace(write_v2(content))


def v2_oracle(text):
    """Return function -> arrivals of a file in the form of SHORT, or None if it is not complete."""
    header, *rows = [line.split(",") for line in text.splitlines() if line] or [[]]
    arrivals = {}
    try:
        for app, func, end, duration in rows:
            arrivals.setdefault(f"{app}/{func}", []).append(float(end) - float(duration))
    except ValueError:
        return None
    complete = header == ["app", "func", "end_timestamp", "duration"] and rows
    return {name: sorted(times) for name, times in arrivals.items()} if complete else None


def test_a_v2_file_cut_off_at_any_byte_gives_its_complete_rows_or_is_refused(write_v2):
    for length in range(len(SHORT)):
        folder = write_v2(SHORT[:length])
        expected = v2_oracle(SHORT[:length])
        if expected is not None:
            table = load_trace(preprocess_azure_v2_trace(folder))
            assert {name: times.tolist() for name, times in table.items()} == expected
            continue
        with pytest.raises(InvalidTraceError, match=re.escape(str(folder / V2_FILE)) + REFUSED):
            preprocess_azure_v2_trace(folder)


def test_a_file_whose_last_line_does_not_end_is_read_in_full(write_v1, write_v2):
    path = write_v1(DAY1) / V1_FILE.format(day=1)
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert len(load_trace(preprocess_azure_v1_trace(path.parent, 1))) == len(DAY1)
    for ending in ("", "\r", "\r\n", "\n\n"):
        folder = write_v2(SHORT.rstrip() + ending)
        assert load_trace(preprocess_azure_v2_trace(folder)).num_invocations() == 5


def test_a_damaged_packed_file_is_refused(tmp_path):
    packed = tmp_path / f"{V2_FILE}.gz"
    content = gzip.compress(SHORT.encode())
    packed.write_bytes(content)
    assert load_trace(preprocess_azure_v2_trace(tmp_path)).num_invocations() == 5
    for damaged in (content[:-9], content[:30], b"\x1f\x8b\x08\x00" + b"\xff" * 40, SHORT.encode()):
        packed.write_bytes(damaged)
        with pytest.raises(InvalidTraceError, match=r"\.txt\.gz: cannot be read"):
            preprocess_azure_v2_trace(tmp_path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_v2_file_gives_arrivals_in_range_or_a_clear_error(write_v2, data):
    content = bytearray(SHORT.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.text(alphabet='0123456789-.,"\n\r\t eEinfa\0é', max_size=3)
        ).encode()
    folder = write_v2(bytes(content))
    refusal = None
    try:
        table = load_trace(preprocess_azure_v2_trace(folder))
    except InvalidTraceError as error:
        refusal = str(error)
    if refusal is not None:
        assert str(folder / V2_FILE) in refusal
        return
    assert table.num_invocations() > 0
    for name, times in table.items():
        assert min(map(len, name.split("/"))) > 0
        assert (np.abs(times) <= MAX_TIME_S).all()


def test_a_folder_is_preprocessed_on_first_use_and_again_when_a_raw_file_is_newer(write_v2):
    folder = write_v2(SHORT)
    assert len(Trace("azure_v2", folder).trace) == 3
    cache = folder / "azure_v2.npz"
    made = cache.stat().st_mtime_ns
    assert len(Trace("azure_v2", folder).trace) == 3
    assert cache.stat().st_mtime_ns == made
    write_v2(SHORT + "a9,f9,1,0\n")
    os.utime(folder / V2_FILE, ns=(made + 1, made + 1))
    assert len(Trace("azure_v2", folder).trace) == 4
    assert Trace("azure_v2", folder, key="func").function_names == ["f1", "f2", "f9"]
    (folder / V2_FILE).unlink()
    assert len(Trace("azure_v2", folder).trace) == 4
    assert sorted(path.name for path in folder.iterdir()) == ["azure_v2.npz", "azure_v2_func.npz"]


def test_a_few_days_are_not_taken_for_the_whole_trace(write_v1):
    folder = write_v1(*[DAY1] * TRACE_DAYS)
    part = preprocess_azure_v1_trace(folder, n_day=3)
    assert Trace("azure_v1", part).trace.num_minutes == 3 * 1440
    assert Trace("azure_v1", folder).trace.num_minutes == TRACE_MINUTES
    whole = folder / "azure_v1.npz"
    made = whole.stat().st_mtime_ns
    assert load_trace(part).num_minutes == 3 * 1440
    preprocess_azure_v1_trace(folder, n_day=1)
    assert Trace("azure_v1", folder).trace.num_minutes == TRACE_MINUTES
    assert whole.stat().st_mtime_ns == made
    assert preprocess_azure_v1_trace(folder) == whole
    assert sorted(path.name for path in folder.glob("*.npz")) == [
        "azure_v1.npz",
        "azure_v1_1d.npz",
        "azure_v1_3d.npz",
    ]


def test_a_folder_where_nothing_can_be_written_is_read_all_the_same(write_v2, caplog):
    folder = write_v2(SHORT)
    # a folder in the place of the file: no user, root neither, can write it
    (folder / "azure_v2.npz").mkdir()
    trace = Trace("azure_v2", folder)
    assert {name: times.tolist() for name, times in trace.trace.items()}["a1/f1"] == [3.25, 3.25, 100.0]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"{folder} is read from its raw files each time, since" in record.getMessage()
    assert f"Is a directory: '{folder / 'azure_v2.npz'}'" in record.getMessage()
    with pytest.raises(IsADirectoryError, match=r"'.*/azure_v2\.npz'$"):
        preprocess_azure_v2_trace(folder)


def test_the_wrong_trace_or_none_is_refused(write_v2, write_v1, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InvalidTraceError, match=r"neither azure_v2\.npz nor azure_v2\.pkl nor AzureFunctions.* is there"
    ):
        Trace("azure_v2", tmp_path / "empty")
    path = preprocess_azure_v2_trace(write_v2(SHORT))
    with pytest.raises(InvalidTraceError, match=r"holds .*5 invocations as seconds.*, as azure_v2 has them, not"):
        Trace("azure_v1", path)
    with pytest.raises(UnknownNameError, match="known: azure_v1, azure_v2"):
        Trace("azure_v3", path)
    for call in (preprocess_azure_v1_trace, preprocess_azure_v2_trace):
        with pytest.raises(UnknownNameError, match="unknown key of functions 'app'; known: unique, func"):
            call(tmp_path, key="app")
    with pytest.raises(UnknownNameError, match="unknown key"):
        Trace("azure_v2", path, key="app")


V2_CONTENT = "app,func,end_timestamp,duration\na,f,2.5,0.5\nb,f,9,1\n"


def test_a_damaged_cache_is_made_anew_from_the_raw_file(write_v2, caplog):
    folder = write_v2(V2_CONTENT)
    whole = Trace("azure_v2", folder).trace
    cache = folder / "azure_v2.npz"
    content = cache.read_bytes()
    cache.write_bytes(content[: len(content) // 2])
    again = Trace("azure_v2", folder).trace
    for table in (whole, again):
        assert [times.tolist() for times in table.values()] == [[2.0], [8.0]]
    assert "made anew from the raw files" in caplog.text
    assert cache.read_bytes()[:4] == content[:4]
    cache.write_bytes(content[: len(content) // 2])
    (folder / V2_FILE).unlink()
    with pytest.raises(InvalidTraceError, match=r"azure_v2\.npz: the file is damaged"):
        Trace("azure_v2", folder)


def test_the_raw_file_itself_may_be_named_instead_of_its_folder(write_v2):
    assert Trace("azure_v2", write_v2(V2_CONTENT) / V2_FILE).function_names == ["a/f", "b/f"]
