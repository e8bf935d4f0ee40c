"""Text cells as numbers and dates, column by column, and what is wrong with the first that is none."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.simulator.columns import MAX_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

DATE_HINT = "ISO 8601 is read, such as 2023-11-16 18:17:03.97"
TOKENS_HINT = f"whole, from 0 to {MAX_TOKENS}"

_ZONED = r"^.{10}.*(Z|[+-]\d\d(:?\d\d)?)$"


class BadCellError(Exception):
    """A cell does not hold what its column should.

    Parameters
    ----------
    row : int
        Its row in the batch, from 0.
    column : str
    problem : str
        What is wrong, such as "not a date".
    cell : object
    hint : str
        What would be right.
    """

    def __init__(self, row: int, column: str, problem: str, cell: object, hint: str = "") -> None:
        super().__init__(row, column, problem, cell, hint)
        self.row, self.column, self.problem, self.cell, self.hint = row, column, problem, cell, hint

    def message(self) -> str:
        """Return column, problem, cell and hint in words."""
        shown = "an empty cell" if self.cell == "" else repr(self.cell)
        return f"column {self.column}: {self.problem}: {shown}{'; ' if self.hint else ''}{self.hint}"


def check_cells(valid: NDArray[np.bool_], cells: Any, column: str, problem: str, hint: str = "") -> None:
    """Check that all are valid.

    Parameters
    ----------
    valid : ndarray of bool, shape (n,)
    cells : sequence of length n
        What to show of the first that is not.

    Raises
    ------
    BadCellError
    """
    if not valid.all():
        row = int(np.argmin(valid))
        cell = cells[row]
        raise BadCellError(row, column, problem, cell.as_py() if hasattr(cell, "as_py") else cell, hint)


def numbers(cells: Any, column: str) -> NDArray[np.float64]:
    """Return finite numbers of a pyarrow.StringArray; raises BadCellError."""
    import pyarrow as pa

    values: NDArray[np.float64] = _cast(cells, column, lambda text: text.cast(pa.float64()), "not a number")
    check_cells(np.isfinite(values), cells, column, "not a finite number")
    return values


def counts(cells: Any, column: str) -> NDArray[np.int32]:
    """Return token counts of a pyarrow.StringArray; raises BadCellError."""
    return whole_numbers(cells, column, MAX_TOKENS, "not a number of tokens", TOKENS_HINT)


def whole_numbers(cells: Any, column: str, maximum: int, problem: str, hint: str) -> NDArray[np.int32]:
    """Return numbers from 0 to `maximum` (below 2**31) of a pyarrow.StringArray, which may be written as 5.0 or 5e0.

    Raises
    ------
    BadCellError
        With this problem and hint.
    """
    import pyarrow as pa

    values = _cast(cells, column, lambda text: text.cast(pa.float64()), problem, hint)
    valid = (values >= 0) & (values <= maximum) & (values == np.floor(values))
    check_cells(valid, cells, column, problem, hint)
    return values.astype(np.int32)


def dates(cells: Any, column: str) -> NDArray[np.int64]:
    """Return the nanoseconds since 1970 (UTC, also where no zone is given) of a pyarrow.StringArray.

    Raises
    ------
    BadCellError
        Also if it is before 1678 or after 2261, which nanoseconds in 64 bits do not reach.
    """
    return _cast(cells, column, _stamps, "not a date", DATE_HINT).view(np.int64)


def _stamps(text: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    # a cast that fails is slow, and most files have a zone everywhere or nowhere
    zone = "UTC" if re.match(_ZONED, text[0].as_py()) else None
    try:
        return text.cast(pa.timestamp("ns", tz=zone)).cast(pa.int64())
    except pa.ArrowInvalid:
        pass
    zoned = pc.match_substring_regex(text, _ZONED)
    naive = pc.if_else(zoned, pa.scalar(None, pa.string()), text).cast(pa.timestamp("ns")).cast(pa.int64())
    aware = pc.if_else(zoned, text, pa.scalar(None, pa.string())).cast(pa.timestamp("ns", tz="UTC")).cast(pa.int64())
    return pc.coalesce(naive, aware)


def _cast(cells: Any, column: str, cast: Callable[[Any], Any], problem: str, hint: str = "") -> NDArray[Any]:
    """Return the cast cells; where that fails also without white space around, tell of the first that is wrong."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        cast_cells = cast(cells)
    except pa.ArrowInvalid:
        trimmed = pc.utf8_trim_whitespace(cells)
        try:
            cast_cells = cast(trimmed)
        except pa.ArrowInvalid:
            row = _first_failure(trimmed, cast)
            raise BadCellError(row, column, problem, cells[row].as_py(), hint) from None
    values: NDArray[Any] = cast_cells.to_numpy(zero_copy_only=False)
    return values


def _first_failure(cells: Any, cast: Callable[[Any], Any]) -> int:
    """Return the first cell that cannot be cast: the shortest beginning that fails ends in it."""
    import pyarrow as pa

    good, bad = 0, len(cells)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            cast(cells.slice(0, middle))
            good = middle
        except pa.ArrowInvalid:
            bad = middle
    return bad - 1
