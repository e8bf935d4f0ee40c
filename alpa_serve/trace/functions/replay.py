"""Replays: the arrivals that a trace gives a model, and what can be said of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidConfigError, InvalidTraceError, InvalidWorkloadError
from alpa_serve.simulator.workload import Workload
from alpa_serve.trace.time_window import whole_ns
from alpa_serve.validation import check_int

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

CV_EPSILON_S = 1e-5
"""Added to the mean gap, in seconds, where a cv is taken."""


@dataclass(frozen=True, eq=False)
class TraceReplay:
    """The requests for one model that follow a trace.

    Attributes
    ----------
    model : str
    arrivals : ndarray of float64, shape (n,)
        Seconds from the start of the trace, in the order drawn. They ascend but where an interval was drawn from a
        process that passes its end: Pareto, and any in a last interval that is shorter than the others.
    trace_name : str
    start_time, end_time : str
        The slice replayed, "day.hour.minute".
    start_seconds, end_seconds : int
        The same in seconds from the start of the trace.
    arrival_distribution : str
    interval_seconds : float
    rate_scale_factor, cv_scale_factor, time_scale_factor : float
    replication_factor : int
    """

    model: str
    arrivals: NDArray[np.float64]
    trace_name: str
    start_time: str
    end_time: str
    start_seconds: int
    end_seconds: int
    arrival_distribution: str = "vanilla"
    interval_seconds: float = 600
    rate_scale_factor: float = 1.0
    cv_scale_factor: float = 1.0
    time_scale_factor: float = 1.0
    replication_factor: int = 1

    @property
    def duration_seconds(self) -> int:
        """Seconds of the trace that are replayed."""
        return self.end_seconds - self.start_seconds

    @property
    def duration(self) -> float:
        """Seconds that the replay takes: those of the trace, divided by the time scale and rounded down."""
        return self.duration_seconds // self.time_scale_factor

    def __len__(self) -> int:
        return len(self.arrivals)

    def rate(self) -> float:
        """Return the requests per second of `duration`."""
        return len(self.arrivals) / self.duration

    def cv(self) -> float:
        """Return the coefficient of variation of the gaps, in the order of `arrivals`; 0 with fewer than 2 requests."""
        return _gap_cv(self.arrivals)

    def to_workload(self, slo: float | None) -> Workload:
        """Return the requests as a workload, in the order of time.

        Parameters
        ----------
        slo : float or None
            Seconds from arrival.
        """
        arrivals = np.sort(self.arrivals)
        return Workload.from_columns(arrivals, np.zeros(len(arrivals), dtype=np.int32), [self.model], slo)

    def to_frame(self) -> pd.DataFrame:
        """Return the requests as dates in a column TIMESTAMP, ascending; the trace starts on 1970-01-01.

        :class:`~alpa_serve.simulator.workload.WorkloadFromTrace` takes it.

        Raises
        ------
        InvalidWorkloadError
            If a request comes so late that there is no such date, as a Pareto process can have it.
        """
        import pandas as pd

        arrivals = np.sort(self.arrivals)
        try:
            nanoseconds = whole_ns(arrivals)
        except InvalidTraceError as error:
            raise InvalidWorkloadError(
                f"model {self.model!r}: {error}; take a distribution with a shorter tail than "
                f"{self.arrival_distribution}"
            ) from None
        return pd.DataFrame({"TIMESTAMP": pd.to_datetime(nanoseconds, unit="ns")})

    def interval_counts(self, n_interval: int = 100) -> NDArray[np.int64]:
        """Return the requests in each of `n_interval` equal parts of the replay; later ones are left out."""
        check_int(n_interval, "n_interval", minimum=1)
        end = self.start_seconds + self.duration_seconds / self.time_scale_factor
        counts, _ = np.histogram(self.arrivals, bins=n_interval, range=(self.start_seconds, end))
        return counts.astype(np.int64)

    def report_stats(self) -> dict[str, Any]:
        """Log what was replayed and how, and return it.

        Returns
        -------
        dict
            trace, model, start_time, end_time, arrival_distribution, duration (s), num_requests, rate (requests/s),
            cv, and the 50th, 90th and 99th percentile and the largest of the gaps (s; NaN with fewer than two
            requests) as gap_p50, gap_p90, gap_p99, gap_max.
        """
        gaps = np.diff(np.sort(self.arrivals))
        figures = np.percentile(gaps, [50, 90, 99, 100]) if len(gaps) else np.full(4, np.nan)
        stats: dict[str, Any] = {
            "trace": self.trace_name,
            "model": self.model,
            "start_time": self.start_time,
            "end_time": self.end_time,
            "arrival_distribution": self.arrival_distribution,
            "duration": self.duration,
            "num_requests": len(self.arrivals),
            "rate": self.rate(),
            "cv": self.cv(),
        } | {f"gap_{name}": float(gap) for name, gap in zip(("p50", "p90", "p99", "max"), figures, strict=True)}
        logger.info("replay %s", ", ".join(f"{name} {value}" for name, value in stats.items()))
        return stats

    def visualize(self, n_interval: int = 100) -> Figure:
        """Draw the requests per second in each of `n_interval` equal parts of the replay.

        Returns
        -------
        matplotlib.figure.Figure
            Neither shown nor saved: call its `savefig`.

        Raises
        ------
        ModuleNotFoundError
            Without matplotlib; the extra ``alpa_serve[plot]`` has it.
        """
        from matplotlib.figure import Figure

        counts = self.interval_counts(n_interval)
        seconds = self.duration_seconds / self.time_scale_factor
        width = seconds / n_interval
        figure = Figure(layout="constrained")
        axes = figure.add_subplot()
        axes.stairs(counts / width, self.start_seconds + width * np.arange(n_interval + 1), fill=True)
        axes.set_xlabel("time (s)")
        axes.set_ylabel("requests/s")
        axes.set_title(
            f"{self.model}: {self.trace_name} {self.start_time} to {self.end_time}, {self.arrival_distribution}"
        )
        return figure


def report_group_stats(replays: Mapping[str, TraceReplay] | Iterable[TraceReplay]) -> dict[str, Any]:
    """Log how the replays of several models differ, and return it.

    Parameters
    ----------
    replays : mapping of str to TraceReplay, or iterable of TraceReplay
        What `Trace.replay` returns, or its values.

    Returns
    -------
    dict
        num_models, num_requests, rate (requests/s of all), cv (of all together), and over the models rate_min,
        rate_median, rate_max and cv_min, cv_median, cv_max.

    Raises
    ------
    InvalidConfigError
        If there is none.
    """
    group = list(replays.values() if isinstance(replays, Mapping) else replays)
    if not group:
        raise InvalidConfigError("report_group_stats needs at least one replay")
    rates, cvs = [replay.rate() for replay in group], [replay.cv() for replay in group]
    stats: dict[str, Any] = {
        "num_models": len(group),
        "num_requests": sum(map(len, group)),
        "rate": sum(rates),
        "cv": _gap_cv(np.sort(np.concatenate([replay.arrivals for replay in group]))),
    }
    for name, values in (("rate", rates), ("cv", cvs)):
        for figure, of in (("min", np.min), ("median", np.median), ("max", np.max)):
            stats[f"{name}_{figure}"] = float(of(values))
    logger.info("replays %s", ", ".join(f"{name} {value}" for name, value in stats.items()))
    return stats


def _gap_cv(arrivals: NDArray[np.float64]) -> float:
    if len(arrivals) < 2:
        return 0.0
    gaps = np.diff(arrivals)
    return float(gaps.std() / (gaps.mean() + CV_EPSILON_S))
