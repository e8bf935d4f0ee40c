"""Latencies that Vidur predicts for a run, beside ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.errors import InvalidTraceError
from alpa_serve.experiments.text_table import check_column, read_text_table
from alpa_serve.experiments.vidur_export import LATENCIES, OURS_COLUMNS
from alpa_serve.validation import check_known

if TYPE_CHECKING:
    import os

    import pandas as pd
    from numpy.typing import NDArray

ID_COLUMN, LATENCY_COLUMN = "Request Id", "request_e2e_time"
"""Columns of Vidur's ``request_metrics.csv`` that are needed: position in the trace from 0, seconds to completion."""

TOKEN_COLUMNS = {"request_num_prefill_tokens": "input_tokens", "request_num_decode_tokens": "output_tokens"}
"""Columns of Vidur's that are checked, where they are there, against those of ours."""

PERCENTILES = (50, 90, 99)

_ROUNDING = 1e-9
"""Share by which equal differences may be off."""


@dataclass(frozen=True, eq=False)
class LatencyComparison:
    """Two latencies of each request, in seconds; arrays of shape (n,), in the order of arrival.

    Attributes
    ----------
    which : {"alone", "shared"}
        Which latency of ours (:data:`~.vidur_export.LATENCIES`).
    arrivals : ndarray of float64
        Seconds.
    ours, vidur : ndarray of float64
    """

    which: str
    arrivals: NDArray[np.float64]
    ours: NDArray[np.float64]
    vidur: NDArray[np.float64]

    @property
    def relative_difference(self) -> NDArray[np.float64]:
        """How much longer ours is, as a share of Vidur's; shape (n,)."""
        return self.ours / self.vidur - 1

    @property
    def worst(self) -> int:
        """The request whose relative difference is the largest, up or down; the first of those that round alike."""
        size = np.abs(self.relative_difference)
        return int(np.argmax(size >= size.max() * (1 - _ROUNDING)))

    def to_frame(self) -> pd.DataFrame:
        """Return a row per request: request_id, arrival_s, ours_s, vidur_s, difference_s, relative_difference."""
        import pandas as pd

        return pd.DataFrame(
            {
                "request_id": np.arange(len(self.ours)),
                "arrival_s": self.arrivals,
                "ours_s": self.ours,
                "vidur_s": self.vidur,
                "difference_s": self.ours - self.vidur,
                "relative_difference": self.relative_difference,
            }
        )

    def summary(self) -> str:
        """Return mean and percentiles of both, how they differ, and the request that differs most."""
        figures = {
            name: [float(column.mean()), *np.percentile(column, PERCENTILES).tolist()]
            for name, column in (("Vidur", self.vidur), ("ours", self.ours))
        }
        heads = ["mean", *(f"p{percentile}" for percentile in PERCENTILES)]
        differences = [ours / vidur - 1 for ours, vidur in zip(figures["ours"], figures["Vidur"], strict=True)]
        worst = self.worst
        return "\n".join(
            [
                f"{'latency (s)':<24}" + "".join(f"{head:>11}" for head in heads),
                f"{'Vidur':<24}" + "".join(f"{figure:>11.4f}" for figure in figures["Vidur"]),
                f"{f'ours, {self.which}':<24}" + "".join(f"{figure:>11.4f}" for figure in figures["ours"]),
                f"{'difference':<24}" + "".join(f"{difference:>+11.1%}" for difference in differences),
                f"{len(self.ours)} requests; the largest difference of one is {self.relative_difference[worst]:+.1%}: "
                f"request {worst}, {self.ours[worst]:.4f} s, Vidur {self.vidur[worst]:.4f} s",
            ]
        )


def compare(
    ours_path: str | os.PathLike[str], metrics_path: str | os.PathLike[str], which: str = LATENCIES[0]
) -> LatencyComparison:
    """Read our latencies and Vidur's, and pair them.

    Parameters
    ----------
    ours_path : str or path-like
        ``ours.csv`` of an exported run.
    metrics_path : str or path-like
        Vidur's ``request_metrics.csv``, rows in any order; columns other than "Request Id", "request_e2e_time" and the
        token counts are not looked at.
    which : {"alone", "shared"}
        Which latency of ours.

    Raises
    ------
    InvalidTraceError
        Naming file, line and column of what cannot be read; if a request is missing or there twice; or if the token
        counts are not those of the exported run.
    """
    column = f"{check_known(which, LATENCIES, 'latency of ours')}_latency_s"
    ours = read_text_table(ours_path, OURS_COLUMNS)
    ids = _numbers(ours_path, ours, "request_id", whole=True)
    in_order = ids == np.arange(len(ids))
    check_column(ours_path, ours, "request_id", _series(ours, in_order), "not the next of 0, 1, 2, ...")
    latency = _numbers(ours_path, ours, column)
    arrivals = _numbers(ours_path, ours, "arrival_s")
    metrics = read_text_table(metrics_path, (ID_COLUMN, LATENCY_COLUMN))
    vidur_ids = _numbers(metrics_path, metrics, ID_COLUMN, whole=True)
    known = _series(metrics, vidur_ids < len(ids))
    check_column(metrics_path, metrics, ID_COLUMN, known, f"the exported run has requests 0 to {len(ids) - 1} only")
    first = ~_series(metrics, vidur_ids).duplicated()
    check_column(metrics_path, metrics, ID_COLUMN, first, "a request that is there before")
    missing = np.setdiff1d(np.arange(len(ids)), vidur_ids)
    if len(missing):
        raise InvalidTraceError(
            f"{metrics_path}: {len(missing)} of {len(ids)} requests are missing, the first is {missing[0]}; let Vidur "
            "simulate to the end of the trace"
        )
    positions = vidur_ids.astype(np.int64)
    for theirs, name in TOKEN_COLUMNS.items():
        if theirs in metrics.columns:
            expected = _numbers(ours_path, ours, name, whole=True)[positions]
            same = _series(metrics, _numbers(metrics_path, metrics, theirs, whole=True) == expected)
            hint = f"; {ours_path} has other {name}: is it another run, or did Vidur cut requests (max_tokens)?"
            check_column(metrics_path, metrics, theirs, same, "not the exported request", hint)
    vidur = np.empty(len(ids))
    vidur[positions] = _numbers(metrics_path, metrics, LATENCY_COLUMN, positive=True)
    return LatencyComparison(which, arrivals, latency, vidur)


def _series(raw: pd.DataFrame, values: NDArray[np.generic]) -> pd.Series[bool]:
    import pandas as pd

    return pd.Series(values, index=raw.index)


def _numbers(
    path: str | os.PathLike[str], raw: pd.DataFrame, column: str, *, whole: bool = False, positive: bool = False
) -> NDArray[np.float64]:
    """Return a column as finite numbers >= 0, shape (n,)."""
    import pandas as pd

    numbers = pd.to_numeric(raw[column], errors="coerce").astype(float)
    valid = (numbers >= 0) & (numbers < np.inf)
    if whole:
        valid &= numbers % 1 == 0
    if positive:
        valid &= numbers > 0
    check_column(path, raw, column, valid, f"not a {'whole ' if whole else ''}number {'> 0' if positive else '>= 0'}")
    return np.asarray(numbers, dtype=np.float64)
