"""Random changes of a placement: one of all kinds, on a group chosen at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.placement_policy.group_moves import merge_or_shift, new_group, reshape, split, swap_nodes, take_node
from alpa_serve.placement_policy.replica_moves import add, any_group, drop, move, replace
from alpa_serve.placement_policy.splitmix import uniform
from alpa_serve.simulator.compiled import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from alpa_serve.placement_policy.cluster_arrays import Cluster
    from alpa_serve.simulator.groups import Groups
    from alpa_serve.simulator.search_problem import SearchProblem


def log_size(num_models: int, cluster: Cluster) -> int:
    """Return how many changes a move makes at most.

    That is where it takes a node, or several: every group there loses every model, and two new ones are offered each
    model twice, to be put in and taken out again.
    """
    largest = int(np.flatnonzero(cluster.num_configs).max(initial=0))
    return (max(cluster.per_node, largest) + 8) * (num_models + 2)


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
        return take_node(problem, cluster, groups, unserved, random)
    if draw < 0.05:
        return new_group(problem, cluster, groups, unserved, random)
    slot = any_group(groups, random)
    if slot < 0:
        return new_group(problem, cluster, groups, unserved, random)
    if draw < 0.20:
        return add(problem, cluster, groups, slot, unserved, random)
    if draw < 0.24:
        return drop(groups, slot, random)
    if draw < 0.34:
        return replace(problem, cluster, groups, slot, random)
    if draw < 0.62:
        return move(problem, cluster, groups, slot, random)
    if draw < 0.74:
        return reshape(problem, cluster, groups, slot, random)
    if draw < 0.86:
        return merge_or_shift(problem, cluster, groups, slot, random)
    if draw < 0.97:
        return split(problem, cluster, groups, slot, random)
    return swap_nodes(problem, cluster, groups, random)
