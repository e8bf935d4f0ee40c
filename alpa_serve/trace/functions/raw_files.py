"""Readers of the raw public files of the Azure Functions traces.

Source: Azure Public Dataset, AzureFunctionsDataset2019 (v1) and AzureFunctionsInvocationTrace2021 (v2), CC-BY.

References
----------
v1: M. Shahrad et al., "Serverless in the wild: characterizing and optimizing the serverless workload at a large cloud
provider", USENIX ATC 2020. v2: Y. Zhang et al., "Faster and cheaper serverless computing on harvested resources",
SOSP 2021.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidConfigError, InvalidTraceError
from alpa_serve.trace.cells import check_cells, numbers, whole_numbers
from alpa_serve.trace.csv_columns import NameCodes, Parsed, read_columns, read_header
from alpa_serve.trace.functions.cache import load_trace, save_trace
from alpa_serve.trace.functions.table import (
    AZURE_V1,
    AZURE_V2,
    MAX_COUNT,
    MAX_TIME_S,
    MINUTES_PER_DAY,
    TRACE_DAYS,
    TRACE_MINUTES,
    FunctionTable,
)
from alpa_serve.validation import check_int, check_known

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

V1_FILE = "invocations_per_function_md.anon.d{day:02d}.csv"
V2_FILE = "AzureFunctionsInvocationTraceForTwoWeeksJan2021.txt"

KEYS = ("unique", "func")
_KEY_COLUMNS = {
    AZURE_V1: {"unique": ("HashOwner", "HashApp", "HashFunction"), "func": ("HashFunction",)},
    AZURE_V2: {"unique": ("app", "func"), "func": ("func",)},
}

logger = logging.getLogger(__name__)

_COUNT_HINT = f"whole, from 0 to {MAX_COUNT}"
_SECONDS_HINT = f"from 0 to {MAX_TIME_S:.0f}"
_MINUTES = [str(minute) for minute in range(1, MINUTES_PER_DAY + 1)]


def preprocess_azure_v1_trace(
    dir: str | os.PathLike[str],
    n_day: int = TRACE_DAYS,
    *,
    key: str = "unique",
    output: str | os.PathLike[str] | None = None,
) -> Path:
    """Read the daily files of the 2019 trace and write what they hold into one file, for `Trace` and `load_trace`.

    Parameters
    ----------
    dir : path-like
        Folder with ``invocations_per_function_md.anon.d01.csv`` and so on (or ``.csv.gz``): HashOwner, HashApp,
        HashFunction, Trigger, and the invocations in minute 1 to 1440 of the day.
    n_day : int
        Days to read, 1 to 14, from the first.
    key : {"unique", "func"}
        What names a function: "unique" is ``owner/app/function``; "func" the function's hash alone, as AlpaServe has
        it, which different apps may share.
    output : path-like, optional
        The file to write; ``azure_v1.npz`` (or ``azure_v1_func.npz``) in the folder if left out. Fewer days than 14
        are told from the whole trace by the name: ``azure_v1_3d.npz``.

    Returns
    -------
    Path
        Of the file, which replaces an older one in one step.

    Raises
    ------
    InvalidTraceError
        Naming the files that are missing, or file, line and column of what cannot be read; nothing is then written.
    InvalidConfigError, UnknownNameError
        If `n_day` or `key` is out of range.
    OSError
        Naming the file that cannot be written.

    Notes
    -----
    Rows of one function in a day (one per trigger) are added up. A file is read in blocks of 4 MiB, and only minutes
    with invocations are kept, in 10 bytes while reading and 6 in the result: for the whole public trace, of which a
    dense table would take 7 GB, that is some hundred million.
    """
    return save_trace(read_azure_v1(dir, n_day, key=key), _output(AZURE_V1, dir, key, output, n_day))


def preprocess_azure_v2_trace(
    dir: str | os.PathLike[str],
    *,
    key: str = "unique",
    output: str | os.PathLike[str] | None = None,
) -> Path:
    """Read the file of the 2021 trace and write what it holds, for `Trace` and `load_trace`.

    Parameters
    ----------
    dir : path-like
        Folder with ``AzureFunctionsInvocationTraceForTwoWeeksJan2021.txt`` (or ``.txt.gz``): app, func, end_timestamp
        and duration in seconds.
    key : {"unique", "func"}
        What names a function: "unique" is ``app/func``; "func" the function's hash alone, as AlpaServe has it, which
        different apps may share.
    output : path-like, optional
        The file to write; ``azure_v2.npz`` (or ``azure_v2_func.npz``) in the folder if left out.

    Returns
    -------
    Path
        Of the file, which replaces an older one in one step.

    Raises
    ------
    InvalidTraceError
        Naming the file that is missing, or file, line and column of what cannot be read; nothing is then written.
    UnknownNameError
        If `key` is none of these.
    OSError
        Naming the file that cannot be written.

    Notes
    -----
    An invocation arrives at end_timestamp - duration, which may lie before 0 for one that ran when the trace began.
    Rows that are equal are as many invocations.
    """
    return save_trace(read_azure_v2(dir, key=key), _output(AZURE_V2, dir, key, output))


def open_trace(trace_name: str, trace_dir: str | os.PathLike[str], key: str) -> FunctionTable:
    """Load a trace from a file, or from a folder with its raw files or what was made of them.

    In a folder, ``<trace_name>.npz`` is taken unless a raw file is newer; then it is made anew. Where it cannot be
    written, that is logged as a warning, and the raw files are read each time.

    Raises
    ------
    InvalidTraceError
        If it cannot be read, or holds the other trace.
    UnknownNameError
        If `key` is unknown.
    """
    check_known(key, KEYS, "key of functions")
    path = Path(trace_dir)
    if path.is_file() and path.name.removesuffix(".gz") == V2_FILE:
        path = path.parent
    if path.is_dir():
        made = _made_in(trace_name, path, key)
        if isinstance(made, FunctionTable):
            return made
        path = made
    table = load_trace(path)
    if (table.counts is not None) != (trace_name == AZURE_V1):
        found = AZURE_V2 if table.counts is None else AZURE_V1
        raise InvalidTraceError(f"{path}: holds {table!r}, as {found} has them, not {trace_name}")
    return table


def _made_in(trace_name: str, folder: Path, key: str) -> FunctionTable | Path:
    """Return what the raw files of a folder hold, or the file that has it already."""
    cache = _output(trace_name, folder, key, None)
    names = [V1_FILE.format(day=day) for day in range(1, TRACE_DAYS + 1)] if trace_name == AZURE_V1 else [V2_FILE]
    raw = [path for name in names for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if cache.is_file() and all(path.stat().st_mtime_ns <= cache.stat().st_mtime_ns for path in raw):
        if not raw:
            return cache
        try:
            return load_trace(cache)
        except InvalidTraceError as error:
            logger.warning("%s; it is made anew from the raw files", error)
    if raw:
        table = (read_azure_v1 if trace_name == AZURE_V1 else read_azure_v2)(folder, key=key)
        try:
            save_trace(table, cache)
        except OSError as error:
            logger.warning(
                "%s is read from its raw files each time, since %s cannot be written: %s", folder, cache, error
            )
        return table
    pickled = folder / f"{trace_name}.pkl"
    if pickled.is_file():
        return pickled
    raise InvalidTraceError(f"{folder}: neither {cache.name} nor {pickled.name} nor {', '.join(names)} is there")


def _output(
    trace_name: str,
    trace_dir: str | os.PathLike[str],
    key: str,
    output: str | os.PathLike[str] | None,
    n_day: int = TRACE_DAYS,
) -> Path:
    if output is not None:
        return Path(output)
    parts = [trace_name, *([key] if key != "unique" else []), *([f"{n_day}d"] if n_day != TRACE_DAYS else [])]
    return Path(trace_dir) / f"{'_'.join(parts)}.npz"


def _raw_files(folder: Path, names: list[str]) -> list[Path]:
    found = [next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None) for name in names]
    missing = [name for name, path in zip(names, found, strict=True) if path is None]
    if missing:
        raise InvalidTraceError(f"{folder}: {len(missing)} of {len(names)} files are missing: {', '.join(missing)}")
    return [path for path in found if path is not None]


def _key_columns(trace_name: str, key: str) -> tuple[str, ...]:
    return _KEY_COLUMNS[trace_name][check_known(key, KEYS, "key of functions")]


def _read_batches(path: Path, columns: Sequence[str], parse: Callable[[dict[str, Any]], Parsed]) -> list[Parsed]:
    parsed = list(read_columns(path, read_header(path), columns, parse))
    if not parsed:
        raise InvalidTraceError(f"{path}: no row in this file")
    return parsed


def read_azure_v1(trace_dir: str | os.PathLike[str], n_day: int = TRACE_DAYS, *, key: str = "unique") -> FunctionTable:
    """Read the daily files of the 2019 trace; see `preprocess_azure_v1_trace`."""
    columns = _key_columns(AZURE_V1, key)
    if check_int(n_day, "n_day", minimum=1) > TRACE_DAYS:
        raise InvalidConfigError(f"n_day must be at most {TRACE_DAYS}, the days of the trace; got {n_day}")
    files = _raw_files(Path(trace_dir), [V1_FILE.format(day=day) for day in range(1, n_day + 1)])
    functions = NameCodes(columns)
    days = [_read_day(path, columns, functions) for path in files]
    return _joined_days(functions.names, days)


_Day = tuple["NDArray[np.int32]", "NDArray[np.int16]", "NDArray[np.int32]"]


def _read_day(path: Path, columns: tuple[str, ...], functions: NameCodes) -> _Day:
    """Return (function, minute of the day, invocations) of the cells above 0, ascending in function and minute."""

    def parse(texts: dict[str, Any]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        codes = functions.of(texts).astype(np.int64)
        problem = "not a number of invocations"
        counts = np.stack([whole_numbers(texts[name], name, MAX_COUNT, problem, _COUNT_HINT) for name in _MINUTES])
        minutes, rows = np.nonzero(counts)
        return codes[rows] * MINUTES_PER_DAY + minutes, counts[minutes, rows]

    batches = _read_batches(path, [*columns, *_MINUTES], parse)
    cell = np.concatenate([cells for cells, _ in batches])
    value = np.concatenate([values for _, values in batches]).astype(np.int64)
    del batches
    order = np.argsort(cell, kind="stable")
    cell, value = cell[order], value[order]
    first = np.flatnonzero(np.diff(cell, prepend=-1))
    if len(first) < len(cell):
        cell, value = cell[first], np.add.reduceat(value, first)
        if value.max() > MAX_COUNT:
            name = functions.names[int(cell[value.argmax()]) // MINUTES_PER_DAY]
            raise InvalidTraceError(f"{path}: the rows of function {name!r} add up to more than {MAX_COUNT} a minute")
    function, minutes_of_day = np.divmod(cell, MINUTES_PER_DAY)
    return function.astype(np.int32), minutes_of_day.astype(np.int16), value.astype(np.int32)


def _joined_days(names: list[str], days: list[_Day]) -> FunctionTable:
    """Bring the cells of all days together, function by function."""
    per_day = np.stack([np.bincount(function, minlength=len(names)) for function, _, _ in days])
    offsets = np.concatenate([[0], np.cumsum(per_day.sum(axis=0), dtype=np.int64)])
    at = np.empty(offsets[-1], dtype=np.int16)
    counts = np.empty(offsets[-1], dtype=np.int32)
    free = offsets[:-1].copy()
    for day, (function, minutes, invocations) in enumerate(days):
        before = np.cumsum(per_day[day]) - per_day[day]
        place = (free - before)[function] + np.arange(len(function))
        at[place] = minutes + np.int16(day * MINUTES_PER_DAY)
        counts[place] = invocations
        free += per_day[day]
    return FunctionTable(names, offsets, at, counts, len(days) * MINUTES_PER_DAY)


def read_azure_v2(trace_dir: str | os.PathLike[str], *, key: str = "unique") -> FunctionTable:
    """Read the file of the 2021 trace; see `preprocess_azure_v2_trace`."""
    columns = _key_columns(AZURE_V2, key)
    (path,) = _raw_files(Path(trace_dir), [V2_FILE])
    names = NameCodes(columns)

    def parse(texts: dict[str, Any]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        return names.of(texts), _seconds(texts, "end_timestamp") - _seconds(texts, "duration")

    batches = _read_batches(path, [*columns, "end_timestamp", "duration"], parse)
    function = np.concatenate([codes for codes, _ in batches])
    arrival = np.concatenate([arrivals for _, arrivals in batches])
    del batches
    order = np.lexsort((arrival, function))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(function), dtype=np.int64)])
    return FunctionTable(names.names, offsets, arrival[order], None, TRACE_MINUTES)


def _seconds(texts: dict[str, Any], column: str) -> NDArray[np.float64]:
    seconds = numbers(texts[column], column)
    valid = (seconds >= 0) & (seconds <= MAX_TIME_S)
    check_cells(valid, texts[column], column, "no seconds within the trace", _SECONDS_HINT)
    return seconds
