"""CSV files of profiles as checked rows, so that a complaint can name the file, the line and the column."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alpa_serve.errors import InvalidProfileError
from alpa_serve.validation import check_int, check_real

if TYPE_CHECKING:
    import os
    from collections.abc import Collection

_WHOLE = re.compile(r"\+?[0-9]+(\.0*)?")
# float() takes more than a table should hold: underscores, digits of other scripts
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
_UNKNOWN = ("", "nan")


@dataclass(frozen=True)
class CsvRow:
    """One line of a table: where it is, and its cells by column."""

    path: str
    line: int
    cells: dict[str, str]

    @property
    def where(self) -> str:
        """The file and line, as messages name them."""
        return f"{self.path}, line {self.line}"

    def column(self, column: str) -> str:
        """Return how messages name a cell."""
        return f"{self.where}, column {column}"

    def text(self, column: str, default: str | None = None) -> str:
        """Return a cell as text, or `default` if it is empty or the table has no such column.

        Raises
        ------
        InvalidProfileError
            If there is nothing and no default.
        """
        cell = self.cells.get(column, "")
        if cell:
            return cell
        if default is None:
            raise InvalidProfileError(f"{self.column(column)}: the cell is empty")
        return default

    def whole(self, column: str, default: int | None = None) -> int:
        """Return a cell as a whole number >= 1, or `default` if it is empty.

        Raises
        ------
        InvalidProfileError
            If it is none.
        """
        if default is not None and not self.cells.get(column, ""):
            return default
        text = self.text(column)
        value: object = int(text.split(".")[0]) if len(text) < 16 and _WHOLE.fullmatch(text) else text
        return check_int(value, self.column(column), minimum=1, error=InvalidProfileError)

    def real(self, column: str) -> float:
        """Return a cell as a finite number >= 0.

        Raises
        ------
        InvalidProfileError
            If it is none.
        """
        text = self.text(column)
        number = float(text) if _NUMBER.fullmatch(text) else math.inf
        # what is no number, or too large for one, is shown as it was written
        value: object = number if math.isfinite(number) else text
        return check_real(value, self.column(column), minimum=0.0, error=InvalidProfileError)

    def known_real(self, column: str) -> float:
        """Return a cell as a finite number >= 0, NaN if it is empty, "nan" or not there.

        Raises
        ------
        InvalidProfileError
            If it is something else.
        """
        return math.nan if self.cells.get(column, "").lower() in _UNKNOWN else self.real(column)


def read_rows(path: str | os.PathLike[str], required: Collection[str], optional: Collection[str]) -> list[CsvRow]:
    """Read a CSV file with a header; lines that hold nothing are left out.

    Parameters
    ----------
    path : path-like
        UTF-8 text.
    required, optional : collection of str
        Columns that the header must and may have, in any order. Others are ignored.

    Raises
    ------
    InvalidProfileError
        Naming the file and the line, if it is no such file or has no row.
    FileNotFoundError
        If the file does not exist.
    """
    lines = _lines(path)
    if not lines:
        raise InvalidProfileError(f"{path}: the file is empty; expected a header with {', '.join(required)}")
    (number, header), *rows = lines
    header = [name.strip() for name in header]
    missing = [column for column in required if column not in header]
    if missing:
        raise InvalidProfileError(
            f"{path}, line {number}: no column {', '.join(missing)}; found {', '.join(header)}; expected "
            f"{', '.join((*required, *optional))}"
        )
    repeated = sorted({name for name in header if name and header.count(name) > 1})
    if repeated:
        raise InvalidProfileError(f"{path}, line {number}: more than one column {', '.join(repeated)}")
    if not rows:
        raise InvalidProfileError(f"{path}: no measurement in this file")
    table = []
    for number, cells in rows:
        if len(cells) != len(header):
            raise InvalidProfileError(
                f"{path}, line {number}: expected {len(header)} cells as in the header, found {len(cells)}"
            )
        table.append(CsvRow(str(path), number, {name: c.strip() for name, c in zip(header, cells, strict=True)}))
    return table


def _lines(path: str | os.PathLike[str]) -> list[tuple[int, list[str]]]:
    """Return the cells of every line that has any, with the number of the line that it begins on."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidProfileError(f"{path}: not a text file: {error}") from None
    if "\0" in text:
        raise InvalidProfileError(f"{path}, line {text[: text.index(chr(0))].count(chr(10)) + 1}: a NUL character")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines = []
    begins = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                lines.append((begins, cells))
            begins = reader.line_num + 1
    except csv.Error as error:
        raise InvalidProfileError(f"{path}, line {reader.line_num}: not a CSV line: {error}") from None
    return lines
