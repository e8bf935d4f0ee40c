"""What became of the requests of a replay."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.simulator.stats import compute_stats

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from alpa_serve.simulator.stats import StatsResult


class Status(IntEnum):
    """What became of a request.

    Attributes
    ----------
    UNSENT
        The replay was stopped before it was due.
    UNANSWERED
        It was sent, and no answer came in time, or before the replay was stopped.
    SERVED
        HTTP 200 with JSON.
    REJECTED
        HTTP 200 with ``{"rejected": true}``: it was not admitted.
    OVERLOADED
        HTTP 503 or 429.
    FAILED
        Another HTTP status, an answer that is no JSON, or a connection that could not be made or broke.
    """

    UNSENT = 0
    UNANSWERED = 1
    SERVED = 2
    REJECTED = 3
    OVERLOADED = 4
    FAILED = 5


@dataclass(frozen=True)
class Lateness:
    """How long after they were due requests were sent, in seconds; all 0 if none was sent.

    Attributes
    ----------
    mean, p50, p99, max : float
    """

    mean: float
    p50: float
    p99: float
    max: float


@dataclass(frozen=True)
class ReplayProgress:
    """How far a replay is.

    Attributes
    ----------
    total : int
        Requests of the workload.
    sent, answered : int
        Requests so far; those that failed without an answer are not answered.
    done : int
        Requests of which nothing more is to come.
    good : int
        Requests that met their SLO so far.
    lateness_mean, lateness_max : float
        Seconds, over the requests sent so far.
    """

    total: int
    sent: int
    answered: int
    done: int
    good: int
    lateness_mean: float
    lateness_max: float

    @property
    def in_flight(self) -> int:
        """Requests that wait for their answer."""
        return self.sent - self.done

    @property
    def attainment(self) -> float:
        """SLO attainment of the requests that are done; 0 if none is."""
        return self.good / self.done if self.done else 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class ReplayResult:
    """What became of each request of a workload; arrays of shape (n,), in the order of arrival.

    Times are in seconds since the replay began, by this machine's clock.

    Attributes
    ----------
    arrivals : ndarray of float64
        When it was due: the arrival of the workload times the time scale.
    sent, finish : ndarray of float64
        When it was sent, and when its answer had come or it was known that there will be none; NaN if it was not.
    status : ndarray of int8
        A :class:`Status`.
    http_status : ndarray of int16
        Of the answer; 0 without one.
    retries : ndarray of int16
        How often it was sent again because its connection could not be made or was reset.
    slos : ndarray of float64
        Seconds; infinity for none.
    model_ids : ndarray of int32
        Index into `model_names`, which are the workload's.
    model_names : tuple of str
    from_schedule : bool
        Whether latency counts from `arrivals` on; otherwise it counts from `sent` on, so that lateness of the sender is
        not put down to the server.
    stopped : bool
        Whether the replay was stopped before it was done.
    failures : mapping of str to int
        Why requests failed or were not answered, with how many did; the kinds beyond a limit count as one.
    """

    arrivals: NDArray[np.float64]
    sent: NDArray[np.float64]
    finish: NDArray[np.float64]
    status: NDArray[np.int8]
    http_status: NDArray[np.int16]
    retries: NDArray[np.int16]
    slos: NDArray[np.float64]
    model_ids: NDArray[np.int32]
    model_names: tuple[str, ...]
    from_schedule: bool = False
    stopped: bool = False
    failures: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.arrivals)

    @property
    def was_sent(self) -> NDArray[np.bool_]:
        """Whether each request was sent, shape (n,)."""
        return np.not_equal(self.status, Status.UNSENT)

    @property
    def served(self) -> NDArray[np.bool_]:
        """Whether each request was served, shape (n,)."""
        return np.equal(self.status, Status.SERVED)

    @property
    def latency(self) -> NDArray[np.float64]:
        """Seconds from sending (or, by the schedule, from being due) to the answer, shape (n,); 0 if not served."""
        begin = self.arrivals if self.from_schedule else self.sent
        return np.where(self.served, self.finish - begin, 0.0)

    @property
    def good(self) -> NDArray[np.bool_]:
        """Whether each request was served within its SLO, shape (n,)."""
        return self.served & (self.latency <= self.slos)

    @property
    def goodput(self) -> float:
        """Share of the requests sent that met their SLO; 0 if none was sent."""
        num_sent = np.count_nonzero(self.was_sent)
        return float(np.count_nonzero(self.good) / num_sent) if num_sent else 0.0

    @property
    def lateness(self) -> Lateness:
        """How long after they were due requests were sent."""
        late = (self.sent - self.arrivals)[self.was_sent]
        if not len(late):
            return Lateness(0.0, 0.0, 0.0, 0.0)
        p50, p99 = np.percentile(late, (50, 99))
        return Lateness(float(late.mean()), float(p50), float(p99), float(late.max()))

    def counts(self) -> dict[str, int]:
        """Return how many requests were sent, answered, served, rejected, overloaded, failed and left unanswered.

        Each that was sent is one of the last five; those that failed by their connection are not answered. Beside
        them, ``retries`` counts what was sent again.
        """
        of_status = np.bincount(self.status, minlength=len(Status))
        return {
            "sent": int(of_status.sum() - of_status[Status.UNSENT]),
            "answered": int(np.count_nonzero(self.http_status)),
            **{
                status.name.lower(): int(of_status[status])
                for status in (Status.SERVED, Status.REJECTED, Status.OVERLOADED, Status.FAILED, Status.UNANSWERED)
            },
            "retries": int(self.retries.sum()),
        }

    def stats(self, warmup: float = 0) -> StatsResult:
        """Return the statistics of the requests that were sent, `warmup` seconds cut from both ends.

        As in a simulation, a request starts at its arrival; it finishes its latency later, or at once if it was not
        served.

        Raises
        ------
        InvalidWorkloadError
            If the warm-up leaves no request.
        """
        sent = self.was_sent
        start = self.arrivals[sent]
        return compute_stats(
            self.model_ids[sent], self.model_names, start, start + self.latency[sent], self.good[sent], warmup
        )

    def to_frame(self) -> pd.DataFrame:
        """Return a row per request: model, seconds (arrival_s, sent_s, ...), status, retries and good."""
        import pandas as pd

        names = [status.name.lower() for status in Status]
        return pd.DataFrame(
            {
                "model": pd.Categorical.from_codes(self.model_ids, pd.Index(self.model_names)),
                "arrival_s": self.arrivals,
                "sent_s": self.sent,
                "finish_s": self.finish,
                "latency_s": self.latency,
                "slo_s": self.slos,
                "status": pd.Categorical.from_codes(self.status, pd.Index(names)),
                "http_status": self.http_status,
                "retries": self.retries,
                "good": self.good,
            }
        )
