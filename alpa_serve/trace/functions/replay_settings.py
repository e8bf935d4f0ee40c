"""How a trace is replayed: the checked settings, the process of each interval, and the arrivals drawn from them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.errors import InvalidConfigError, InvalidWorkloadError
from alpa_serve.simulator.arrivals import (
    MAX_REQUESTS,
    ArrivalProcess,
    GammaProcess,
    ParetoProcess,
    PoissonProcess,
    check_expected_count,
)
from alpa_serve.trace.functions.fits import (
    MIN_GAPS,
    fit_gamma_shapes,
    fit_pareto_shapes,
    fit_rates,
    interval_gaps,
)
from alpa_serve.trace.functions.replay import TraceReplay
from alpa_serve.trace.functions.table import AZURE_V1, AZURE_V2
from alpa_serve.validation import check_int, check_known, check_real

if TYPE_CHECKING:
    from numpy.typing import NDArray

DISTRIBUTIONS = ("exponential", "gamma", "vanilla", "pareto")

MAX_INTERVALS = 2_000_000
"""Most intervals of a replay: more than the seconds of a trace."""

IntervalProcess = tuple[int, ArrivalProcess]
"""The number of an interval, from 0, and what draws its arrivals."""


@dataclass(frozen=True, kw_only=True)
class ReplaySettings:
    """The arguments of `Trace.replay`, checked. The fields are those of the replay, by the same names.

    Raises
    ------
    InvalidConfigError, UnknownNameError
        If one is out of range, or does not fit the trace or the distribution.
    """

    trace_name: str
    start_time: str
    end_time: str
    start_seconds: int
    end_seconds: int
    arrival_distribution: str
    interval_seconds: float
    rate_scale_factor: float
    cv_scale_factor: float
    time_scale_factor: float
    replication_factor: int

    def __post_init__(self) -> None:
        check_known(self.arrival_distribution, DISTRIBUTIONS, "arrival distribution")
        for name in ("interval_seconds", "rate_scale_factor", "cv_scale_factor", "time_scale_factor"):
            check_real(getattr(self, name), name, minimum=0.0, exclusive=True)
        if (self.end_seconds - self.start_seconds) / self.interval_seconds > MAX_INTERVALS:
            raise InvalidConfigError(
                f"interval_seconds {self.interval_seconds:g} cuts {self.end_seconds - self.start_seconds} s into more "
                f"than {MAX_INTERVALS} intervals"
            )
        check_int(self.replication_factor, "replication_factor", minimum=1)
        if self.trace_name == AZURE_V1:
            self._check_counts()
        self._check_factors()

    def _check_counts(self) -> None:
        if self.arrival_distribution not in ("exponential", "gamma"):
            raise InvalidConfigError(
                f"{AZURE_V1} has counts per minute, from which only 'exponential' and 'gamma' arrivals can be drawn, "
                f"not {self.arrival_distribution!r}; {AZURE_V2} has the time of each invocation"
            )
        if self.interval_seconds % 60:
            raise InvalidConfigError(
                f"interval_seconds must be a multiple of 60 with {AZURE_V1}, which has counts per minute; "
                f"got {self.interval_seconds!r}"
            )

    def _check_factors(self) -> None:
        distribution = self.arrival_distribution
        if self.replication_factor != 1 and distribution != "vanilla":
            raise InvalidConfigError(
                f"replication_factor needs 'vanilla' arrivals of {AZURE_V2}, not {distribution!r} ones of "
                f"{self.trace_name}; rate_scale_factor makes more requests of exponential and gamma ones"
            )
        if self.cv_scale_factor != 1 and distribution != "gamma":
            raise InvalidConfigError(f"cv_scale_factor needs 'gamma' arrivals, not {distribution!r} ones")
        if self.time_scale_factor != 1:
            if distribution != "vanilla":
                raise InvalidConfigError(
                    f"time_scale_factor needs 'vanilla' arrivals of {AZURE_V2}, not {distribution!r} ones of "
                    f"{self.trace_name}; rate_scale_factor makes exponential and gamma ones faster"
                )
            if self.rate_scale_factor != 1 or self.cv_scale_factor != 1:
                raise InvalidConfigError("time_scale_factor cannot be combined with rate_scale_factor")
            if self.end_seconds - self.start_seconds < self.time_scale_factor:
                raise InvalidConfigError(
                    f"time_scale_factor {self.time_scale_factor:g} leaves less than a second of the "
                    f"{self.end_seconds - self.start_seconds} s from {self.start_time} to {self.end_time}"
                )
        if self.rate_scale_factor != 1 and distribution not in ("exponential", "gamma"):
            raise InvalidConfigError(
                f"rate_scale_factor needs 'exponential' or 'gamma' arrivals, not {distribution!r} ones; "
                "replication_factor makes more of 'vanilla' ones, time_scale_factor plays them faster"
            )

    def processes_of_counts(self, counts: NDArray[np.int64]) -> list[IntervalProcess]:
        """Return the process of each interval that has invocations.

        Parameters
        ----------
        counts : ndarray of int64, shape (intervals,)
            Invocations.
        """
        rates = counts / self.interval_seconds
        return self._processes(np.flatnonzero(counts), rates, np.ones(len(counts)))

    def fitted_processes(self, arrivals: NDArray[np.float64]) -> list[IntervalProcess]:
        """Return the process of each interval that has enough gaps between its invocations.

        Parameters
        ----------
        arrivals : ndarray of float64, shape (n,)
            Seconds of the invocations, ascending.
        """
        num_intervals = math.ceil((self.end_seconds - self.start_seconds) / self.interval_seconds)
        edges = self.start_seconds + self.interval_seconds * np.arange(num_intervals + 1, dtype=np.float64)
        edges[-1] = self.end_seconds
        gaps = interval_gaps(arrivals, edges)
        present = np.flatnonzero(gaps.num_gaps >= MIN_GAPS[self.arrival_distribution])
        if self.arrival_distribution == "pareto":
            shapes = fit_pareto_shapes(gaps)
            return [(int(i), ParetoProcess(float(shapes[i]), 1.0, 0.0)) for i in present]
        cvs = np.ones(num_intervals)
        if self.arrival_distribution == "gamma":
            cvs = fit_gamma_shapes(gaps) ** -0.5
        return self._processes(present, fit_rates(gaps, self.interval_seconds), cvs)

    def _processes(
        self, present: NDArray[np.intp], rates: NDArray[np.float64], cvs: NDArray[np.float64]
    ) -> list[IntervalProcess]:
        rates, cvs = rates * self.rate_scale_factor, cvs * self.cv_scale_factor
        if self.arrival_distribution == "gamma":
            return [(int(i), GammaProcess(float(rates[i]), float(cvs[i]))) for i in present]
        return [(int(i), PoissonProcess(float(rates[i]))) for i in present]

    def draw(self, processes: Iterable[list[IntervalProcess]], seed: int) -> list[NDArray[np.float64]]:
        """Draw the arrivals of each model, the seed going up by one after each interval.

        Parameters
        ----------
        processes : iterable of list of (int, ArrivalProcess)
            Of each model.
        seed : int
            Of the first interval.

        Returns
        -------
        list of ndarray of float64
            Seconds, interval by interval.
        """
        drawn = []
        for of_model in processes:
            self._check_num_requests(of_model)
            parts = [np.empty(0)]
            for interval, process in of_model:
                start = self.start_seconds + interval * self.interval_seconds
                parts.append(process.generate_arrivals(start, self.interval_seconds, seed))
                seed += 1
            drawn.append(np.concatenate(parts))
        return drawn

    def _check_num_requests(self, processes: list[IntervalProcess]) -> None:
        total = sum(process.rate() for _, process in processes) * self.interval_seconds
        if total > MAX_REQUESTS:
            interval, busiest = max(processes, key=lambda numbered: numbered[1].rate())
            start = self.start_seconds + interval * self.interval_seconds
            raise InvalidWorkloadError(
                f"the {self.arrival_distribution} processes of one model make {total:.3g} requests (at most "
                f"{MAX_REQUESTS:g} are generated); the one of the interval from {start:g} s on makes "
                f"{busiest.rate():.3g} a second. Fits to few invocations can be that wrong: take longer intervals, "
                "another distribution, or a smaller rate_scale_factor"
            )

    def play(self, arrivals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return invocations as they are, but for the time scale and the replication."""
        check_expected_count(len(arrivals) * float(self.replication_factor), "replication_factor")
        times = self.start_seconds + (arrivals - self.start_seconds) / self.time_scale_factor
        return np.repeat(times, self.replication_factor)

    def replay(self, model: str, arrivals: NDArray[np.float64]) -> TraceReplay:
        """Return the replay of a model."""
        return TraceReplay(model=model, arrivals=arrivals, **asdict(self))
