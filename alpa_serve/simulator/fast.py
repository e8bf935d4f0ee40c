"""The fast simulator: one pass over the requests in the order of their arrivals, compiled.

A request goes to the group, among those that hold its model, whose last stage is free first, and is served there
unless it would miss its SLO. Nothing is random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.simulator.compiled import compiled
from alpa_serve.simulator.fast_batched import simulate_batched

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alpa_serve.simulator.problem import ReplicaTable, RequestTable

FIXED_OVERHEAD_S = 0.011
"""Seconds that every request spends outside the stages (AlpaServe's measured overhead)."""


@dataclass(frozen=True)
class RequestOutcomes:
    """How each request fared, arrays of shape (n,).

    Attributes
    ----------
    finish : ndarray of float64
        Seconds; the arrival for a request that was not served.
    good : ndarray of bool
        Whether it met its SLO.
    group : ndarray of int32
        The group it was sent to; -1 if none holds its model.
    """

    finish: NDArray[np.float64]
    good: NDArray[np.bool_]
    group: NDArray[np.int32]


@dataclass(frozen=True)
class Counts:
    """What a simulation adds up to.

    Attributes
    ----------
    model_num_good : ndarray of int64, shape (num_models,)
        Requests that met their SLO.
    model_latency : ndarray of float64, shape (num_models,)
        Seconds over all served requests; a dropped one adds 0.
    group_num_requests : ndarray of int64, shape (num_groups,)
        Requests sent to each group.
    """

    model_num_good: NDArray[np.int64]
    model_latency: NDArray[np.float64]
    group_num_requests: NDArray[np.int64]


def simulate_counts(requests: RequestTable, replicas: ReplicaTable) -> Counts:
    """Simulate and only count, without figures per request."""
    return _run(requests, replicas, RequestOutcomes(np.empty(0), np.empty(0, np.bool_), np.empty(0, np.int32)))


def simulate_requests(
    requests: RequestTable, replicas: ReplicaTable, batch_sizes: tuple[int, ...] | None = None
) -> tuple[RequestOutcomes, Counts]:
    """Simulate and return how each request fared.

    Parameters
    ----------
    requests : RequestTable
    replicas : ReplicaTable
    batch_sizes : tuple of int, optional
        Ascending from 1, those of ``replicas.latency``; simulate batching with them. One request at a time if left
        out.
    """
    n = len(requests)
    outcomes = RequestOutcomes(requests.arrivals.copy(), np.zeros(n, np.bool_), np.full(n, -1, np.int32))
    if batch_sizes is None:
        return outcomes, _run(requests, replicas, outcomes)
    simulate_batched(
        requests.arrivals,
        requests.model_ids,
        requests.slos,
        replicas.model_start,
        replicas.group,
        replicas.num_stages,
        replicas.latency,
        replicas.num_groups,
        np.array(batch_sizes, dtype=np.int64),
        FIXED_OVERHEAD_S,
        outcomes.finish,
        outcomes.good,
        outcomes.group,
    )
    num_models = len(requests.model_num_requests)
    known = requests.model_ids >= 0
    return outcomes, Counts(
        np.bincount(requests.model_ids[known & outcomes.good], minlength=num_models),
        np.bincount(
            requests.model_ids[known], weights=(outcomes.finish - requests.arrivals)[known], minlength=num_models
        ).astype(np.float64),
        np.bincount(outcomes.group[outcomes.group >= 0], minlength=replicas.num_groups),
    )


def _run(requests: RequestTable, replicas: ReplicaTable, outcomes: RequestOutcomes) -> Counts:
    num_models = len(requests.model_num_requests)
    counts = Counts(np.zeros(num_models, np.int64), np.zeros(num_models), np.zeros(replicas.num_groups, np.int64))
    _simulate(
        requests.arrivals,
        requests.model_ids,
        requests.slos,
        replicas.model_start,
        replicas.group,
        replicas.num_stages,
        replicas.latency,
        FIXED_OVERHEAD_S,
        counts.model_num_good,
        counts.model_latency,
        counts.group_num_requests,
        outcomes.finish,
        outcomes.good,
        outcomes.group,
    )
    return counts


@compiled
def _simulate(
    arrivals: NDArray[np.float64],
    model_ids: NDArray[np.int32],
    slos: NDArray[np.float64],
    model_start: NDArray[np.int64],
    replica_group: NDArray[np.int64],
    replica_stages: NDArray[np.int64],
    replica_latency: NDArray[np.float64],
    overhead: float,
    model_num_good: NDArray[np.int64],
    model_latency: NDArray[np.float64],
    group_num_requests: NDArray[np.int64],
    finish: NDArray[np.float64],
    good: NDArray[np.bool_],
    group: NDArray[np.int32],
) -> None:
    """Serve the requests one after the other, adding to the counts; figures per request if `finish` is not empty."""
    record = len(finish) > 0
    max_stages = replica_latency.shape[2]
    clocks = np.zeros((len(group_num_requests), max_stages))
    last_clock = np.zeros(len(group_num_requests))
    ends = np.empty(max_stages)
    for i in range(len(arrivals)):
        model = model_ids[i]
        if model < 0:
            continue
        first, past = model_start[model], model_start[model + 1]
        if first == past:
            continue
        replica = first
        earliest = last_clock[replica_group[first]]
        for other in range(first + 1, past):
            clock = last_clock[replica_group[other]]
            if clock < earliest:
                replica, earliest = other, clock
        chosen = replica_group[replica]
        num_stages = replica_stages[replica]
        arrival = arrivals[i]
        t = arrival
        for k in range(num_stages):
            t = max(t, clocks[chosen, k]) + replica_latency[replica, 0, k]
            ends[k] = t
        latency = t + overhead - arrival
        group_num_requests[chosen] += 1
        met = latency <= slos[i]
        if met:
            clocks[chosen, :num_stages] = ends[:num_stages]
            last_clock[chosen] = t
            model_num_good[model] += 1
            model_latency[model] += latency
        if record:
            group[i] = chosen
            good[i] = met
            if met:
                finish[i] = t + overhead
