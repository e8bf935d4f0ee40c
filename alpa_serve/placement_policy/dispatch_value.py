"""The most valuable requests to send to a group that drops only what it cannot serve in time, compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.simulator.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray


@compiled
def best_dispatch(
    arrivals: NDArray[np.float64],
    entered: NDArray[np.float64],
    work: NDArray[np.float64],
    latest: NDArray[np.float64],
    rounding: float,
    price: NDArray[np.float64],
    model_ids: NDArray[np.int32],
    held: NDArray[np.bool_],
    max_states: int,
    selected: NDArray[np.bool_],
) -> float:
    """Return an upper bound on the value of the requests that are sent to a group.

    Requests come in their order, and each is sent to the group or not. One that is sent is worth ``1 - price[i]`` and
    passes the stages if it is done by ``latest[i]``; otherwise it is dropped and worth ``-price[i]``.

    Parameters
    ----------
    arrivals : ndarray of float64, shape (n,)
        Seconds.
    entered : ndarray of float64, shape (num_stages,)
        Seconds from the arrival of a request until it enters each stage, at least.
    work : ndarray of float64, shape (n, num_stages)
        Seconds on each stage.
    latest : ndarray of float64, shape (n,)
        Seconds.
    rounding : float
        Seconds by which the end of a stage and a deadline may be off.
    price : ndarray of float64, shape (n,)
    model_ids : ndarray of int32, shape (n,)
    held : ndarray of bool, shape (num_models,)
        Which models' requests can be sent.
    max_states : int
        How many states to tell apart.
    selected : ndarray of bool, shape (n,)
        Written: the requests sent in a selection of about the returned value.

    Notes
    -----
    Dynamic programming. A state is the highest value of all ways to get to stage clocks between two limits. What is
    possible for some clocks between them counts as possible: a request is served in time if the lower ones allow
    it, and dropped if the upper ones do. States whose limits are close are merged where there are too many. None is
    left out for being busier than another: a busier group may drop what an idler one would have to serve.
    """
    n, num_stages = work.shape
    size = 2 * max_states + 4
    lower, upper = np.empty((size, num_stages)), np.empty((size, num_stages))
    value, last = np.empty(size), np.empty(size, np.int64)
    next_lower, next_upper = np.empty((size, num_stages)), np.empty((size, num_stages))
    next_value, next_last = np.empty(size), np.empty(size, np.int64)
    served_lower, served_upper = np.empty((size, num_stages)), np.empty((size, num_stages))
    served_value, served_last = np.empty(size), np.empty(size, np.int64)
    # the selections as chains: link -> (request, link before)
    chain_request, chain_before = np.empty(1024, np.int64), np.empty(1024, np.int64)
    num_links = 0
    num_states = 1
    lower[0], upper[0], value[0], last[0] = -np.inf, -np.inf, 0.0, -1
    for i in range(n):
        selected[i] = False
        if not held[model_ids[i]]:
            continue
        # all states in which the stages are idle when a request could enter them are one
        idle = -1
        count = 0
        for s in range(num_states):
            is_idle = True
            for k in range(num_stages):
                if upper[s, k] > arrivals[i] + entered[k]:
                    is_idle = False
                    break
            if is_idle and idle >= 0:
                if value[s] > value[idle]:
                    value[idle], last[idle] = value[s], last[s]
                continue
            if is_idle:
                idle = count
            lower[count], upper[count], value[count], last[count] = lower[s], upper[s], value[s], last[s]
            count += 1
        num_states = count
        if num_states == 1:
            # its selection is final
            link = last[0]
            while link >= 0:
                selected[chain_request[link]] = True
                link = chain_before[link]
            last[0], num_links = -1, 0
        while num_links + 2 * num_states > len(chain_request):
            chain_request = np.concatenate((chain_request, np.empty_like(chain_request)))
            chain_before = np.concatenate((chain_before, np.empty_like(chain_before)))
        num_served = 0
        for s in range(num_states):
            soonest = latest_end = arrivals[i]
            for k in range(num_stages):
                soonest = max(soonest, lower[s, k]) + work[i, k] - rounding
                latest_end = max(latest_end, upper[s, k]) + work[i, k] + rounding
                served_lower[num_served, k], served_upper[num_served, k] = soonest, latest_end
            if soonest <= latest[i] + rounding:
                served_upper[num_served, num_stages - 1] = min(latest_end, latest[i] + rounding)
                served_value[num_served] = value[s] + (1.0 - price[i])
                chain_request[num_links], chain_before[num_links] = i, last[s]
                served_last[num_served] = num_links
                num_links += 1
                num_served += 1
            if latest_end > latest[i] - rounding and price[i] < 0.0:
                value[s] -= price[i]
                chain_request[num_links], chain_before[num_links] = i, last[s]
                last[s] = num_links
                num_links += 1
        # both lists by the end of the last stage
        left, right, count = 0, 0, 0
        while left < num_states or right < num_served:
            if right == num_served or (
                left < num_states and lower[left, num_stages - 1] <= served_lower[right, num_stages - 1]
            ):
                next_lower[count], next_upper[count] = lower[left], upper[left]
                next_value[count], next_last[count] = value[left], last[left]
                left += 1
            else:
                next_lower[count], next_upper[count] = served_lower[right], served_upper[right]
                next_value[count], next_last[count] = served_value[right], served_last[right]
                right += 1
            count += 1
        cell = 0.0
        start = arrivals[i]
        if count > max_states:
            start = max(start, next_lower[0, num_stages - 1])
            cell = (next_lower[count - 1, num_stages - 1] - start) / max_states
        merged = 0
        cell_start = max(next_lower[0, num_stages - 1], start)
        for s in range(1, count):
            far = next_lower[s, num_stages - 1] - cell_start >= cell
            if far and count <= max_states:
                # few enough: only equal ones are one
                far = False
                for k in range(num_stages):
                    apart = abs(next_lower[s, k] - next_lower[merged, k]) > 2 * n * rounding
                    if apart and max(next_lower[s, k], next_lower[merged, k]) > start:
                        far = True
                        break
            if far:
                merged += 1
                cell_start = next_lower[s, num_stages - 1]
                next_lower[merged], next_upper[merged] = next_lower[s], next_upper[s]
                next_value[merged], next_last[merged] = next_value[s], next_last[s]
                continue
            for k in range(num_stages):
                next_lower[merged, k] = min(next_lower[merged, k], next_lower[s, k])
                next_upper[merged, k] = max(next_upper[merged, k], next_upper[s, k])
            if next_value[s] > next_value[merged]:
                next_value[merged], next_last[merged] = next_value[s], next_last[s]
        num_states = merged + 1
        lower, next_lower = next_lower, lower
        upper, next_upper = next_upper, upper
        value, next_value = next_value, value
        last, next_last = next_last, last
    best = int(np.argmax(value[:num_states]))
    link = last[best]
    while link >= 0:
        selected[chain_request[link]] = True
        link = chain_before[link]
    return float(value[best])
