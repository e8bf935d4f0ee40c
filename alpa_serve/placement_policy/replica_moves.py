"""Random changes of what groups hold: replicas added, dropped, replaced, moved and swapped.

Every change keeps to the memory of the devices, and is in the log of the groups, so that it can be undone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.placement_policy.splitmix import below, uniform
from alpa_serve.simulator.compiled import compiled
from alpa_serve.simulator.groups import FREE, add_replica, remove_replica, used_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alpa_serve.placement_policy.cluster_arrays import Cluster
    from alpa_serve.simulator.groups import Groups
    from alpa_serve.simulator.search_problem import SearchProblem

NOTHING, CHANGED, SAME = 0, 1, 2
"""What a move did: nothing that is of use (undo it), a change to be evaluated, or one that changes no figure."""


@compiled
def add(
    problem: SearchProblem,
    cluster: Cluster,
    groups: Groups,
    slot: int,
    unserved: NDArray[np.float64],
    random: NDArray[np.uint64],
) -> int:
    """Add a model to a group, others making room."""
    model = any_model(unserved, random)
    if groups.holds[slot, model] or problem.weights[model, groups.config[slot]] > cluster.budget:
        return NOTHING
    add_replica(groups, slot, model)
    fit(problem, cluster, groups, slot, model, random)
    return CHANGED


@compiled
def drop(groups: Groups, slot: int, random: NDArray[np.uint64]) -> int:
    """Drop a model of a group."""
    model = any_member(groups, slot, random)
    if model < 0:
        return NOTHING
    remove_replica(groups, slot, model)
    return CHANGED


@compiled
def replace(problem: SearchProblem, cluster: Cluster, groups: Groups, slot: int, random: NDArray[np.uint64]) -> int:
    """Drop a model of a group and fill the room."""
    model = any_member(groups, slot, random)
    if model < 0:
        return NOTHING
    remove_replica(groups, slot, model)
    fill(problem, cluster, groups, slot, random)
    return CHANGED


@compiled
def move(problem: SearchProblem, cluster: Cluster, groups: Groups, slot: int, random: NDArray[np.uint64]) -> int:
    """Move a model to another group, or swap it with one there; what does not fit any more goes."""
    other = any_group(groups, random)
    model = any_member(groups, slot, random)
    if other == slot or model < 0 or groups.holds[other, model]:
        return NOTHING
    if problem.weights[model, groups.config[other]] > cluster.budget:
        return NOTHING
    remove_replica(groups, slot, model)
    back = any_member(groups, other, random) if uniform(random) < 0.5 else -1
    add_replica(groups, other, model)
    fits_back = back >= 0 and problem.weights[back, groups.config[slot]] <= cluster.budget
    if fits_back and not groups.holds[slot, back]:
        remove_replica(groups, other, back)
        add_replica(groups, slot, back)
        fit(problem, cluster, groups, slot, back, random)
    fit(problem, cluster, groups, other, model, random)
    return CHANGED


@compiled
def any_group(groups: Groups, random: NDArray[np.uint64]) -> int:
    """Choose a group; -1 if there is none."""
    num_slots = len(groups.config)
    for _ in range(20):
        slot = below(random, num_slots)
        if groups.config[slot] != FREE:
            return slot
    number = 0
    for slot in range(num_slots):
        number += groups.config[slot] != FREE
    if number == 0:
        return -1
    chosen = below(random, number)
    for slot in range(num_slots):
        if groups.config[slot] != FREE:
            if chosen == 0:
                return slot
            chosen -= 1
    return -1


@compiled
def any_model(unserved: NDArray[np.float64], random: NDArray[np.uint64]) -> int:
    """Choose a model: half of the time any, else in proportion to what is unserved of it."""
    num_models = len(unserved)
    if uniform(random) < 0.5:
        total = 0.0
        for model in range(num_models):
            total += unserved[model]
        chosen = uniform(random) * total
        for model in range(num_models):
            chosen -= unserved[model]
            if chosen < 0:
                return model
    return below(random, num_models)


@compiled
def any_member(groups: Groups, slot: int, random: NDArray[np.uint64]) -> int:
    """Choose a model of a group; -1 if it has none."""
    number = groups.num_models[slot]
    return int(groups.models[slot, below(random, number)]) if number else -1


@compiled
def fit(
    problem: SearchProblem, cluster: Cluster, groups: Groups, slot: int, kept: int, random: NDArray[np.uint64]
) -> None:
    """Drop models of a group at random, but not `kept`, until the others fit."""
    config = groups.config[slot]
    while used_bytes(groups, problem.weights, slot, config) > cluster.budget:
        model = any_member(groups, slot, random)
        if model != kept:
            remove_replica(groups, slot, model)


@compiled
def fill(problem: SearchProblem, cluster: Cluster, groups: Groups, slot: int, random: NDArray[np.uint64]) -> None:
    """Add models to a group at random until none fits."""
    config = groups.config[slot]
    weights = problem.weights
    num_models = len(weights)
    used = used_bytes(groups, weights, slot, config)
    fitting = np.empty(num_models, np.int64)
    while True:
        number = 0
        for model in range(num_models):
            if not groups.holds[slot, model] and used + weights[model, config] <= cluster.budget:
                fitting[number] = model
                number += 1
        if number == 0:
            return
        model = fitting[below(random, number)]
        add_replica(groups, slot, model)
        used = used_bytes(groups, weights, slot, config)
        if used > cluster.budget:
            # another order of summation
            remove_replica(groups, slot, model)
            return


@compiled
def insert_some(
    problem: SearchProblem,
    cluster: Cluster,
    groups: Groups,
    slot: int,
    members: NDArray[np.int32],
    random: NDArray[np.uint64],
) -> None:
    """Add those of some models that fit, in random order."""
    config = groups.config[slot]
    for k in range(len(members)):
        j = k + below(random, len(members) - k)
        members[k], members[j] = members[j], members[k]
        model = members[k]
        if groups.holds[slot, model] or problem.weights[model, config] > cluster.budget:
            continue
        add_replica(groups, slot, model)
        if used_bytes(groups, problem.weights, slot, config) > cluster.budget:
            remove_replica(groups, slot, model)
