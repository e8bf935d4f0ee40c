"""Columns of requests: making them from what a caller gives, and checking that they fit each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidWorkloadError
from alpa_serve.validation import check_int

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

UNKNOWN_TOKENS = -1
"""What a token column says of a request whose count is not known."""

MAX_TOKENS = 2**31 - 1
"""Largest token count of one request; sums over a workload then stay far within int64."""

TOKEN_COLUMNS = ("input_tokens", "output_tokens")
"""Names of the token columns, for messages."""


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


def is_token_count(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell of each value whether it is a whole number from 0 to `MAX_TOKENS`."""
    counts: NDArray[np.bool_] = (values >= 0) & (values <= MAX_TOKENS) & (values == np.floor(values))
    return counts


def check_tokens(value: object, what: str) -> int:
    """Return `value` as an int after checking that it is a token count."""
    tokens = check_int(value, what, minimum=0, error=InvalidWorkloadError)
    if tokens > MAX_TOKENS:
        raise InvalidWorkloadError(f"{what} must be at most {MAX_TOKENS}, got {tokens}")
    return tokens


def token_column(values: ArrayLike | None, length: int, what: str) -> NDArray[np.int64] | None:
    """Return a copy of `values` as a column of token counts, or None if it knows of no request.

    Parameters
    ----------
    values : array_like of int, optional
        One per request or one for all; `UNKNOWN_TOKENS` where it is not known.
    length : int
        The number of requests.
    what : str
        Name of the column, for messages.

    Raises
    ------
    InvalidWorkloadError
        If the length differs, or naming the first request whose value is no count.
    """
    if values is None:
        return None
    try:
        given = np.asarray(values)
        if given.dtype.kind == "O":
            given = given.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidWorkloadError(f"{what} must be numbers: {error}") from None
    if given.ndim == 0:
        given = np.full(length, given)
    if given.ndim != 1:
        raise InvalidWorkloadError(f"{what} must have one dimension, got shape {given.shape}")
    if len(given) != length:
        raise InvalidWorkloadError(f"{length} arrivals but {len(given)} {what}; there must be one per arrival")
    if given.dtype.kind not in "iuf":
        raise InvalidWorkloadError(f"{what} must be numbers, got {given.tolist()[:10]} ...")
    bad = np.flatnonzero(~(is_token_count(given) | (given == UNKNOWN_TOKENS)))
    if len(bad):
        raise InvalidWorkloadError(
            f"the {what} of request {bad[0]} are {given[bad[0]]}; must be a whole number from 0 to {MAX_TOKENS}, "
            f"or {UNKNOWN_TOKENS} where they are not known"
        )
    return known_or_none(given.astype(np.int64))


def known_or_none(tokens: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """Return the token column, or None in place of one that knows of no request: it would only take memory."""
    return tokens if tokens is not None and (tokens != UNKNOWN_TOKENS).any() else None


def merged_tokens(columns: Sequence[NDArray[np.int64] | None], lengths: Sequence[int]) -> NDArray[np.int64] | None:
    """Return token columns one after the other, filled up for workloads without; None if no workload has one."""
    if all(tokens is None for tokens in columns):
        return None
    return np.concatenate(
        [
            np.full(length, UNKNOWN_TOKENS, dtype=np.int64) if tokens is None else tokens
            for tokens, length in zip(columns, lengths, strict=True)
        ]
    )
