"""The devices of a cluster for compiled searches: which configs a group can have, and which devices are free."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alpa_serve.placement_policy.splitmix import below
from alpa_serve.simulator.compiled import compiled
from alpa_serve.simulator.groups import FREE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alpa_serve.placement import ClusterEnv
    from alpa_serve.profiling import ParallelConfig
    from alpa_serve.simulator.groups import Groups
    from alpa_serve.simulator.search_problem import SearchProblem


class Cluster(NamedTuple):
    """Devices, and the configs that groups of each size can have.

    Attributes
    ----------
    num_devices, per_node : int
    budget : float
        Bytes of weights that one device can hold.
    all_configs : int
        The configs that moves give to groups have the ids 0 to all_configs - 1.
    configs : ndarray of int64, shape (num_devices + 1, max_configs)
        Their ids by size of the group.
    num_configs : ndarray of int64, shape (num_devices + 1,)
    """

    num_devices: int
    per_node: int
    budget: float
    all_configs: int
    configs: NDArray[np.int64]
    num_configs: NDArray[np.int64]


def make_cluster(cluster_env: ClusterEnv, configs: Sequence[ParallelConfig]) -> Cluster:
    """Return the cluster, and which of the `configs` (ids are positions) groups of each size can have.

    Parameters
    ----------
    cluster_env : ClusterEnv
    configs : sequence of ParallelConfig
        Of groups that the cluster can hold.
    """
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
        len(configs),
        table,
        np.array([len(ids) for ids in by_size], dtype=np.int64),
    )


@compiled
def any_config(cluster: Cluster, size: int, random: NDArray[np.uint64]) -> int:
    """Choose a config for a group of a size; FREE if there is none."""
    if size < 1 or size > cluster.num_devices or cluster.num_configs[size] == 0:
        return FREE
    return int(cluster.configs[size, below(random, cluster.num_configs[size])])


@compiled
def any_node(cluster: Cluster, random: NDArray[np.uint64]) -> int:
    """Choose a node."""
    return below(random, (cluster.num_devices + cluster.per_node - 1) // cluster.per_node)


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
def free_nodes(problem: SearchProblem, cluster: Cluster, groups: Groups, node: int) -> int:
    """Return how many nodes in a row from this one on are there in full and in no group."""
    number = 0
    while (node + number + 1) * cluster.per_node <= cluster.num_devices:
        if free_devices(problem, cluster, groups, node + number) < cluster.per_node:
            break
        number += 1
    return number


@compiled
def free_slot(groups: Groups) -> int:
    """Return a slot without a group; -1 if there is none, and then no device is free."""
    for slot in range(len(groups.config)):
        if groups.config[slot] == FREE:
            return slot
    return -1
