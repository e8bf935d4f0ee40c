"""Arrival processes of the intervals of a trace, fitted to the gaps between its arrivals.

All intervals are fitted at once, from sums over their gaps: the maximum-likelihood estimates that the `fit` of
scipy.stats.expon, .gamma and .pareto gives with the location fixed at 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.simulator.arrivals import MIN_CV
from alpa_serve.util import eps

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_RATE_RATIO = 5.0
"""A fitted rate above this multiple of the requests per second of its interval is replaced by those."""

MIN_GAPS = {"exponential": 1, "gamma": 2, "pareto": 1}
"""Gaps that an interval needs to have a process, by distribution."""

_NEWTON_STEPS = 50
_NEWTON_TOLERANCE = 1e-10  # of the last step; convergence is quadratic


@dataclass(frozen=True)
class IntervalGaps:
    """Sums over the gaps between the arrivals of each interval, all arrays of shape (intervals,).

    Attributes
    ----------
    num_arrivals, num_gaps : ndarray of int64
    mean, mean_log, mean_log1p : ndarray of float64
        Of the gaps g in seconds (each 1e-6 more than the difference of two arrivals), of log(g) and of log(1 + g);
        NaN without a gap.
    """

    num_arrivals: NDArray[np.int64]
    num_gaps: NDArray[np.int64]
    mean: NDArray[np.float64]
    mean_log: NDArray[np.float64]
    mean_log1p: NDArray[np.float64]


def interval_gaps(arrivals: NDArray[np.float64], edges: NDArray[np.float64]) -> IntervalGaps:
    """Sum up the gaps within intervals; a gap across an edge belongs to none.

    Parameters
    ----------
    arrivals : ndarray of float64, shape (n,)
        Seconds, ascending.
    edges : ndarray of float64, shape (intervals + 1,)
        Seconds, ascending; interval i is [edges[i], edges[i + 1]).
    """
    num_intervals = len(edges) - 1
    ends = np.searchsorted(arrivals, edges, side="left")
    num_arrivals = np.diff(ends)
    inside = arrivals[ends[0] : ends[-1]]
    interval = np.repeat(np.arange(num_intervals), num_arrivals)
    within = interval[1:] == interval[:-1]
    gaps = np.diff(inside)[within] + eps
    interval = interval[1:][within]
    num_gaps = np.bincount(interval, minlength=num_intervals)
    # not log1p: its last digits differ from scipy's for small gaps, and so would the arrivals from AlpaServe's
    logs = np.log(gaps), np.log(gaps + 1)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(interval, values, minlength=num_intervals) / num_gaps for values in (gaps, *logs)]
    return IntervalGaps(num_arrivals, num_gaps, *means)


def fit_rates(gaps: IntervalGaps, interval_seconds: float) -> NDArray[np.float64]:
    """Return the fitted requests per second of each interval, shape (intervals,); NaN without a gap.

    It is 1 / mean gap for the exponential and the gamma distribution, unless a few close arrivals make it exceed
    `MAX_RATE_RATIO` times the requests per second of the interval.
    """
    observed = gaps.num_arrivals / interval_seconds
    rates = 1 / gaps.mean
    return np.where(rates > MAX_RATE_RATIO * observed, observed, rates)


def fit_gamma_shapes(gaps: IntervalGaps) -> NDArray[np.float64]:
    """Return the fitted gamma shape of each interval, shape (intervals,); NaN with fewer than two gaps.

    The likelihood has its maximum where log(shape) - digamma(shape) = log(mean gap) - mean log(gap). Equal gaps have
    it at infinity; the shape of the smallest cv that a GammaProcess takes stands for that.

    Notes
    -----
    The 1e-6 s that AlpaServe adds to each gap hide the shorter ones. Where these are many, as from a cv of about 3 on
    (a gamma distribution of cv 4 and mean 0.5 s has 37 % of its gaps below 1e-6 s), the fitted cv is too small.
    """
    largest = 1 / MIN_CV**2
    shapes = np.full(len(gaps.mean), np.nan)
    fitted = gaps.num_gaps >= MIN_GAPS["gamma"]
    target = np.log(gaps.mean[fitted]) - gaps.mean_log[fitted]
    # log(a) - digamma(a) is about 1 / (2 a) for large a
    varied = target > 1 / (2 * largest)
    solved = np.full(len(target), largest)
    solved[varied] = _solve_shape(target[varied])
    shapes[fitted] = solved
    return shapes


def _solve_shape(target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve log(a) - digamma(a) = target > 0 for a, by Newton's method on log(a).

    References
    ----------
    T. P. Minka, "Estimating a Gamma distribution", 2002, for the starting point.
    """
    from scipy.special import digamma, polygamma

    shape = (3 - target + np.sqrt((target - 3) ** 2 + 24 * target)) / (12 * target)
    for _ in range(_NEWTON_STEPS):
        excess = np.log(shape) - digamma(shape) - target
        step = excess / (1 - shape * polygamma(1, shape))
        shape = shape * np.exp(-np.clip(step, -1, 1))
        if not (np.abs(step) > _NEWTON_TOLERANCE).any():
            break
    return np.asarray(shape, dtype=np.float64)


def fit_pareto_shapes(gaps: IntervalGaps) -> NDArray[np.float64]:
    """Return the fitted Pareto shape of 1 + gap with scale 1, shape (intervals,); NaN without a gap."""
    return 1 / gaps.mean_log1p


def estimate_exponential(arrivals: NDArray[np.float64]) -> float:
    """Return the requests per second of an exponential distribution fitted to the gaps; NaN with no gap."""
    return float(1 / _whole(arrivals).mean[0])


def estimate_gamma(arrivals: NDArray[np.float64]) -> tuple[float, float]:
    """Return (requests per second, cv) of a gamma distribution fitted to the gaps; NaN where there are too few."""
    gaps = _whole(arrivals)
    return float(1 / gaps.mean[0]), float(fit_gamma_shapes(gaps)[0] ** -0.5)


def estimate_pareto(arrivals: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return (shape, scale, location) of a ParetoProcess fitted to the gaps; the shape is NaN with no gap."""
    return float(fit_pareto_shapes(_whole(arrivals))[0]), 1.0, 0.0


def _whole(arrivals: NDArray[np.float64]) -> IntervalGaps:
    times = np.sort(np.asarray(arrivals, dtype=np.float64))
    return interval_gaps(times, np.array([-math.inf, math.inf]))
