import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidTraceError
from alpa_serve.trace import line_table
from alpa_serve.trace.line_table import read_blocks, real_columns, text_columns, whole_columns

KINDS = [text_columns(["name"]), whole_columns(["n"], 100, "pieces"), real_columns(["x"], 10.0, "seconds")]
SHORT = "x,name,n,other\n0.5,a,3,\n\n10,b c,0,q\n1e-1,a,100,\n"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("lines") / "table.csv"


@pytest.fixture(scope="module")
def read(path):
    def write_and_read(content):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return pd.concat(list(read_blocks(path, KINDS)), ignore_index=True)

    return write_and_read


def rows(frame):
    return list(frame.itertuples(index=False, name=None))


EXPECTED = [("a", 3, 0.5), ("b c", 0, 10.0), ("a", 100, 0.1)]


@pytest.mark.parametrize("block", [1, 2, 7, 20, 1 << 24])
def test_columns_are_read_in_the_order_asked_for_with_blocks_of_any_size(read, monkeypatch, block):
    monkeypatch.setattr(line_table, "BLOCK_BYTES", block)
    for content in (SHORT, SHORT.replace("\n", "\r\n"), "\ufeff" + SHORT, SHORT.replace("x,name", " x , name ")):
        frame = read(content)
        assert list(frame.columns) == ["name", "n", "x"]
        assert rows(frame) == EXPECTED
        assert (frame["n"].dtype, frame["x"].dtype) == (np.int64, np.float64)


def test_whole_numbers_may_be_written_with_a_point_or_an_exponent(read):
    content = "x,name,n\n1,a,5.0\n1,a,1e1\n"
    assert read(content)["n"].tolist() == [5, 10]
    # also in the complaint about another cell
    with pytest.raises(InvalidTraceError, match=r"line 4, column n: .* found '1e3'"):
        read(content + "1,a,1e3\n")


@pytest.mark.parametrize("cell", ["True", "inf", "1e999", "0x1", "NA", "1 2", '"1"', "-0.5"])
def test_a_whole_column_of_what_is_no_number_is_refused(read, cell):
    for column, line in (("n", f"1,a,{cell}\n"), ("x", f"{cell},a,1\n")):
        with pytest.raises(InvalidTraceError, match=f"line 2, column {column}: .* found"):
            read("x,name,n\n" + line * 3)


def test_a_packed_file_is_read_and_a_damaged_one_refused(path):
    packed = path.with_name("table.csv.gz")
    content = gzip.compress(SHORT.encode())
    packed.write_bytes(content)
    assert rows(pd.concat(list(read_blocks(packed, KINDS)))) == EXPECTED
    for damaged in (content[:-9], content[:30], b"\x1f\x8b\x08\x00" + b"\xff" * 40, SHORT.encode()):
        packed.write_bytes(damaged)
        with pytest.raises(InvalidTraceError, match=r"table\.csv\.gz, after line \d+: cannot be read"):
            list(read_blocks(packed, KINDS))


HEAD = "x,name,n,other\n"
GOOD = "0.5,a,3,z\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: no header"),
        ("\n\n", "line 1: no header"),
        ("x,name", "line 1: the header has no end"),
        (HEAD, "no row in this file"),
        (HEAD + "\n\n", "no row in this file"),
        ("x,name\n1,a\n", "line 1: no column n; found x, name"),
        ("x,name,n,n\n1,a,1,1\n", "line 1: two columns have the same name: n"),
        (GOOD, "line 1: no column name; found 0.5, a, 3, z"),
        (HEAD + GOOD + "0.5,,3,z\n", "line 3, column name: expected a name that is not empty, found an empty cell"),
        (
            HEAD + GOOD + "\n0.5,a,,z\n",
            "line 4, column n: expected pieces, a whole number from 0 to 100, found an empty",
        ),
        (HEAD + GOOD + "0.5,a,NaN,z\n" + GOOD, "line 3, column n: .* found 'NaN'"),
        (HEAD + GOOD + "0.5,a,1.5,z\n", "line 3, column n: .* found '1.5'"),
        (HEAD + GOOD + "0.5,a,-1,z\n", "line 3, column n: .* found '-1'"),
        (HEAD + GOOD + "0.5,a,101,z\n", "line 3, column n: .* found '101'"),
        (HEAD + GOOD + f"0.5,a,{10**30},z\n", "line 3, column n: .* found '10000"),
        (HEAD + GOOD + "0.5,a,1_0,z\n", "line 3, column n: .* found '1_0'"),
        (HEAD + GOOD + "0.5,a,٣,z\n", "line 3, column n: .* found '٣'"),
        (HEAD + "nan,a,1,z\n", "line 2, column x: expected seconds, 0 to 10, found 'nan'"),
        (HEAD + "inf,a,1,z\n", "line 2, column x: .* found 'inf'"),
        (HEAD + "-0.5,a,1,z\n", "line 2, column x: .* found '-0.5'"),
        (HEAD + "soon,a,1,z\n", "line 2, column x: .* found 'soon'"),
        (HEAD + ",a,1,z\n", "line 2, column x: .* found an empty cell"),
        (HEAD + GOOD + "0.5,a,1\n", "line 3, column other: no such cell; the line has 3 cells, the header 4"),
        (HEAD + GOOD + "0.5,a,1,z,7\n0.5,a,1\n", "line 3, column 5: the line has 5 cells, the header 4"),
        (HEAD + GOOD + "0.5,a,1,z", "line 3, column other: the last line does not end in a line break"),
        (HEAD + GOOD + "0.5,a\r0.5,1,z\n", "line 3: a control character"),
        (HEAD + GOOD + "0.5,a\0,1,z\n", "line 3: a control character"),
        (HEAD.encode() + b"0.5,\xff\xfe,1,z\n0.5,a,-1,z\n", "line 2: not text|line 3, column n"),
        (b"\xff\xfe\n1\n", "line 1: not text"),
    ],
)
@pytest.mark.parametrize("block", [3, 1 << 24])
def test_a_bad_file_is_refused_with_file_line_and_column(read, monkeypatch, content, message, block):
    monkeypatch.setattr(line_table, "BLOCK_BYTES", block)
    with pytest.raises(InvalidTraceError, match=message) as caught:
        read(content)
    assert "table.csv" in str(caught.value)


def test_a_file_without_line_breaks_is_refused_before_it_fills_the_memory(read, monkeypatch):
    monkeypatch.setattr(line_table, "BLOCK_BYTES", 64)
    monkeypatch.setattr(line_table, "MAX_LINE_BYTES", 100)
    with pytest.raises(InvalidTraceError, match=r"after line 2: no line break for 1\d\d bytes; not a CSV file"):
        read(HEAD + GOOD + "x" * (64 * 40))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InvalidTraceError, match=r"absent\.csv, after line 0: cannot be read"):
        list(read_blocks(tmp_path / "absent.csv", KINDS))


def test_a_file_cut_off_anywhere_is_refused_unless_whole_lines_remain(read):
    content = SHORT.replace("\n\n", "\n").encode()
    for length in range(len(content)):
        whole = content[:length].count(b"\n") - 1
        if content[:length].endswith(b"\n") and whole >= 1:
            assert rows(read(content[:length])) == EXPECTED[:whole]
            continue
        with pytest.raises(InvalidTraceError, match=r"table\.csv(, line \d+(, column (x|name|n|other))?)?: "):
            read(content[:length])


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_damaged_file_gives_values_in_range_or_a_clear_error(read, data):
    content = bytearray(SHORT.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.text(alphabet='0123456789-.,"\n\r\t eEinfa\0', max_size=3)
        ).encode()
    try:
        frame = read(bytes(content))
    except InvalidTraceError:
        return
    assert len(frame)
    assert frame["n"].between(0, 100).all()
    assert frame["x"].between(0, 10).all()
    assert (frame["name"].str.strip() != "").all()
