"""LLMTrace: requests in columns, with the usual changes, summaries and exports."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from alpa_serve.errors import InvalidTraceError
from alpa_serve.simulator.arrivals import check_expected_count
from alpa_serve.simulator.columns import MAX_TOKENS, is_token_count
from alpa_serve.simulator.trace_tokens import TRACE_TOKEN_COLUMNS
from alpa_serve.trace.llm.assignment import make_workload
from alpa_serve.trace.llm.summary import TraceSummary, plot, summarize
from alpa_serve.trace.llm.writers import write_azure, write_vidur
from alpa_serve.trace.time_window import TimeWindow, whole_ns
from alpa_serve.validation import check_int, check_real

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

    from alpa_serve.simulator.columnar_workload import Workload
    from alpa_serve.trace.time_window import Moment

Rows: TypeAlias = "slice | NDArray[np.intp]"

COUNT_COLUMNS = ("input_tokens", "output_tokens", "num_images")
"""Columns of whole numbers that a trace may have."""

COPY_STREAM = 0x636F7079
"""Entropy beside the seed, so that copies are independent of whatever else is drawn from that seed."""


class LLMTrace:
    """Requests to LLMs, in the order of arrival.

    Parameters
    ----------
    arrival_s : array_like of float, shape (n,)
        Seconds, not descending.
    model_codes : array_like of int, shape (n,), optional
        Indices into `model_names`; left out if requests name no model.
    model_names : sequence of str
    input_tokens, output_tokens : array_like of int, shape (n,), optional
        Length of the prompt and of the answer.
    num_images : array_like of int, shape (n,), optional
    start_ns : int, optional
        The date of second 0, in nanoseconds since 1970 (UTC); left out if there is none.
    num_failed : int
        Requests that the file has beside these because they failed; 0 for a part of a trace, as `slice`, `head` and
        `scale_rate` return it.
    name : str
        What to call it.

    Raises
    ------
    InvalidTraceError
        If columns differ in length, arrivals descend or are not finite, or a count or code is out of range.
    """

    def __init__(
        self,
        arrival_s: ArrayLike,
        *,
        model_codes: ArrayLike | None = None,
        model_names: Sequence[str] = (),
        input_tokens: ArrayLike | None = None,
        output_tokens: ArrayLike | None = None,
        num_images: ArrayLike | None = None,
        start_ns: int | None = None,
        num_failed: int = 0,
        name: str = "trace",
    ) -> None:
        self.arrival_s: NDArray[np.float64] = _numbers(arrival_s, "arrival_s").astype(np.float64, copy=False)
        self.input_tokens = self._counts(input_tokens, "input_tokens")
        self.output_tokens = self._counts(output_tokens, "output_tokens")
        self.num_images = self._counts(num_images, "num_images")
        self.model_codes = self._counts(model_codes, "model_codes")
        self.model_names = tuple(model_names) if self.model_codes is not None else ()
        self.start_ns = start_ns
        self.num_failed = num_failed
        self.name = name
        if not np.isfinite(self.arrival_s).all() or (np.diff(self.arrival_s) < 0).any():
            raise InvalidTraceError(f"{name}: arrival_s must be finite and must not descend")
        if self.model_codes is not None and self.model_codes.max(initial=-1) >= len(self.model_names):
            raise InvalidTraceError(f"{name}: model_codes must be below {len(self.model_names)}, the number of names")

    def _counts(self, values: ArrayLike | None, what: str) -> NDArray[np.int32] | None:
        if values is None:
            return None
        given = _numbers(values, what)
        if len(given) != len(self.arrival_s):
            raise InvalidTraceError(f"{len(given)} {what} for {len(self.arrival_s)} arrivals; there must be one each")
        if not is_token_count(given).all():
            raise InvalidTraceError(f"{what} must be whole numbers from 0 to {MAX_TOKENS}")
        return given.astype(np.int32, copy=False)

    def __len__(self) -> int:
        return len(self.arrival_s)

    def __repr__(self) -> str:
        return f"LLMTrace({self.name!r}, {len(self)} requests)"

    @property
    def model(self) -> NDArray[np.object_] | None:
        """The model that each request names, shape (n,); None if they name none."""
        if self.model_codes is None:
            return None
        names: NDArray[np.object_] = np.array([*self.model_names, None], dtype=object)
        return names[self.model_codes]

    @property
    def start_time(self) -> pd.Timestamp | None:
        """The date (UTC, without zone) of second 0; None if the trace has no dates."""
        if self.start_ns is None:
            return None
        import pandas as pd

        return pd.Timestamp(self.start_ns, unit="ns")

    def slice(self, start: Moment = None, end: Moment = None) -> LLMTrace:
        """Return the requests from `start` up to, and without, `end`; their arrivals stay what they are.

        Parameters
        ----------
        start, end : float, str, datetime or numpy.datetime64, optional
            Seconds on the axis of the trace or, if it has dates, a date (UTC where it names no zone).

        Raises
        ------
        InvalidConfigError
            If one is neither, the end is before the start, or a date is given and the trace has none.
        """
        first, last = np.searchsorted(self.arrival_s, TimeWindow(start, end).seconds(self.start_ns))
        return self._take(slice(first, max(first, last)))

    def head(self, number: int) -> LLMTrace:
        """Return the first `number` requests, or all if there are no more."""
        return self._take(slice(0, check_int(number, "number", minimum=0)))

    def scale_rate(self, factor: float, seed: int = 0) -> LLMTrace:
        """Return a trace with `factor` times as many requests, in expectation.

        Each request appears floor(factor) or ceil(factor) times. One is where it was; the others come at random
        before the next arrival (after the last: within the mean gap).

        Parameters
        ----------
        factor : float
            > 0.
        seed : int
            >= 0. Equal seeds give equal traces.
        """
        check_real(factor, "factor of scale_rate", minimum=0.0, exclusive=True)
        check_expected_count(len(self) * factor, f"scale_rate({factor:g})")
        rng = np.random.default_rng([COPY_STREAM, check_int(seed, "seed", minimum=0)])
        copies = int(factor) + (rng.random(len(self)) < factor % 1)
        source = np.repeat(np.arange(len(self)), copies)
        is_extra = np.diff(source, prepend=-1) == 0
        gaps = np.diff(self.arrival_s)
        gaps = np.append(gaps, gaps.mean() if len(gaps) else 0.0)
        arrivals = self.arrival_s[source]
        arrivals[is_extra] += gaps[source[is_extra]] * rng.random(int(is_extra.sum()))
        order = np.argsort(arrivals, kind="stable")
        return self._take(source[order], arrivals[order])

    def scale_time(self, factor: float) -> LLMTrace:
        """Return a trace that takes `factor` times as long, counted from its first arrival.

        Parameters
        ----------
        factor : float
            > 0; rates are divided by it.
        """
        check_real(factor, "factor of scale_time", minimum=0.0, exclusive=True)
        first = self.arrival_s[:1]
        return self._take(slice(None), first + (self.arrival_s - first) * factor)

    def _take(self, key: Rows, arrivals: NDArray[np.float64] | None = None) -> LLMTrace:
        part = LLMTrace.__new__(LLMTrace)
        # copies: what is changed in a part does not reach the whole
        part.arrival_s = self.arrival_s[key].copy() if arrivals is None else arrivals
        for name in (*COUNT_COLUMNS, "model_codes"):
            values = getattr(self, name)
            setattr(part, name, None if values is None else values[key].copy())
        part.model_names, part.start_ns = self.model_names, self.start_ns
        # of a part, nobody knows how many there were beside it
        is_whole = isinstance(key, slice) and len(part) == len(self)
        part.num_failed, part.name = self.num_failed if is_whole else 0, self.name
        return part

    def describe(self) -> TraceSummary:
        """Return rate, burstiness, models and token counts of the trace; print it to read it."""
        return summarize(self)

    def plot(self, ax: Axes | None = None) -> Figure:
        """Draw the rate over time and, unless `ax` is given, histograms of the token counts beside it.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw the rate; a new figure if left out.

        Raises
        ------
        InvalidTraceError
            If there is no request.
        """
        return plot(self, ax)

    def to_frame(self) -> pd.DataFrame:
        """Return the columns TIMESTAMP (datetime), ContextTokens and GeneratedTokens (int), those that are known.

        Timestamps are exact to the nanosecond for traces of up to 97 days. Where the trace has no dates, second 0
        is 1970-01-01.

        Raises
        ------
        InvalidTraceError
            If a request comes so late that there is no such date.
        """
        import pandas as pd

        stamps = whole_ns(self.arrival_s, self.start_ns or 0)
        frame = pd.DataFrame({"TIMESTAMP": stamps.view("datetime64[ns]")})
        for name, tokens in zip(TRACE_TOKEN_COLUMNS, (self.input_tokens, self.output_tokens), strict=True):
            if tokens is not None:
                frame[name] = tokens.astype(np.int64)
        return frame

    def require_tokens(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return (input tokens, output tokens).

        Raises
        ------
        InvalidTraceError
            If the trace lacks one of them.
        """
        if self.input_tokens is None or self.output_tokens is None:
            missing = [name for name in COUNT_COLUMNS[:2] if getattr(self, name) is None]
            raise InvalidTraceError(f"{self.name}: this trace has no {' and no '.join(missing)}")
        return self.input_tokens, self.output_tokens

    def write_azure(self, path: str | os.PathLike[str]) -> None:
        """Write the form of the Azure LLM inference traces of 2023, to 100 ns; compressed if the name ends in .gz.

        Where the trace has no dates, second 0 is 1970-01-01. Read back, second 0 is the first arrival.

        Raises
        ------
        InvalidTraceError
            If the trace has no token counts or no request, or a request comes so late that there is no such date;
            nothing is written then.
        """
        write_azure(self, path)

    def write_vidur(self, path: str | os.PathLike[str]) -> None:
        """Write the form that Vidur replays, exactly; compressed if the name ends in .gz.

        Raises
        ------
        InvalidTraceError
            If the trace has no token counts or no request, or a request has no input or no output tokens, which Vidur
            would change on its own; nothing is written then.
        """
        write_vidur(self, path)

    def to_workload(
        self,
        models: Sequence[str] | Mapping[str, str],
        assign: str = "uniform",
        *,
        slo: Any = None,
        load_times: Sequence[float] | Mapping[str, float] | None = None,
        weights: Sequence[float] | Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> Workload:
        """Return the requests as a workload for some models.

        Arrivals are those of the trace; if the first is before 0, all are moved so that it is at 0.

        Parameters
        ----------
        models : sequence of str, or mapping
            Names of the models; for "column" also which model (value) serves what the trace names (key).
        assign : {"uniform", "weights", "column"}
            Which model a request is for: any loaded one with equal chance, or with chances in proportion to
            `weights`, or the one that the trace names.
        slo : float, TokenLatency, or a sequence or mapping of these per model, optional
            Seconds from arrival; a TokenLatency gives TTFT + TPOT * output tokens of the request. None: no SLO.
        load_times : sequence or mapping of float, optional
            Seconds on the axis of the trace (as moved) from which on each model takes requests. Requests while
            none (for "column": the named one) is loaded are left out.
        weights : sequence or mapping of float, optional
            >= 0 each, for "weights".
        seed : int
            >= 0. Equal seeds give equal workloads.

        Raises
        ------
        InvalidConfigError, UnknownNameError
            If an argument is out of range or does not fit the models.
        InvalidTraceError
            If the trace names no models ("column"), names one that is not among `models`, or lacks the output
            tokens that an SLO depends on.
        """
        return make_workload(self, models, assign, slo=slo, load_times=load_times, weights=weights, seed=seed)


def _numbers(values: ArrayLike, what: str) -> NDArray[Any]:
    numbers = np.asarray(values)
    if numbers.ndim != 1 or not (numbers.dtype.kind in "iuf" or not len(numbers)):
        raise InvalidTraceError(f"{what} must be a list of numbers, got {numbers.dtype} of shape {numbers.shape}")
    return numbers
