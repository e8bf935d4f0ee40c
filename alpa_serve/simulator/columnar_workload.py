"""The columnar workload: requests of several models in the order of their arrivals."""

from __future__ import annotations

import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidWorkloadError
from alpa_serve.simulator.columns import (
    TOKEN_COLUMNS,
    UNKNOWN_TOKENS,
    check_columns,
    check_tokens,
    column,
    known_or_none,
    merged_tokens,
    token_column,
)
from alpa_serve.simulator.request import Request, RequestView
from alpa_serve.simulator.stats import compute_stats, format_stats
from alpa_serve.util import eps
from alpa_serve.validation import check_int, check_real

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from alpa_serve.simulator.stats import StatsResult


class Workload:
    """Who asks for what, when: requests in the order of their arrivals, kept as columns.

    Parameters
    ----------
    arrivals : array_like of float, shape (n,)
        Seconds from the start, finite, >= 0, not descending.
    requests : sequence of Request, length n
        Their `idx` and `time_stamp` follow from the position and `arrivals`.

    Attributes
    ----------
    arrivals : ndarray of float64, shape (n,)
    model_ids : ndarray of int32, shape (n,)
        Model of each request, an index into `model_names`.
    model_names : tuple of str
    slos : ndarray of float64, shape (n,)
        Seconds; infinity for none.
    data : ndarray of object, shape (n,), or None
    input_tokens, output_tokens : ndarray of int64, shape (n,), or None
        Length of each prompt and answer; -1 where it is not known. None if no request has any.
    requests : sequence of Request
        A view: the objects are made when looked at, and what is set on them is set here.
    enable_simulator_cache : bool
        Whether the simulator may keep what it derives from this workload in `cached_data`.
    reported_unregistered : set of tuple of str
        Lists of model names for which a warning has told of requests that name none of them; parts share it.

    Raises
    ------
    InvalidWorkloadError
        If lengths differ or a value is out of range.
    """

    def __init__(self, arrivals: ArrayLike, requests: Sequence[Request]) -> None:
        names: dict[str, int] = {}
        model_ids = [names.setdefault(request.model_name, len(names)) for request in requests]
        data = [request.data for request in requests]
        submitted = [request.submit_time for request in requests]
        self._set_columns(
            arrivals,
            model_ids,
            tuple(names),
            [np.inf if request.slo is None else request.slo for request in requests],
            data if any(item is not None for item in data) else None,
            _given_tokens([request.input_tokens for request in requests]),
            _given_tokens([request.output_tokens for request in requests]),
        )
        if any(time is not None for time in submitted):
            self.submit_times = np.array([np.nan if time is None else time for time in submitted], dtype=np.float64)

    @classmethod
    def from_columns(
        cls,
        arrivals: ArrayLike,
        model_ids: ArrayLike,
        model_names: Sequence[str],
        slos: ArrayLike | None = None,
        data: Sequence[Any] | None = None,
        *,
        input_tokens: ArrayLike | None = None,
        output_tokens: ArrayLike | None = None,
    ) -> Workload:
        """Make a workload from its columns, all of length n.

        Parameters
        ----------
        arrivals : array_like of float
            Seconds, finite, >= 0, not descending.
        model_ids : array_like of int
            Indices into `model_names`.
        model_names : sequence of str
        slos : array_like of float, optional
            Seconds, one per request or one for all; none if left out.
        data : sequence, optional
            What each request asks.
        input_tokens, output_tokens : array_like of int, optional
            Length of the prompt and of the answer, >= 0, one per request or one for all; -1 where it is not known.

        Raises
        ------
        InvalidWorkloadError
            If lengths differ or a value is out of range.
        """
        workload = cls.__new__(cls)
        slos = np.inf if slos is None else slos
        workload._set_columns(arrivals, model_ids, tuple(model_names), slos, data, input_tokens, output_tokens)
        return workload

    def _set_columns(
        self,
        arrivals: ArrayLike,
        model_ids: ArrayLike,
        model_names: tuple[str, ...],
        slos: ArrayLike,
        data: Sequence[Any] | None,
        input_tokens: ArrayLike | None,
        output_tokens: ArrayLike | None,
    ) -> None:
        self.arrivals: NDArray[np.float64] = column(arrivals, np.float64, "arrivals")
        length = len(self.arrivals)
        self.model_ids: NDArray[np.int32] = column(model_ids, np.int32, "model ids")
        slo_column = np.full(length, slos, dtype=np.float64) if np.ndim(slos) == 0 else slos
        self.slos: NDArray[np.float64] = column(slo_column, np.float64, "SLOs")
        self.model_names = model_names
        self.data: NDArray[np.object_] | None = None
        if data is not None:
            self.data = np.empty(len(data), dtype=object)
            self.data[:] = data
        self.input_tokens = token_column(input_tokens, length, "input_tokens")
        self.output_tokens = token_column(output_tokens, length, "output_tokens")
        self.enable_simulator_cache = False
        self.cached_data: Any = None
        self.reported_unregistered: set[tuple[str, ...]] = set()
        self._check()

    def _check(self) -> None:
        check_columns(self.arrivals, self.model_ids, self.slos, self.data)
        if len(set(self.model_names)) != len(self.model_names):
            raise InvalidWorkloadError(f"model names must differ, got {', '.join(map(str, self.model_names))}")
        if len(self.model_ids) and not 0 <= self.model_ids.min() <= self.model_ids.max() < len(self.model_names):
            raise InvalidWorkloadError(f"model ids must be 0 to {len(self.model_names) - 1}")

    @cached_property
    def submit_times(self) -> NDArray[np.float64]:
        """When each request was sent, in seconds; NaN while it was not."""
        return np.full(len(self), np.nan)

    @property
    def requests(self) -> Sequence[Request]:
        """The requests as objects."""
        return RequestView(self)

    def require_tokens(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (input tokens, output tokens), of which every request must have both.

        Returns
        -------
        input_tokens, output_tokens : ndarray of int64, shape (n,)
            The columns themselves, not copies.

        Raises
        ------
        InvalidWorkloadError
            If some are not known, naming the first such request, its model and the ways to give them.
        """
        columns = [
            np.full(len(self), UNKNOWN_TOKENS, dtype=np.int64) if tokens is None else tokens
            for tokens in (self.input_tokens, self.output_tokens)
        ]
        unknown = [np.flatnonzero(tokens == UNKNOWN_TOKENS) for tokens in columns]
        absent = [(int(at[0]), len(at), name) for name, at in zip(TOKEN_COLUMNS, unknown, strict=True) if len(at)]
        if absent:
            counts = " and ".join(f"{number} of {len(self)} requests have no {name}" for _, number, name in absent)
            first = min(absent)[0]
            raise InvalidWorkloadError(
                f"{counts}; the first is request {first} for model {self.model_names[self.model_ids[first]]!r}. Give "
                "them with Workload.from_columns(..., input_tokens=..., output_tokens=...) or to each Request, "
                "or make the workload with WorkloadFromTrace"
            )
        return columns[0], columns[1]

    def set_request_field(self, idx: int, name: str, value: Any) -> None:
        """Set `slo`, `data`, `submit_time`, `input_tokens` or `output_tokens` of request `idx`.

        Raises
        ------
        InvalidWorkloadError
            If the value is out of range, or the field cannot be changed in place.
        """
        if name == "slo":
            self.slos[idx] = (
                np.inf
                if value is None
                else check_real(value, f"SLO of request {idx}", minimum=0, finite=False, error=InvalidWorkloadError)
            )
        elif name == "submit_time":
            what = f"submit_time of request {idx}"
            self.submit_times[idx] = np.nan if value is None else check_real(value, what, error=InvalidWorkloadError)
        elif name == "data":
            if self.data is None:
                self.data = np.full(len(self), None, dtype=object)
            self.data[idx] = value
        elif name in TOKEN_COLUMNS:
            self._set_tokens(idx, name, value)
        elif name != "time_stamp":  # debug notes stay with the object
            raise InvalidWorkloadError(f"{name} of a request in a workload is fixed; make a new Workload")
        self.cached_data = None

    def _set_tokens(self, idx: int, name: str, value: Any) -> None:
        tokens = UNKNOWN_TOKENS if value is None else check_tokens(value, f"{name} of request {idx}")
        if getattr(self, name) is None:
            if value is None:
                return
            setattr(self, name, np.full(len(self), UNKNOWN_TOKENS, dtype=np.int64))
        getattr(self, name)[idx] = tokens

    @cached_property
    def rate(self) -> float:
        """Requests per second: 1 / (mean gap + 1e-6); 0 with fewer than two requests."""
        return 1 / (float(np.diff(self.arrivals).mean()) + eps) if len(self) > 1 else 0.0

    @cached_property
    def cv(self) -> float:
        """Standard deviation of the gaps times `rate`; 0 with fewer than two requests."""
        return float(np.diff(self.arrivals).std()) * self.rate if len(self) > 1 else 0.0

    def num_model_requests(self, model_name: str) -> int:
        """Return how many requests name the model."""
        if model_name not in self.model_names:
            return 0
        return int(np.count_nonzero(self.model_ids == self.model_names.index(model_name)))

    def select_models(self, model_names: Iterable[str]) -> Workload:
        """Return the requests of these models only."""
        wanted = set(model_names)
        keep = np.array([name in wanted for name in self.model_names], dtype=bool)
        return self._take(np.flatnonzero(keep[self.model_ids]) if len(self) else np.empty(0, dtype=np.intp))

    def _take(self, key: slice | NDArray[np.intp]) -> Workload:
        part = Workload.__new__(Workload)
        # copies: what is set on a part does not reach the whole
        part.arrivals = self.arrivals[key].copy()
        part.model_ids = self.model_ids[key].copy()
        part.slos = self.slos[key].copy()
        part.model_names = self.model_names
        part.data = None if self.data is None else self.data[key].copy()
        part.input_tokens = None if self.input_tokens is None else known_or_none(self.input_tokens[key].copy())
        part.output_tokens = None if self.output_tokens is None else known_or_none(self.output_tokens[key].copy())
        if "submit_times" in self.__dict__:
            part.submit_times = self.submit_times[key].copy()
        part.enable_simulator_cache = False
        part.cached_data = None
        part.reported_unregistered = self.reported_unregistered
        return part

    @classmethod
    def empty(cls) -> Workload:
        """Return the workload without requests."""
        return cls([], [])

    @classmethod
    def merge(cls, *args: Workload) -> Workload:
        """Return all requests of the workloads in the order of arrival; ties keep the order of the arguments."""
        names = tuple(dict.fromkeys(name for workload in args for name in workload.model_names))
        if not args:
            return cls.empty()
        position = {name: model_id for model_id, name in enumerate(names)}
        arrivals = np.concatenate([workload.arrivals for workload in args])
        order = np.argsort(arrivals, kind="stable")
        merged = cls.__new__(cls)
        merged.arrivals = arrivals[order]
        del arrivals
        merged.model_names = names
        merged.model_ids = np.concatenate(
            [
                np.array([position[name] for name in workload.model_names], dtype=np.int32)[workload.model_ids]
                for workload in args
            ]
        )[order]
        merged.slos = np.concatenate([workload.slos for workload in args])[order]
        merged.data = None
        if any(workload.data is not None for workload in args):
            blocks = [
                np.full(len(workload), None, dtype=object) if workload.data is None else workload.data
                for workload in args
            ]
            merged.data = np.concatenate(blocks)[order]
        lengths = [len(workload) for workload in args]
        inputs = merged_tokens([workload.input_tokens for workload in args], lengths)
        outputs = merged_tokens([workload.output_tokens for workload in args], lengths)
        merged.input_tokens = None if inputs is None else inputs[order]
        merged.output_tokens = None if outputs is None else outputs[order]
        if any("submit_times" in workload.__dict__ for workload in args):
            merged.submit_times = np.concatenate([workload.submit_times for workload in args])[order]
        merged.enable_simulator_cache = False
        merged.cached_data = None
        merged.reported_unregistered = set()
        return merged

    def split_round_robin(self, number: int) -> list[Workload]:
        """Deal the requests in turn to `number` workloads."""
        return [self[i::number] for i in range(check_int(number, "number", minimum=1))]

    def split_time_interval(self, interval: float) -> list[Workload]:
        """Cut into segments; each runs from its first arrival t over the arrivals <= t + `interval` seconds."""
        check_real(interval, "interval (s)", minimum=0.0, exclusive=True, error=InvalidWorkloadError)
        segments = []
        first = 0
        while first < len(self):
            end = int(np.searchsorted(self.arrivals, self.arrivals[first] + interval, side="right"))
            segments.append(self[first:end])
            first = end
        return segments

    def compute_stats(self, start: ArrayLike, finish: ArrayLike, good: ArrayLike, warmup: float) -> StatsResult:
        """Return the statistics of this workload, given how each request fared.

        Parameters
        ----------
        start, finish : array_like of float, shape (n,)
            Seconds; `start` is the arrival.
        good : array_like of bool, shape (n,)
            Whether the SLO was met.
        warmup : float
            Seconds to cut from both ends.

        Raises
        ------
        InvalidWorkloadError
            If lengths differ or the warm-up leaves no request.
        """
        return compute_stats(
            self.model_ids,
            self.model_names,
            np.asarray(start, dtype=np.float64),
            np.asarray(finish, dtype=np.float64),
            np.asarray(good, dtype=np.bool_),
            warmup,
        )

    @staticmethod
    def print_stats(stats: StatsResult) -> None:
        """Show statistics on standard output."""
        sys.stdout.write(format_stats(stats) + "\n")

    def __copy__(self) -> Workload:
        return self[:]

    def __len__(self) -> int:
        return len(self.arrivals)

    def __getitem__(self, key: slice) -> Workload:
        if not isinstance(key, slice):
            raise TypeError("a Workload takes slices only; use .requests[i] for one request")
        if key.step is not None and key.step < 0:
            raise InvalidWorkloadError("a Workload cannot be reversed: arrivals must not descend")
        return self._take(key)

    def __add__(self, other: Workload) -> Workload:
        if not isinstance(other, Workload):
            return NotImplemented
        return Workload.merge(self, other)

    def __repr__(self) -> str:
        return f"Workload({len(self)} requests, {len(self.model_names)} models, rate={self.rate:.4g}, cv={self.cv:.4g})"


def _given_tokens(tokens: Sequence[int | None]) -> list[int] | None:
    if all(number is None for number in tokens):
        return None
    return [UNKNOWN_TOKENS if number is None else number for number in tokens]
