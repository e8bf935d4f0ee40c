"""Which requests a group takes together: a plain function on numbers and sequences.

As those of :mod:`~alpa_serve.scheduling.stage_clocks` it runs as it is, on lists, in the runtime, and compiled, on
arrays, in the fast simulator. Times are seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alpa_serve.scheduling.stage_clocks import Sequence


def largest_batch(
    begin: float,
    clocks: Sequence,
    latency: Sequence,
    num_stages: int,
    batch_sizes: Sequence,
    num_waiting: int,
    sent: float,
    slo: float,
) -> int:
    """Return which batch size a queue is served with, or -1 if its head must be dropped.

    The head is dropped if it would miss its deadline even alone and at once. Otherwise the largest batch size is taken
    that the queue fills and that still meets the head's deadline; those behind it may miss theirs.

    Parameters
    ----------
    begin : float
        When the batch would begin on the first stage, or later if that is busy.
    clocks : sequence of float
        Per stage of the group, until when it is busy.
    latency : sequence of sequence of float
        Seconds on each stage, per batch size.
    num_stages : int
        Stages of the model, at most as many as there are clocks.
    batch_sizes : sequence of int
        Ascending, the first is 1.
    num_waiting : int
        Length of the queue, at least 1.
    sent, slo : float
        Of the head: when it was sent, and the seconds from then within which it is wanted; infinity for no deadline.

    Returns
    -------
    int
        Index into `batch_sizes`, or -1.
    """
    alone = begin
    for k in range(num_stages):
        alone = max(alone, clocks[k]) + latency[0][k]
    if alone - sent > slo:
        return -1
    for batch in range(len(batch_sizes) - 1, 0, -1):
        if batch_sizes[batch] <= num_waiting:
            end = begin
            for k in range(num_stages):
                end = max(end, clocks[k]) + latency[batch][k]
            if end - sent <= slo:
                return batch
    return 0
