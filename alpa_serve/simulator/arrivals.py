"""Arrival processes: when requests come.

Arrivals are drawn from a private legacy generator (``numpy.random.RandomState``), so that a seed gives the arrivals
that AlpaServe gives; the global random states are neither read nor written.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidConfigError, InvalidWorkloadError
from alpa_serve.simulator.columnar_workload import Workload
from alpa_serve.simulator.util import MMPPSampler, legacy_random
from alpa_serve.validation import check_real

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


MIN_CV, MAX_CV = 1e-6, 1e3
"""Range of the coefficient of variation of a GammaProcess; beyond, its gaps are all equal or all zero as floats."""

MAX_REQUESTS = 200_000_000
"""Largest number of requests that is generated at once; they take 4 GB."""

MIN_MEAN_GAP_S = 1e-9
"""Smallest mean gap of a ParetoProcess in seconds."""


class ArrivalProcess(ABC):
    """When requests come, as a random process."""

    @abstractmethod
    def rate(self) -> float:
        """Return the expected requests per second."""

    @abstractmethod
    def cv(self) -> float:
        """Return the coefficient of variation (standard deviation / mean) of the gaps."""

    @abstractmethod
    def generate_arrivals(self, start: float, duration: float, seed: int = 0) -> NDArray[np.float64]:
        """Draw arrivals.

        Parameters
        ----------
        start : float
            Seconds, >= 0.
        duration : float
            Seconds, >= 0.
        seed : int
            Equal seeds give equal arrivals.

        Returns
        -------
        ndarray of float64
            Seconds, ascending, from `start` on.
        """

    @abstractmethod
    def params(self) -> tuple[Any, ...]:
        """Return what the process was made with."""

    def generate_workload(
        self,
        model_name: str,
        start: float,
        duration: float,
        slo: float | None = None,
        seed: int = 0,
        *,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> Workload:
        """Draw a workload of requests for one model.

        Parameters
        ----------
        model_name : str
        start, duration : float
            Seconds.
        slo : float, optional
            Seconds from arrival.
        seed : int
            Equal seeds give equal workloads.
        input_tokens, output_tokens : int, optional
            Length of the prompt and of the answer, >= 0, of every request.
        """
        arrivals = self.generate_arrivals(start, duration, seed)
        return Workload.from_columns(
            arrivals,
            np.zeros(len(arrivals), dtype=np.int32),
            [model_name],
            slo,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )

    def __str__(self) -> str:
        return f"{type(self).__name__}{self.params()}"


class DeterministicProcess(ArrivalProcess):
    """Requests at equal gaps.

    Parameters
    ----------
    arrival_rate : float
        Requests per second, > 0.
    """

    def __init__(self, arrival_rate: float) -> None:
        self.rate_ = _positive(arrival_rate, "arrival_rate of a DeterministicProcess")

    def rate(self) -> float:
        """Return the requests per second."""
        return self.rate_

    def cv(self) -> float:
        """Return 0: the gaps do not vary."""
        return 0.0

    def params(self) -> tuple[float]:
        """Return (rate,)."""
        return (self.rate_,)

    def generate_arrivals(self, start: float, duration: float, seed: int = 0) -> NDArray[np.float64]:
        """Return start + i / rate for i < int(rate * duration); nothing is random."""
        _check_window(start, duration, self.rate_)
        return start + np.arange(int(self.rate_ * duration)) / self.rate_


class GammaProcess(ArrivalProcess):
    """Gaps that are gamma distributed, of shape 1/cv^2 and scale cv^2/rate.

    Parameters
    ----------
    arrival_rate : float
        Requests per second, > 0.
    cv : float
        Coefficient of variation of the gaps, > 0.
    """

    def __init__(self, arrival_rate: float, cv: float) -> None:
        name = type(self).__name__
        self.rate_ = _positive(arrival_rate, f"arrival_rate of a {name}")
        self.cv_ = _positive(cv, f"cv of a {name} (for equal gaps take a DeterministicProcess)")
        if not MIN_CV <= self.cv_ <= MAX_CV:
            raise InvalidConfigError(f"cv of a {name} must lie between {MIN_CV:g} and {MAX_CV:g}, got {cv!r}")
        self.shape = 1 / self.cv_**2
        self.scale = self.cv_**2 / self.rate_

    def rate(self) -> float:
        """Return the requests per second."""
        return self.rate_

    def cv(self) -> float:
        """Return the coefficient of variation of the gaps."""
        return self.cv_

    def params(self) -> tuple[float, ...]:
        """Return (rate, cv)."""
        return self.rate_, self.cv_

    def generate_arrivals(self, start: float, duration: float, seed: int = 0) -> NDArray[np.float64]:
        """Return the times before start + duration, the gaps added up from `start`."""
        _check_window(start, duration, self.rate_)
        random = legacy_random(seed)
        times = _accumulate(lambda count: random.gamma(self.shape, self.scale, size=count), duration, self.rate_)
        return start + times[: np.searchsorted(times, duration, side="left")]


class PoissonProcess(GammaProcess):
    """A Poisson process: gamma gaps with cv 1.

    Parameters
    ----------
    arrival_rate : float
        Requests per second, > 0.
    """

    def __init__(self, arrival_rate: float) -> None:
        super().__init__(arrival_rate, 1.0)

    def params(self) -> tuple[float, ...]:
        """Return (rate,)."""
        return (self.rate_,)


class UniformMMPP(ArrivalProcess):
    """A Markov-modulated Poisson process that leaves each state for any other with equal chance.

    Parameters
    ----------
    state_durations : sequence of float
        Mean seconds of a stay in each state, > 0.
    state_request_rates : sequence of float
        Requests per second in each state, >= 0, not all 0.
    """

    def __init__(self, state_durations: Sequence[float], state_request_rates: Sequence[float]) -> None:
        self.sampler = MMPPSampler.uniform_mmpp(state_durations, state_request_rates)
        self.state_durations = tuple(float(duration) for duration in state_durations)
        self.state_request_rates = tuple(float(rate) for rate in state_request_rates)

    def rate(self) -> float:
        """Return the requests per second, the states weighted by their durations."""
        weighted = zip(self.state_durations, self.state_request_rates, strict=True)
        return sum(duration * rate for duration, rate in weighted) / sum(self.state_durations)

    def cv(self) -> float:
        """Return the long-run coefficient of variation of the gaps."""
        return self.sampler.expected_cv()

    def params(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return (state durations, state request rates)."""
        return self.state_durations, self.state_request_rates

    def generate_arrivals(self, start: float, duration: float, seed: int = 0) -> NDArray[np.float64]:
        """Return exactly int(duration * rate) arrivals, the first state being 0; they may pass the end."""
        _check_window(start, duration, max(self.rate(), 1 / min(self.state_durations)))
        return start + self.sampler.sample(int(duration * self.rate()), seed=seed)


class ParetoProcess(ArrivalProcess):
    """Gaps that are Pareto distributed, less one second.

    Parameters
    ----------
    shape : float
        > 0; the mean gap is infinite up to 1, its variance up to 2.
    scale : float
        Seconds, > 0.
    loc : float
        Seconds; loc + scale >= 1, or gaps would come out negative.

    Raises
    ------
    InvalidConfigError
        If a parameter is out of range.
    """

    def __init__(self, shape: float, scale: float, loc: float = 0.0) -> None:
        self.shape = _positive(shape, "shape of a ParetoProcess")
        self.scale = _positive(scale, "scale of a ParetoProcess")
        self.loc = check_real(loc, "loc of a ParetoProcess")
        if self.loc + self.scale < 1:
            raise InvalidConfigError(
                f"ParetoProcess(shape={shape}, scale={scale}, loc={loc}) has gaps down to "
                f"{self.loc + self.scale - 1:g} s; loc + scale must be at least 1"
            )

        if self._mean_gap() < MIN_MEAN_GAP_S:
            raise InvalidConfigError(
                f"ParetoProcess(shape={shape}, scale={scale}, loc={loc}) has a mean gap of {self._mean_gap():g} s; "
                f"it must be at least {MIN_MEAN_GAP_S:g} s"
            )

    def _mean_gap(self) -> float:
        return self.loc - 1 + self.scale * self.shape / (self.shape - 1) if self.shape > 1 else math.inf

    def rate(self) -> float:
        """Return the requests per second; 0 where the mean gap is infinite."""
        return 1 / self._mean_gap()

    def cv(self) -> float:
        """Return the coefficient of variation of the gaps; infinite where their variance is."""
        if self.shape <= 2:
            return math.inf
        deviation = self.scale / (self.shape - 1) * math.sqrt(self.shape / (self.shape - 2))
        return deviation / self._mean_gap()

    def params(self) -> tuple[float, float, float]:
        """Return (shape, scale, loc)."""
        return self.shape, self.scale, self.loc

    def generate_arrivals(self, start: float, duration: float, seed: int = 0) -> NDArray[np.float64]:
        """Return the arrivals up to and with the first that passes start + duration."""
        _check_window(start, duration, self.rate())
        random = legacy_random(seed)

        def gaps(count: int) -> NDArray[np.float64]:
            # the inverse of the distribution function, as scipy.stats.pareto.rvs draws it
            return self.loc + self.scale * (1 - random.random_sample(count)) ** (-1 / self.shape) - 1

        times = _accumulate(gaps, duration, self.rate())
        return start + times[: np.searchsorted(times, duration, side="right") + 1]


def _accumulate(draw_gaps: Callable[[int], NDArray[np.float64]], duration: float, rate: float) -> NDArray[np.float64]:
    """Add up gaps from 0 until past `duration`; may return more than one time past it."""
    blocks = []
    last, drawn = 0.0, 0
    count = int(duration * rate * 1.05) + 16
    while last <= duration:
        gaps = draw_gaps(count)
        gaps[0] += last
        blocks.append(np.cumsum(gaps))
        last = float(blocks[-1][-1])
        drawn += count
        check_expected_count(drawn, "this process")
        count = max(drawn // 8, 16)
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def _positive(value: float, what: str) -> float:
    return check_real(value, what, minimum=0.0, exclusive=True)


def _check_window(start: float, duration: float, rate: float) -> None:
    check_real(start, "start (s)", minimum=0.0)
    check_real(duration, "duration (s)", minimum=0.0)
    check_expected_count(duration * rate, f"{rate:g} requests/s for {duration:g} s")


def check_expected_count(count: float, cause: str) -> None:
    """Check that a workload of `count` requests can be held in memory.

    Raises
    ------
    InvalidWorkloadError
        Naming the `cause`.
    """
    if count > MAX_REQUESTS:
        raise InvalidWorkloadError(f"{cause} makes {count:.3g} requests; at most {MAX_REQUESTS:g} are generated")
