"""Small CSV files as tables of text by line, so that a complaint can name the line and the column."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpa_serve.errors import InvalidTraceError
from alpa_serve.trace.csv_columns import read_header
from alpa_serve.trace.text_batches import csv_rows, is_utf8, wrong_width

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    import pandas as pd


def read_text_table(path: str | os.PathLike[str], columns: Iterable[str]) -> pd.DataFrame:
    """Read a CSV file (compressed if its name says so) as text.

    Parameters
    ----------
    path : str or path-like
    columns : iterable of str
        Those that it must have.

    Returns
    -------
    pandas.DataFrame
        All columns as str, None for an empty cell and for those that a row lacks at its end; blank lines and rows of
        empty cells are left out. The index is the line in the file on which a row begins.

    Raises
    ------
    InvalidTraceError
        If it is no CSV file, lacks a column, names one twice or has no row.
    """
    import pandas as pd

    header = read_header(path)
    rows = csv_rows(path, strict=True)
    line, _ = next(rows)
    for column in columns:
        if column not in header:
            raise InvalidTraceError(f"{path}, line {line}: no column {column}; found {', '.join(header)}")
    lines, cells = [], []
    for line, row in rows:
        if len(row) > len(header):
            raise InvalidTraceError(wrong_width(path, line, row, header))
        if not all(map(is_utf8, row)):
            raise InvalidTraceError(f"{path}: not a CSV file: line {line} is not UTF-8 text")
        if any(row):
            lines.append(line)
            cells.append([cell or None for cell in row] + [None] * (len(header) - len(row)))
    if not cells:
        raise InvalidTraceError(f"{path}: no request in this file")
    return pd.DataFrame(cells, index=lines, columns=header, dtype=object)


def check_column(
    path: str | os.PathLike[str], raw: pd.DataFrame, column: str, valid: pd.Series[bool], problem: str, hint: str = ""
) -> None:
    """Check that every cell of a :func:`read_text_table` is valid.

    Raises
    ------
    InvalidTraceError
        Naming the line and the content of the first that is not.
    """
    if not valid.all():
        line = raw.index[~valid.to_numpy()][0]
        cell = raw.at[line, column]
        found = repr(cell) if isinstance(cell, str) else "an empty cell"
        raise InvalidTraceError(f"{path}, line {line}, column {column}: {problem}: {found}{hint}")
