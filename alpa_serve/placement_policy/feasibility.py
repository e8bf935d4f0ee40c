"""Whether anything can be placed at all, and what would have to change if not."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.errors import InfeasiblePlacementError, InvalidConfigError
from alpa_serve.placement_policy.evaluator import model_weights
from alpa_serve.util import GB

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from alpa_serve.placement import ClusterEnv, ModelData
    from alpa_serve.placement_policy.evaluator import PlacementEvaluator
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
    model_datas: Sequence[ModelData],
    cluster_env: ClusterEnv,
    shapes: Sequence[Sequence[ParallelConfig]],
    evaluator: PlacementEvaluator,
) -> str:
    """Say why no shape holds every model."""
    configs = {config for shape in shapes for config in shape}
    smallest = np.min([evaluator.weights(config) for config in configs], axis=0)
    fits = smallest <= cluster_env.mem_budget
    too_large = [data.name for data, fit in zip(model_datas, fits, strict=True) if not fit]
    if too_large:
        return (
            f"require_all_models: {', '.join(too_large)} fit no group that these {cluster_env.num_devices} devices of "
            f"{cluster_env.mem_budget / GB:.3f} GiB can form"
        )
    # every model once, each on the config on which it takes least
    needs = np.min([evaluator.weights(config) * config.num_devices for config in configs], axis=0).sum()
    return (
        f"require_all_models: no shape of groups holds all {len(model_datas)} models on {cluster_env.num_devices} "
        f"devices of {cluster_env.mem_budget / GB:.3f} GiB; together they need at least "
        f"{needs / GB:.1f} GiB of {cluster_env.num_devices * cluster_env.mem_budget / GB:.1f} GiB"
    )
