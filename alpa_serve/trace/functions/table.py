"""When the functions of a trace were invoked, kept compactly: one run of entries a function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alpa_serve.errors import InvalidTraceError

MINUTES_PER_DAY = 1440
TRACE_DAYS = 14
TRACE_MINUTES = TRACE_DAYS * MINUTES_PER_DAY
"""Length of both public traces, in minutes."""

AZURE_V1, AZURE_V2 = TRACE_NAMES = ("azure_v1", "azure_v2")
"""The public traces: invocations per minute of 2019, and the time of each invocation of 2021."""

MAX_TIME_S = (TRACE_MINUTES + MINUTES_PER_DAY) * 60.0
"""A time that is further from the start of the trace, in seconds, is taken to be in another unit. A day to spare."""

MAX_COUNT = 2**31 - 1
"""Most invocations of a function within a minute."""

_BLOCK = 1 << 22
"""Entries that are worked on at once, to bound the memory of what is derived from them."""


class FunctionTable(Mapping[str, NDArray[Any]]):
    """Function name -> its invocations, as an array made when looked at.

    Parameters
    ----------
    names : sequence of str, length n
    offsets : ndarray of int64, shape (n + 1,)
        Entries `offsets[i]` to `offsets[i + 1]` belong to function i.
    at : ndarray, shape (entries,)
        Ascending within a function: the minute (int16) of each entry of a table of counts, else seconds (float64).
    counts : ndarray of int32, shape (entries,), or None
        Invocations in that minute, > 0; None in a table of seconds.
    num_minutes : int
        Minutes that the table covers.
    start_minute : int
        The first of them. Minutes in `at` count from there, seconds from the start of the trace.

    Raises
    ------
    InvalidTraceError
        If shapes, types or values do not fit, naming the function.

    Notes
    -----
    A minute with invocations takes 6 bytes, one without takes none; an invocation by its second takes 8.
    """

    def __init__(
        self,
        names: Sequence[str],
        offsets: NDArray[np.int64],
        at: NDArray[Any],
        counts: NDArray[np.int32] | None,
        num_minutes: int,
        start_minute: int = 0,
    ) -> None:
        self.names = tuple(names)
        self.offsets = offsets
        self.at = at
        self.counts = counts
        self.num_minutes = num_minutes
        self.start_minute = start_minute
        self._check()

    def _check(self) -> None:
        if len(set(self.names)) != len(self.names):
            raise InvalidTraceError("two functions have the same name")
        if self.offsets.shape != (len(self.names) + 1,) or self.at.ndim != 1:
            raise InvalidTraceError(f"{len(self.names)} functions need as many runs, got {self.offsets.shape[0] - 1}")
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.at) or (np.diff(self.offsets) < 0).any():
            raise InvalidTraceError(f"the runs of the functions do not cover the {len(self.at)} entries one by one")
        if self.counts is not None:
            self._refuse(~((self.at >= 0) & (self.at < self.num_minutes)), f"a minute outside 0 to {self.num_minutes}")
            if self.counts.shape != self.at.shape:
                raise InvalidTraceError(f"{len(self.at)} minutes but {len(self.counts)} counts")
            self._refuse(self.counts <= 0, "a count that is not positive")
        else:
            self._refuse(~np.isfinite(self.at), "a time that is not finite")
        descending = np.zeros(len(self.at), dtype=bool)
        # minutes of counts differ, seconds may be equal
        steps = self.at[1:] <= self.at[:-1] if self.counts is not None else self.at[1:] < self.at[:-1]
        descending[1:] = steps
        starts = self.offsets[:-1]
        descending[starts[starts < len(self.at)]] = False
        self._refuse(descending, "times that do not ascend")

    def _refuse(self, wrong: NDArray[np.bool_], what: str) -> None:
        if wrong.any():
            entry = int(np.argmax(wrong))
            name = self.names[int(np.searchsorted(self.offsets, entry, side="right")) - 1]
            value = (self.at if self.counts is None else self.counts)[entry]
            raise InvalidTraceError(f"function {name!r} has {what}: entry {entry} (value {value})")

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return int32 counts per minute, shape (num_minutes,), or ascending seconds of a function."""
        run = slice(*self.offsets[self._positions[name] :][:2])
        if self.counts is None:
            return self.at[run]
        dense = np.zeros(self.num_minutes, dtype=np.int32)
        dense[self.at[run]] = self.counts[run]
        return dense

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {name: position for position, name in enumerate(self.names)}

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        kind = "seconds" if self.counts is None else "counts per minute"
        return f"{type(self).__name__}({len(self)} functions, {self.num_invocations()} invocations as {kind})"

    def num_invocations(self) -> int:
        """Return the number of invocations of all functions."""
        return len(self.at) if self.counts is None else int(self.counts.sum(dtype=np.int64))

    def window(self, start_minute: int, end_minute: int) -> FunctionTable:
        """Return what lies within [start, end), without the functions that have nothing there.

        Parameters
        ----------
        start_minute, end_minute : int
            From the first minute of the table.
        """
        if self.counts is not None and start_minute == 0 and end_minute >= self.num_minutes:
            keep = None
            num_kept = np.diff(self.offsets)
        else:
            first, last = start_minute, end_minute
            if self.counts is None:
                first, last = ((self.start_minute + minute) * 60 for minute in (start_minute, end_minute))
            keep = np.flatnonzero((self.at >= first) & (self.at < last))
            num_kept = np.diff(np.searchsorted(keep, self.offsets))
        present = np.flatnonzero(num_kept)
        offsets = np.concatenate([[0], np.cumsum(num_kept[present], dtype=np.int64)])
        part = FunctionTable.__new__(FunctionTable)
        part.names = tuple(self.names[i] for i in present)
        part.offsets = offsets
        part.at = self.at if keep is None else self.at[keep]
        part.counts = self.counts if keep is None or self.counts is None else self.counts[keep]
        if self.counts is not None and start_minute:
            part.at = part.at - part.at.dtype.type(start_minute)
        part.num_minutes = end_minute - start_minute
        part.start_minute = self.start_minute + start_minute
        return part

    def binned(self, group_of_function: NDArray[np.int64], num_groups: int, minutes_per_bin: int) -> NDArray[np.int64]:
        """Return the invocations per group of functions and bin, all of which must lie within the table's minutes.

        Parameters
        ----------
        group_of_function : ndarray of int64, shape (n,)
            From 0 to `num_groups` - 1.
        num_groups : int
        minutes_per_bin : int
            The last bin may be shorter.

        Returns
        -------
        ndarray of int64, shape (num_groups, bins)
        """
        num_bins = -(-self.num_minutes // minutes_per_bin)
        total = np.zeros(num_groups * num_bins, dtype=np.int64)
        for first in range(0, len(self.at), _BLOCK):
            block = slice(first, first + _BLOCK)
            at = self.at[block]
            functions = np.searchsorted(self.offsets, np.arange(first, first + len(at)), side="right") - 1
            minutes = at.astype(np.int64)
            if self.counts is None:
                minutes = minutes // 60 - self.start_minute
            weights = None if self.counts is None else self.counts[block]
            cells = group_of_function[functions] * num_bins + minutes // minutes_per_bin
            # sums of whole numbers below 2**53 are exact
            total += np.bincount(cells, weights, minlength=len(total)).astype(np.int64)
        return total.reshape(num_groups, num_bins)

    def merged(self, group_of_function: NDArray[np.int64], num_groups: int) -> list[NDArray[np.float64]]:
        """Return the seconds of the invocations of each group of functions of a table of seconds, ascending."""
        groups = []
        for group in range(num_groups):
            runs = [self.at[slice(*self.offsets[i : i + 2])] for i in np.flatnonzero(group_of_function == group)]
            groups.append(np.sort(np.concatenate(runs)) if runs else np.empty(0))
        return groups

    def invocations_by_function(self) -> NDArray[np.int64]:
        """Return the invocations of each function, shape (n,)."""
        if self.counts is None:
            return np.diff(self.offsets)
        total = np.zeros(len(self), dtype=np.int64)
        present = np.flatnonzero(np.diff(self.offsets))
        if len(present):
            total[present] = np.add.reduceat(self.counts, self.offsets[present], dtype=np.int64)
        return total

    @classmethod
    def of_runs(
        cls,
        names: Sequence[str],
        at: Sequence[NDArray[Any]],
        counts: Sequence[NDArray[Any]] | None,
        num_minutes: int,
    ) -> FunctionTable:
        """Make a table from the entries of each function."""
        offsets = np.concatenate([[0], np.cumsum([len(run) for run in at], dtype=np.int64)]).astype(np.int64)
        entry_type = np.float64 if counts is None else np.int16
        joined = np.concatenate([np.empty(0, dtype=entry_type), *at]).astype(entry_type, copy=False)
        values = None
        if counts is not None:
            values = np.concatenate([np.empty(0, dtype=np.int32), *counts]).astype(np.int32, copy=False)
        return cls(names, offsets, joined, values, num_minutes)
