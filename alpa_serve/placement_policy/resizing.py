"""A placement made to fit fewer devices, or copied over more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.placement import ModelPlacement
from alpa_serve.profiling import ParallelConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from alpa_serve.placement import ClusterEnv
    from alpa_serve.placement_policy.evaluator import PlacementEvaluator

_GROUPS_TRIED = 8
"""Groups, those with the fewest requests a device, that a step of :func:`shrunk` tries to drop or shrink."""


def devices_needed(placement: ModelPlacement, cluster_env: ClusterEnv) -> int:
    """Return the fewest devices, in nodes as in `cluster_env`, that hold the groups without tearing a node."""
    sizes = [config.num_devices for config in placement.group_configs]
    needed = max(sum(sizes), 1)
    while not _holds(sizes, needed, cluster_env):
        needed += 1
    return needed


def _holds(sizes: list[int], num_devices: int, cluster_env: ClusterEnv) -> bool:
    return type(cluster_env)(num_devices, cluster_env.mem_budget, cluster_env.num_devices_per_node).can_hold(sizes)


def shrunk(placement: ModelPlacement, evaluator: PlacementEvaluator) -> Iterator[ModelPlacement]:
    """Yield placements on ever fewer devices, each made of the one before by dropping or shrinking a group.

    Each step tries the groups that serve the fewest requests a device, and takes the change after which the score is
    highest; of equal scores, that which frees the most devices. A shrunk group keeps the models that fit it.

    Parameters
    ----------
    placement : ModelPlacement
    evaluator : PlacementEvaluator
        Its cluster says what a device holds; its number of devices does not matter.
    """
    current = _without_idle_groups(placement)
    if len(current.group_configs) < len(placement.group_configs):
        yield current
    while len(current.group_configs) > 1 or current.group_configs[0].num_devices > 1:
        changes = _reductions(current, evaluator)
        if not changes:
            return
        used = [sum(config.num_devices for config in change.group_configs) for change in changes]
        scores = evaluator.get_scores(changes)
        current = changes[min(range(len(changes)), key=lambda k: (-scores[k], used[k]))]
        yield current


def _without_idle_groups(placement: ModelPlacement) -> ModelPlacement:
    """Return the placement without the groups that hold no model, but for one if none does."""
    kept = [g for g, models in enumerate(placement.group_models) if models] or [0]
    return ModelPlacement([placement.group_configs[g] for g in kept], [placement.group_models[g] for g in kept])


def _reductions(placement: ModelPlacement, evaluator: PlacementEvaluator) -> list[ModelPlacement]:
    """List placements in which one of the least used groups is gone or has fewer devices."""
    sizes = np.array([config.num_devices for config in placement.group_configs])
    load = evaluator.evaluate(placement).group_num_requests / sizes
    changes = []
    for group_id in np.argsort(load, kind="stable")[:_GROUPS_TRIED].tolist():
        configs, models = placement.group_configs, placement.group_models
        if len(configs) > 1:
            changes.append(
                ModelPlacement(configs[:group_id] + configs[group_id + 1 :], models[:group_id] + models[group_id + 1 :])
            )
        for config in _smaller(configs[group_id], models[group_id], evaluator):
            kept = _fitting(models[group_id], config, evaluator)
            if kept:
                changes.append(
                    ModelPlacement(
                        [*configs[:group_id], config, *configs[group_id + 1 :]],
                        [*models[:group_id], kept, *models[group_id + 1 :]],
                    )
                )
    return changes


def _smaller(config: ParallelConfig, models: list[int], evaluator: PlacementEvaluator) -> list[ParallelConfig]:
    """List the configs of the largest smaller size, within its degrees, that some model of the group is profiled on."""
    profiled = {
        ParallelConfig(*known)
        for model_id in models
        for known in evaluator.model_datas[model_id].profiling_result.para_dict
    }
    fewer = [
        known
        for known in sorted(profiled)
        if known.num_devices < config.num_devices
        and known.dp <= config.dp
        and known.op <= config.op
        and known.pp <= config.pp
        and evaluator.cluster_env.allows_group_of(known.num_devices)
    ]
    largest = max((known.num_devices for known in fewer), default=0)
    return [known for known in fewer if known.num_devices == largest]


def _fitting(models: list[int], config: ParallelConfig, evaluator: PlacementEvaluator) -> list[int]:
    """Return the models that fit a group of `config` together, those with the most requests first."""
    weights = evaluator.weights(config)
    kept: list[int] = []
    free = evaluator.cluster_env.mem_budget
    for model_id in sorted(models, key=lambda m: (-evaluator.model_num_requests[m], m)):
        if weights[model_id] <= free:
            kept.append(model_id)
            free -= weights[model_id]
    return sorted(kept)


def copied(placement: ModelPlacement, cluster_env: ClusterEnv) -> ModelPlacement:
    """Return the placement repeated as often as the cluster holds it, and single groups of it after that.

    Groups without models are left out.
    """
    base = _without_idle_groups(placement)
    sizes = [config.num_devices for config in base.group_configs]
    chosen: list[int] = []
    free = cluster_env.num_devices
    while sum(sizes) <= free:
        chosen += range(len(sizes))
        free -= sum(sizes)
    for group_id, size in enumerate(sizes):
        if size <= free:
            chosen.append(group_id)
            free -= size
    while chosen and not _holds([sizes[g] for g in chosen], cluster_env.num_devices, cluster_env):
        chosen.pop()
    return ModelPlacement([base.group_configs[g] for g in chosen], [list(base.group_models[g]) for g in chosen])
