"""Collecting the requests of a file, batch by batch, in few bytes a request."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidTraceError
from alpa_serve.simulator.trace_workload import MAX_TRACE_MINUTES
from alpa_serve.trace.llm.trace import LLMTrace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alpa_serve.trace.time_window import TimeWindow

logger = logging.getLogger(__name__)

MAX_SPAN_S = 60.0 * MAX_TRACE_MINUTES
"""A trace that spans more is taken to have a wrong date, or another unit than it was read with."""

MAX_RATE = 100_000.0
"""Requests per second that no public trace comes near; more of them mean that the unit is wrong."""

MIN_ROWS_FOR_RATE = 1000
"""Fewer requests may come at any rate: a file may begin with a burst."""


class TraceBuilder:
    """Collects requests that are in a time window.

    Parameters
    ----------
    window : TimeWindow
    max_rows : int or None
        Take at most the first so many.
    dated : bool
        Whether arrivals are nanoseconds since 1970 (int64) or seconds on the clock of the file (float64).
    origin : int or None
        Where an axis of dates starts, as far as is known; at the first row if None.
    max_rate : float
        Requests per second that a trace with a clock of its own may have.
    """

    def __init__(
        self,
        window: TimeWindow,
        max_rows: int | None,
        dated: bool,
        origin: int | None = None,
        *,
        max_rate: float = MAX_RATE,
    ) -> None:
        self._max_rate = max_rate
        self._window = window
        self._limits = None if dated else window.seconds(None)
        self._room = max_rows
        self._origin = origin
        self._arrivals: list[NDArray[Any]] = []
        self._columns: dict[str, list[NDArray[Any]]] = {}
        self._first: Any = None
        self._last: Any = None
        self._num_seen = 0
        self.num_failed = 0

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another request."""
        return self._room == 0

    def add(
        self, arrivals: NDArray[Any], columns: dict[str, NDArray[Any]], failed: NDArray[np.bool_] | None = None
    ) -> None:
        """Take those of a batch of n >= 1 requests that are in the window and did not fail.

        Parameters
        ----------
        arrivals : ndarray of int64 or float64, shape (n,)
        columns : dict of ndarray, each of shape (n,)
            The same names in every batch.
        failed : ndarray of bool, shape (n,), optional
        """
        if self._limits is None:
            if self._origin is None:
                self._origin = int(arrivals[0])
            inside = self._window.holds(arrivals, self._origin)
        else:
            inside = (arrivals >= self._limits[0]) & (arrivals < self._limits[1])
        chosen = np.flatnonzero(inside if failed is None else inside & ~failed)[: self._room]
        num_read = len(arrivals)
        if self._room is not None:
            if len(chosen) == self._room:
                num_read = int(chosen[-1]) + 1
            self._room -= len(chosen)
        self._num_seen += num_read
        first, last = arrivals[:num_read].min(), arrivals[:num_read].max()
        self._first = first if self._first is None else min(first, self._first)
        self._last = last if self._last is None else max(last, self._last)
        if failed is not None:
            self.num_failed += int(np.count_nonzero((inside & failed)[:num_read]))
        for name in columns:
            self._columns.setdefault(name, [])
        if len(chosen):
            key = slice(None) if len(chosen) == len(arrivals) else chosen
            self._arrivals.append(arrivals[key])
            for name, values in columns.items():
                self._columns[name].append(values[key])

    def earlier_origin(self) -> int | None:
        """Return where the axis starts if that is earlier than was thought and matters to what is in the window."""
        if self._origin is not None and self._window.needs_origin and self._first < self._origin:
            return int(self._first)
        return None

    def build(self, path: object, name: str, model_names: Sequence[str] = (), *, column: str = "") -> LLMTrace:
        """Return the trace in the order of arrival; the batches are gone then.

        Raises
        ------
        InvalidTraceError
            If the file has no request, or so many a second that the unit of `column` must be wrong.
        """
        if self._first is None:
            raise InvalidTraceError(f"{path}: no request in this file")
        if not self._arrivals and self.num_failed == self._num_seen:
            raise InvalidTraceError(f"{path}: all {self._num_seen} requests of this file failed")
        if self.num_failed:
            logger.info("%s: left out %d of %d requests, which failed", path, self.num_failed, self._num_seen)
        start_ns = None
        if self._origin is not None:
            start_ns = min(int(self._first), self._origin)
            arrivals = _joined(self._arrivals, np.float64, start_ns)
        else:
            self._check_rate(path, column)
            arrivals = _joined(self._arrivals, np.float64)
        columns = {column_name: _joined(chunks, np.int32) for column_name, chunks in self._columns.items()}
        if (np.diff(arrivals) < 0).any():
            order = np.argsort(arrivals, kind="stable")
            arrivals = arrivals[order]
            for column_name in columns:
                columns[column_name] = columns[column_name][order]
        return LLMTrace(
            arrivals, **columns, model_names=model_names, start_ns=start_ns, num_failed=self.num_failed, name=name
        )

    def _check_rate(self, path: object, column: str) -> None:
        if self.is_full or self._num_seen < MIN_ROWS_FOR_RATE:
            return
        span = float(self._last - self._first)
        if self._num_seen > self._max_rate * span:
            raise InvalidTraceError(
                f"{path}, column {column}: {self._num_seen} requests within {span:g} s; "
                f"at most {self._max_rate:g} a second are plausible, so the unit is likely a longer one"
            )


def _joined(chunks: list[NDArray[Any]], dtype: type, offset: int = 0) -> NDArray[Any]:
    """Return one array of all chunks, each freed once it is copied; integer nanoseconds less `offset` as seconds."""
    joined: NDArray[Any] = np.empty(sum(map(len, chunks)), dtype=dtype)
    at = len(joined)
    while chunks:
        chunk = chunks.pop()
        at -= len(chunk)
        joined[at : at + len(chunk)] = (chunk - offset) / 1e9 if chunk.dtype == np.int64 else chunk
    return joined
