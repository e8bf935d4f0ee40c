"""Reading AlpaServe's pickles of function traces without running anything that is in them."""

from __future__ import annotations

import pickle
import reprlib
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidTraceError
from alpa_serve.safe_pickle import NumberArray, SafeUnpickler
from alpa_serve.trace.functions.table import MAX_COUNT, MAX_TIME_S, MINUTES_PER_DAY, TRACE_MINUTES, FunctionTable

if TYPE_CHECKING:
    from pathlib import Path
    from typing import IO

    from numpy.typing import NDArray

_FORGOTTEN_BYTES = 4096


class _Invocations(NumberArray):
    """Keeps an array of counts as its minutes that are not 0, any other as it is."""

    def __init__(self) -> None:
        self.size = -1
        self.minutes: NDArray[np.int16] | None = None
        self.counts: NDArray[Any] | None = None

    def keep(self, array: NDArray[Any]) -> None:
        """Take the array."""
        if array.ndim != 1:
            raise pickle.UnpicklingError(f"it holds an array of shape {array.shape}; those of a trace have one axis")
        if array.dtype.kind in "iu" and len(array) <= TRACE_MINUTES:
            self.size = len(array)
            at = np.flatnonzero(array)
            self.minutes, self.counts = at.astype(np.int16), array[at]
        else:
            super().keep(array)


class _Memo(dict[int, Any]):
    """What the pickle may refer back to; not the raw bytes of arrays, which would all stay in memory."""

    def __setitem__(self, number: int, value: Any) -> None:
        parts = value if type(value) is tuple else (value,)
        is_raw = any(type(part) is bytes and len(part) > _FORGOTTEN_BYTES for part in parts)
        super().__setitem__(number, _Memo if is_raw else value)

    def __getitem__(self, number: int) -> Any:
        value = super().__getitem__(number)
        if value is _Memo:
            raise pickle.UnpicklingError("it refers to the raw bytes of an array again")
        return value


class _TraceUnpickler(SafeUnpickler):
    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, "trace", _Invocations)
        self.memo = _Memo()


def read_pickle(path: Path) -> FunctionTable:
    """Read a pickled dict of function name to int32 counts per minute, or to ascending seconds.

    Raises
    ------
    InvalidTraceError
        Naming the file and what in it is no trace. Nothing in the file is run.
    """
    try:
        with path.open("rb") as file:
            return _table(_TraceUnpickler(file).load())
    except InvalidTraceError as error:
        raise InvalidTraceError(f"{path}: {error}") from None
    except Exception as error:
        # a damaged or crafted pickle can make the machinery fail in any way
        reason = "it ends too early" if isinstance(error, EOFError) else f"{error}"
        raise InvalidTraceError(
            f"{path}: not a file of function traces, a pickle or an .npz: {reason}; of raw public files, give the "
            "folder"
        ) from error


def _table(loaded: Any) -> FunctionTable:
    if not isinstance(loaded, dict):
        raise InvalidTraceError(f"expected a dict of function name to array, found a {type(loaded).__name__}")
    if not loaded:
        raise InvalidTraceError("no function in this file")
    for name in loaded:
        if not isinstance(name, str):
            raise InvalidTraceError(f"the name of a function must be text, found {reprlib.repr(name)}")
    first = next(iter(loaded.values()))
    if isinstance(first, _Invocations) and first.minutes is not None:
        return _table_of_counts(loaded, first.size)
    seconds = [_seconds(name, value) for name, value in loaded.items()]
    return FunctionTable.of_runs(list(loaded), seconds, None, TRACE_MINUTES)


def _table_of_counts(loaded: dict[str, Any], num_minutes: int) -> FunctionTable:
    if num_minutes % MINUTES_PER_DAY or not num_minutes:
        raise InvalidTraceError(
            f"function {next(iter(loaded))!r} has {num_minutes} counts; a trace has {MINUTES_PER_DAY} a day for 1 to "
            f"{TRACE_MINUTES // MINUTES_PER_DAY} days"
        )
    minutes, counts = [], []
    for name, value in loaded.items():
        if not isinstance(value, _Invocations) or value.minutes is None or value.counts is None:
            raise InvalidTraceError(f"function {name!r} has no array of whole numbers, unlike those before it")
        if value.size != num_minutes:
            raise InvalidTraceError(f"function {name!r} has {value.size} counts, those before it {num_minutes}")
        if len(value.counts) and not 0 < value.counts.min() <= value.counts.max() <= MAX_COUNT:
            wrong = int(np.argmax((value.counts < 0) | (value.counts > MAX_COUNT)))
            raise InvalidTraceError(
                f"function {name!r}, minute {value.minutes[wrong]}: a count must lie between 0 and {MAX_COUNT}, "
                f"found {value.counts[wrong]}"
            )
        minutes.append(value.minutes)
        counts.append(value.counts.astype(np.int32, copy=False))
    return FunctionTable.of_runs(list(loaded), minutes, counts, num_minutes)


def _seconds(name: str, value: Any) -> NDArray[np.float64]:
    if isinstance(value, list) and all(type(second) in (int, float) for second in value):
        value = np.array(value, dtype=np.float64)
    elif isinstance(value, _Invocations) and value.array is not None and value.array.dtype.kind == "f":
        value = value.array
    elif isinstance(value, _Invocations) and value.size == 0:
        value = np.empty(0)
    else:
        raise InvalidTraceError(f"function {name!r} has no array of seconds (float) or of counts per minute (int)")
    wrong = ~(np.abs(value) <= MAX_TIME_S)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise InvalidTraceError(
            f"function {name!r}, invocation {at}: expected seconds up to {MAX_TIME_S:.0f} "
            f"({MAX_TIME_S / 86400:g} days), found {value[at]}"
        )
    return np.asarray(value, dtype=np.float64)
