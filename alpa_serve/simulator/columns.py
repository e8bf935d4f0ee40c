"""Columns of requests: making them from what a caller gives, and checking that they fit each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidWorkloadError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def column(values: ArrayLike, dtype: type, what: str) -> NDArray[Any]:
    """Return a copy of `values` as a column of `dtype`, refusing what it cannot hold exactly."""
    try:
        given = np.asarray(values)
        copied: NDArray[Any] = np.array(values, dtype=dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidWorkloadError(f"{what} must be numbers: {error}") from None
    if dtype is np.int32 and len(given) and not np.array_equal(given, copied):
        raise InvalidWorkloadError(f"{what} must be whole numbers below 2**31, got {given.tolist()[:10]} ...")
    if copied.ndim != 1:
        raise InvalidWorkloadError(f"{what} must have one dimension, got shape {copied.shape}")
    return copied


def check_columns(
    arrivals: NDArray[np.float64],
    model_ids: NDArray[np.int32],
    slos: NDArray[np.float64],
    data: NDArray[np.object_] | None = None,
) -> None:
    """Check columns of requests.

    Raises
    ------
    InvalidWorkloadError
        If lengths differ, arrivals are not finite, negative or descend, or an SLO is negative or NaN.
    """
    for what, other in (("requests", model_ids), ("SLOs", slos), ("data", data)):
        if other is not None and len(other) != len(arrivals):
            raise InvalidWorkloadError(
                f"{len(arrivals)} arrivals but {len(other)} {what}; there must be one per arrival"
            )
    if not len(arrivals):
        return
    bad = np.flatnonzero(~(np.isfinite(arrivals) & (arrivals >= 0)))
    if len(bad):
        raise InvalidWorkloadError(f"arrival {bad[0]} is {arrivals[bad[0]]}; must be finite and >= 0 s")
    gaps = np.diff(arrivals)
    if gaps.min(initial=0.0) < 0:
        at = int(np.argmax(gaps < 0)) + 1
        raise InvalidWorkloadError(
            f"arrival {at} ({arrivals[at]} s) is before arrival {at - 1} ({arrivals[at - 1]} s); "
            "sort the requests by arrival"
        )
    bad = np.flatnonzero(~(slos >= 0))
    if len(bad):
        raise InvalidWorkloadError(f"the SLO of request {bad[0]} is {slos[bad[0]]}; must be >= 0 s")
