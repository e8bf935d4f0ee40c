"""How a changed placement fares differently from a recorded simulation, and putting that on record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alpa_serve.simulator.compiled import compiled, inlined
from alpa_serve.simulator.recorded import ADMITTED, reserve_entries, with_spare_room
from alpa_serve.simulator.search_problem import num_words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alpa_serve.simulator.groups import Groups
    from alpa_serve.simulator.recorded import Record
    from alpa_serve.simulator.search_problem import SearchProblem

_LAST_TURN = np.int64(2**31 - 1)


class Difference(NamedTuple):
    """How a changed placement fares differently from the record, and what it takes to find out.

    Attributes
    ----------
    change : ndarray of uint8, shape (num_models,)
        What changed for each model.
    changed_models : ndarray of int64, shape (num_models,)
    num_changed : ndarray of int64, shape (1,)
    differs : ndarray of bool, shape (num_slots,)
        Groups whose clocks differ from the record at the moment.
    recorded, actual : ndarray of float64, shape (num_slots, max_stages + 1)
        Clocks of those groups on record and in fact.
    passed : ndarray of int64, shape (num_slots,)
        Requests that each group admitted, on record, up to where it was last looked at.
    num_reasons : ndarray of int32, shape (num_models,)
        Why requests of each model have to be looked at: its groups whose clocks differ, and one more if they changed.
    watched : ndarray of int64, shape (num_words,)
        The models that there is a reason for, as in :attr:`SearchProblem.models_of_block`.
    request : ndarray of int64, shape (n,)
        Requests that fare differently, in the order of their arrivals.
    turn : ndarray of int32, shape (n,)
    group : ndarray of int32, shape (n,)
    flags : ndarray of uint8, shape (n,)
    state : ndarray of float64, shape (n, max_stages + 1)
    length : ndarray of int64, shape (1,)
    model_num_good : ndarray of int64, shape (num_models,)
    model_latency : ndarray of float64, shape (num_models,)
        By how much those figures of the record grow.
    """

    change: NDArray[np.uint8]
    changed_models: NDArray[np.int64]
    num_changed: NDArray[np.int64]
    differs: NDArray[np.bool_]
    recorded: NDArray[np.float64]
    actual: NDArray[np.float64]
    passed: NDArray[np.int64]
    num_reasons: NDArray[np.int32]
    watched: NDArray[np.int64]
    request: NDArray[np.int64]
    turn: NDArray[np.int32]
    group: NDArray[np.int32]
    flags: NDArray[np.uint8]
    state: NDArray[np.float64]
    length: NDArray[np.int64]
    model_num_good: NDArray[np.int64]
    model_latency: NDArray[np.float64]


def make_difference(num_requests: int, num_slots: int, num_models: int, max_stages: int) -> Difference:
    """Return the difference of nothing."""
    return Difference(
        change=np.zeros(num_models, np.uint8),
        changed_models=np.zeros(num_models, np.int64),
        num_changed=np.zeros(1, np.int64),
        differs=np.zeros(num_slots, np.bool_),
        recorded=np.zeros((num_slots, max_stages + 1)),
        actual=np.zeros((num_slots, max_stages + 1)),
        passed=np.zeros(num_slots, np.int64),
        num_reasons=np.zeros(num_models, np.int32),
        watched=np.zeros(num_words(num_models), np.int64),
        request=np.zeros(num_requests, np.int64),
        turn=np.zeros(num_requests, np.int32),
        group=np.zeros(num_requests, np.int32),
        flags=np.zeros(num_requests, np.uint8),
        state=np.zeros((num_requests, max_stages + 1)),
        length=np.zeros(1, np.int64),
        model_num_good=np.zeros(num_models, np.int64),
        model_latency=np.zeros(num_models),
    )


@compiled
def put_on_record(problem: SearchProblem, groups: Groups, record: Record, difference: Difference) -> None:
    """Put a difference on record."""
    stages_of, configs = problem.num_stages, groups.config
    old_groups, all_flags, state = record.group, record.flags, record.state
    requests, turns = difference.request, difference.turn
    new_groups, new_flags, new_state = difference.group, difference.flags, difference.state
    group_num_requests = record.group_num_requests
    columns = state.shape[1]
    length = difference.length[0]
    num_slots = len(record.first_entry)
    # element by element: whole arrays take seconds to compile
    for model in range(len(record.model_num_good)):
        record.model_num_good[model] += difference.model_num_good[model]
        record.model_latency[model] += difference.model_latency[model]
    # entries of the log that go and come, by group
    gone_end = np.zeros(num_slots + 1, np.int64)
    come_end = np.zeros(num_slots + 1, np.int64)
    for k in range(length):
        i = requests[k]
        if all_flags[i] & ADMITTED:
            gone_end[old_groups[i] + 1] += 1
        if new_flags[k] & ADMITTED:
            come_end[new_groups[k] + 1] += 1
    for slot in range(num_slots):
        gone_end[slot + 1] += gone_end[slot]
        come_end[slot + 1] += come_end[slot]
    # each end counts up from the start of its group
    gone_start, come_start = gone_end.copy(), come_end.copy()
    gone = np.empty(gone_end[num_slots], np.int32)
    come = np.empty(come_end[num_slots], np.int32)
    come_busy = np.empty(come_end[num_slots])
    for k in range(length):
        i, slot, flags = requests[k], new_groups[k], new_flags[k]
        old_slot, old_flags = old_groups[i], all_flags[i]
        if old_flags & ADMITTED:
            gone[gone_end[old_slot]] = turns[k]
            gone_end[old_slot] += 1
        if flags & ADMITTED:
            for column in range(columns):
                state[i, column] = new_state[k, column]
            come[come_end[slot]] = turns[k]
            come_busy[come_end[slot]] = new_state[k, stages_of[configs[slot]] - 1]
            come_end[slot] += 1
        if old_slot >= 0:
            group_num_requests[old_slot] -= 1
        if slot >= 0:
            group_num_requests[slot] += 1
        old_groups[i] = slot
        all_flags[i] = flags
    most = 0
    for slot in range(num_slots):
        most = max(most, record.num_entries[slot])
    most += length
    new_turn, new_busy = np.empty(most, np.int32), np.empty(most)
    for slot in range(num_slots):
        g, g_end, c, c_end = gone_start[slot], gone_end[slot], come_start[slot], come_end[slot]
        if g < g_end or c < c_end:
            _rewrite_entries(record, slot, gone, g, g_end, come, come_busy, c, c_end, new_turn, new_busy)


@compiled
def _rewrite_entries(
    record: Record,
    slot: int,
    gone: NDArray[np.int32],
    g: int,
    gone_end: int,
    come: NDArray[np.int32],
    come_busy: NDArray[np.float64],
    c: int,
    come_end: int,
    new_turn: NDArray[np.int32],
    new_busy: NDArray[np.float64],
) -> None:
    """Change the log of a group, without the turns gone[g:gone_end] and with those in come[c:come_end].

    It is written to `new_turn` and `new_busy` from the first change on, then back: the log stays small enough for
    the caches.
    """
    log_turn, log_busy = record.log_turn, record.log_busy
    number = record.num_entries[slot] - (gone_end - g) + (come_end - c)
    source = record.first_entry[slot]
    end = source + record.num_entries[slot]
    same = -1
    k = 0
    while g < gone_end or c < come_end:
        next_gone = gone[g] if g < gone_end else _LAST_TURN
        next_come = come[c] if c < come_end else _LAST_TURN
        until = min(next_gone, next_come)
        kept = _first_from(log_turn, source, end, int(until)) - source
        if same < 0:
            same = kept
        else:
            for j in range(kept):
                new_turn[k + j] = log_turn[source + j]
            for j in range(kept):
                new_busy[k + j] = log_busy[source + j]
            k += kept
        source += kept
        if next_gone == until:
            source += 1
            g += 1
        if next_come == until:
            new_turn[k] = next_come
            new_busy[k] = come_busy[c]
            c += 1
            k += 1
    rest = end - source
    for j in range(rest):
        new_turn[k + j] = log_turn[source + j]
    for j in range(rest):
        new_busy[k + j] = log_busy[source + j]
    k += rest
    if number > record.room[slot]:
        to = reserve_entries(record, slot, with_spare_room(number))
        first = record.first_entry[slot]
        for j in range(same):
            log_turn[to + j] = log_turn[first + j]
        for j in range(same):
            log_busy[to + j] = log_busy[first + j]
        record.first_entry[slot] = to
    to = record.first_entry[slot] + same
    for j in range(k):
        log_turn[to + j] = new_turn[j]
    for j in range(k):
        log_busy[to + j] = new_busy[j]
    record.num_entries[slot] = number


@inlined
def _first_from(log_turn: NDArray[np.int32], start: Any, end: Any, turn: int) -> Any:
    """Return the first of the entries `start` to `end` - 1 whose turn is not before `turn`; likely an early one."""
    low = start
    step = 1
    while low + step <= end and log_turn[low + step - 1] < turn:
        low += step
        step *= 2
    high = min(low + step - 1, end)
    while low < high:
        middle = (low + high) // 2
        if log_turn[middle] < turn:
            low = middle + 1
        else:
            high = middle
    return low
