"""Simulated annealing over placements, compiled: propose a change, simulate what it touches, keep or undo it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alpa_serve.placement_policy.moves import propose
from alpa_serve.placement_policy.replica_moves import CHANGED, SAME
from alpa_serve.placement_policy.splitmix import uniform
from alpa_serve.simulator.compiled import compiled, inlined
from alpa_serve.simulator.counting import count_good, islands_of_change, turns_of_models
from alpa_serve.simulator.groups import FREE, undo

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alpa_serve.placement_policy.cluster_arrays import Cluster
    from alpa_serve.simulator.groups import Groups
    from alpa_serve.simulator.search_problem import SearchProblem

LATENCY_SCALE, REPLICA_SCALE = 10000.0, 1e6
"""Seconds of mean latency, and replicas, that weigh as much as an SLO attainment of 1 in AlpaServe's score."""

REST_SCALE = 1e-3
"""What latency and replicas add to AlpaServe's score, at which they count half of the most that they can here."""

MOST_FRUITLESS = 2000
"""Proposals in a row that can be of no use after which a chain counts as stuck."""

_SLACK = 1e-3
"""Of a request, by which a count may be wrong for rounding: values are whole in binary fractions, scores are not."""


class Chain(NamedTuple):
    """Where a chain of annealing stands.

    Attributes
    ----------
    random : ndarray of uint64, shape (1,)
        State of the random numbers.
    score : ndarray of float64, shape (2,)
        Of the placement of the moment, and of the best so far: what the good requests count, per request; and less than
        one request for short latencies and many replicas.
    num_evaluations : ndarray of int64, shape (1,)
    num_fruitless : ndarray of int64, shape (1,)
        Proposals since the last evaluation.
    value : ndarray of float64, shape (num_models,)
        What a good request of each model counts: a multiple of 2^-20, so that counts are exact.
    num_good : ndarray of int64, shape (num_models,)
        Good requests of the placement of the moment.
    latency : ndarray of float64, shape (num_models,)
        Seconds over the served requests of the placement of the moment.
    unserved : ndarray of float64, shape (num_models,)
    best_config : ndarray of int64, shape (num_slots,)
    best_holds : ndarray of bool, shape (num_slots, num_models)
    """

    random: NDArray[np.uint64]
    score: NDArray[np.float64]
    num_evaluations: NDArray[np.int64]
    num_fruitless: NDArray[np.int64]
    value: NDArray[np.float64]
    num_good: NDArray[np.int64]
    latency: NDArray[np.float64]
    unserved: NDArray[np.float64]
    best_config: NDArray[np.int64]
    best_holds: NDArray[np.bool_]


def make_chain(groups: Groups, seed: int) -> Chain:
    """Return a chain that starts with `groups` and has not been evaluated yet."""
    num_slots, num_models = groups.holds.shape
    return Chain(
        random=np.array([seed], np.uint64),
        score=np.full(2, -np.inf),
        num_evaluations=np.zeros(1, np.int64),
        num_fruitless=np.zeros(1, np.int64),
        value=np.ones(num_models),
        num_good=np.zeros(num_models, np.int64),
        latency=np.zeros(num_models),
        unserved=np.zeros(num_models),
        best_config=np.full(num_slots, FREE, np.int64),
        best_holds=np.zeros((num_slots, num_models), np.bool_),
    )


@compiled
def start_chain(problem: SearchProblem, groups: Groups, chain: Chain, num_requests: int, placed_value: float) -> None:
    """Evaluate the groups that a chain stands at, by the values of the moment, and take them for the best."""
    turns = np.arange(len(problem.turn)).astype(np.int32)
    count_good(problem, groups, turns, chain.value, -1.0, chain.num_good, chain.latency)
    chain.score[0] = _score(chain.num_good, chain.latency, chain.value, groups, num_requests, placed_value)
    _note_unserved(problem, chain)
    _note_best(groups, chain)


@compiled
def anneal(
    problem: SearchProblem,
    cluster: Cluster,
    groups: Groups,
    chain: Chain,
    num_requests: int,
    placed_value: float,
    hot: float,
    cold: float,
    first: int,
    end: int,
    until: int,
) -> None:
    """Go on with a chain until so many evaluations, or until it is stuck.

    In how many calls that is done makes no difference.

    Parameters
    ----------
    problem, cluster, groups, chain
    num_requests : int
        Of the workload.
    placed_value : float
        What each model adds to the score if it is placed at all, whatever is served of it.
    hot, cold : float
        Temperature at the evaluations `first` and `end`, falling by equal factors: the loss of score that is taken with
        a chance of 1 in e.
    first, end, until : int
        Number of evaluations.
    """
    num_models = len(chain.value)
    num_good = np.zeros(num_models, np.int64)
    latency = np.zeros(num_models)
    all_turns = np.arange(len(problem.turn)).astype(np.int32)
    touched = np.zeros(num_models, np.bool_)
    while chain.num_evaluations[0] < until and chain.num_fruitless[0] < MOST_FRUITLESS:
        chain.num_fruitless[0] += 1
        outcome = propose(problem, cluster, groups, chain.unserved, chain.random)
        if outcome == SAME:
            groups.log_length[0] = 0
            continue
        if outcome != CHANGED:
            undo(groups)
            continue
        chain.num_fruitless[0] = 0
        progress = min((chain.num_evaluations[0] - first) / max(end - first, 1), 1.0)
        temperature = hot * (cold / hot) ** progress
        needed = chain.score[0] + temperature * np.log(max(uniform(chain.random), 1e-300))
        chain.num_evaluations[0] += 1
        num_good[:] = chain.num_good
        latency[:] = chain.latency
        num_touched = islands_of_change(problem, groups, touched)
        turns = all_turns if num_touched == len(all_turns) else turns_of_models(problem, touched, num_touched)
        # what the good requests of the touched models have to count, were the rest of the score at its best
        least = (needed - placed_value * (groups.num_replicas > 0).sum()) * num_requests - 0.5 - _SLACK
        for model in range(num_models):
            if not touched[model]:
                least -= num_good[model] * chain.value[model]
        score = -np.inf
        if count_good(problem, groups, turns, chain.value, least, num_good, latency):
            score = _score(num_good, latency, chain.value, groups, num_requests, placed_value)
        if score < needed:
            undo(groups)
            continue
        groups.log_length[0] = 0
        chain.score[0] = score
        chain.num_good[:] = num_good
        chain.latency[:] = latency
        _note_unserved(problem, chain)
        if score > chain.score[1]:
            _note_best(groups, chain)


@inlined
def _score(
    num_good: NDArray[np.int64],
    latency: NDArray[np.float64],
    value: NDArray[np.float64],
    groups: Groups,
    num_requests: int,
    placed_value: float,
) -> float:
    count = 0.0
    seconds = 0.0
    replicas = 0
    placed = 0
    for model in range(len(num_good)):
        count += num_good[model] * value[model]
        seconds += latency[model]
        replicas += groups.num_replicas[model]
        placed += groups.num_replicas[model] > 0
    rest = replicas / REPLICA_SCALE - seconds / num_requests / LATENCY_SCALE
    # AlpaServe's score has the rest as it is, so that a long wait or many replicas can outweigh good requests: here
    # they decide between placements of equally many good requests
    return (count + rest / (abs(rest) + REST_SCALE) / 2) / num_requests + placed * placed_value


@inlined
def _note_unserved(problem: SearchProblem, chain: Chain) -> None:
    for model in range(len(chain.value)):
        number = problem.first_request[model + 1] - problem.first_request[model]
        chain.unserved[model] = number - chain.num_good[model]


@inlined
def _note_best(groups: Groups, chain: Chain) -> None:
    chain.score[1] = chain.score[0]
    chain.best_config[:] = groups.config
    chain.best_holds[:] = groups.holds
