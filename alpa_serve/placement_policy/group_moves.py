"""Random changes of the groups themselves: reshaped, split, merged, made, and put on other nodes.

Every change keeps to the memory of the devices and to the nodes of the cluster, and is in the log of the groups, so
that it can be undone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.placement_policy.cluster_arrays import any_config, any_node, free_devices, free_nodes, free_slot
from alpa_serve.placement_policy.replica_moves import (
    CHANGED,
    NOTHING,
    SAME,
    any_group,
    any_model,
    fill,
    insert_some,
)
from alpa_serve.placement_policy.splitmix import below, uniform
from alpa_serve.simulator.compiled import compiled
from alpa_serve.simulator.groups import FREE, add_replica, clear_group, set_config, set_node

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alpa_serve.placement_policy.cluster_arrays import Cluster
    from alpa_serve.simulator.groups import Groups
    from alpa_serve.simulator.search_problem import SearchProblem


@compiled
def reshape(problem: SearchProblem, cluster: Cluster, groups: Groups, slot: int, random: NDArray[np.uint64]) -> int:
    """Give a group another config of the same size."""
    config = any_config(cluster, problem.num_devices[groups.config[slot]], random)
    if config in (FREE, groups.config[slot]):
        return NOTHING
    _turn_into(problem, cluster, groups, slot, config, _members(groups, slot), random)
    return CHANGED


@compiled
def merge_or_shift(
    problem: SearchProblem, cluster: Cluster, groups: Groups, slot: int, random: NDArray[np.uint64]
) -> int:
    """Merge a group with another of its node, or shift devices between the two; or let it take free devices."""
    size = problem.num_devices[groups.config[slot]]
    unit = 1 if size < cluster.per_node else cluster.per_node
    if unit == 1:
        free = free_devices(problem, cluster, groups, groups.node[slot])
    else:
        free = free_nodes(problem, cluster, groups, groups.node[slot] + size // unit)
    if free and uniform(random) < 0.5:
        config = any_config(cluster, size + unit * (1 + below(random, free)), random)
        if config == FREE:
            return NOTHING
        _turn_into(problem, cluster, groups, slot, config, _members(groups, slot), random)
        return CHANGED
    other = any_group(groups, random)
    for _ in range(20):
        if other != slot and groups.node[other] == groups.node[slot]:
            break
        other = any_group(groups, random)
    if other == slot:
        return NOTHING
    both = size + problem.num_devices[groups.config[other]]
    if not _are_neighbours(problem, cluster, groups, slot, other):
        return NOTHING
    node = min(groups.node[slot], groups.node[other])
    if uniform(random) < 0.5:
        config = any_config(cluster, both, random)
        if config == FREE:
            return NOTHING
        number = groups.num_models[slot]
        members = np.empty(number + groups.num_models[other], np.int32)
        members[:number] = groups.models[slot, :number]
        members[number:] = groups.models[other, : groups.num_models[other]]
        clear_group(groups, other)
        set_config(groups, other, FREE)
        set_node(groups, slot, node)
        _turn_into(problem, cluster, groups, slot, config, members, random)
        return CHANGED
    if both > cluster.per_node:
        return NOTHING
    part = 1 + below(random, both - 1)
    config, rest = any_config(cluster, part, random), any_config(cluster, both - part, random)
    if part == size or config == FREE or rest == FREE:
        return NOTHING
    _turn_into(problem, cluster, groups, slot, config, _members(groups, slot), random)
    _turn_into(problem, cluster, groups, other, rest, _members(groups, other), random)
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
def split(problem: SearchProblem, cluster: Cluster, groups: Groups, slot: int, random: NDArray[np.uint64]) -> int:
    """Split a group in two, each model going to one of them or both."""
    size = problem.num_devices[groups.config[slot]]
    other = free_slot(groups)
    if size < 2 or other < 0:
        return NOTHING
    per_node = cluster.per_node
    part = 1 + below(random, size - 1) if size <= per_node else per_node * (1 + below(random, size // per_node - 1))
    config, rest = any_config(cluster, part, random), any_config(cluster, size - part, random)
    if config == FREE or rest == FREE:
        return NOTHING
    members = _members(groups, slot)
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
    insert_some(problem, cluster, groups, slot, here[:num_here], random)
    insert_some(problem, cluster, groups, other, there[:num_there], random)
    if uniform(random) < 0.5:
        fill(problem, cluster, groups, slot, random)
        fill(problem, cluster, groups, other, random)
    return CHANGED


@compiled
def new_group(
    problem: SearchProblem,
    cluster: Cluster,
    groups: Groups,
    unserved: NDArray[np.float64],
    random: NDArray[np.uint64],
) -> int:
    """Make a group of free devices of a node, or of several free nodes."""
    node = any_node(cluster, random)
    free = free_devices(problem, cluster, groups, node)
    slot = free_slot(groups)
    if free == 0 or slot < 0:
        return NOTHING
    size = 1 + below(random, free)
    if free == cluster.per_node and uniform(random) < 0.5:
        size = free * (1 + below(random, free_nodes(problem, cluster, groups, node)))
    config = any_config(cluster, size, random)
    if config == FREE:
        return NOTHING
    set_config(groups, slot, config)
    set_node(groups, slot, node)
    model = any_model(unserved, random)
    if problem.weights[model, config] <= cluster.budget:
        add_replica(groups, slot, model)
    fill(problem, cluster, groups, slot, random)
    return CHANGED


@compiled
def take_node(
    problem: SearchProblem,
    cluster: Cluster,
    groups: Groups,
    unserved: NDArray[np.float64],
    random: NDArray[np.uint64],
) -> int:
    """Clear groups of a node until one for a certain model has room, and make that; what is left becomes a group too.

    A group of several nodes takes all of these.

    The models that had to go are tried in the groups of that node again.
    """
    model = any_model(unserved, random)
    if cluster.all_configs == 0:
        return NOTHING
    config = below(random, cluster.all_configs)
    for _ in range(20):
        if problem.weights[model, config] <= cluster.budget:
            break
        config = below(random, cluster.all_configs)
    size = problem.num_devices[config]
    node = any_node(cluster, random)
    if problem.weights[model, config] > cluster.budget or node * cluster.per_node + size > cluster.num_devices:
        return NOTHING
    num_slots = len(groups.config)
    start = below(random, num_slots)
    gone = np.zeros(len(unserved), np.bool_)
    free = free_devices(problem, cluster, groups, node)
    if size > cluster.per_node:
        free = 0
        for k in range(size // cluster.per_node):
            free += free_devices(problem, cluster, groups, node + k)
    last_node = node + (size - 1) // cluster.per_node
    for k in range(num_slots):
        slot = (start + k) % num_slots
        if free >= size:
            break
        if groups.config[slot] == FREE or not node <= groups.node[slot] <= last_node:
            continue
        if problem.num_devices[groups.config[slot]] > cluster.per_node:
            # it may reach beyond
            return NOTHING
        for j in range(groups.num_models[slot]):
            gone[groups.models[slot, j]] = True
        clear_group(groups, slot)
        free += problem.num_devices[groups.config[slot]]
        set_config(groups, slot, FREE)
    if free < size:
        return NOTHING
    slot = free_slot(groups)
    if slot < 0:
        return NOTHING
    set_config(groups, slot, config)
    set_node(groups, slot, node)
    add_replica(groups, slot, model)
    rest = any_config(cluster, free - size, random)
    other = free_slot(groups)
    members = np.flatnonzero(gone).astype(np.int32)
    if rest != FREE and other >= 0:
        set_config(groups, other, rest)
        set_node(groups, other, node)
        insert_some(problem, cluster, groups, other, members, random)
        fill(problem, cluster, groups, other, random)
    insert_some(problem, cluster, groups, slot, members, random)
    if uniform(random) < 0.5:
        fill(problem, cluster, groups, slot, random)
    return CHANGED


@compiled
def swap_nodes(problem: SearchProblem, cluster: Cluster, groups: Groups, random: NDArray[np.uint64]) -> int:
    """Have two groups of different nodes change places, or one take free devices of another node.

    That changes no figure by itself, but which groups can be merged.
    """
    slot, other = any_group(groups, random), any_group(groups, random)
    size = problem.num_devices[groups.config[slot]]
    if size > cluster.per_node:
        return NOTHING
    node = groups.node[slot]
    if uniform(random) < 0.5:
        target = any_node(cluster, random)
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


@compiled
def _turn_into(
    problem: SearchProblem,
    cluster: Cluster,
    groups: Groups,
    slot: int,
    config: int,
    members: NDArray[np.int32],
    random: NDArray[np.uint64],
) -> None:
    """Give a group another config, and of some models those that fit, in random order; then fill it, or not."""
    clear_group(groups, slot)
    set_config(groups, slot, config)
    insert_some(problem, cluster, groups, slot, members, random)
    if uniform(random) < 0.5:
        fill(problem, cluster, groups, slot, random)


@compiled
def _members(groups: Groups, slot: int) -> NDArray[np.int32]:
    """Return the models of a group, whatever becomes of it."""
    return groups.models[slot, : groups.num_models[slot]].copy()
