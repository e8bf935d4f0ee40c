"""Evolutionary search over the replicas of given placements; their groups stay as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.errors import InvalidConfigError
from alpa_serve.placement_policy.progress import SearchProgress, reporter
from alpa_serve.validation import check_int

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alpa_serve.placement import ClusterEnv, ModelData, ModelPlacement
    from alpa_serve.placement_policy.evaluator import PlacementEvaluator
    from alpa_serve.placement_policy.progress import ProgressCallback

POPULATION = 20
"""Placements that survive a generation."""

CHILDREN = 20
"""Placements that a generation adds."""

MAX_DROPPED = 3
"""Replicas that a mutation drops at most before it refills the groups."""


def evolutionary_search(
    init_sols: Sequence[ModelPlacement],
    model_datas: Sequence[ModelData],
    cluster_env: ClusterEnv,
    evaluator: PlacementEvaluator,
    num_iter: int,
    verbose: int = 0,
    *,
    seed: int = 0,
    callback: ProgressCallback | None = None,
) -> ModelPlacement:
    """Improve placements by dropping some replicas at random and refilling the groups at random.

    Parameters
    ----------
    init_sols : sequence of ModelPlacement
        At least one; not changed.
    model_datas : sequence of ModelData
    cluster_env : ClusterEnv
        For its mem_budget.
    evaluator : PlacementEvaluator
        Of `model_datas`.
    num_iter : int
        Generations.
    verbose : int
        1 logs every generation.
    seed : int
        Equal seeds give equal results.
    callback : callable, optional
        Called with a SearchProgress after every generation.

    Returns
    -------
    ModelPlacement
        The best placement seen, normalised; never worse than the best of `init_sols`.
    """
    if not init_sols:
        raise InvalidConfigError("evolutionary_search needs at least one placement to start from")
    check_int(num_iter, "num_iter", minimum=0)
    report = reporter(verbose, callback)
    rng = np.random.default_rng(seed)
    population = [placement.normalize() for placement in init_sols]
    scores = evaluator.get_scores(population).tolist()
    for generation in range(num_iter):
        children = [
            _mutate(population[int(rng.integers(len(population)))], evaluator, cluster_env, rng)
            for _ in range(CHILDREN)
        ]
        # a child that is in the population already would crowd out others
        fresh = [child for child in children if child not in population]
        population += fresh
        scores += evaluator.get_scores(fresh).tolist()
        survivors = sorted(range(len(population)), key=lambda k: -scores[k])[:POPULATION]
        population, scores = [population[k] for k in survivors], [scores[k] for k in survivors]
        report(SearchProgress("evolutionary search", generation + 1, num_iter, scores[0], population[0]))
    return population[int(np.argmax(scores))]


def _mutate(
    placement: ModelPlacement, evaluator: PlacementEvaluator, cluster_env: ClusterEnv, rng: np.random.Generator
) -> ModelPlacement:
    child = placement.copy()
    replicas = [(g, m) for g, models in enumerate(child.group_models) for m in models]
    num_dropped = min(int(rng.integers(1, MAX_DROPPED + 1)), len(replicas))
    for k in rng.choice(len(replicas), size=num_dropped, replace=False) if replicas else ():
        group_id, model_id = replicas[k]
        child.group_models[group_id].remove(model_id)
    for group_id in rng.permutation(len(child.group_configs)).tolist():
        weights = evaluator.weights(child.group_configs[group_id])
        models = child.group_models[group_id]
        used = float(weights[models].sum())
        for model_id in rng.permutation(len(weights)).tolist():
            if model_id not in models and used + weights[model_id] <= cluster_env.mem_budget:
                models.append(model_id)
                used += float(weights[model_id])
    return child.normalize()
