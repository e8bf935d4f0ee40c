"""Filling given groups with replicas: in turn (round robin), or where most is unserved (fast greedy)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.placement import ModelPlacement
from alpa_serve.placement_policy.evaluator import PlacementEvaluator, model_weights
from alpa_serve.placement_policy.progress import SearchProgress, reporter
from alpa_serve.placement_policy.training import workload_or_training

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alpa_serve.placement import ClusterEnv, ModelData
    from alpa_serve.placement_policy.progress import ProgressCallback
    from alpa_serve.simulator.columnar_workload import Workload


def replica_placement_round_robin(
    init_sol: ModelPlacement,
    model_datas: Sequence[ModelData],
    cluster_env: ClusterEnv,
    workload: Workload | None = None,
    verbose: int = 0,
) -> ModelPlacement:
    """Fill groups in turn: each takes the next model in the cycle that it lacks and that fits.

    Parameters
    ----------
    init_sol : ModelPlacement
        The groups, and what they hold already; not changed.
    model_datas : sequence of ModelData
    cluster_env : ClusterEnv
        For its mem_budget.
    workload : Workload, optional
        Without effect.
    verbose : int
        1 logs the number of replicas at the end.

    Returns
    -------
    ModelPlacement
        Groups in the order of `init_sol`.
    """
    placement = init_sol.copy()
    weights = {config: model_weights(model_datas, config) for config in set(placement.group_configs)}
    used = [
        float(weights[config][models].sum())
        for config, models in zip(placement.group_configs, placement.group_models, strict=True)
    ]
    group_id = 0
    placed = bool(used)
    while placed:
        placed = False
        for model_id in range(len(model_datas)):
            weight = weights[placement.group_configs[group_id]][model_id]
            if model_id in placement.group_models[group_id] or used[group_id] + weight > cluster_env.mem_budget:
                continue
            placement.group_models[group_id].append(model_id)
            used[group_id] += weight
            group_id = (group_id + 1) % len(used)
            placed = True
    reporter(verbose, None)(SearchProgress("round robin", placement.num_replicas, placement.num_replicas))
    return placement


def replica_placement_fast_greedy(
    init_sol: ModelPlacement,
    model_datas: Sequence[ModelData],
    cluster_env: ClusterEnv,
    workload: Workload | None = None,
    evaluator: PlacementEvaluator | None = None,
    verbose: int = 0,
    *,
    callback: ProgressCallback | None = None,
) -> ModelPlacement:
    """Add replicas one by one: of the model with most unserved requests, to the group with fewest requests.

    Parameters
    ----------
    init_sol, model_datas, cluster_env, workload, evaluator
        As in :func:`~alpa_serve.placement_policy.beam.replica_placement_beam_search`.
    verbose : int
        1 logs every replica.
    callback : callable, optional
        Called with a SearchProgress after every replica.

    Returns
    -------
    ModelPlacement
        Normalised; no group can take a further replica.

    References
    ----------
    Z. Li et al., "AlpaServe: Statistical Multiplexing with Model Parallelism for Deep Learning Serving", OSDI 2023,
    section 4.1 (the fast heuristic of algorithm 1).
    """
    evaluator = evaluator or PlacementEvaluator(model_datas, cluster_env, workload_or_training(workload, model_datas))
    report = reporter(verbose, callback)
    placement = init_sol.normalize()
    while True:
        evaluation = evaluator.evaluate(placement)
        report(SearchProgress("fast greedy", placement.num_replicas, 0, evaluation.score, placement))
        unserved = evaluator.model_num_requests * (1 - evaluation.model_goodput)
        # stable sorts, the first one reversed: one answer on every machine
        model_order = np.argsort(unserved, kind="stable")[::-1]
        for group_id in np.argsort(evaluation.group_num_requests, kind="stable").tolist():
            models = placement.group_models[group_id]
            weights = evaluator.weights(placement.group_configs[group_id])
            fits = weights + weights[models].sum() <= cluster_env.mem_budget
            fits[models] = False
            candidates = model_order[fits[model_order]]
            if len(candidates):
                placement = placement.add_model(group_id, int(candidates[0])).normalize()
                break
        else:
            return placement
