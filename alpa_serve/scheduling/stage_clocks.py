"""How one request is dispatched, admitted and timed: plain functions on numbers and sequences.

They run as they are, on lists, in :class:`~alpa_serve.scheduling.scheduler.Scheduler`, and compiled, on arrays, in the
fast simulator. A group has a clock per stage, the time until which its admitted work keeps that stage busy, and
`busy_until`, the same for the whole group. Times are seconds.
"""

from __future__ import annotations

from typing import Any

Sequence = Any
"""A list or an array of one dimension; numba takes no abstract types."""


def choose_replica(busy_until: Sequence, replica_group: Sequence, first: int, past: int, draw: float) -> int:
    """Return which of the replicas `first` to `past` - 1 takes a request.

    Parameters
    ----------
    busy_until : sequence of float
        Per group.
    replica_group : sequence of int
        Group of each replica.
    first, past : int
        The replicas of the request's model, in the order of their groups; at least one.
    draw : float
        Uniform on [0, 1) for random dispatch; negative to take the group that is free first, on a tie the first.
    """
    if draw >= 0.0:
        return first + int(draw * (past - first))
    chosen = first
    earliest = busy_until[replica_group[first]]
    for replica in range(first + 1, past):
        until = busy_until[replica_group[replica]]
        if until < earliest:
            chosen = replica
            earliest = until
    return chosen


def ready_at(arrival: float, free_at: float) -> float:
    """Return when a request could begin, were it alone in its queue.

    Parameters
    ----------
    arrival : float
    free_at : float
        When the first stage of its group (under exclusive execution, the whole group) is free.
    """
    return max(arrival, free_at)


def begin_in_queue(ready: float, last_begin: float, dispatch_interval: float) -> float:
    """Return when a request begins that is ready at `ready` and follows one that begins at `last_begin` (0 if none)."""
    return max(ready, last_begin) + dispatch_interval


def after_stalls(begin: float, stall_starts: Sequence, stall_ends: Sequence) -> float:
    """Return `begin`, or the end of the period during which nothing begins that it lies in; periods ascend."""
    for k in range(len(stall_starts)):
        if stall_starts[k] <= begin < stall_ends[k]:
            begin = stall_ends[k]
    return begin


def run_stages(
    begin: float, clocks: Sequence, latency: Sequence, num_stages: int, extra: float, ends: Sequence
) -> float:
    """Write to `ends` when each stage is done with a request that begins at `begin`; return the last.

    Parameters
    ----------
    begin : float
    clocks : sequence of float
        Per stage of the group.
    latency : sequence of float
        Seconds on each stage.
    num_stages : int
    extra : float
        Seconds to add on each stage.
    ends : sequence of float
        At least `num_stages` long.
    """
    end = begin
    for k in range(num_stages):
        end = max(end, clocks[k]) + (latency[k] + extra)
        ends[k] = end
    return end


def commit(clocks: Sequence, ends: Sequence, num_stages: int, exclusive: bool) -> None:
    """Keep the stages busy with an admitted request until `ends`; all until the last under exclusive execution."""
    for k in range(num_stages):
        clocks[k] = ends[num_stages - 1] if exclusive else ends[k]
