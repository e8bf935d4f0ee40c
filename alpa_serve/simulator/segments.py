"""Cutting a workload where placements take over from one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alpa_serve.placement import ModelPlacement, ModelPlacementWithReplacement

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alpa_serve.placement import Placement


class Segment(NamedTuple):
    """The requests that one placement serves.

    Attributes
    ----------
    placement : ModelPlacement
    since : float
        Seconds from which on its groups are there; 0 for the first.
    first, past : int
        Requests `first` to `past` - 1, possibly none.
    """

    placement: ModelPlacement
    since: float
    first: int
    past: int


def segments(placement: Placement, arrivals: NDArray[np.float64]) -> list[Segment]:
    """Return the segments of requests with these arrivals (seconds, ascending); one at a start time begins with it."""
    if not isinstance(placement, ModelPlacementWithReplacement):
        return [Segment(placement, 0.0, 0, len(arrivals))]
    # the first placement serves what comes before its start time, too
    starts = [0.0, *placement.start_times[1:]]
    cuts = [0, *np.searchsorted(arrivals, placement.start_times[1:], side="left").tolist(), len(arrivals)]
    return [Segment(*parts) for parts in zip(placement.placements, starts, cuts[:-1], cuts[1:], strict=True)]
