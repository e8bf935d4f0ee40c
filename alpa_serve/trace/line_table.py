"""Large plain CSV files in blocks of whole lines, so that memory stays bounded and a complaint can name the line."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidTraceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd

BLOCK_BYTES = 1 << 24
"""How much of a file is read at once."""

MAX_LINE_BYTES = 1 << 24
"""A longer line is taken to belong to another kind of file."""


@dataclass(frozen=True)
class ColumnKind:
    """What the cells of some columns hold.

    Parameters
    ----------
    names : sequence of str
    dtype : str
        What pandas makes of them: "str", "int64" or "float64".
    parse : callable
        Makes a number of a cell's text, or raises ValueError; also the last word on which cells are right.
    minimum, maximum : float
        Range of the numbers.
    hint : str
        What would be right, for messages.
    """

    names: Sequence[str]
    dtype: str
    parse: Callable[[str], float]
    minimum: float
    maximum: float
    hint: str

    def accepts(self, cell: str) -> bool:
        """Tell whether a cell is right."""
        try:
            return self.minimum <= self.parse(cell) <= self.maximum
        except ValueError:
            return False


def whole_columns(names: Sequence[str], maximum: int, what: str) -> ColumnKind:
    """Return columns of whole numbers from 0 to `maximum`."""
    hint = f"{what}, a whole number from 0 to {maximum}"
    return ColumnKind(names, "int64", _whole, 0, maximum, hint)


def real_columns(names: Sequence[str], maximum: float, what: str) -> ColumnKind:
    """Return columns of numbers from 0 to `maximum`."""
    return ColumnKind(names, "float64", lambda cell: float(_plain(cell)), 0, maximum, f"{what}, 0 to {maximum:.0f}")


def _whole(cell: str) -> float:
    number = float(_plain(cell))
    # 5.0 and 1e3 are whole, as they are to pandas
    if not number.is_integer():
        raise ValueError(cell)
    return number


def _plain(cell: str) -> str:
    # int and float take more than numbers as files have them
    if "_" in cell or not cell.isascii():
        raise ValueError(cell)
    return cell


def text_columns(names: Sequence[str]) -> ColumnKind:
    """Return columns of text that is not empty."""
    return ColumnKind(names, "str", lambda cell: len(cell.strip()), 1, np.inf, "a name that is not empty")


def read_blocks(path: Path, kinds: Sequence[ColumnKind]) -> Iterator[pd.DataFrame]:
    """Read a CSV file without quotes (gzip-compressed if its name ends in .gz) in blocks of rows.

    Parameters
    ----------
    path : Path
        Its first line names the columns; blank lines count as none.
    kinds : sequence of ColumnKind
        Columns that it must have, in any order among others.

    Yields
    ------
    pandas.DataFrame
        Those columns, in the order of `kinds`.

    Raises
    ------
    InvalidTraceError
        Naming file, line and column of what is not as it should be; also if the last line does not end, as a file
        that was cut off has it, or if there is no row.
    """
    lines = _whole_lines(path)
    number, content = next(lines, (1, b""))
    if not content.strip():
        raise InvalidTraceError(f"{path}, line {number}: no header; the file is empty or starts with a blank line")
    head, _, content = content.partition(b"\n")
    header = [name.strip() for name in _decoded(path, 1, head).removeprefix("\ufeff").split(",")]
    wanted = [name for kind in kinds for name in kind.names]
    for name in wanted:
        if name not in header:
            raise InvalidTraceError(f"{path}, line 1: no column {name}; found {_listed(header)}")
    if len(set(header)) != len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise InvalidTraceError(f"{path}, line 1: two columns have the same name: {twice}")
    table = _Table(path, header, kinds)
    number += 1
    any_row = False
    while True:
        frame = table.parse(number, content)
        if len(frame):
            any_row = True
            yield frame[wanted]
        try:
            number, content = next(lines)
        except StopIteration:
            break
        except _Unfinished as unfinished:
            table.refuse_unfinished(unfinished)
    if not any_row:
        raise InvalidTraceError(f"{path}: no row in this file")


class _Unfinished(Exception):  # noqa: N818 (becomes an InvalidTraceError as soon as the column's name is known)
    def __init__(self, number: int, line: bytes) -> None:
        super().__init__()
        self.number, self.line = number, line


def _whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number of the first line, lines that end in a line break) for each block."""
    number, rest = 1, b""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                lines, end, last = (rest + block).rpartition(b"\n")
                rest = last
                if end:
                    lines = lines.replace(b"\r\n", b"\n").removesuffix(b"\r") + b"\n"
                    yield number, lines
                    number += lines.count(b"\n")
                if len(rest) > MAX_LINE_BYTES:
                    raise InvalidTraceError(
                        f"{path}, after line {number - 1}: no line break for {len(rest)} bytes; not a CSV file"
                    )
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidTraceError(f"{path}, after line {number - 1}: cannot be read: {error}") from None
    if rest:
        if number == 1:
            raise InvalidTraceError(f"{path}, line 1: the header has no end; the file was cut off")
        raise _Unfinished(number, rest)


def _decoded(path: Path, number: int, line: bytes) -> str:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise InvalidTraceError(f"{path}, line {number}: not text (UTF-8): {line[:60]!r}") from None
    if "\r" in text or "\0" in text:
        raise InvalidTraceError(f"{path}, line {number}: a control character within the line: {line[:60]!r}")
    return text


def _listed(header: Sequence[str]) -> str:
    shown = ", ".join(header[:8])
    return shown if len(header) <= 8 else f"{shown}, ... ({len(header)} columns)"


class _Table:
    def __init__(self, path: Path, header: list[str], kinds: Sequence[ColumnKind]) -> None:
        self.path, self.header, self.kinds = path, header, kinds
        self.dtypes: dict[str, Any] = {name: kind.dtype for kind in kinds for name in kind.names}

    def parse(self, number: int, content: bytes) -> pd.DataFrame:
        """Return the rows of a block whose first line is line `number`."""
        import pandas as pd

        if not content.strip():
            return pd.DataFrame({name: np.empty(0) for name in self.dtypes})
        frame = None
        if self._is_regular(content):
            try:
                # infinity makes pandas warn, and then refuse it
                with np.errstate(invalid="ignore"):
                    frame = pd.read_csv(
                        io.BytesIO(content),
                        header=None,
                        names=self.header,
                        usecols=list(self.dtypes),
                        dtype=self.dtypes,
                        index_col=False,
                        quoting=csv.QUOTE_NONE,
                        keep_default_na=False,
                        na_values=[],
                        low_memory=False,
                    )
            except (ValueError, OverflowError):
                frame = None
        # pandas takes a column for numbers that has nothing but True and False; a look at one line tells
        filled = content.lstrip(b"\n")
        self._check_lines(number + len(content) - len(filled), filled.partition(b"\n")[0])
        if frame is None or not all(self._is_right(frame, kind) for kind in self.kinds):
            self._check_lines(number, content)
            end = number + content.count(b"\n") - 1
            raise InvalidTraceError(f"{self.path}, lines {number} to {end}: not numbers and names between commas")
        return frame

    def _is_regular(self, content: bytes) -> bool:
        """Tell whether every line that is not blank has as many cells as the header, and no odd character is there."""
        if b"\r" in content or b"\0" in content:
            return False
        characters = np.frombuffer(content, dtype=np.uint8)
        ends = np.flatnonzero(characters == ord("\n"))
        commas = np.searchsorted(np.flatnonzero(characters == ord(",")), ends)
        per_line = np.diff(commas, prepend=0)
        blank = np.diff(ends, prepend=-1) == 1
        return bool((blank | (per_line == len(self.header) - 1)).all())

    @staticmethod
    def _is_right(frame: pd.DataFrame, kind: ColumnKind) -> bool:
        part = frame[list(kind.names)]
        if kind.dtype == "str":
            return all(bool((part[name].str.strip() != "").all()) for name in kind.names)
        values = part.to_numpy()
        return bool(((values >= kind.minimum) & (values <= kind.maximum)).all())

    def _check_lines(self, number: int, content: bytes) -> None:
        """Raise the error of the first cell that is wrong, cell by cell."""
        checks = [(self.header.index(name), name, kind) for kind in self.kinds for name in kind.names]
        for at, line in enumerate(content.removesuffix(b"\n").split(b"\n"), number):
            if line:
                cells = _decoded(self.path, at, line).split(",")
                self._check_width(at, cells)
                for position, name, kind in checks:
                    if not kind.accepts(cells[position]):
                        found = repr(cells[position]) if cells[position] else "an empty cell"
                        raise InvalidTraceError(
                            f"{self.path}, line {at}, column {name}: expected {kind.hint}, found {found}"
                        )

    def _check_width(self, number: int, cells: list[str]) -> None:
        if len(cells) < len(self.header):
            raise InvalidTraceError(
                f"{self.path}, line {number}, column {self.header[len(cells)]}: no such cell; the line has "
                f"{len(cells)} cells, the header {len(self.header)}"
            )
        if len(cells) > len(self.header):
            raise InvalidTraceError(
                f"{self.path}, line {number}, column {len(self.header) + 1}: the line has {len(cells)} cells, the "
                f"header {len(self.header)}"
            )

    def refuse_unfinished(self, unfinished: _Unfinished) -> None:
        """Raise the error of a last line that does not end."""
        position = min(unfinished.line.count(b","), len(self.header) - 1)
        raise InvalidTraceError(
            f"{self.path}, line {unfinished.number}, column {self.header[position]}: the last line does not end in a "
            "line break: the file was cut off (if it is complete, add the line break)"
        ) from None
