"""Reading the chunks of ServeGen: rate and burstiness per window, from which arrivals are drawn.

References
----------
Y. Xiang et al., "ServeGen: Workload characterization and generation of large language model serving in production".
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alpa_serve.errors import InvalidTraceError
from alpa_serve.simulator.arrivals import MAX_CV, MAX_REQUESTS
from alpa_serve.trace.llm.builder import MAX_RATE, MAX_SPAN_S, TraceBuilder
from alpa_serve.trace.llm.formats import SERVEGEN_CELLS
from alpa_serve.trace.llm.units import unit_hint
from alpa_serve.trace.text_batches import csv_rows

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from alpa_serve.trace.llm.trace import LLMTrace
    from alpa_serve.trace.time_window import TimeWindow

COLUMNS = ("start_s", "rate", "cv", "distribution", "parameter 1", "parameter 2")
DISTRIBUTIONS = ("gamma", "weibull", "exponential", "poisson")
MIN_DRAWN_CV = 0.01
"""Below, gaps are as good as equal, and the shape of their distribution has no figure."""

STREAM = 0x7367
"""Entropy beside the seed, so that arrivals are independent of whatever else is drawn from that seed."""


class _Window(NamedTuple):
    start_s: float
    rate: float
    cv: float
    distribution: str
    line: int


def read_servegen(
    path: str | os.PathLike[str], window: TimeWindow, max_rows: int | None, seed: int, name: str
) -> LLMTrace:
    """Draw the arrivals of a chunk, and return those in a time window.

    A window of the file lasts until the next begins, the last as long as the one before. Within, gaps are drawn from
    the named distribution with the mean and the coefficient of variation that the file states; the first arrival is
    that of a process that has been going on, so that the expected number is rate times length.

    Raises
    ------
    InvalidTraceError
        Naming file, line and column of what cannot be read.
    """
    windows = sorted((_window(path, line, row) for line, row in csv_rows(path)), key=lambda item: item.start_s)
    if len(windows) < 2:
        raise InvalidTraceError(f"{path}: {len(windows)} windows; two or more tell how long one lasts")
    starts = np.array([item.start_s for item in windows])
    lengths = np.diff(starts)
    if not lengths.all():
        line = windows[int(np.argmin(lengths)) + 1].line
        raise InvalidTraceError(f"{path}, line {line}, column start_s: another window begins at the same time")
    lengths = np.append(lengths, lengths[-1])
    expected = float(sum(item.rate * length for item, length in zip(windows, lengths, strict=True)))
    if expected > MAX_REQUESTS:
        raise InvalidTraceError(f"{path}: {expected:.3g} requests; at most {MAX_REQUESTS:g} are generated")
    rng = np.random.default_rng([STREAM, seed])
    builder = TraceBuilder(window, max_rows, dated=False)
    for item, length in zip(windows, lengths, strict=True):
        arrivals = item.start_s + _arrivals(item, float(length), rng)
        if len(arrivals):
            builder.add(arrivals, {})
        if builder.is_full:
            break
    return builder.build(path, name, column="start_s")


def _window(path: str | os.PathLike[str], line: int, row: list[str]) -> _Window:
    cells = [cell.strip() for cell in row]
    if len(cells) != SERVEGEN_CELLS:
        raise InvalidTraceError(f"{path}, line {line}: {len(cells)} cells; {', '.join(COLUMNS)} are needed")

    def number(column: int, limit: float, hint: str = "") -> float:
        try:
            value = float(cells[column])
        except ValueError:
            value = math.nan
        if not 0 <= value <= limit:
            wanted = f"not a number from 0 to {limit:g}"
            raise InvalidTraceError(
                f"{path}, line {line}, column {COLUMNS[column]}: {wanted}: {cells[column]!r}{hint and '; '}{hint}"
            )
        return value

    try:
        hint = unit_hint(float(cells[0]), "s")
    except ValueError:
        hint = ""
    start_s, rate = number(0, MAX_SPAN_S, hint), number(1, MAX_RATE)
    if not rate:
        return _Window(start_s, 0.0, 0.0, "", line)
    distribution = cells[3].lower()
    if distribution not in DISTRIBUTIONS:
        raise InvalidTraceError(
            f"{path}, line {line}, column distribution: {cells[3]!r}; known: {', '.join(DISTRIBUTIONS)}"
        )
    cv = number(2, MAX_CV)
    if cv < MIN_DRAWN_CV and distribution in ("gamma", "weibull"):
        raise InvalidTraceError(f"{path}, line {line}, column cv: must be at least {MIN_DRAWN_CV}, got {cells[2]!r}")
    for column in (4, 5):
        # rate and cv say what these say; a file that has something else there has been damaged
        if cells[column].lower() not in ("", "nan") or distribution in ("gamma", "weibull"):
            number(column, math.inf)
    return _Window(start_s, rate, cv, distribution, line)


def _arrivals(window: _Window, length: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the arrivals of a window, in seconds from its start, ascending."""
    if not window.rate:
        return np.empty(0)
    draw = _Gaps(window, rng)
    times = [np.array([draw.first()])]
    while times[-1][-1] < length:
        count = int((length - times[-1][-1]) * window.rate * 1.05) + 16
        times.append(times[-1][-1] + np.cumsum(draw.gaps(count)))
    arrivals = np.concatenate(times)
    return arrivals[: np.searchsorted(arrivals, length)]


class _Gaps:
    """Draws the gaps of a window: of mean 1 / rate, a gamma variate to some power."""

    def __init__(self, window: _Window, rng: np.random.Generator) -> None:
        self._rng = rng
        self._shape, self._power = 1.0, 1.0
        if window.distribution == "gamma":
            self._shape = window.cv**-2
        elif window.distribution == "weibull":
            self._power = 1 / weibull_shape(window.cv)
        # mean of G ** power for G of this gamma distribution
        self._scale = math.exp(math.lgamma(self._shape) - math.lgamma(self._shape + self._power)) / window.rate

    def gaps(self, count: int) -> NDArray[np.float64]:
        """Return gaps in seconds."""
        variates: NDArray[np.float64] = self._rng.gamma(self._shape, size=count) ** self._power
        return self._scale * variates

    def first(self) -> float:
        """Return the wait for the first arrival: the rest of a gap that is met the likelier the longer it is."""
        met = self._rng.gamma(self._shape + self._power) ** self._power
        return float(self._scale * met * self._rng.random())


def weibull_shape(cv: float) -> float:
    """Return the shape of the Weibull distribution of a coefficient of variation from `MIN_DRAWN_CV` to `MAX_CV`."""
    from scipy.optimize import brentq

    def excess(log_shape: float) -> float:
        power = math.exp(-log_shape)
        return math.lgamma(1 + 2 * power) - 2 * math.lgamma(1 + power) - math.log1p(cv**2)

    return math.exp(brentq(excess, math.log(0.05), math.log(1000.0), xtol=1e-12))
