"""A stretch of a trace, from one moment to another, each in seconds or as a date."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from alpa_serve.errors import InvalidConfigError, InvalidTraceError
from alpa_serve.simulator.trace_workload import DATE_START
from alpa_serve.validation import check_real

if TYPE_CHECKING:
    from numpy.typing import NDArray

Moment: TypeAlias = "float | str | datetime.datetime | np.datetime64 | None"
"""Seconds on the axis of the trace, a date (UTC where it names no zone), or no limit."""

MAX_DATE_S = 9.2e9
"""Seconds from 1970, either way, beyond which pandas has no date."""


@dataclass(frozen=True)
class TimeWindow:
    """The moments from `start` up to, and without, `end`.

    Parameters
    ----------
    start, end : float, str, datetime, numpy.datetime64 or None
        Seconds on the axis of the trace, or a date; None for no limit.

    Raises
    ------
    InvalidConfigError
        If one is neither, or the end is before the start.
    """

    start: Moment = None
    end: Moment = None
    # seconds as float, a date as int (nanoseconds since 1970)
    bounds: tuple[float | int | None, float | int | None] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        start, end = _bound(self.start, "start"), _bound(self.end, "end")
        object.__setattr__(self, "bounds", (start, end))
        if start is not None and end is not None and type(start) is type(end) and end < start:
            raise InvalidConfigError(f"end ({self.end}) is before start ({self.start})")

    @property
    def needs_origin(self) -> bool:
        """Whether a limit is in seconds, so that dates must be counted from the first request."""
        return any(isinstance(bound, float) for bound in self.bounds)

    def seconds(self, start_ns: int | None) -> tuple[float, float]:
        """Return (start, end) in seconds on an axis whose 0 is `start_ns` (nanoseconds since 1970; None: no date).

        Raises
        ------
        InvalidConfigError
            If a limit is a date and the axis has none.
        """
        start, end = (_on_axis(bound, start_ns) for bound in self.bounds)
        return -np.inf if start is None else start, np.inf if end is None else end

    def holds(self, stamps_ns: NDArray[np.int64], origin_ns: int) -> NDArray[np.bool_]:
        """Tell of each date (nanoseconds since 1970) whether it is in the window of an axis that starts at a date."""
        inside = np.ones(len(stamps_ns), dtype=bool)
        for bound, is_end in zip(self.bounds, (False, True), strict=True):
            if bound is not None:
                moments = stamps_ns if isinstance(bound, int) else (stamps_ns - origin_ns) / 1e9
                inside &= moments < bound if is_end else moments >= bound
        return inside


def _bound(moment: Moment, what: str) -> float | int | None:
    if moment is None:
        return None
    if isinstance(moment, str | datetime.date | np.datetime64):
        return _date_ns(moment, what)
    return check_real(moment, f"{what} (seconds or a date)", finite=False)


def _date_ns(moment: Any, what: str) -> int:
    import pandas as pd

    if not isinstance(moment, str) or re.match(DATE_START, moment):
        try:
            stamp = pd.Timestamp(moment)
            if not pd.isna(stamp):
                zoned = stamp.tz_localize("UTC") if stamp.tzinfo is None else stamp
                return int(zoned.as_unit("ns").value)
        except (ValueError, OverflowError):
            pass
    raise InvalidConfigError(
        f"{what} must be seconds or a date (ISO 8601, such as 2024-05-10 12:00), got {moment!r}"
    ) from None


def _on_axis(bound: float | int | None, start_ns: int | None) -> float | None:
    if not isinstance(bound, int):
        return bound
    if start_ns is None:
        raise InvalidConfigError("this trace has no dates: start and end must be seconds on its clock")
    return (bound - start_ns) / 1e9


def whole_ns(seconds: NDArray[np.float64], start_ns: int = 0) -> NDArray[np.int64]:
    """Return seconds in whole nanoseconds since 1970, exact where float64 tells these apart: up to 97 days.

    Parameters
    ----------
    seconds : ndarray of float64, shape (n,)
        On an axis whose 0 is `start_ns`.
    start_ns : int
        Nanoseconds since 1970.

    Raises
    ------
    InvalidTraceError
        If there is no date for one, which int64 cannot hold.
    """
    whole = np.floor(seconds)
    undated = np.flatnonzero(~(np.abs(whole + start_ns / 1e9) <= MAX_DATE_S))
    if len(undated):
        raise InvalidTraceError(
            f"a request {seconds[undated[0]]:.6g} s after {np.datetime64(start_ns // 10**9, 's')} has no date: "
            f"dates are within {MAX_DATE_S:g} s of 1970"
        )
    # the whole seconds by themselves, for the product not to be rounded
    return whole.astype(np.int64) * 1_000_000_000 + np.rint((seconds - whole) * 1e9).astype(np.int64) + start_ns
