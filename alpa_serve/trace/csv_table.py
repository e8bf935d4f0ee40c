"""CSV files as text with line numbers, so that a complaint can name the line and the column."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from alpa_serve.errors import InvalidTraceError

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
        All columns as str, NaN for an empty cell; blank lines are left out. The index plus 1 is the line in the file.

    Raises
    ------
    InvalidTraceError
        If it is no CSV file, lacks a column, names one twice or has no row.
    """
    import pandas as pd

    try:
        # header and blank lines included: then a row's number tells its line
        raw = pd.read_csv(
            path, dtype=str, header=None, skip_blank_lines=False, keep_default_na=False, na_values=[""], index_col=False
        )
    except pd.errors.EmptyDataError:
        raise InvalidTraceError(f"{path}: the file is empty") from None
    except (pd.errors.ParserError, UnicodeDecodeError, ValueError) as error:
        # a row that is wider than the header is among these; the message then names its line
        raise InvalidTraceError(f"{path}: not a CSV file: {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidTraceError(f"{path}: cannot be read: {error}") from None
    raw.columns = [str(column).strip() for column in raw.iloc[0]]
    raw = raw.iloc[1:]
    for column in columns:
        if column not in raw.columns:
            raise InvalidTraceError(f"{path}, line 1: no column {column}; found {', '.join(raw.columns)}")
    if not raw.columns.is_unique:
        raise InvalidTraceError(f"{path}, line 1: two columns have the same name: {', '.join(raw.columns)}")
    raw = raw.dropna(how="all")
    if not len(raw):
        raise InvalidTraceError(f"{path}: no request in this file")
    return raw


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
        row = raw.index[~valid.to_numpy()][0]
        # rows count from 0 at the header, lines from 1
        cell = raw.at[row, column]
        found = repr(cell) if isinstance(cell, str) else "an empty cell"
        raise InvalidTraceError(f"{path}, line {row + 1}, column {column}: {problem}: {found}{hint}")
