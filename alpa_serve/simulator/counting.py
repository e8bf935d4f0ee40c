"""Counting good requests without a record: of the islands that a change touches, and only as long as it can be of use.

An island is a set of groups that are linked by the models they share. Islands do not influence each other unless one
queue feeds them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.simulator.compiled import compiled
from alpa_serve.simulator.groups import is_replica_change
from alpa_serve.simulator.recorded import rounded_seconds, time_request, token_seconds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alpa_serve.simulator.groups import Groups
    from alpa_serve.simulator.search_problem import SearchProblem

_SCAN_FROM = 0.07
"""Share of the requests from which on picking them from all is faster than merging those of each model."""


@compiled
def islands_of_change(problem: SearchProblem, groups: Groups, touched: NDArray[np.bool_]) -> int:
    """Find the models that the changes in the log of `groups` may affect; return how many requests they have.

    Parameters
    ----------
    problem : SearchProblem
    groups : Groups
    touched : ndarray of bool, shape (num_models,)
        Gets which models they are: those in an island with a changed group.
    """
    num_models = len(touched)
    if problem.kind.one_queue:
        touched[:] = True
        return len(problem.turn)
    touched[:] = False
    seen = np.zeros(len(groups.config), np.bool_)
    stack = np.empty(num_models, np.int64)
    height = 0
    for k in range(groups.log_length[0]):
        slot = groups.log[k, 1]
        if is_replica_change(groups, k):
            model = groups.log[k, 2]
            if not touched[model]:
                touched[model] = True
                stack[height] = model
                height += 1
        if not seen[slot]:
            seen[slot] = True
            for j in range(groups.num_models[slot]):
                model = groups.models[slot, j]
                if not touched[model]:
                    touched[model] = True
                    stack[height] = model
                    height += 1
    number = 0
    while height:
        height -= 1
        model = stack[height]
        number += problem.first_request[model + 1] - problem.first_request[model]
        for k in range(groups.num_replicas[model]):
            slot = groups.slots[model, k]
            if seen[slot]:
                continue
            seen[slot] = True
            for j in range(groups.num_models[slot]):
                other = groups.models[slot, j]
                if not touched[other]:
                    touched[other] = True
                    stack[height] = other
                    height += 1
    return number


@compiled
def turns_of_models(problem: SearchProblem, chosen: NDArray[np.bool_], number: int) -> NDArray[np.int32]:
    """Return the turns of the requests of some models, `number` of them, ascending."""
    turns = np.empty(number, np.int32)
    if number >= _SCAN_FROM * len(problem.turn):
        model_by_turn = problem.model_by_turn
        k = 0
        for turn in range(len(model_by_turn)):
            if chosen[model_by_turn[turn]]:
                turns[k] = turn
                k += 1
        return turns
    k = 0
    for model in range(len(chosen)):
        if chosen[model]:
            for i in range(problem.first_request[model], problem.first_request[model + 1]):
                turns[k] = problem.turn[i]
                k += 1
    turns.sort()
    return turns


@compiled
def count_good(
    problem: SearchProblem,
    groups: Groups,
    turns: NDArray[np.int32],
    value: NDArray[np.float64],
    least: float,
    num_good: NDArray[np.int64],
    latency_sum: NDArray[np.float64],
) -> bool:
    """Simulate the requests of whole islands; return False if they cannot count as much as they have to.

    Parameters
    ----------
    problem : SearchProblem
        Under any rules; those with one queue know one island only.
    groups : Groups
    turns : ndarray of int32
        The requests to simulate: all those of some islands.
    value : ndarray of float64, shape (num_models,)
        What a good request of each model counts.
    least : float
        What the good requests together have to count.
    num_good : ndarray of int64, shape (num_models,)
        Gets the number of good requests of the models that occur.
    latency_sum : ndarray of float64, shape (num_models,)
        Gets the seconds of latency over their served requests.
    """
    kind = problem.kind
    by_turn, model_by_turn = problem.by_turn, problem.model_by_turn
    arrivals, slos, draws = problem.arrivals, problem.slos, problem.draws
    input_tokens, output_tokens, token_rates = problem.input_tokens, problem.output_tokens, problem.token_rates
    profile, stages_of = problem.latency, problem.num_stages
    configs, slots, num_replicas = groups.config, groups.slots, groups.num_replicas
    columns = profile.shape[2]
    clocks = np.zeros((len(configs), columns))
    busy_until = np.zeros(len(configs))
    last_begin = np.zeros(len(configs))
    before = np.empty(columns)
    latency_here = np.empty(columns)
    ends = np.empty(columns)
    in_queue = kind.one_queue or kind.has_delays
    possible = 0.0
    for k in range(len(turns)):
        model = model_by_turn[turns[k]]
        num_good[model] = 0
        latency_sum[model] = 0.0
        if num_replicas[model]:
            possible += value[model]
    if possible < least:
        return False
    for k in range(len(turns)):
        turn = turns[k]
        model = model_by_turn[turn]
        number = num_replicas[model]
        if number == 0:
            continue
        i = by_turn[turn]
        slot = slots[model, 0]
        if kind.at_random:
            slot = slots[model, int(draws[i] * number)]
        else:
            earliest = busy_until[slot]
            for j in range(1, number):
                other = slots[model, j]
                if busy_until[other] < earliest:
                    earliest = busy_until[other]
                    slot = other
        config = configs[slot]
        num_stages = stages_of[config]
        for stage in range(num_stages):
            before[stage] = clocks[slot, stage]
            latency_here[stage] = profile[model, config, stage]
        extra = 0.0
        if kind.by_tokens:
            extra = token_seconds(
                token_rates[model, config, 0], token_rates[model, config, 1], input_tokens, output_tokens, i
            )
        queue = 0 if kind.one_queue else slot
        begin = time_request(
            arrivals[i],
            extra,
            before,
            last_begin[queue],
            latency_here,
            num_stages,
            kind.exclusive,
            in_queue,
            problem.dispatch_interval,
            problem.idle_after,
            problem.idle_penalty,
            ends,
        )
        latency = ends[num_stages - 1] + problem.overhead - arrivals[i]
        met = latency <= slos[i]
        if met or kind.admits_all:
            for stage in range(num_stages):
                clocks[slot, stage] = ends[stage]
            busy_until[slot] = ends[num_stages - 1]
            last_begin[queue] = begin
            latency_sum[model] += rounded_seconds(latency)
        if met:
            num_good[model] += 1
        else:
            possible -= value[model]
            if possible < least:
                return False
    return True
