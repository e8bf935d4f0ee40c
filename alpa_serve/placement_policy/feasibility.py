"""Whether anything can be placed at all, and what would have to change if not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.errors import InfeasiblePlacementError, InvalidConfigError, SolverStoppedError
from alpa_serve.placement_policy.evaluator import model_weights
from alpa_serve.placement_policy.ilp import pack_all_models
from alpa_serve.util import GB

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from alpa_serve.placement import ClusterEnv, ModelData
    from alpa_serve.profiling import ParallelConfig


def smallest_budget(model_datas: Sequence[ModelData], configs: Iterable[ParallelConfig]) -> float:
    """Return the smallest mem_budget (bytes) in which some model fits on some of `configs`; infinite if none does."""
    return min(
        (float(model_weights(model_datas, config).min(initial=np.inf)) for config in set(configs)), default=np.inf
    )


def check_something_fits(
    model_datas: Sequence[ModelData],
    cluster_env: ClusterEnv,
    configs: Iterable[ParallelConfig],
    *,
    strictly: bool = False,
) -> None:
    """Check that at least one model fits on one of the group `configs` that a search may use.

    Parameters
    ----------
    model_datas : sequence of ModelData
    cluster_env : ClusterEnv
    configs : iterable of ParallelConfig
    strictly : bool
        Whether a model must need less than the budget, as beam search has it.

    Raises
    ------
    InvalidConfigError
        If there is no model.
    InfeasiblePlacementError
        Naming the smallest mem_budget that would do, or the configs if no model is profiled on any.
    """
    if not model_datas:
        raise InvalidConfigError("there is no model to place")
    allowed = sorted(set(configs))
    if not allowed:
        raise InfeasiblePlacementError(
            f"the groups of this policy do not fit {cluster_env.num_devices} devices "
            f"in nodes of {cluster_env.num_devices_per_node}"
        )
    budget = smallest_budget(model_datas, allowed)
    if budget == np.inf:
        raise InfeasiblePlacementError(
            f"no model is profiled on any group config that this policy may use on {cluster_env.num_devices} devices: "
            f"{', '.join(str(tuple(config)) for config in allowed)}"
        )
    if budget > cluster_env.mem_budget or (strictly and budget == cluster_env.mem_budget):
        # rounded up: either figure, given back, is enough
        needed = math.floor(budget) + 1 if strictly else math.ceil(budget)
        raise InfeasiblePlacementError(
            f"no model fits in a mem_budget of {cluster_env.mem_budget / GB:.3f} GiB a device; "
            f"the smallest that would do is {math.ceil(needed * 1000 / GB) / 1000:.3f} GiB ({needed} bytes)"
        )


def check_room_for_all(
    model_datas: Sequence[ModelData], cluster_env: ClusterEnv, configs: Iterable[ParallelConfig]
) -> None:
    """Check what must hold for groups of any of the `configs`, however many of each, to hold every model.

    Each model must fit on a device of some group, and all of them, each on the config that takes least, in the memory
    of all devices together. That is necessary and quick to tell, not sufficient.

    Raises
    ------
    InfeasiblePlacementError
        Naming a model that fits nowhere, or the mem_budget below which they do not fit together.
    """
    least = np.full(len(model_datas), np.inf)
    least_of_all_devices = np.full(len(model_datas), np.inf)
    for config in set(configs):
        weights = model_weights(model_datas, config)
        least = np.minimum(least, weights)
        fitting = np.where(weights <= cluster_env.mem_budget, weights * config.num_devices, np.inf)
        least_of_all_devices = np.minimum(least_of_all_devices, fitting)
    for data, weight in zip(model_datas, least.tolist(), strict=True):
        if weight == np.inf:
            raise InfeasiblePlacementError(
                f"require_all_models: model {data.name!r} is not profiled on any group config that this policy may use "
                f"on {cluster_env.num_devices} devices"
            )
        if weight > cluster_env.mem_budget:
            raise InfeasiblePlacementError(
                f"require_all_models: model {data.name!r} needs {weight / GB:.3f} GiB a device at least, mem_budget is "
                f"{cluster_env.mem_budget / GB:.3f} GiB"
            )
    together = float(least_of_all_devices.sum())
    # in whichever order the figures are added
    if together > cluster_env.num_devices * cluster_env.mem_budget * (1 + 1e-9):
        raise InfeasiblePlacementError(
            f"require_all_models: the {len(model_datas)} models need {together / GB:.3f} GiB together at least, "
            f"{cluster_env.num_devices} devices of {cluster_env.mem_budget / GB:.3f} GiB have "
            f"{cluster_env.num_devices * cluster_env.mem_budget / GB:.3f} GiB"
        )


def check_groups_fit(cluster_env: ClusterEnv, configs: Sequence[ParallelConfig]) -> None:
    """Check that groups of `configs` fit the cluster without tearing a node.

    Raises
    ------
    InfeasiblePlacementError
        Naming the sizes of groups and nodes.
    """
    sizes = [config.num_devices for config in configs]
    if not cluster_env.can_hold(sizes):
        raise InfeasiblePlacementError(
            f"this policy makes groups of {sizes} devices, which cannot lie within nodes of "
            f"{cluster_env.num_devices_per_node} on {cluster_env.num_devices} devices"
        )


def why_not_all(
    model_datas: Sequence[ModelData], cluster_env: ClusterEnv, shapes: Sequence[Sequence[ParallelConfig]]
) -> str:
    """Say why no shape of groups holds every model, and which mem_budget would do if any does."""
    holding = [shape for shape in shapes if _packs(model_datas, cluster_env, shape, _UNLIMITED)]
    if not holding:
        return (
            f"require_all_models: no shape of groups on {cluster_env.num_devices} devices "
            "has a profiled config for every model"
        )
    # between a budget that is too small and one that is enough, to a thousandth of a GiB
    low, high = cluster_env.mem_budget, cluster_env.mem_budget * 2
    while high < _UNLIMITED and not any(_packs(model_datas, cluster_env, shape, high) for shape in holding):
        low, high = high, high * 2
    while high - low > GB / 1000:
        middle = (low + high) / 2
        if any(_packs(model_datas, cluster_env, shape, middle) for shape in holding):
            high = middle
        else:
            low = middle
    enough = math.ceil(high * 1000 / GB) / 1000
    return (
        f"require_all_models: no shape of groups holds all {len(model_datas)} models on {cluster_env.num_devices} "
        f"devices of {cluster_env.mem_budget / GB:.3f} GiB; {enough:.3f} GiB a device would do"
    )


_UNLIMITED = 1e30
"""Bytes; more than any model."""


def _packs(
    model_datas: Sequence[ModelData], cluster_env: ClusterEnv, shape: Sequence[ParallelConfig], budget: float
) -> bool:
    try:
        return pack_all_models(model_datas, replace(cluster_env, mem_budget=budget), shape, _PACKING_TIME_S) is not None
    except SolverStoppedError:
        return False


_PACKING_TIME_S = 2.0
"""Seconds after which a packing counts as not found; only a message depends on it."""
