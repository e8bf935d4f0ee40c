"""A simulation whose every step is on record, so that a change of the placement costs what it changes.

The record says for each request where it went and how it left its group's clocks, and for each group which requests it
admitted, so that the state of any group at any time is found in a few steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alpa_serve.scheduling import stage_clocks
from alpa_serve.simulator import fast
from alpa_serve.simulator.compiled import compiled, inlined

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alpa_serve.simulator.groups import Groups
    from alpa_serve.simulator.search_problem import SearchProblem

ADMITTED, MET, TIED = 1, 2, 4
"""Flags of a request: it was served; it met its SLO; its choice among replicas was decided by their rank."""

_LOG_PER_REQUEST = 4
"""Room in the log: two parts for the entries of groups while requests move from one to another, and the rest so that
it is not full all the time."""


class Record(NamedTuple):
    """What happened to each request under the placement of the moment, and what it adds up to.

    Attributes
    ----------
    group : ndarray of int32, shape (n,)
        By request: slot that each was sent to; -1 if its model has no replica.
    flags : ndarray of uint8, shape (n,)
        By request.
    state : ndarray of float64, shape (n, max_stages + 1)
        By request, seconds: the stage clocks of its group after an admitted request, and when it began.
    first_entry, num_entries : ndarray of int64, shape (num_slots,)
        The admitted requests of a group are entries first_entry to first_entry + num_entries - 1 of the log.
    room : ndarray of int64, shape (num_slots,)
        Entries that each group may have without moving to another part of the log.
    log_turn : ndarray of int32, shape (log_size,)
        Their turns, ascending for a group.
    log_busy : ndarray of float64, shape (log_size,)
        Seconds: when the group is done with them.
    log_end : ndarray of int64, shape (1,)
        Entries that were ever written; those that no group refers to are reclaimed when the log is full.
    model_num_good : ndarray of int64, shape (num_models,)
    model_latency : ndarray of float64, shape (num_models,)
        Seconds, summed over the served requests, each rounded by :func:`~.fast.rounded_seconds`.
    group_num_requests : ndarray of int64, shape (num_slots,)
    """

    group: NDArray[np.int32]
    flags: NDArray[np.uint8]
    state: NDArray[np.float64]
    first_entry: NDArray[np.int64]
    num_entries: NDArray[np.int64]
    room: NDArray[np.int64]
    log_turn: NDArray[np.int32]
    log_busy: NDArray[np.float64]
    log_end: NDArray[np.int64]
    model_num_good: NDArray[np.int64]
    model_latency: NDArray[np.float64]
    group_num_requests: NDArray[np.int64]


def make_record(num_requests: int, num_slots: int, num_models: int, max_stages: int) -> Record:
    """Return the record of a simulation without any replica."""
    log_size = _LOG_PER_REQUEST * num_requests
    return Record(
        group=np.full(num_requests, -1, np.int32),
        flags=np.zeros(num_requests, np.uint8),
        state=np.zeros((num_requests, max_stages + 1)),
        first_entry=np.zeros(num_slots, np.int64),
        num_entries=np.zeros(num_slots, np.int64),
        room=np.zeros(num_slots, np.int64),
        log_turn=np.zeros(log_size, np.int32),
        log_busy=np.zeros(log_size),
        log_end=np.zeros(1, np.int64),
        model_num_good=np.zeros(num_models, np.int64),
        model_latency=np.zeros(num_models),
        group_num_requests=np.zeros(num_slots, np.int64),
    )


rounded_seconds = inlined(fast.rounded_seconds)
_ready_at = inlined(stage_clocks.ready_at)
_begin_in_queue = inlined(stage_clocks.begin_in_queue)
_run_stages = inlined(stage_clocks.run_stages)


@inlined
def time_request(
    arrival: float,
    extra: float,
    clocks: NDArray[np.float64],
    last_begin: float,
    latency: NDArray[np.float64],
    num_stages: int,
    exclusive: bool,
    in_queue: bool,
    dispatch_interval: float,
    idle_after: float,
    idle_penalty: float,
    ends: NDArray[np.float64],
) -> float:
    """Write to `ends` when each stage would be done with a request; return when it would begin.

    Parameters
    ----------
    arrival, extra : float
        Seconds; `extra` is added on each stage.
    clocks : ndarray of float64
        Of its group.
    last_begin : float
        When the request before it in its queue began.
    latency : ndarray of float64
        Seconds per stage.
    num_stages : int
    exclusive, in_queue : bool
        Whether it needs the whole group, and whether its begin depends on `last_begin`.
    dispatch_interval, idle_after, idle_penalty : float
        Seconds, of the rules.
    ends : ndarray of float64
    """
    busy_until = clocks[num_stages - 1]
    begin = _ready_at(arrival, busy_until if exclusive else clocks[0])
    if in_queue:
        begin = _begin_in_queue(begin, last_begin, dispatch_interval)
    if begin - busy_until > idle_after:
        extra += idle_penalty
    end = _run_stages(begin, clocks, latency, num_stages, extra, ends)
    if exclusive:
        for k in range(num_stages):
            ends[k] = end
    return begin


@inlined
def token_seconds(
    input_rate: float, further_rate: float, input_tokens: NDArray[np.int64], output_tokens: NDArray[np.int64], i: int
) -> float:
    """Return the seconds that the tokens of request `i` take on each stage."""
    return float(input_rate * input_tokens[i] + further_rate * max(output_tokens[i] - 1, 0))


@compiled
def record_all(problem: SearchProblem, groups: Groups, record: Record) -> None:
    """Simulate all requests under rules that give each group its own queue, and put everything on record."""
    # fields are looked up once, and rows copied rather than sliced: both cost reference counts
    kind = problem.kind
    by_turn, model_by_turn = problem.by_turn, problem.model_by_turn
    arrivals, slos, draws = problem.arrivals, problem.slos, problem.draws
    input_tokens, output_tokens, token_rates = problem.input_tokens, problem.output_tokens, problem.token_rates
    profile, stages_of = problem.latency, problem.num_stages
    configs, slots, num_replicas = groups.config, groups.slots, groups.num_replicas
    group, all_flags, state = record.group, record.flags, record.state
    first_entry, num_entries = record.first_entry, record.num_entries
    log_turn, log_busy = record.log_turn, record.log_busy
    model_num_good, model_latency = record.model_num_good, record.model_latency
    group_num_requests = record.group_num_requests
    columns = state.shape[1]
    clocks = np.zeros((len(configs), columns))
    before = np.empty(columns)
    ends = np.empty(columns)
    latency_here = np.empty(columns)
    num_entries[:] = 0
    model_num_good[:] = 0
    model_latency[:] = 0.0
    group_num_requests[:] = 0
    for turn in range(len(by_turn)):
        i = by_turn[turn]
        model = model_by_turn[turn]
        count = num_replicas[model]
        group[i] = -1
        all_flags[i] = 0
        if count == 0:
            continue
        flags = 0
        slot = slots[model, 0]
        if kind.at_random:
            slot = slots[model, int(draws[i] * count)]
        elif count > 1:
            earliest = clocks[slot, stages_of[configs[slot]] - 1]
            for k in range(1, count):
                other = slots[model, k]
                until = clocks[other, stages_of[configs[other]] - 1]
                if until < earliest:
                    earliest = until
                    slot = other
                    flags = 0
                elif until == earliest:
                    flags = TIED
        config = configs[slot]
        num_stages = stages_of[config]
        for k in range(columns):
            before[k] = clocks[slot, k]
        for k in range(num_stages):
            latency_here[k] = profile[model, config, k]
        extra = 0.0
        if kind.by_tokens:
            extra = token_seconds(
                token_rates[model, config, 0], token_rates[model, config, 1], input_tokens, output_tokens, i
            )
        begin = time_request(
            arrivals[i],
            extra,
            before,
            before[columns - 1],
            latency_here,
            num_stages,
            kind.exclusive,
            kind.has_delays,
            problem.dispatch_interval,
            problem.idle_after,
            problem.idle_penalty,
            ends,
        )
        latency = ends[num_stages - 1] + problem.overhead - arrivals[i]
        met = latency <= slos[i]
        group[i] = slot
        group_num_requests[slot] += 1
        if met or kind.admits_all:
            flags |= ADMITTED
            if met:
                flags |= MET
                model_num_good[model] += 1
            model_latency[model] += rounded_seconds(latency)
            for k in range(num_stages):
                clocks[slot, k] = ends[k]
            clocks[slot, columns - 1] = begin
            for k in range(columns):
                state[i, k] = clocks[slot, k]
            num_entries[slot] += 1
        all_flags[i] = flags
    end = 0
    for slot in range(len(configs)):
        first_entry[slot] = end
        record.room[slot] = with_spare_room(num_entries[slot])
        end += record.room[slot]
        num_entries[slot] = 0
    record.log_end[0] = end
    for turn in range(len(by_turn)):
        i = by_turn[turn]
        if all_flags[i] & ADMITTED:
            slot = group[i]
            k = first_entry[slot] + num_entries[slot]
            log_turn[k] = turn
            log_busy[k] = state[i, stages_of[configs[slot]] - 1]
            num_entries[slot] += 1


@inlined
def num_admitted_before(
    first_entry: NDArray[np.int64],
    num_entries: NDArray[np.int64],
    log_turn: NDArray[np.int32],
    slot: int,
    turn: int,
    known: int,
) -> int:
    """Return how many requests a group admitted before a turn, given that it was `known` before an earlier one."""
    first = first_entry[slot]
    end = num_entries[slot]
    low = known
    if low < end and log_turn[first + low] < turn:
        # likely few more
        step = 1
        low += 1
        while low + step <= end and log_turn[first + low + step - 1] < turn:
            low += step
            step *= 2
        high = min(low + step - 1, end)
        while low < high:
            middle = (low + high) // 2
            if log_turn[first + middle] < turn:
                low = middle + 1
            else:
                high = middle
    return low


@inlined
def with_spare_room(number: int) -> int:
    """Return for how many entries a group gets room that has so many."""
    return number + number // 8


@compiled
def reserve_entries(record: Record, slot: int, number: int) -> int:
    """Give a group another part of the log, with room for so many entries; return the first.

    Its own entries are not copied. What no group refers to is reclaimed if need be.
    """
    if record.log_end[0] + number > len(record.log_turn):
        turns, busy = record.log_turn.copy(), record.log_busy.copy()
        end = 0
        for other in range(len(record.first_entry)):
            first = record.first_entry[other]
            record.first_entry[other] = end
            record.room[other] = record.num_entries[other]
            for k in range(record.num_entries[other]):
                record.log_turn[end] = turns[first + k]
                record.log_busy[end] = busy[first + k]
                end += 1
        record.log_end[0] = end
    start = record.log_end[0]
    record.log_end[0] = start + number
    record.room[slot] = number
    return int(start)
