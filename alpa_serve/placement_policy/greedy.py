"""Filling given groups with replicas: in turn (round robin), or where most is unserved (fast greedy)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.placement import ModelPlacement
from alpa_serve.placement_policy.evaluator import PlacementEvaluator, model_weights
from alpa_serve.placement_policy.part_runner import never_stopped
from alpa_serve.placement_policy.progress import SearchProgress, reporter
from alpa_serve.placement_policy.training import workload_or_training
from alpa_serve.simulator.compiled import compiled
from alpa_serve.simulator.groups import used_bytes
from alpa_serve.util import eps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alpa_serve.placement import ClusterEnv, ModelData
    from alpa_serve.placement_policy.part_runner import Stopped
    from alpa_serve.placement_policy.progress import ProgressCallback
    from alpa_serve.simulator.columnar_workload import Workload
    from alpa_serve.simulator.groups import Groups


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
    report = reporter(verbose, callback) if verbose or callback is not None else None
    return fill_greedily(init_sol, cluster_env, evaluator, report)


def fill_greedily(
    start: ModelPlacement,
    cluster_env: ClusterEnv,
    evaluator: PlacementEvaluator,
    report: ProgressCallback | None = None,
    stopped: Stopped = never_stopped,
) -> ModelPlacement:
    """Fill groups by fast greedy (:func:`replica_placement_fast_greedy`), or as far as it came when it was stopped."""
    filling = _Filling(evaluator, start.normalize())
    while True:
        if report is not None:
            placement = filling.placement()
            report(SearchProgress("fast greedy", placement.num_replicas, 0, filling.score, placement))
        if stopped() or not filling.add_next_replica(cluster_env.mem_budget):
            return filling.placement()


class _Filling:
    """Groups that are being filled, and what they attain so far; a replica more costs what it changes."""

    def __init__(self, evaluator: PlacementEvaluator, start: ModelPlacement) -> None:
        self._evaluator = evaluator
        self._configs = start.group_configs
        self._simulation = evaluator.simulation(start)
        self._full = np.zeros(len(start.group_configs), np.bool_)

    @property
    def score(self) -> float:
        simulation = self._simulation
        return self._evaluator.score(
            int(simulation.model_num_good.sum()), simulation.latency_sum, int(simulation.groups.num_replicas.sum())
        )

    def placement(self) -> ModelPlacement:
        simulation = self._simulation
        return ModelPlacement([self._configs[slot] for slot in simulation.order.tolist()], simulation.group_models())

    def add_next_replica(self, budget: float) -> bool:
        """Add a replica; False if no group can take any."""
        simulation = self._simulation
        num_requests = self._evaluator.model_num_requests
        unserved = num_requests * (1 - simulation.model_num_good / (num_requests + eps))
        slot, model = _next_replica(
            simulation.groups, simulation.problem.weights, simulation.group_num_requests, unserved, self._full, budget
        )
        if slot >= 0:
            simulation.add_replica(slot, model)
        return bool(slot >= 0)


@compiled
def _next_replica(
    groups: Groups,
    weights: NDArray[np.float64],
    group_num_requests: NDArray[np.int64],
    unserved: NDArray[np.float64],
    full: NDArray[np.bool_],
    budget: float,
) -> tuple[int, int]:
    """Return the group with fewest requests that can take a model, and the model with most unserved that it can take.

    On a tie the group of the lowest rank, and the model of the highest number. Groups that can take none are marked in
    `full`, which they stay: greedy takes nothing away.

    Returns
    -------
    slot, model : int
        -1, -1 if no group can take any.
    """
    while True:
        slot = -1
        for s in range(len(full)):
            if full[s]:
                continue
            fewer = slot < 0 or group_num_requests[s] < group_num_requests[slot]
            if fewer or (group_num_requests[s] == group_num_requests[slot] and groups.rank[s] < groups.rank[slot]):
                slot = s
        if slot < 0:
            return -1, -1
        config = groups.config[slot]
        used = used_bytes(groups, weights, slot, config)
        best = -1
        for model in range(len(unserved)):
            if groups.holds[slot, model] or weights[model, config] + used > budget:
                continue
            if best < 0 or unserved[model] >= unserved[best]:
                best = model
        if best >= 0:
            return slot, best
        full[slot] = True
