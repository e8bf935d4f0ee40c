import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpa_serve.errors import InvalidProfileError
from alpa_serve.profiles.csv_rows import CsvRow, read_rows


def row(text):
    return CsvRow("f.csv", 7, {"c": text})


@pytest.fixture
def written(tmp_path):
    """Return written(bytes) -> the path of a file that has them."""

    def write(content):
        path = tmp_path / "f.csv"
        path.write_bytes(content)
        return path

    return write


def test_rows_know_their_line_also_after_blank_lines_and_quoted_line_breaks(written):
    path = written(b'\xef\xbb\xbf\na , b\n\n"x\ny",1\r\n ,\n  2,3\n')
    rows = read_rows(path, ["a", "b"], [])
    assert [(r.line, r.cells) for r in rows] == [(4, {"a": "x\ny", "b": "1"}), (7, {"a": "2", "b": "3"})]
    assert rows[0].where == f"{path}, line 4"


def test_further_columns_are_left_alone(written):
    (only,) = read_rows(written(b"z,b,a\n,2,1\n"), ["a"], ["b"])
    assert (only.text("a"), only.text("b"), only.text("c", "none")) == ("1", "2", "none")


def test_a_last_line_needs_no_line_break(written):
    (only,) = read_rows(written(b"a,b\n1,2"), ["a"], [])
    assert only.cells == {"a": "1", "b": "2"}


def test_a_last_line_that_lacks_cells_is_refused(written):
    with pytest.raises(InvalidProfileError, match=r"f\.csv, line 2: expected 2 cells as in the header, found 1"):
        read_rows(written(b"a,b\n1"), ["a"], [])


@given(st.floats(0, allow_infinity=False, allow_nan=False))
def test_every_figure_is_read_to_the_last_bit(number):
    assert row(repr(number)).real("c") == number
    assert row(repr(number)).known_real("c") == number


@pytest.mark.parametrize("text", ["", "nan", "NaN"])
def test_an_unknown_figure_is_nan_where_it_may_be(text):
    assert math.isnan(row(text).known_real("c"))
    with pytest.raises(InvalidProfileError, match=r"f\.csv, line 7, column c\b"):
        row(text).real("c")


@pytest.mark.parametrize(("text", "number"), [("3", 3), ("+3", 3), ("3.0", 3), ("007", 7)])
def test_whole_numbers_are_read(text, number):
    assert row(text).whole("c") == number


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "1e3", "x", "9" * 20, "", "1_0"])
def test_other_than_whole_numbers_are_refused(text):
    with pytest.raises(InvalidProfileError, match=r"f\.csv, line 7, column c\b"):
        row(text).whole("c")


def test_an_empty_whole_number_may_have_a_default():
    assert row("").whole("c", 1) == 1
    assert row("5").whole("c", 1) == 5
