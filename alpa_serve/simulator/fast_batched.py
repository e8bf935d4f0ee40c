"""The fast simulator with batching: queues per model, batches taken when a group's first stage is idle, compiled."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.scheduling import batching
from alpa_serve.simulator.compiled import compiled, inlined

if TYPE_CHECKING:
    from numpy.typing import NDArray

_largest_batch = inlined(batching.largest_batch)


@compiled
def simulate_batched(
    arrivals: NDArray[np.float64],
    model_ids: NDArray[np.int32],
    slos: NDArray[np.float64],
    model_start: NDArray[np.int64],
    replica_group: NDArray[np.int64],
    replica_stages: NDArray[np.int64],
    replica_latency: NDArray[np.float64],
    num_groups: int,
    batch_sizes: NDArray[np.int64],
    overhead: float,
    finish: NDArray[np.float64],
    good: NDArray[np.bool_],
    group: NDArray[np.int32],
) -> None:
    """Serve the requests in batches and write how each fared.

    Parameters
    ----------
    arrivals, model_ids, slos : ndarray, shape (n,)
        As in :class:`~alpa_serve.simulator.problem.RequestTable`.
    model_start, replica_group, replica_stages, replica_latency : ndarray
        As in :class:`~alpa_serve.simulator.problem.ReplicaTable`.
    num_groups : int
    batch_sizes : ndarray of int64, shape (num_batch_sizes,)
        Ascending, the first is 1.
    overhead : float
        Seconds from taking a batch to its start.
    finish, good, group : ndarray, shape (n,)
        Written for the requests that were taken or dropped by a group. A batch finishes together; a dropped request
        keeps its `finish`.
    """
    num_models = len(model_start) - 1
    clocks = np.zeros((num_groups, replica_latency.shape[2]))
    last_clock = np.zeros(num_groups)
    replicas_by_group = np.argsort(replica_group, kind="mergesort")
    group_start = np.searchsorted(replica_group[replicas_by_group], np.arange(num_groups + 1))
    replica_model = np.empty(len(replica_group), np.int64)
    for model in range(num_models):
        replica_model[model_start[model] : model_start[model + 1]] = model
    # the queue of a model is a chain of requests from head to tail; -1 ends it
    following = np.full(len(arrivals), -1, np.int64)
    head = np.full(num_models, -1, np.int64)
    tail = np.full(num_models, -1, np.int64)
    length = np.zeros(num_models, np.int64)
    idle_events = [(0.0, -1)]
    idle_events.pop()
    i = 0
    while i < len(arrivals) or len(idle_events) > 0:
        if len(idle_events) > 0 and (i == len(arrivals) or idle_events[0][0] <= arrivals[i]):
            now, chosen = heapq.heappop(idle_events)
            if clocks[chosen, 0] > now:
                continue
            first_choice = -1
        else:
            now = arrivals[i]
            model = model_ids[i]
            i += 1
            if model < 0 or model_start[model] == model_start[model + 1]:
                continue
            if head[model] < 0:
                head[model] = i - 1
            else:
                following[tail[model]] = i - 1
            tail[model] = i - 1
            length[model] += 1
            first_choice = model_start[model]
            for other in range(model_start[model] + 1, model_start[model + 1]):
                if last_clock[replica_group[other]] < last_clock[replica_group[first_choice]]:
                    first_choice = other
            chosen = replica_group[first_choice]
            if clocks[chosen, 0] > now:
                continue
        # the group's first stage is idle: it takes one batch, if any model that it holds has one
        while True:
            replica = first_choice
            first_choice = -1
            if replica < 0:
                for k in range(group_start[chosen], group_start[chosen + 1]):
                    candidate = replicas_by_group[k]
                    oldest = head[replica_model[candidate]]
                    if oldest >= 0 and (replica < 0 or oldest < head[replica_model[replica]]):
                        replica = candidate
                if replica < 0:
                    break
            model = replica_model[replica]
            num_stages = replica_stages[replica]
            batch_id = -1
            while head[model] >= 0:
                request = head[model]
                batch_id = _largest_batch(
                    now + overhead,
                    clocks[chosen],
                    replica_latency[replica],
                    num_stages,
                    batch_sizes,
                    length[model],
                    arrivals[request],
                    slos[request],
                )
                if batch_id >= 0:
                    break
                group[request] = chosen
                head[model] = following[request]
                length[model] -= 1
            if batch_id < 0:
                continue
            end = now + overhead
            for k in range(num_stages):
                end = max(end, clocks[chosen, k]) + replica_latency[replica, batch_id, k]
                clocks[chosen, k] = end
            last_clock[chosen] = end
            for _ in range(batch_sizes[batch_id]):
                request = head[model]
                group[request] = chosen
                finish[request] = end
                good[request] = end - arrivals[request] <= slos[request]
                head[model] = following[request]
            length[model] -= batch_sizes[batch_id]
            heapq.heappush(idle_events, (clocks[chosen, 0], chosen))
            break
