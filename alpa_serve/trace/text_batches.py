"""Streaming a text file, compressed or not: CSV rows in batches of text columns, and the line that a row is on."""

from __future__ import annotations

import csv
import io
import itertools
import lzma
import re
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpa_serve.errors import InvalidTraceError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

BLOCK_BYTES = 1 << 22
"""Text that is parsed at once; a row must be shorter, so a longer line belongs to another kind of file."""

_PACKED = (".zip", ".tar", ".tgz", ".7z", ".rar")


@contextmanager
def text_stream(path: str | os.PathLike[str]) -> Iterator[io.TextIOBase]:
    """Open a file (compressed if its name ends in .gz, .bz2, .xz, .zst or .lz4) as UTF-8 text.

    Bytes that are no UTF-8 come out as surrogates; line ends are kept.

    Raises
    ------
    InvalidTraceError
        If it cannot be read or decompressed, also while it is read.
    """
    with _binary_stream(path) as stream:
        yield io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


@contextmanager
def _binary_stream(path: str | os.PathLike[str]) -> Iterator[Any]:
    import pyarrow as pa

    suffix = Path(path).suffix.lower()
    if suffix in _PACKED:
        raise InvalidTraceError(f"{path}: an archive; unpack it, and name one file of it")
    try:
        with lzma.open(path) if suffix == ".xz" else pa.input_stream(str(Path(path))) as stream:
            yield stream
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InvalidTraceError(f"{path}: cannot be read: {error}") from None


def is_utf8(text: str) -> bool:
    """Tell whether text of a :func:`text_stream` has no bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def first_line(path: str | os.PathLike[str], limit: int = 1 << 20) -> tuple[int, str]:
    """Return (number from 1, text without white space around) of the first line with something on it.

    The text is "" if there is none in `limit` characters.

    Raises
    ------
    InvalidTraceError
        If the file cannot be read, or this line is no UTF-8 text.
    """
    with text_stream(path) as stream:
        lines = re.split("\r\n|\r|\n", stream.read(limit))
    number, line = next(((n, line.strip()) for n, line in enumerate(lines, 1) if line.strip()), (len(lines), ""))
    if not is_utf8(line):
        raise InvalidTraceError(f"{path}: not a text file: it does not begin with UTF-8 text")
    return number, line


def csv_rows(path: str | os.PathLike[str], *, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Yield (line on which it begins, cells) of every row that is not blank.

    Parameters
    ----------
    path : str or path-like
    strict : bool
        Refuse a quote that does not end, or ends before its cell does.

    Raises
    ------
    InvalidTraceError
        If it is no CSV file, or a line is too long.
    """
    with text_stream(path) as stream:
        reader = csv.reader(_short_lines(path, stream), strict=strict)
        begin = 1
        try:
            for row in reader:
                if row:
                    yield begin, row
                begin = reader.line_num + 1
        except csv.Error as error:
            raise InvalidTraceError(f"{path}, line {begin}: not a CSV file: {error}") from None


def _short_lines(path: str | os.PathLike[str], stream: io.TextIOBase) -> Iterator[str]:
    # a file without line breaks, packed into a few bytes, could fill the memory
    limit = BLOCK_BYTES
    for number in itertools.count(1):
        line = stream.readline(limit)
        if len(line) == limit:
            raise InvalidTraceError(f"{path}, line {number}: not a CSV file: no line break for {limit} characters")
        if not line:
            return
        yield line


def place_of_row(path: str | os.PathLike[str], row: int) -> str:
    """Return "line N", on which row `row` (from 0, blank lines left out) of a CSV file begins.

    It is "row N" in a file whose lines cannot be told for a cell that is too long.
    """
    try:
        return next(f"line {line}" for line, _ in itertools.islice(csv_rows(path), row, None))
    except (InvalidTraceError, StopIteration):
        return f"row {row}"


def text_batches(path: str | os.PathLike[str], width: int, positions: Sequence[int]) -> Iterator[list[Any]]:
    """Yield the rows of a CSV file, the first one included, in batches.

    Parameters
    ----------
    path : str or path-like
    width : int
        Cells that each row must have.
    positions : sequence of int
        The columns to yield, all from 0 to width - 1.

    Yields
    ------
    list of pyarrow.StringArray, each of shape (rows,)
        One per position, "" for an empty cell. Blank lines are left out.

    Raises
    ------
    InvalidTraceError
        If a row has another number of cells or is no UTF-8 text, naming its line, or the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    names = {f"f{position}": pa.string() for position in positions}
    with _binary_stream(path) as stream:
        try:
            batches = pa_csv.open_csv(
                stream,
                read_options=pa_csv.ReadOptions(autogenerate_column_names=True, block_size=BLOCK_BYTES),
                parse_options=pa_csv.ParseOptions(newlines_in_values=True),
                convert_options=pa_csv.ConvertOptions(
                    column_types=names,
                    include_columns=list(names),
                    strings_can_be_null=False,
                    quoted_strings_can_be_null=False,
                ),
            )
            for batch in batches:
                yield [batch.column(f"f{position}") for position in positions]
        except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
            only = _only_row(path, width)
            if only is None:
                # a missing column means that the first row is narrower than it was said to be
                raise InvalidTraceError(_explained(path, width, str(error))) from None
            yield [pa.array([only[position]], pa.string()) for position in positions]


def _only_row(path: str | os.PathLike[str], width: int) -> list[str] | None:
    """Return the only row of a file, which Arrow does not take without a line break; None if there is none or more."""
    rows = [row for _, row in itertools.islice(csv_rows(path), 2)]
    return rows[0] if len(rows) == 1 and len(rows[0]) == width and all(map(is_utf8, rows[0])) else None


def wrong_width(path: str | os.PathLike[str], line: int, row: Sequence[str], first_row: Sequence[str]) -> str:
    """Return what is wrong with a row that is wider or narrower than the first one."""
    place = len(first_row) + 1
    column = first_row[len(row)].strip() if len(row) < len(first_row) else place
    return (
        f"{path}, line {line}, column {column}: the row has {len(row)} cells where the first row has {len(first_row)}"
    )


def _explained(path: str | os.PathLike[str], width: int, problem: str) -> str:
    first_row = None
    for line, row in csv_rows(path):
        first_row = row if first_row is None else first_row
        if len(row) != width:
            return wrong_width(path, line, row, first_row)
        if not all(map(is_utf8, row)):
            return f"{path}: not a CSV file: line {line} is not UTF-8 text"
    return f"{path}: not a CSV file: {problem}"
