"""What a change of the placement does to a recorded simulation, at the cost of the requests that it touches.

A change makes some groups' clocks differ from the record. Only requests that could notice are looked at, in the order
of their arrivals: those of models whose replicas changed, and those of models in a group whose clocks differ at that
moment. Once a group's clocks are as recorded again, to the bit, nothing about it can differ until something else
touches it. The outcome is the same as that of simulating everything anew; queues drain again and again, so differences
die out, and on large clusters most changes touch a few per cent of the requests.

Groups must have queues of their own: one queue for all would make everything differ at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.simulator.compiled import compiled, inlined
from alpa_serve.simulator.groups import is_replica_change, resort_slots
from alpa_serve.simulator.recorded import (
    ADMITTED,
    MET,
    TIED,
    num_admitted_before,
    rounded_seconds,
    time_request,
    token_seconds,
)
from alpa_serve.simulator.search_problem import BLOCK

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alpa_serve.simulator.difference import Difference
    from alpa_serve.simulator.groups import Groups
    from alpa_serve.simulator.recorded import Record
    from alpa_serve.simulator.search_problem import SearchProblem

_UNCHANGED, _REORDERED, _CHANGED = 0, 1, 2
"""Whether a model's groups are as recorded, in another order of rank, or others."""


@compiled
def note_changes(groups: Groups, difference: Difference) -> None:
    """Take from the log of `groups` which models are in other groups now.

    A group that was renewed, or freed, held no model at that moment: all that it held or holds have changed, so all
    requests that it ever had to do with are looked at, and what its clocks were and are is seen from them.
    """
    for k in range(groups.log_length[0]):
        if is_replica_change(groups, k):
            _note_model(difference, groups.log[k, 2], _CHANGED)


@compiled
def note_rank(groups: Groups, difference: Difference, slot: int) -> None:
    """Sort the groups of the models of a group whose rank changed, and note the models for which that matters."""
    for k in range(groups.num_models[slot]):
        model = groups.models[slot, k]
        if resort_slots(groups, model):
            _note_model(difference, model, _REORDERED)


@compiled
def _note_model(difference: Difference, model: int, change: int) -> None:
    if difference.change[model] == _UNCHANGED:
        difference.changed_models[difference.num_changed[0]] = model
        difference.num_changed[0] += 1
    difference.change[model] = max(difference.change[model], change)


@compiled
def find_difference(
    problem: SearchProblem, groups: Groups, record: Record, difference: Difference, most: int
) -> tuple[int, int, float]:
    """Find which requests fare differently from the record under the changed `groups`.

    Parameters
    ----------
    problem : SearchProblem
    groups : Groups
    record : Record
        Of the groups before they changed.
    difference : Difference
        With the changes noted; gets what is found.
    most : int
        Give up beyond so many requests looked at.

    Returns
    -------
    num_looked_at : int
        -1 if there were too many.
    num_good, latency : int, float
        By how much the number of good requests and the seconds of latency grow.
    """
    # fields are looked up once, and rows copied rather than sliced: both cost reference counts, and this is the
    # innermost loop of every search
    kind = problem.kind
    arrivals, slos, draws = problem.arrivals, problem.slos, problem.draws
    input_tokens, output_tokens, token_rates = problem.input_tokens, problem.output_tokens, problem.token_rates
    profile, stages_of = problem.latency, problem.num_stages
    first_request, turns = problem.first_request, problem.turn
    by_turn, model_by_turn, models_of_block = problem.by_turn, problem.model_by_turn, problem.models_of_block
    configs, slots, num_replicas = groups.config, groups.slots, groups.num_replicas
    models, num_models = groups.models, groups.num_models
    old_groups, old_flags_of, state = record.group, record.flags, record.state
    first_entry, num_entries = record.first_entry, record.num_entries
    log_turn, log_busy, passed = record.log_turn, record.log_busy, difference.passed
    differs = difference.differs
    recorded, actual = difference.recorded, difference.actual
    change, num_reasons, watched = difference.change, difference.num_reasons, difference.watched
    out_request, out_turn, out_group = difference.request, difference.turn, difference.group
    out_flags, out_state = difference.flags, difference.state
    model_num_good, model_latency = difference.model_num_good, difference.model_latency
    columns = state.shape[1]
    last = columns - 1
    ends = np.empty(columns)
    before = np.empty(columns)
    latency_here = np.empty(columns)
    became = np.empty(2, np.int64)
    length = 0
    passed[:] = 0
    model_num_good[:] = 0
    model_latency[:] = 0.0
    num_watched = 0
    for k in range(difference.num_changed[0]):
        num_watched += _watch(num_reasons, watched, difference.changed_models[k])
    # while nothing differs, mostly one model is looked at: its requests lie together
    own, own_end = 0, 0
    if difference.num_changed[0] == 1:
        own = first_request[difference.changed_models[0]]
        own_end = first_request[difference.changed_models[0] + 1]
    turn = -1
    looked_at = 0
    while num_watched:
        if num_watched == 1 and own_end:
            while own < own_end and turns[own] <= turn:
                own += 1
            if own == own_end:
                break
            i = own
            turn = turns[own]
        else:
            turn = _next_watched(models_of_block, model_by_turn, num_reasons, watched, turn + 1)
            if turn == len(by_turn):
                break
            i = by_turn[turn]
        model = model_by_turn[turn]
        old_flags = old_flags_of[i]
        if change[model] == _REORDERED and num_reasons[model] == 1 and not (kind.at_random or old_flags & TIED):
            # ranks decide ties only
            continue
        looked_at += 1
        if looked_at > most:
            return -1, 0, 0.0
        # where it goes, as record_all decides
        flags = 0
        slot = -1
        count = num_replicas[model]
        if kind.at_random and count:
            slot = slots[model, int(draws[i] * count)]
        else:
            earliest = np.inf
            for k in range(count):
                other = slots[model, k]
                until = 0.0
                if differs[other]:
                    until = actual[other, stages_of[configs[other]] - 1]
                else:
                    there = num_admitted_before(first_entry, num_entries, log_turn, other, turn, passed[other])
                    passed[other] = there
                    if there:
                        until = log_busy[first_entry[other] + there - 1]
                if slot < 0 or until < earliest:
                    earliest = until
                    slot = other
                    flags = 0
                elif until == earliest:
                    flags = TIED
        # how it fares there
        latency = 0.0
        arrival = arrivals[i]
        if slot >= 0:
            config = configs[slot]
            num_stages = stages_of[config]
            if differs[slot]:
                for k in range(columns):
                    before[k] = actual[slot, k]
            else:
                there = num_admitted_before(first_entry, num_entries, log_turn, slot, turn, passed[slot])
                passed[slot] = there
                found = by_turn[log_turn[first_entry[slot] + there - 1]] if there else -1
                for k in range(columns):
                    before[k] = state[found, k] if found >= 0 else 0.0
            for k in range(num_stages):
                latency_here[k] = profile[model, config, k]
            extra = 0.0
            if kind.by_tokens:
                extra = token_seconds(
                    token_rates[model, config, 0], token_rates[model, config, 1], input_tokens, output_tokens, i
                )
            begin = time_request(
                arrival,
                extra,
                before,
                before[last],
                latency_here,
                num_stages,
                kind.exclusive,
                kind.has_delays,
                problem.dispatch_interval,
                problem.idle_after,
                problem.idle_penalty,
                ends,
            )
            for k in range(num_stages, last):
                ends[k] = before[k]
            ends[last] = begin
            latency = ends[num_stages - 1] + problem.overhead - arrival
            met = latency <= slos[i]
            if met or kind.admits_all:
                flags |= ADMITTED
                if met:
                    flags |= MET
        # what that makes different: groups whose clocks are now other than recorded, or as recorded again
        old_slot = old_groups[i]
        is_in, was_in = flags & ADMITTED, old_flags & ADMITTED
        is_same = is_in == was_in
        num_became = 0
        if is_in and was_in and slot == old_slot:
            for k in range(columns):
                is_same = is_same and ends[k] == state[i, k]
            for k in range(columns):
                recorded[slot, k] = state[i, k]
                actual[slot, k] = ends[k]
            if is_same == differs[slot]:
                became[0] = slot
                num_became = 1
        else:
            if was_in:
                found = -1
                if not differs[old_slot]:
                    there = num_admitted_before(first_entry, num_entries, log_turn, old_slot, turn, passed[old_slot])
                    passed[old_slot] = there
                    if there:
                        found = by_turn[log_turn[first_entry[old_slot] + there - 1]]
                equal = True
                for k in range(columns):
                    if not differs[old_slot]:
                        actual[old_slot, k] = state[found, k] if found >= 0 else 0.0
                    recorded[old_slot, k] = state[i, k]
                    equal = equal and actual[old_slot, k] == recorded[old_slot, k]
                if equal == differs[old_slot]:
                    became[0] = old_slot
                    num_became = 1
            if is_in:
                equal = True
                for k in range(columns):
                    if not differs[slot]:
                        recorded[slot, k] = before[k]
                    actual[slot, k] = ends[k]
                    equal = equal and recorded[slot, k] == ends[k]
                if equal == differs[slot]:
                    became[num_became] = slot
                    num_became += 1
            is_same = is_same and not is_in
        for b in range(num_became):
            turned = became[b]
            differs[turned] = not differs[turned]
            for k in range(num_models[turned]):
                if differs[turned]:
                    num_watched += _watch(num_reasons, watched, models[turned, k])
                else:
                    num_watched -= _stop_watching(num_reasons, watched, models[turned, k])
        if flags != old_flags or slot != old_slot or not is_same:
            out_request[length] = i
            out_turn[length] = turn
            out_group[length] = slot
            out_flags[length] = flags
            model_num_good[model] += ((flags & MET) != 0) - ((old_flags & MET) != 0)
            if is_in:
                for k in range(columns):
                    out_state[length, k] = ends[k]
                model_latency[model] += rounded_seconds(latency)
            if was_in:
                model_latency[model] -= _recorded_latency(state, columns, i, problem.overhead, arrival)
            length += 1
    difference.length[0] = length
    num_good, latency_sum = 0, 0.0
    for m in range(len(model_num_good)):
        num_good += model_num_good[m]
        latency_sum += model_latency[m]
    return looked_at, num_good, latency_sum


@compiled
def forget(groups: Groups, difference: Difference) -> None:
    """Forget a difference and the changes noted, and empty the log of `groups`."""
    difference.differs[:] = False
    difference.num_reasons[:] = 0
    difference.watched[:] = 0
    for k in range(difference.num_changed[0]):
        difference.change[difference.changed_models[k]] = _UNCHANGED
    difference.num_changed[0] = 0
    difference.length[0] = 0
    groups.log_length[0] = 0


@inlined
def _recorded_latency(state: NDArray[np.float64], columns: int, i: int, overhead: float, arrival: float) -> float:
    """Return the rounded latency of an admitted request; the clocks after the last stage of its group stay at 0."""
    end = 0.0
    for k in range(columns - 1):
        end = max(end, state[i, k])
    return rounded_seconds(end + overhead - arrival)


@inlined
def _next_watched(
    models_of_block: NDArray[np.int64],
    model_by_turn: NDArray[np.int32],
    num_reasons: NDArray[np.int32],
    watched: NDArray[np.int64],
    start: int,
) -> int:
    """Return the first turn from `start` on whose model is watched; the number of turns if there is none."""
    end = len(model_by_turn)
    turn = start
    while turn < end:
        if turn % BLOCK == 0:
            watched_here = 0
            for k in range(len(watched)):
                watched_here |= models_of_block[turn // BLOCK, k] & watched[k]
            if not watched_here:
                turn += BLOCK
                continue
        if num_reasons[model_by_turn[turn]]:
            break
        turn += 1
    return min(turn, end)


@inlined
def _watch(num_reasons: NDArray[np.int32], watched: NDArray[np.int64], model: int) -> bool:
    """Add a reason to look at the requests of a model; tell whether it is the first."""
    num_reasons[model] += 1
    is_first = num_reasons[model] == 1
    if is_first:
        watched[model >> 6] |= 1 << (model & 63)
    return bool(is_first)


@inlined
def _stop_watching(num_reasons: NDArray[np.int32], watched: NDArray[np.int64], model: int) -> bool:
    """Drop a reason to look at the requests of a model; tell whether it was the last."""
    num_reasons[model] -= 1
    is_last = num_reasons[model] == 0
    if is_last:
        watched[model >> 6] &= ~(1 << (model & 63))
    return bool(is_last)
