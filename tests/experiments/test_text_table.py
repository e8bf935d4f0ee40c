import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidTraceError
from alpa_serve.experiments.text_table import check_column, read_text_table


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("tables") / "table.csv"


@pytest.fixture(scope="module")
def read(path):
    """Return read(content) -> the table of a file of this content, which must have columns a and b."""

    def write_and_read(content):
        path.write_bytes(content.encode())
        return read_text_table(path, ["a", "b"])

    return write_and_read


def lines_of(table):
    return table.index.tolist()


# what is read


@pytest.mark.parametrize("cell", ["NA", "null", "nan", "None", "007", "1e5", " 1 ", "True", "'", "ä"])
def test_cells_stay_the_text_that_they_are(read, cell):
    assert read(f"a,b\n{cell},x\n")["a"].tolist() == [cell]


def test_figures_in_a_column_without_a_name_stay_text_too(read):
    assert read("a,b,\n1,2,3.50\n").iloc[:, 2].tolist() == ["3.50"]


@pytest.mark.parametrize("cell", ["", '""'])
def test_an_empty_cell_is_missing(read, cell):
    table = read(f"a,b\n{cell},x\n")
    assert table["a"].isna().tolist() == [True]
    assert table["b"].tolist() == ["x"]


def test_a_cell_in_quotes_may_have_commas_and_quotes(read):
    assert read('a,b\n"1,0","say ""x"""\n').to_numpy().tolist() == [["1,0", 'say "x"']]


@pytest.mark.parametrize("header", [" a , b", '"a","b"', "\ufeffa,b", "a,b\t"])
def test_names_of_columns_are_read_without_spaces_quotes_and_byte_order_mark(read, header):
    table = read(f"{header}\n1,2\n")
    assert table.columns.tolist() == ["a", "b"]
    assert table.to_numpy().tolist() == [["1", "2"]]


def test_columns_may_come_in_any_order_among_others(read):
    table = read("z,b,a\n1,2,3\n")
    assert table.columns.tolist() == ["z", "b", "a"]
    assert table[["a", "b"]].to_numpy().tolist() == [["3", "2"]]


def test_the_columns_needed_may_be_any_iterable_or_none(path):
    path.write_text("a\n1\n")
    assert read_text_table(str(path), iter("a"))["a"].tolist() == ["1"]
    assert read_text_table(path, ())["a"].tolist() == ["1"]


def test_a_file_is_unpacked_if_its_name_says_so(tmp_path):
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n1,2\n\n3,4\n"))
    assert lines_of(read_text_table(path, ["a", "b"])) == [2, 4]


# lines


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_blank_lines_and_rows_of_empty_cells_are_left_out_but_counted(read, end):
    table = read(end.join(["a,b", "", "1,2", "", ",", "3,4", "", ""]))
    assert table.to_numpy().tolist() == [["1", "2"], ["3", "4"]]
    assert lines_of(table) == [3, 6]


def test_a_line_break_in_quotes_counts_as_a_line(read, path):
    table = read('a,b\n"one\ntwo",2\n3,bad\n')
    assert lines_of(table) == [2, 4]
    with pytest.raises(InvalidTraceError, match="line 4, column b: no figure: 'bad'"):
        check_column(path, table, "b", table["b"] != "bad", "no figure")


def test_the_last_line_needs_no_end(read):
    assert lines_of(read("a,b\n1,2\n3,4")) == [2, 3]


def test_a_row_that_is_too_short_lacks_its_last_cells(read, path):
    table = read("a,b\n1,2\n3\n")
    assert table["b"].isna().tolist() == [False, True]
    with pytest.raises(InvalidTraceError, match=r"table\.csv, line 3, column b: no figure: an empty cell$"):
        check_column(path, table, "b", table["b"].notna(), "no figure")


@pytest.mark.parametrize(
    ("rows", "line"), [(["1,2,3"], 2), (["1,2", "1,2,3", "1,2,3,4"], 3), (["1,2", "", "1,2,"], 4), (["1", "1,2,3"], 3)]
)
def test_a_row_that_is_too_long_is_refused_with_its_line(read, rows, line):
    with pytest.raises(
        InvalidTraceError, match=rf"table\.csv, line {line}, column 3: the row has 3 cells where the first row has 2"
    ):
        read("\n".join(["a,b", *rows]))


@settings(deadline=None)
@given(rows=st.lists(st.sampled_from(["", ",", "1,2", "1", "bad,2", "bad"]), max_size=12))
def test_the_first_bad_cell_is_named_by_its_line_in_the_file(read, path, rows):
    # one good row at least, or there would be no table
    lines = ["a,b", *rows, "1,2"]
    table = read("\n".join(lines))
    bad = [number for number, line in enumerate(lines, 1) if line.startswith("bad")]
    valid = table["a"] != "bad"
    if not bad:
        check_column(path, table, "a", valid, "not good")
        return
    with pytest.raises(InvalidTraceError) as caught:
        check_column(path, table, "a", valid, "not good", "; good is 1")
    assert str(caught.value) == f"{path}, line {bad[0]}, column a: not good: 'bad'; good is 1"


# what is refused


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("a,c", "no column b; found a, c"),
        ("c", "no column a; found c"),
        ("A,b", "no column a; found A, b"),
        ("a;b", "no column a; found a;b"),
        ("1,2", "no column a; found 1, 2"),
        ("a,b,a", "two columns have the same name: a"),
        ("a,b,c, c", "two columns have the same name: c"),
    ],
)
def test_a_header_that_will_not_do_is_refused_with_the_names_found(read, path, header, message):
    with pytest.raises(InvalidTraceError) as caught:
        read(f"{header}\n{header}\n")
    assert str(caught.value) == f"{path}, line 1: {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("\n", "the file is empty"),
        ("\r\n\r\n", "the file is empty"),
        ("a,b", "no request in this file"),
        ("a,b\n", "no request in this file"),
        ("a,b\n\n\n", "no request in this file"),
        ('a,b\n,\n"",\n', "no request in this file"),
    ],
)
def test_a_file_without_a_row_is_refused(read, path, content, message):
    with pytest.raises(InvalidTraceError) as caught:
        read(content)
    assert str(caught.value) == f"{path}: {message}"


def test_a_quote_that_does_not_end_is_refused(read):
    with pytest.raises(InvalidTraceError, match=r"table\.csv, line 2: not a CSV file: unexpected end of data"):
        read('a,b\n"1,2\n3,4\n')


def test_bytes_that_are_no_text_are_refused(path):
    path.write_bytes(b"a,b\n\xff\xfe,2\n")
    with pytest.raises(InvalidTraceError, match=r"table\.csv: not a CSV file: line 2 is not UTF-8"):
        read_text_table(path, ["a", "b"])


@pytest.mark.parametrize(
    "content",
    [b"a,b\n1,2\n", gzip.compress(b"a,b\n1,2\n")[:-6], b"\x1f\x8b\x08\x00" + b"\xff" * 40],
    ids=["not packed", "cut short", "damaged"],
)
def test_a_file_that_cannot_be_unpacked_is_refused(tmp_path, content):
    path = tmp_path / "table.csv.gz"
    path.write_bytes(content)
    with pytest.raises(InvalidTraceError, match=r"table\.csv\.gz: cannot be read: "):
        read_text_table(path, ["a", "b"])


def test_a_path_without_a_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent.csv"):
        with pytest.raises(InvalidTraceError, match=f"{path.name}: cannot be read: "):
            read_text_table(path, ["a"])
