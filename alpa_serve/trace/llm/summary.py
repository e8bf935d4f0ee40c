"""What a trace is like: in figures and as a drawing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.errors import InvalidTraceError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from alpa_serve.trace.llm.trace import LLMTrace

PERCENTILES = (0, 50, 90, 99, 100)
"""Those of the token counts that a summary holds."""

MODELS_SHOWN = 20
NUM_BINS = 100


@dataclass(frozen=True)
class TraceSummary:
    """Figures of a trace.

    Attributes
    ----------
    name : str
    num_requests, num_failed : int
        Requests, and those that the file has beside them because they failed.
    start_time : datetime or None
        The date of second 0.
    first_s, duration_s : float
        First arrival, and seconds from there to the last; NaN and 0 without requests.
    rate : float
        Requests per second: 1 / mean gap; infinite if all come at once, 0 with fewer than two.
    cv : float
        Standard deviation / mean of the gaps; 0 with fewer than two or if all are 0.
    requests_by_model : mapping of str to int, or None
        None if requests name no model.
    input_tokens, output_tokens : mapping of int to float, or None
        Percentile to tokens, for each of `PERCENTILES`; None if they are not known.
    """

    name: str
    num_requests: int
    num_failed: int
    start_time: datetime | None
    first_s: float
    duration_s: float
    rate: float
    cv: float
    requests_by_model: Mapping[str, int] | None
    input_tokens: Mapping[int, float] | None
    output_tokens: Mapping[int, float] | None

    def __str__(self) -> str:
        failed = f" ({self.num_failed} more failed)" if self.num_failed else ""
        date = "" if self.start_time is None else f", second 0 is {self.start_time}"
        lines = [
            f"{self.name}: {self.num_requests} requests{failed}",
            f"  {self.duration_s:.6g} s from {self.first_s:.6g} s on{date}",
            f"  {self.rate:.4g} requests/s, cv {self.cv:.3g}",
        ]
        if not self.num_requests:
            return lines[0]
        for what, tokens in (("input", self.input_tokens), ("output", self.output_tokens)):
            shown = tokens and ", ".join(f"p{level} {tokens[level]:g}" for level in PERCENTILES)
            lines.append(f"  {what} tokens: {shown or 'not known'}")
        if self.requests_by_model is not None:
            largest = sorted(self.requests_by_model.items(), key=lambda item: -item[1])
            lines += [f"  {name}: {number} requests" for name, number in largest[:MODELS_SHOWN]]
            if len(largest) > MODELS_SHOWN:
                lines.append(f"  and {len(largest) - MODELS_SHOWN} more models")
        return "\n".join(lines)


def summarize(trace: LLMTrace) -> TraceSummary:
    """Return the figures of a trace."""
    arrivals = trace.arrival_s
    gaps = np.diff(arrivals)
    mean = float(gaps.mean()) if len(gaps) else math.inf
    by_model = None
    if trace.model_codes is not None:
        numbers = np.bincount(trace.model_codes, minlength=len(trace.model_names))
        by_model = dict(zip(trace.model_names, numbers.tolist(), strict=True))
    return TraceSummary(
        name=trace.name,
        num_requests=len(trace),
        num_failed=trace.num_failed,
        start_time=trace.start_time,
        first_s=float(arrivals[0]) if len(trace) else math.nan,
        duration_s=float(arrivals[-1] - arrivals[0]) if len(trace) else 0.0,
        rate=1 / mean if mean else math.inf,
        cv=float(gaps.std()) / mean if len(gaps) and mean else 0.0,
        requests_by_model=by_model,
        input_tokens=_percentiles(trace.input_tokens),
        output_tokens=_percentiles(trace.output_tokens),
    )


def _percentiles(tokens: NDArray[np.int32] | None) -> dict[int, float] | None:
    if tokens is None or not len(tokens):
        return None
    return dict(zip(PERCENTILES, np.percentile(tokens, PERCENTILES).tolist(), strict=True))


def plot(trace: LLMTrace, ax: Axes | None = None) -> Figure:
    """Draw a trace, as :meth:`~alpa_serve.trace.llm.trace.LLMTrace.plot` says."""
    if not len(trace):
        raise InvalidTraceError(f"{trace.name}: no request to draw")
    histograms = []
    if ax is not None:
        figure = ax.figure.figure
    else:
        from matplotlib.figure import Figure

        known = {"input": trace.input_tokens, "output": trace.output_tokens}
        histograms = [(what, tokens) for what, tokens in known.items() if tokens is not None]
        figure = Figure(figsize=(5 * (1 + len(histograms)), 4), layout="constrained")
        ax = figure.add_subplot(1, 1 + len(histograms), 1)
    counts, edges = np.histogram(trace.arrival_s, bins=NUM_BINS)
    ax.stairs(counts / np.diff(edges), edges)
    ax.set(title=trace.name, xlabel="time (s)", ylabel="requests/s", ylim=(0, None))
    for place, (what, tokens) in enumerate(histograms, start=2):
        axes = figure.add_subplot(1, 1 + len(histograms), place)
        axes.hist(tokens, bins=NUM_BINS)
        axes.set(xlabel=f"{what} tokens", ylabel="requests")
    return figure
