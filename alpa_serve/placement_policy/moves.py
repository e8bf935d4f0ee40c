"""Random changes of a placement: replicas added, dropped, moved and swapped; groups reshaped, split, merged and made.

Every change keeps to the memory of the devices and to the nodes of the cluster, and is in the log of the groups, so
that it can be undone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alpa_serve.simulator.compiled import compiled, inlined
from alpa_serve.simulator.groups import (
    FREE,
    add_replica,
    clear_group,
    remove_replica,
    set_config,
    set_node,
    used_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alpa_serve.placement import ClusterEnv
    from alpa_serve.profiling import ParallelConfig
    from alpa_serve.simulator.groups import Groups
    from alpa_serve.simulator.search_problem import SearchProblem

NOTHING, CHANGED, SAME = 0, 1, 2
"""What a move did: nothing that is of use (undo it), a change to be evaluated, or one that changes no figure."""


class Cluster(NamedTuple):
    """Devices, and the configs that groups of each size can have.

    Attributes
    ----------
    num_devices, per_node : int
    budget : float
        Bytes of weights that one device can hold.
    configs : ndarray of int64, shape (num_devices + 1, max_configs)
        Config ids by size of the group.
    num_configs : ndarray of int64, shape (num_devices + 1,)
    """

    num_devices: int
    per_node: int
    budget: float
    configs: NDArray[np.int64]
    num_configs: NDArray[np.int64]


def make_cluster(cluster_env: ClusterEnv, configs: Sequence[ParallelConfig]) -> Cluster:
    """Return the cluster, and which of the `configs` (ids are positions) groups of each size can have."""
    num_devices = cluster_env.num_devices
    by_size: list[list[int]] = [[] for _ in range(num_devices + 1)]
    for config_id, config in enumerate(configs):
        by_size[config.num_devices].append(config_id)
    table = np.zeros((num_devices + 1, max(map(len, by_size), default=1) or 1), np.int64)
    for size, ids in enumerate(by_size):
        table[size, : len(ids)] = ids
    return Cluster(
        num_devices,
        min(cluster_env.num_devices_per_node, num_devices),
        float(cluster_env.mem_budget),
        table,
        np.array([len(ids) for ids in by_size], dtype=np.int64),
    )


@inlined
def uniform(random: NDArray[np.uint64]) -> float:
    """Draw from [0, 1) and advance the state, shape (1,).

    References
    ----------
    G. L. Steele Jr., D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014 (SplitMix64).
    """
    random[0] += np.uint64(0x9E3779B97F4A7C15)
    z = random[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.float64(z >> np.uint64(11)) / 9007199254740992.0


@inlined
def below(random: NDArray[np.uint64], number: int) -> int:
    """Draw a whole number from 0 to `number` - 1."""
    return int(uniform(random) * number)


@compiled
def propose(
    problem: SearchProblem,
    cluster: Cluster,
    groups: Groups,
    unserved: NDArray[np.float64],
    random: NDArray[np.uint64],
) -> int:
    """Change the groups at random; return NOTHING, CHANGED or SAME.

    Parameters
    ----------
    problem : SearchProblem
    cluster : Cluster
    groups : Groups
    unserved : ndarray of float64, shape (num_models,)
        Requests of each model that are not served within their SLO: where more is to be gained.
    random : ndarray of uint64, shape (1,)
        State of the random numbers.
    """
    draw = uniform(random)
    if draw < 0.02:
        return _take_node(problem, cluster, groups, unserved, random)
    if draw < 0.05:
        return _new_group(problem, cluster, groups, unserved, random)
    slot = _any_group(groups, random)
    if slot < 0:
        return _new_group(problem, cluster, groups, unserved, random)
    if draw < 0.20:
        return _add(problem, cluster, groups, slot, unserved, random)
    if draw < 0.24:
        return _drop(groups, slot, random)
    if draw < 0.34:
        return _replace(problem, cluster, groups, slot, random)
    if draw < 0.62:
        return _move(problem, cluster, groups, slot, random)
    if draw < 0.74:
        return _reshape(problem, cluster, groups, slot, random)
    if draw < 0.86:
        return _merge_or_shift(problem, cluster, groups, slot, random)
    if draw < 0.97:
        return _split(problem, cluster, groups, slot, random)
    return _swap_nodes(problem, cluster, groups, random)


@compiled
def _any_group(groups: Groups, random: NDArray[np.uint64]) -> int:
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
def _any_model(unserved: NDArray[np.float64], random: NDArray[np.uint64]) -> int:
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
def _any_member(groups: Groups, slot: int, random: NDArray[np.uint64]) -> int:
    """Choose a model of a group; -1 if it has none."""
    number = groups.num_models[slot]
    return int(groups.models[slot, below(random, number)]) if number else -1


@compiled
def _any_config(cluster: Cluster, size: int, random: NDArray[np.uint64]) -> int:
    """Choose a config for a group of a size; FREE if there is none."""
    if size < 1 or size > cluster.num_devices or cluster.num_configs[size] == 0:
        return FREE
    return int(cluster.configs[size, below(random, cluster.num_configs[size])])


@compiled
def _fit(
    problem: SearchProblem, cluster: Cluster, groups: Groups, slot: int, kept: int, random: NDArray[np.uint64]
) -> None:
    """Drop models of a group at random, but not `kept`, until the others fit."""
    config = groups.config[slot]
    while used_bytes(groups, problem.weights, slot, config) > cluster.budget:
        model = _any_member(groups, slot, random)
        if model != kept:
            remove_replica(groups, slot, model)


@compiled
def _fill(problem: SearchProblem, cluster: Cluster, groups: Groups, slot: int, random: NDArray[np.uint64]) -> None:
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
def _turn_into(
    problem: SearchProblem,
    cluster: Cluster,
    groups: Groups,
    slot: int,
    config: int,
    random: NDArray[np.uint64],
) -> None:
    """Give a group another config and keep those of its models that still fit, at random; then fill it, or not."""
    number = groups.num_models[slot]
    members = groups.models[slot, :number].copy()
    clear_group(groups, slot)
    set_config(groups, slot, config)
    _insert_some(problem, cluster, groups, slot, members, random)
    if uniform(random) < 0.5:
        _fill(problem, cluster, groups, slot, random)


@compiled
def _insert_some(
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


@compiled
def _add(
    problem: SearchProblem,
    cluster: Cluster,
    groups: Groups,
    slot: int,
    unserved: NDArray[np.float64],
    random: NDArray[np.uint64],
) -> int:
    """Add a model to a group, others making room."""
    model = _any_model(unserved, random)
    if groups.holds[slot, model] or problem.weights[model, groups.config[slot]] > cluster.budget:
        return NOTHING
    add_replica(groups, slot, model)
    _fit(problem, cluster, groups, slot, model, random)
    return CHANGED


@compiled
def _drop(groups: Groups, slot: int, random: NDArray[np.uint64]) -> int:
    """Drop a model of a group."""
    model = _any_member(groups, slot, random)
    if model < 0:
        return NOTHING
    remove_replica(groups, slot, model)
    return CHANGED


@compiled
def _replace(problem: SearchProblem, cluster: Cluster, groups: Groups, slot: int, random: NDArray[np.uint64]) -> int:
    """Drop a model of a group and fill the room."""
    model = _any_member(groups, slot, random)
    if model < 0:
        return NOTHING
    remove_replica(groups, slot, model)
    _fill(problem, cluster, groups, slot, random)
    return CHANGED


@compiled
def _move(problem: SearchProblem, cluster: Cluster, groups: Groups, slot: int, random: NDArray[np.uint64]) -> int:
    """Move a model to another group, or swap it with one there; what does not fit any more goes."""
    other = _any_group(groups, random)
    model = _any_member(groups, slot, random)
    if other == slot or model < 0 or groups.holds[other, model]:
        return NOTHING
    if problem.weights[model, groups.config[other]] > cluster.budget:
        return NOTHING
    remove_replica(groups, slot, model)
    back = _any_member(groups, other, random) if uniform(random) < 0.5 else -1
    add_replica(groups, other, model)
    fits_back = back >= 0 and problem.weights[back, groups.config[slot]] <= cluster.budget
    if fits_back and not groups.holds[slot, back]:
        remove_replica(groups, other, back)
        add_replica(groups, slot, back)
        _fit(problem, cluster, groups, slot, back, random)
    _fit(problem, cluster, groups, other, model, random)
    return CHANGED


@compiled
def _reshape(problem: SearchProblem, cluster: Cluster, groups: Groups, slot: int, random: NDArray[np.uint64]) -> int:
    """Give a group another config of the same size."""
    config = _any_config(cluster, problem.num_devices[groups.config[slot]], random)
    if config == groups.config[slot]:
        return NOTHING
    _turn_into(problem, cluster, groups, slot, config, random)
    return CHANGED


@compiled
def _merge_or_shift(
    problem: SearchProblem, cluster: Cluster, groups: Groups, slot: int, random: NDArray[np.uint64]
) -> int:
    """Merge a group with another of its node, or shift devices between the two; or let it take free devices."""
    size = problem.num_devices[groups.config[slot]]
    free = free_devices(problem, cluster, groups, groups.node[slot])
    if free and size < cluster.per_node and uniform(random) < 0.5:
        config = _any_config(cluster, size + 1 + below(random, free), random)
        if config == FREE:
            return NOTHING
        _turn_into(problem, cluster, groups, slot, config, random)
        return CHANGED
    other = _any_group(groups, random)
    for _ in range(20):
        if other != slot and groups.node[other] == groups.node[slot]:
            break
        other = _any_group(groups, random)
    if other == slot:
        return NOTHING
    both = size + problem.num_devices[groups.config[other]]
    if not _are_neighbours(problem, cluster, groups, slot, other):
        return NOTHING
    node = min(groups.node[slot], groups.node[other])
    if uniform(random) < 0.5:
        config = _any_config(cluster, both, random)
        if config == FREE:
            return NOTHING
        members = groups.models[other, : groups.num_models[other]].copy()
        clear_group(groups, other)
        set_config(groups, other, FREE)
        set_node(groups, slot, node)
        _turn_into(problem, cluster, groups, slot, config, random)
        _insert_some(problem, cluster, groups, slot, members, random)
        return CHANGED
    if both > cluster.per_node:
        return NOTHING
    part = 1 + below(random, both - 1)
    config, rest = _any_config(cluster, part, random), _any_config(cluster, both - part, random)
    if part == size or config == FREE or rest == FREE:
        return NOTHING
    _turn_into(problem, cluster, groups, slot, config, random)
    _turn_into(problem, cluster, groups, other, rest, random)
    return CHANGED


@compiled
def _are_neighbours(problem: SearchProblem, cluster: Cluster, groups: Groups, slot: int, other: int) -> bool:
    """Tell whether two groups could be one: on one node together, or both on whole nodes side by side."""
    size, other_size = problem.num_devices[groups.config[slot]], problem.num_devices[groups.config[other]]
    node, other_node = groups.node[slot], groups.node[other]
    if node == other_node:
        return bool(size + other_size <= cluster.per_node)
    whole = size % cluster.per_node == 0 and other_size % cluster.per_node == 0
    beside = node + size // cluster.per_node == other_node or other_node + other_size // cluster.per_node == node
    return bool(whole and beside)


@compiled
def _split(problem: SearchProblem, cluster: Cluster, groups: Groups, slot: int, random: NDArray[np.uint64]) -> int:
    """Split a group in two, each model going to one of them or both."""
    size = problem.num_devices[groups.config[slot]]
    other = _free_slot(groups)
    if size < 2 or other < 0:
        return NOTHING
    per_node = cluster.per_node
    part = 1 + below(random, size - 1) if size <= per_node else per_node * (1 + below(random, size // per_node - 1))
    if size > per_node and size < 2 * per_node:
        return NOTHING
    config, rest = _any_config(cluster, part, random), _any_config(cluster, size - part, random)
    if config == FREE or rest == FREE:
        return NOTHING
    members = groups.models[slot, : groups.num_models[slot]].copy()
    here = np.empty(len(members), np.int32)
    there = np.empty(len(members), np.int32)
    num_here, num_there = 0, 0
    for k in range(len(members)):
        draw = below(random, 3)
        if draw != 1:
            here[num_here] = members[k]
            num_here += 1
        if draw != 0:
            there[num_there] = members[k]
            num_there += 1
    clear_group(groups, slot)
    set_config(groups, slot, config)
    set_config(groups, other, rest)
    set_node(groups, other, groups.node[slot] + (part // per_node if size > per_node else 0))
    _insert_some(problem, cluster, groups, slot, here[:num_here], random)
    _insert_some(problem, cluster, groups, other, there[:num_there], random)
    if uniform(random) < 0.5:
        _fill(problem, cluster, groups, slot, random)
        _fill(problem, cluster, groups, other, random)
    return CHANGED


@compiled
def _free_slot(groups: Groups) -> int:
    for slot in range(len(groups.config)):
        if groups.config[slot] == FREE:
            return slot
    return -1


@compiled
def free_devices(problem: SearchProblem, cluster: Cluster, groups: Groups, node: int) -> int:
    """Return the devices of a node that are in no group."""
    free = min(cluster.per_node, cluster.num_devices - node * cluster.per_node)
    for slot in range(len(groups.config)):
        if groups.config[slot] == FREE:
            continue
        size = problem.num_devices[groups.config[slot]]
        first = groups.node[slot]
        if size <= cluster.per_node:
            if first == node:
                free -= size
        elif first <= node < first + size // cluster.per_node:
            return 0
    return free


@compiled
def _any_node(cluster: Cluster, random: NDArray[np.uint64]) -> int:
    return below(random, (cluster.num_devices + cluster.per_node - 1) // cluster.per_node)


@compiled
def _new_group(
    problem: SearchProblem,
    cluster: Cluster,
    groups: Groups,
    unserved: NDArray[np.float64],
    random: NDArray[np.uint64],
) -> int:
    """Make a group of free devices of a node."""
    node = _any_node(cluster, random)
    free = free_devices(problem, cluster, groups, node)
    slot = _free_slot(groups)
    if free == 0 or slot < 0:
        return NOTHING
    config = _any_config(cluster, 1 + below(random, free), random)
    if config == FREE:
        return NOTHING
    set_config(groups, slot, config)
    set_node(groups, slot, node)
    model = _any_model(unserved, random)
    if problem.weights[model, config] <= cluster.budget:
        add_replica(groups, slot, model)
    _fill(problem, cluster, groups, slot, random)
    return CHANGED


@compiled
def _take_node(
    problem: SearchProblem,
    cluster: Cluster,
    groups: Groups,
    unserved: NDArray[np.float64],
    random: NDArray[np.uint64],
) -> int:
    """Clear groups of a node until one for a certain model has room, and make that; what is left becomes a group too.

    The models that had to go are tried in the groups of that node again.
    """
    model = _any_model(unserved, random)
    num_configs = len(problem.num_devices)
    config = below(random, num_configs)
    for _ in range(20):
        if problem.weights[model, config] <= cluster.budget:
            break
        config = below(random, num_configs)
    size = problem.num_devices[config]
    if problem.weights[model, config] > cluster.budget or size > cluster.per_node:
        return NOTHING
    node = _any_node(cluster, random)
    if min(cluster.per_node, cluster.num_devices - node * cluster.per_node) < size:
        return NOTHING
    num_slots = len(groups.config)
    start = below(random, num_slots)
    gone = np.zeros(len(unserved), np.bool_)
    free = free_devices(problem, cluster, groups, node)
    for k in range(num_slots):
        slot = (start + k) % num_slots
        if free >= size:
            break
        if groups.config[slot] == FREE or groups.node[slot] != node:
            continue
        if problem.num_devices[groups.config[slot]] > cluster.per_node:
            return NOTHING
        for j in range(groups.num_models[slot]):
            gone[groups.models[slot, j]] = True
        clear_group(groups, slot)
        free += problem.num_devices[groups.config[slot]]
        set_config(groups, slot, FREE)
    if free < size:
        return NOTHING
    slot = _free_slot(groups)
    if slot < 0:
        return NOTHING
    set_config(groups, slot, config)
    set_node(groups, slot, node)
    add_replica(groups, slot, model)
    rest = _any_config(cluster, free - size, random)
    other = _free_slot(groups)
    members = np.flatnonzero(gone).astype(np.int32)
    if rest != FREE and other >= 0:
        set_config(groups, other, rest)
        set_node(groups, other, node)
        _insert_some(problem, cluster, groups, other, members, random)
        _fill(problem, cluster, groups, other, random)
    _insert_some(problem, cluster, groups, slot, members, random)
    if uniform(random) < 0.5:
        _fill(problem, cluster, groups, slot, random)
    return CHANGED


@compiled
def _swap_nodes(problem: SearchProblem, cluster: Cluster, groups: Groups, random: NDArray[np.uint64]) -> int:
    """Have two groups of different nodes change places, or one take free devices of another node.

    That changes no figure by itself, but which groups can be merged.
    """
    slot, other = _any_group(groups, random), _any_group(groups, random)
    size = problem.num_devices[groups.config[slot]]
    if size > cluster.per_node:
        return NOTHING
    node = groups.node[slot]
    if uniform(random) < 0.5:
        target = _any_node(cluster, random)
        if target == node or free_devices(problem, cluster, groups, target) < size:
            return NOTHING
        set_node(groups, slot, target)
        return SAME
    other_size = problem.num_devices[groups.config[other]]
    target = groups.node[other]
    if target == node or other_size > cluster.per_node:
        return NOTHING
    grows = free_devices(problem, cluster, groups, node) + size - other_size
    shrinks = free_devices(problem, cluster, groups, target) + other_size - size
    if grows < 0 or shrinks < 0:
        return NOTHING
    set_node(groups, slot, target)
    set_node(groups, other, node)
    return SAME
