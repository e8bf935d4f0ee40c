"""Simulated annealing over placements, compiled: propose a change, evaluate what it changes, keep it or take it back."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alpa_serve.placement_policy.moves import CHANGED, SAME, propose, uniform
from alpa_serve.scheduling import stage_clocks
from alpa_serve.simulator import fast
from alpa_serve.simulator.compiled import compiled, inlined
from alpa_serve.simulator.groups import FREE, undo
from alpa_serve.simulator.incremental import find_difference, forget, note_changes, put_on_record
from alpa_serve.simulator.recorded import record_all, time_request, token_seconds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alpa_serve.placement_policy.moves import Cluster
    from alpa_serve.simulator.groups import Groups
    from alpa_serve.simulator.incremental import Difference
    from alpa_serve.simulator.recorded import Record
    from alpa_serve.simulator.search_problem import SearchProblem

LATENCY_WEIGHT = 1e-4
REPLICA_WEIGHT = 1e-6
"""Of a second of mean latency and of a replica in the score, beside an SLO attainment of 1."""

_MOST_LOOKED_AT = 0.08
"""Share of the requests beyond which counting all of them is cheaper than following a change."""

_rounded_seconds = inlined(fast.rounded_seconds)


class Chain(NamedTuple):
    """Where a chain of annealing stands.

    Attributes
    ----------
    random : ndarray of uint64, shape (1,)
        State of the random numbers.
    score : ndarray of float64, shape (2,)
        Of the placement of the moment, and of the best so far.
    num_evaluations, num_proposals : ndarray of int64, shape (1,)
    value : ndarray of float64, shape (num_models,)
        What a good request of each model counts.
    num_good : ndarray of int64, shape (num_models,)
        Good requests of the placement of the moment.
    unserved : ndarray of float64, shape (num_models,)
    best_config, best_node : ndarray of int64, shape (num_slots,)
    best_holds : ndarray of bool, shape (num_slots, num_models)
    looked_at : ndarray of float64, shape (2,)
        Requests looked at to follow changes, and the number of changes followed.
    """

    random: NDArray[np.uint64]
    score: NDArray[np.float64]
    num_evaluations: NDArray[np.int64]
    num_proposals: NDArray[np.int64]
    value: NDArray[np.float64]
    num_good: NDArray[np.int64]
    unserved: NDArray[np.float64]
    best_config: NDArray[np.int64]
    best_node: NDArray[np.int64]
    best_holds: NDArray[np.bool_]
    looked_at: NDArray[np.float64]


def make_chain(groups: Groups, seed: int) -> Chain:
    """Return a chain that starts with `groups` and has not been evaluated yet."""
    num_slots, num_models = groups.holds.shape
    return Chain(
        random=np.array([seed], np.uint64),
        score=np.full(2, -np.inf),
        num_evaluations=np.zeros(1, np.int64),
        num_proposals=np.zeros(1, np.int64),
        value=np.ones(num_models),
        num_good=np.zeros(num_models, np.int64),
        unserved=np.zeros(num_models),
        best_config=np.full(num_slots, FREE, np.int64),
        best_node=np.zeros(num_slots, np.int64),
        best_holds=np.zeros((num_slots, num_models), np.bool_),
        looked_at=np.zeros(2),
    )


_begin_in_queue = inlined(stage_clocks.begin_in_queue)


@compiled
def count_good(
    problem: SearchProblem, groups: Groups, value: NDArray[np.float64], least: float, num_good: NDArray[np.int64]
) -> tuple[float, float]:
    """Simulate all requests without putting anything on record, under any rules.

    Parameters
    ----------
    problem : SearchProblem
    groups : Groups
    value : ndarray of float64, shape (num_models,)
        What a good request of each model counts.
    least : float
        Stop as soon as the good requests cannot count this much any more.
    num_good : ndarray of int64, shape (num_models,)
        Gets the number of good requests.

    Returns
    -------
    count, latency : float
        What the good requests count, or -1 if that is less than `least`; seconds of latency over the served requests.
    """
    kind = problem.kind
    by_turn, model_by_turn = problem.by_turn, problem.model_by_turn
    arrivals, slos, draws = problem.arrivals, problem.slos, problem.draws
    input_tokens, output_tokens, token_rates = problem.input_tokens, problem.output_tokens, problem.token_rates
    profile, stages_of = problem.latency, problem.num_stages
    configs, slots, num_replicas = groups.config, groups.slots, groups.num_replicas
    first_request = problem.first_request
    columns = profile.shape[2]
    clocks = np.zeros((len(configs), columns))
    busy_until = np.zeros(len(configs))
    last_begin = np.zeros(len(configs))
    before = np.empty(columns)
    latency_here = np.empty(columns)
    ends = np.empty(columns)
    in_queue = kind.one_queue or kind.has_delays
    num_good[:] = 0
    possible = 0.0
    for model in range(len(num_replicas)):
        if num_replicas[model]:
            possible += value[model] * (first_request[model + 1] - first_request[model])
    if possible < least:
        return -1.0, 0.0
    count = 0.0
    latency_sum = 0.0
    for turn in range(len(by_turn)):
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
            for k in range(1, number):
                other = slots[model, k]
                if busy_until[other] < earliest:
                    earliest = busy_until[other]
                    slot = other
        config = configs[slot]
        num_stages = stages_of[config]
        for k in range(num_stages):
            before[k] = clocks[slot, k]
            latency_here[k] = profile[model, config, k]
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
            for k in range(num_stages):
                clocks[slot, k] = ends[k]
            busy_until[slot] = ends[num_stages - 1]
            last_begin[queue] = begin
            latency_sum += _rounded_seconds(latency)
        if met:
            count += value[model]
            num_good[model] += 1
        else:
            possible -= value[model]
            if possible < least:
                return -1.0, 0.0
    return count, latency_sum


@compiled
def start_chain(
    problem: SearchProblem, groups: Groups, record: Record, chain: Chain, follows: bool, num_requests: int
) -> None:
    """Evaluate the groups that a chain stands at, by the values of the moment, and take them for the best."""
    if follows:
        record_all(problem, groups, record)
        chain.num_good[:] = record.model_num_good
        latency = record.model_latency.sum()
    else:
        _, latency = count_good(problem, groups, chain.value, -1.0, chain.num_good)
    count = 0.0
    for model in range(len(chain.value)):
        count += chain.num_good[model] * chain.value[model]
    chain.score[0] = _score(count, latency, groups, num_requests)
    _note_unserved(problem, chain)
    _note_best(groups, chain)


@compiled
def anneal(
    problem: SearchProblem,
    cluster: Cluster,
    groups: Groups,
    record: Record,
    difference: Difference,
    chain: Chain,
    follows: bool,
    require_all: bool,
    num_requests: int,
    hot: float,
    cold: float,
    first: int,
    end: int,
    until: int,
) -> None:
    """Go on with a chain until so many evaluations.

    Parameters
    ----------
    problem, cluster, groups, record, difference, chain
    follows : bool
        Follow changes through the record; otherwise count all requests for each.
    require_all : bool
        Only placements that hold every model.
    num_requests : int
        Of the workload.
    hot, cold : float
        Temperature at the evaluations `first` and `end`, falling by equal factors: the loss of score that is taken with
        a chance of 1 in e.
    first, end, until : int
        Number of evaluations.
    """
    num_models = len(chain.value)
    num_good = np.zeros(num_models, np.int64)
    most = int(_MOST_LOOKED_AT * len(problem.turn))
    proposals = 0
    # where hardly any change is possible, it ends all the same
    most_proposals = 50 * (until - chain.num_evaluations[0]) + 50
    while chain.num_evaluations[0] < until and proposals < most_proposals:
        proposals += 1
        outcome = propose(problem, cluster, groups, chain.unserved, chain.random)
        if outcome == SAME:
            groups.log_length[0] = 0
            continue
        if outcome != CHANGED or (require_all and not _holds_all(groups)):
            undo(groups)
            continue
        progress = (chain.num_evaluations[0] - first) / max(end - first, 1)
        temperature = hot * (cold / hot) ** progress
        needed = chain.score[0] + temperature * np.log(max(uniform(chain.random), 1e-300))
        chain.num_evaluations[0] += 1
        looked_at = -1
        latency = 0.0
        count = 0.0
        if follows:
            note_changes(groups, difference)
            looked_at, gain, latency_gain = find_difference(problem, groups, record, difference, most)
            chain.looked_at[0] += looked_at if looked_at >= 0 else most
            chain.looked_at[1] += 1
            if looked_at >= 0:
                count = record.model_num_good.sum() + gain
                latency = record.model_latency.sum() + latency_gain
        if looked_at < 0:
            replicas = groups.num_replicas.sum()
            # what the good requests have to count, were their latency 0; a little less against rounding
            least = (needed - REPLICA_WEIGHT * replicas) * num_requests - 1e-6
            count, latency = count_good(problem, groups, chain.value, least, num_good)
        score = _score(count, latency, groups, num_requests) if count >= 0 else -np.inf
        if score < needed:
            undo_log = groups.log_length[0]
            if follows:
                _forget_and_undo(groups, difference, undo_log)
            else:
                undo(groups)
            continue
        chain.score[0] = score
        if follows:
            if looked_at >= 0:
                put_on_record(problem, groups, record, difference)
            else:
                record_all(problem, groups, record)
            forget(groups, difference)
            chain.num_good[:] = record.model_num_good
        else:
            groups.log_length[0] = 0
            chain.num_good[:] = num_good
        _note_unserved(problem, chain)
        if score > chain.score[1]:
            _note_best(groups, chain)
    chain.num_proposals[0] += proposals


@inlined
def _score(count: float, latency: float, groups: Groups, num_requests: int) -> float:
    replicas = groups.num_replicas.sum()
    return count / num_requests - latency / num_requests * LATENCY_WEIGHT + replicas * REPLICA_WEIGHT


@inlined
def _holds_all(groups: Groups) -> bool:
    for model in range(len(groups.num_replicas)):
        if groups.num_replicas[model] == 0:
            return False
    return True


@inlined
def _forget_and_undo(groups: Groups, difference: Difference, log_length: int) -> None:
    """Forget what a change differs in, which reads the log, and take the change back."""
    forget(groups, difference)
    groups.log_length[0] = log_length
    undo(groups)


@inlined
def _note_unserved(problem: SearchProblem, chain: Chain) -> None:
    for model in range(len(chain.value)):
        number = problem.first_request[model + 1] - problem.first_request[model]
        chain.unserved[model] = number - chain.num_good[model]


@inlined
def _note_best(groups: Groups, chain: Chain) -> None:
    chain.score[1] = chain.score[0]
    chain.best_config[:] = groups.config
    chain.best_node[:] = groups.node
    chain.best_holds[:] = groups.holds
