"""The most valuable requests that one group can serve in time, first come first served, compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.simulator.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray


@compiled
def best_selection(
    idle_until: NDArray[np.float64],
    ready: NDArray[np.float64],
    work: NDArray[np.float64],
    latest: NDArray[np.float64],
    price: NDArray[np.float64],
    model_ids: NDArray[np.int32],
    held: NDArray[np.bool_],
    serves_late: bool,
    max_states: int,
    selected: NDArray[np.bool_],
) -> float:
    """Return an upper bound on the value of the requests that a machine can serve; exact if `max_states` suffices.

    The machine takes requests in their order, one at a time, each or not. Request i occupies it for ``work[i]`` seconds
    from ``ready[i]`` on or later, and is worth ``1 - price[i]`` if it is done by ``latest[i]``. One that is done later
    is worth ``-price[i]``, and is taken only if `serves_late`.

    Parameters
    ----------
    idle_until : ndarray of float64, shape (n,)
        Seconds before which neither request i nor any after it is ready.
    ready, work, latest : ndarray of float64, shape (n,)
        Seconds.
    price : ndarray of float64, shape (n,)
    model_ids : ndarray of int32, shape (n,)
    held : ndarray of bool, shape (num_models,)
        Which models' requests it can take.
    serves_late : bool
    max_states : int
        How many states to tell apart.
    selected : ndarray of bool, shape (n,)
        Written: the requests taken in a selection of the returned value, if that is exact.

    Notes
    -----
    Dynamic programming over the requests. A state is (time until which the machine is busy, value so far); one
    is kept unless another is free no later and worth no less. When there are more than `max_states`, those whose times
    lie close together become one of the earliest time and the highest value, which no selection can exceed.
    """
    n = len(ready)
    size = 2 * max_states + 4
    clock, value, last = np.empty(size), np.empty(size), np.empty(size, np.int64)
    new_clock, new_value, new_last = np.empty(size), np.empty(size), np.empty(size, np.int64)
    # the selections as chains: link -> (request, link before)
    chain_request, chain_before = np.empty(1024, np.int64), np.empty(1024, np.int64)
    num_links = 0
    num_states = 1
    clock[0], value[0], last[0] = -np.inf, 0.0, -1
    for i in range(n):
        selected[i] = False
        if not held[model_ids[i]]:
            continue
        on_time, late = 1.0 - price[i], -price[i]
        takes_late = serves_late and late > 0.0
        if on_time <= 0.0:
            continue
        # states in which the machine is idle by now differ in value only: the last one is worth most
        first = 0
        while first + 1 < num_states and clock[first + 1] <= idle_until[i]:
            first += 1
        if first + 1 == num_states:
            # one state left: its selection is final
            link = last[first]
            while link >= 0:
                selected[chain_request[link]] = True
                link = chain_before[link]
            last[first], num_links = -1, 0
        taken = first
        while taken + 1 < num_states and clock[taken + 1] <= ready[i]:
            taken += 1
        count = 0
        best = -1.0
        kept = first
        while True:
            end = np.inf
            worth = on_time
            if taken < num_states:
                end = max(clock[taken], ready[i]) + work[i]
                if end > latest[i]:
                    worth = late
                    if not takes_late:
                        taken = num_states
                        end = np.inf
            if kept < num_states and (taken == num_states or clock[kept] <= end):
                if value[kept] > best:
                    best = value[kept]
                    new_clock[count], new_value[count], new_last[count] = clock[kept], best, last[kept]
                    count += 1
                kept += 1
            elif taken < num_states:
                if value[taken] + worth > best:
                    best = value[taken] + worth
                    if num_links == len(chain_request):
                        longer_request, longer_before = (
                            np.empty(2 * num_links, np.int64),
                            np.empty(2 * num_links, np.int64),
                        )
                        longer_request[:num_links], longer_before[:num_links] = chain_request, chain_before
                        chain_request, chain_before = longer_request, longer_before
                    chain_request[num_links], chain_before[num_links] = i, last[taken]
                    if count > 0 and new_clock[count - 1] == end:
                        count -= 1
                    new_clock[count], new_value[count], new_last[count] = end, best, num_links
                    count += 1
                    num_links += 1
                taken += 1
            else:
                break
        if count > max_states:
            start = max(new_clock[0], idle_until[i])
            cell = (new_clock[count - 1] - start) / max_states
            merged = 0
            for k in range(1, count):
                if new_clock[k] - max(new_clock[merged], start) >= cell:
                    merged += 1
                    new_clock[merged] = new_clock[k]
                new_value[merged], new_last[merged] = new_value[k], new_last[k]
            count = merged + 1
        clock, new_clock = new_clock, clock
        value, new_value = new_value, value
        last, new_last = new_last, last
        num_states = count
    link = last[num_states - 1]
    while link >= 0:
        selected[chain_request[link]] = True
        link = chain_before[link]
    return float(value[num_states - 1])
