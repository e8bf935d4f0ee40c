"""Beam search over replicas: all one-replica extensions of the best few placements, level by level."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.placement_policy.evaluator import PlacementEvaluator
from alpa_serve.placement_policy.progress import SearchProgress, reporter
from alpa_serve.placement_policy.training import workload_or_training
from alpa_serve.validation import check_int

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from alpa_serve.placement import ClusterEnv, ModelData, ModelPlacement
    from alpa_serve.placement_policy.progress import ProgressCallback
    from alpa_serve.simulator.columnar_workload import Workload

DEFAULT_BEAM_SIZE = 3


def replica_placement_beam_search(
    init_sol: ModelPlacement,
    model_datas: Sequence[ModelData],
    cluster_env: ClusterEnv,
    workload: Workload | None = None,
    evaluator: PlacementEvaluator | None = None,
    beam_size: int = DEFAULT_BEAM_SIZE,
    verbose: int = 0,
    *,
    callback: ProgressCallback | None = None,
) -> ModelPlacement:
    """Add replicas level by level, keeping the best `beam_size` placements of each level.

    Parameters
    ----------
    init_sol : ModelPlacement
        The groups, and what they hold already; not changed.
    model_datas : sequence of ModelData
    cluster_env : ClusterEnv
        For its mem_budget.
    workload : Workload, optional
        Needed only without `evaluator`.
    evaluator : PlacementEvaluator, optional
        Of `model_datas`; made from `workload` if left out.
    beam_size : int
    verbose : int
        1 logs every level.
    callback : callable, optional
        Called with a SearchProgress after every level.

    Returns
    -------
    ModelPlacement
        The best placement seen, normalised.
    """
    evaluator = evaluator or PlacementEvaluator(model_datas, cluster_env, workload_or_training(workload, model_datas))

    def extensions(placement: ModelPlacement) -> Iterator[ModelPlacement]:
        extended = set()
        for group_id, config in enumerate(placement.group_configs):
            # equal groups have equal extensions
            alike = (config, tuple(placement.group_models[group_id]))
            if alike in extended:
                continue
            extended.add(alike)
            yield from _with_one_more(placement, group_id, evaluator, cluster_env)

    return _search(
        init_sol.normalize(),
        lambda placement: (new.normalize() for new in extensions(placement)),
        evaluator,
        beam_size,
        reporter(verbose, callback),
    )


def replica_placement_on_last_group(
    init_sol: ModelPlacement,
    model_datas: Sequence[ModelData],
    cluster_env: ClusterEnv,
    workload: Workload | None = None,
    evaluator: PlacementEvaluator | None = None,
    beam_size: int = DEFAULT_BEAM_SIZE,
    verbose: int = 0,
    *,
    callback: ProgressCallback | None = None,
) -> ModelPlacement:
    """Fill the last group only: beam search over models added to it, and over models swapped with another group.

    A swap is kept only if it scores better than the placement that it starts from, so the search ends.

    Parameters
    ----------
    init_sol : ModelPlacement
        The groups, and what they hold already; not changed.
    model_datas, cluster_env, workload, evaluator, beam_size, verbose, callback
        As in :func:`replica_placement_beam_search`.

    Returns
    -------
    ModelPlacement
        The best placement seen; groups in the order of `init_sol`.
    """
    evaluator = evaluator or PlacementEvaluator(model_datas, cluster_env, workload_or_training(workload, model_datas))
    last = len(init_sol.group_configs) - 1

    def extensions(placement: ModelPlacement) -> Iterator[ModelPlacement]:
        if last < 0:
            return
        yield from _with_one_more(placement, last, evaluator, cluster_env)
        score = evaluator.evaluate(placement).score
        for group_id in range(last):
            for here in placement.group_models[last]:
                for there in placement.group_models[group_id]:
                    swapped = placement.copy()
                    swapped.group_models[last].remove(here)
                    swapped.group_models[group_id].remove(there)
                    swapped.group_models[last].append(there)
                    swapped.group_models[group_id].append(here)
                    fits = all(_is_valid(swapped, g, evaluator, cluster_env) for g in (group_id, last))
                    if fits and evaluator.evaluate(swapped).score > score:
                        yield swapped

    def in_order(placement: ModelPlacement) -> Iterator[ModelPlacement]:
        for new in extensions(placement):
            new.group_models = [sorted(models) for models in new.group_models]
            yield new

    return _search(init_sol.copy(), in_order, evaluator, beam_size, reporter(verbose, callback))


def _with_one_more(
    placement: ModelPlacement, group_id: int, evaluator: PlacementEvaluator, cluster_env: ClusterEnv
) -> Iterator[ModelPlacement]:
    """Yield the placements with one more model in the group, strictly within the budget."""
    models = placement.group_models[group_id]
    weights = evaluator.weights(placement.group_configs[group_id])
    fits = weights + weights[models].sum() < cluster_env.mem_budget
    fits[models] = False
    for model_id in np.flatnonzero(fits).tolist():
        yield placement.add_model(group_id, model_id)


def _is_valid(placement: ModelPlacement, group_id: int, evaluator: PlacementEvaluator, cluster_env: ClusterEnv) -> bool:
    models = placement.group_models[group_id]
    weights = evaluator.weights(placement.group_configs[group_id])
    return len(set(models)) == len(models) and weights[models].sum() < cluster_env.mem_budget


def _search(
    start: ModelPlacement,
    extensions: Callable[[ModelPlacement], Iterator[ModelPlacement]],
    evaluator: PlacementEvaluator,
    beam_size: int,
    report: ProgressCallback,
) -> ModelPlacement:
    check_int(beam_size, "beam_size", minimum=1)
    best, best_score = start, evaluator.evaluate(start).score
    beam = [start]
    seen = {_key(start)}
    level = 0
    while beam:
        candidates = []
        for placement in beam:
            for new in extensions(placement):
                if _key(new) not in seen:
                    seen.add(_key(new))
                    candidates.append(new)
        scores = evaluator.get_scores(candidates)
        beam = [candidates[k] for k in np.argsort(scores, kind="stable")[::-1][:beam_size].tolist()]
        if candidates and scores.max() > best_score:
            best, best_score = beam[0], float(scores.max())
        level += 1
        report(SearchProgress("beam search", level, 0, best_score, best))
    return best


def _key(placement: ModelPlacement) -> tuple[object, ...]:
    return tuple(placement.group_configs), tuple(map(tuple, placement.group_models))
