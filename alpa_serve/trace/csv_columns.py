"""Columns of a CSV file with a header, in batches; complaints about a cell name its line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from alpa_serve.errors import InvalidTraceError
from alpa_serve.trace.cells import BadCellError, check_cells
from alpa_serve.trace.text_batches import csv_rows, is_utf8, place_of_row, text_batches

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

Parsed = TypeVar("Parsed")


def read_header(path: str | os.PathLike[str]) -> list[str]:
    """Return the names in the first row of a CSV file.

    Raises
    ------
    InvalidTraceError
        If there is no row, or two columns have the same name.
    """
    for line, row in csv_rows(path):
        names = [cell.strip() for cell in row]
        if not all(map(is_utf8, names)):
            raise InvalidTraceError(f"{path}: not a CSV file: line {line} is not UTF-8 text")
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidTraceError(f"{path}, line {line}: two columns have the same name: {twice or 'an empty cell'}")
        return names
    raise InvalidTraceError(f"{path}: the file is empty")


def read_columns(
    path: str | os.PathLike[str],
    header: Sequence[str],
    columns: Sequence[str],
    parse: Callable[[dict[str, Any]], Parsed],
) -> Iterator[Parsed]:
    """Yield what is made of the rows below the header, batch by batch.

    Parameters
    ----------
    path : str or path-like
    header : sequence of str
        Of the file, as :func:`read_header` returns it.
    columns : sequence of str
        Those to read, in any order among others.
    parse : callable
        Takes a batch of n >= 1 rows as {column: pyarrow.StringArray of shape (n,)}; may raise BadCellError.

    Raises
    ------
    InvalidTraceError
        If a column is missing, naming line and column of a cell that is refused, or if the file cannot be read.
    """
    for column in columns:
        if column not in header:
            raise InvalidTraceError(f"{path}, {place_of_row(path, 0)}: no column {column}; found {_listed(header)}")
    row = 0
    for texts in text_batches(path, len(header), [header.index(column) for column in columns]):
        # the first row is the header
        rows = texts if row else [text.slice(1) for text in texts]
        row = row or 1
        if len(rows[0]):
            try:
                yield parse(dict(zip(columns, rows, strict=True)))
            except BadCellError as error:
                raise InvalidTraceError(f"{path}, {place_of_row(path, row + error.row)}, {error.message()}") from None
        row += len(rows[0])


def _listed(header: Sequence[str]) -> str:
    listed = ", ".join(header)
    return listed if len(listed) <= 200 else f"{listed[:200]}... ({len(header)} columns)"


class NameCodes:
    """Codes of names in one column or, joined by "/", in several; from 0, in the order of their first rows.

    Parameters
    ----------
    columns : sequence of str
        White space around a name does not count.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self._codes: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """The names, in the order of their codes."""
        return list(self._codes)

    def of(self, cells: Mapping[str, Any]) -> NDArray[np.int32]:
        """Return the code of each row of a batch {column: pyarrow.StringArray}.

        Raises
        ------
        BadCellError
            If a name is empty.
        """
        import pyarrow.compute as pc

        parts = []
        for column in self._columns:
            part = pc.utf8_trim_whitespace(cells[column])
            named = pc.not_equal(part, "").to_numpy(zero_copy_only=False)
            check_cells(named, cells[column], column, "no name")
            parts.append(part)
        joined = pc.binary_join_element_wise(*parts, "/") if len(parts) > 1 else parts[0]
        encoded = joined.dictionary_encode()
        of_batch = [self._codes.setdefault(name, len(self._codes)) for name in encoded.dictionary.to_pylist()]
        codes: NDArray[np.int32] = np.array(of_batch, dtype=np.int32)[encoded.indices.to_numpy()]
        return codes
