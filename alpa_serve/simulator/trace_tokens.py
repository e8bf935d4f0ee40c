"""What the token counts of a trace-driven workload are drawn from: percentiles, or the rows of the trace itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.errors import InvalidConfigError, InvalidTraceError
from alpa_serve.simulator.columns import MAX_TOKENS, TOKEN_COLUMNS, is_token_count

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

TRACE_TOKEN_COLUMNS = ("ContextTokens", "GeneratedTokens")
"""Columns of a trace with the tokens of prompt and answer, as the Azure LLM inference traces name them."""

TOKEN_STREAM = 0x746F6B
"""Entropy beside the seed, so that token draws are independent of whatever else is drawn from that seed."""


def token_generator(seed: int) -> np.random.Generator:
    """Return the private generator from which token counts are drawn."""
    return np.random.default_rng([TOKEN_STREAM, seed])


@dataclass(frozen=True)
class TokenPercentiles:
    """How long prompts and answers are, as percentiles at equal distances from the 0th to the 100th.

    Parameters
    ----------
    input_tokens, output_tokens : sequence of float
        At least two each, not descending, from 0 to `MAX_TOKENS`; kept as tuples.

    Raises
    ------
    InvalidConfigError
        If there are fewer, or naming the first percentile that is out of range or descends.
    """

    input_tokens: Sequence[float]
    output_tokens: Sequence[float]

    def __post_init__(self) -> None:
        for name in TOKEN_COLUMNS:
            object.__setattr__(self, name, _checked_percentiles(getattr(self, name), name))

    def at(self, input_ranks: NDArray[np.float64], output_ranks: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the token counts at these ranks, interpolated and rounded to whole tokens.

        Parameters
        ----------
        input_ranks, output_ranks : ndarray of float, shape (n,)
            From 0 to 100.

        Returns
        -------
        ndarray of int64, shape (2, n)
            Input tokens, output tokens.
        """
        return np.array(
            [_quantiles(self.input_tokens, input_ranks), _quantiles(self.output_tokens, output_ranks)], dtype=np.int64
        )

    def draw(self, rng: np.random.Generator, number: int) -> NDArray[np.int64]:
        """Draw input and output tokens of `number` requests, independent of each other; shape (2, number)."""
        return self.at(100 * rng.random(number), 100 * rng.random(number))


def _checked_percentiles(percentiles: Sequence[float], name: str) -> tuple[float, ...]:
    try:
        given = np.array(percentiles, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidConfigError(f"percentiles of {name} must be numbers: {error}") from None
    if given.ndim != 1 or len(given) < 2:
        raise InvalidConfigError(
            f"percentiles of {name} must be a sequence of at least two, the 0th and the 100th, got {percentiles!r}"
        )
    bad = np.flatnonzero(~((given >= 0) & (given <= MAX_TOKENS)))
    if len(bad):
        raise InvalidConfigError(f"percentile {bad[0]} of {name} is {given[bad[0]]}; must be from 0 to {MAX_TOKENS}")
    bad = np.flatnonzero(np.diff(given) < 0) + 1
    if len(bad):
        raise InvalidConfigError(
            f"percentile {bad[0]} of {name} ({given[bad[0]]:g}) is below the one before ({given[bad[0] - 1]:g})"
        )
    return tuple(given.tolist())


def _quantiles(percentiles: Sequence[float], ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = np.rint(np.interp(ranks, np.linspace(0, 100, len(percentiles)), percentiles))
    return values


class TraceTokens:
    """The token counts of a trace's requests, minute by minute.

    What is wrong with the token columns is told when counts are drawn, not before: a trace is good for arrivals
    without them.

    Parameters
    ----------
    trace : pandas.DataFrame
        Token columns as in `TRACE_TOKEN_COLUMNS`, if it has any.
    minutes : ndarray of int64, shape (rows,)
        The minute to which each row counts, from 0.
    """

    def __init__(self, trace: pd.DataFrame, minutes: NDArray[np.int64]) -> None:
        self._problem: str | None = None
        self._columns: list[NDArray[np.int32]] = []
        try:
            self._columns = _token_columns(trace)
        except InvalidTraceError as error:
            self._problem = str(error)
            return
        if (np.diff(minutes) < 0).any():
            order = np.argsort(minutes, kind="stable")
            self._columns = [tokens[order] for tokens in self._columns]
        self._num_rows = np.bincount(minutes)
        self._first_row = np.cumsum(self._num_rows) - self._num_rows

    def draw(self, rng: np.random.Generator, minutes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Draw a row of its minute for each request, with replacement, and return what the rows say.

        Parameters
        ----------
        rng : numpy.random.Generator
        minutes : ndarray of int64, shape (n,)
            Minutes in which the trace has requests.

        Returns
        -------
        ndarray of int64, shape (2, n)
            Input tokens, output tokens.

        Raises
        ------
        InvalidTraceError
            If the trace lacks a token column or has a cell in one that is no token count.
        """
        if self._problem is not None:
            raise InvalidTraceError(self._problem)
        rows = self._first_row[minutes] + rng.integers(self._num_rows[minutes])
        return np.array([tokens[rows] for tokens in self._columns], dtype=np.int64)


def _token_columns(trace: pd.DataFrame) -> list[NDArray[np.int32]]:
    """Return the token columns in 8 bytes a row: traces have millions."""
    import pandas as pd

    missing = [name for name in TRACE_TOKEN_COLUMNS if name not in trace.columns]
    if missing:
        raise InvalidTraceError(
            f"the trace has no column {' and no column '.join(missing)} to take tokens from; "
            f"it has {', '.join(map(str, trace.columns))}"
        )
    columns = []
    for name in TRACE_TOKEN_COLUMNS:
        cells = trace[name]
        if isinstance(cells, pd.DataFrame):
            raise InvalidTraceError(f"the trace has more than one column {name}")
        numbers = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        bad = np.flatnonzero(~is_token_count(numbers))
        if len(bad):
            cell = cells.iloc[bad[0]]
            shown = repr(cell) if isinstance(cell, str) else cell
            raise InvalidTraceError(
                f"row {bad[0]} of the trace: {name} {shown} is no number of tokens (whole, from 0 to {MAX_TOKENS})"
            )
        columns.append(numbers.astype(np.int32))
    return columns
