import gzip

import pytest

from alpa_serve.errors import InvalidTraceError
from alpa_serve.trace import text_batches
from alpa_serve.trace.cells import numbers
from alpa_serve.trace.csv_columns import NameCodes, read_columns, read_header

SHORT = "x,name,n,other\n0.5,a,3,\n\n10,b c,0,q\n1e-1,a,100,\n"
HEAD = "x,name,n,other\n"
GOOD = "0.5,a,3,z\n"


@pytest.fixture
def read(tmp_path):
    """Return read(content, name="table.csv") -> rows (name, n, x) of a file of this content."""

    def write_and_read(content, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        codes = NameCodes(["name"])

        def parse(texts):
            assert list(texts) == ["name", "n", "x"]
            of_rows = codes.of(texts)
            names = [codes.names[code] for code in of_rows]
            return list(zip(names, numbers(texts["n"], "n"), numbers(texts["x"], "x"), strict=True))

        return [row for rows in read_columns(path, read_header(path), ["name", "n", "x"], parse) for row in rows]

    return write_and_read


@pytest.mark.parametrize("block", [40, 64, 1 << 22])
def test_columns_are_read_with_blocks_of_any_size(read, monkeypatch, block):
    monkeypatch.setattr(text_batches, "BLOCK_BYTES", block)
    for content in (SHORT, SHORT.replace("\n", "\r\n"), "\ufeff" + SHORT, SHORT.replace("x,name", " x , name ")):
        assert read(content) == [("a", 3, 0.5), ("b c", 0, 10), ("a", 100, 0.1)]
        assert read(content.rstrip()) == read(content)
        assert read(gzip.compress(content.encode()), "table.csv.gz") == read(content)
    assert read(HEAD) == read(HEAD.rstrip()) == []
    assert read(HEAD + GOOD * 50) == [("a", 3, 0.5)] * 50


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ": the file is empty"),
        ("\n\n", ": the file is empty"),
        ("x,name\n1,a\n", "line 1: no column n; found x, name"),
        ("\n\nx,name\n1,a\n", "line 3: no column n; found x, name"),
        ("x,name,n,n\n1,a,1,1\n", "line 1: two columns have the same name: n$"),
        (GOOD, "line 1: no column name; found 0.5, a, 3, z"),
        (HEAD + GOOD + "0.5,,3,z\n", "line 3, column name: no name: an empty cell"),
        (HEAD + GOOD + "0.5, ,3,z\n", "line 3, column name: no name: ' '"),
        (HEAD + GOOD + "\n0.5,a,,z\n", "line 4, column n: not a number: an empty cell"),
        (HEAD + "nan,a,1,z\n", "line 2, column x: not a finite number: 'nan'"),
        (HEAD + GOOD * 20 + "0.5,a,many,z\n" + GOOD, "line 22, column n: not a number: 'many'"),
        (HEAD + GOOD + "0.5,a,1\n", "the row has 3 cells where the first row has 4"),
        (HEAD + GOOD + "0.5,a,1,z,7\n0.5,a,1\n", "the row has 5 cells where the first row has 4"),
        (HEAD + GOOD + "0.5,a\r0.5,1,z\n", "line 3, column n: the row has 2 cells"),
        (HEAD.encode() + b"0.5,\xff\xfe,1,z\n", "line 2 is not UTF-8 text"),
        (b"\xff\xfe\n1\n", "line 1 is not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("block", [40, 1 << 22])
def test_a_bad_file_is_refused_with_file_and_line(read, monkeypatch, content, message, block):
    monkeypatch.setattr(text_batches, "BLOCK_BYTES", block)
    with pytest.raises(InvalidTraceError, match=message) as caught:
        read(content)
    assert "table.csv" in str(caught.value)


def test_a_file_without_line_breaks_is_refused_before_it_fills_the_memory(read, monkeypatch):
    monkeypatch.setattr(text_batches, "BLOCK_BYTES", 64)
    for content, line in (("x" * 6400, 1), (HEAD + GOOD + "x" * 6400, 3)):
        with pytest.raises(InvalidTraceError, match=f"line {line}: not a CSV file: no line break for 64 characters"):
            read(content)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InvalidTraceError, match=r"absent\.csv: cannot be read"):
        read_header(tmp_path / "absent.csv")


def test_names_of_several_columns_are_joined_and_numbered_over_all_batches():
    import pyarrow as pa

    codes = NameCodes(["app", "func"])
    assert codes.of({"app": pa.array(["a", "b", " a"]), "func": pa.array(["f", "f", "f "])}).tolist() == [0, 1, 0]
    assert codes.of({"app": pa.array(["c", "b"]), "func": pa.array(["f", "f"])}).tolist() == [2, 1]
    assert codes.names == ["a/f", "b/f", "c/f"]
