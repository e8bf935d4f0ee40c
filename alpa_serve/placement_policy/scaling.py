"""How much load a cluster takes: the highest rate and the tightest SLOs at which it reaches an SLO attainment."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from alpa_serve.placement_policy.attainable import check_attainable, idle_latencies
from alpa_serve.placement_policy.plan_search import SearchSettings, check_cluster, check_target
from alpa_serve.placement_policy.progress import reporter
from alpa_serve.placement_policy.scale_search import ScaledProblem, ScaleSearch
from alpa_serve.scheduling import ALPASERVE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alpa_serve.placement import ClusterEnv, ModelData
    from alpa_serve.placement_policy.plan_search import FindPlacement, UpperBound
    from alpa_serve.placement_policy.plans import ScalePlan
    from alpa_serve.placement_policy.progress import ProgressCallback
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload

DEFAULT_TOLERANCE = 0.01
"""Relative width of the interval in which the search leaves the scale."""


def highest_rate_scale(
    model_datas: Sequence[ModelData],
    workload: Workload,
    target: float = 0.99,
    cluster_env: ClusterEnv | None = None,
    rules: ServingRules = ALPASERVE,
    *,
    tolerance: float = DEFAULT_TOLERANCE,
    time_budget: float = 10.0,
    max_evaluations: int | None = None,
    seed: int = 0,
    max_pp: int = 8,
    max_op: int = 8,
    num_workers: int = 1,
    address: str | None = None,
    verbose: int = 0,
    callback: ProgressCallback | None = None,
    find: FindPlacement | None = None,
    upper_bound: UpperBound | None = None,
) -> ScalePlan:
    """Find the highest rate at which a cluster reaches an SLO attainment, with a placement that does.

    The arrivals are compressed in time by the scale; the trace is otherwise kept. From scale 1 the scale is raised as
    far as known placements reach the target, which costs simulations only. Just beyond, a placement is searched, and
    ever farther while that succeeds; then the scale is bisected until it fails within the tolerance of what is reached.

    Parameters
    ----------
    model_datas : sequence of ModelData
    workload : Workload
        Of scale 1.
    target : float
        SLO attainment to reach, in (0, 1].
    cluster_env : ClusterEnv
    rules : ServingRules
        How the cluster serves.
    tolerance : float
        The scale is at least 1 / (1 + tolerance) of the lowest at which the target was not reached.
    time_budget : float
        Seconds for the search at each scale.
    max_evaluations : int, optional
        Placements simulated in the search at each scale; with it, and an infinite `time_budget`, the plan does not
        depend on the speed of the machine.
    seed : int
    max_pp, max_op : int
        Largest pipeline and tensor parallel degree of a group.
    num_workers : int
        Processes that search at once; more than one are Ray tasks.
    address : str, optional
        Of the Ray cluster to join for that; a local one is started for the whole plan if left out.
    verbose : int
        1 logs the progress of the search.
    callback : callable, optional
        Called with a SearchProgress; what it raises ends the search.
    find : callable, optional
        Searches the placement at each scale, in place of the search that the other arguments describe.
    upper_bound : callable, optional
        Bounds the attainment at each scale, in place of
        :func:`~alpa_serve.placement_policy.upper_bound.placement_upper_bound` for a few seconds.

    Returns
    -------
    ScalePlan
        Of scale 2**20 where every rate up to there reaches the target.

    Raises
    ------
    InfeasiblePlacementError
        If no rate reaches the target, with the models that limit it; or if none was found, with the best that was
        reached (then a SolverStoppedError, unless the bound proves it).
    InvalidConfigError, InvalidWorkloadError
        If an argument is out of range, there is no request, or none for any of the models.
    PlanInterrupted
        On KeyboardInterrupt: with the best plan so far, if there is one.
    """
    settings = SearchSettings(
        rules=rules,
        time_budget=time_budget,
        max_evaluations=max_evaluations,
        seed=seed,
        max_pp=max_pp,
        max_op=max_op,
        num_workers=num_workers,
        address=address,
    )
    check_target(target)
    cluster_env = check_cluster(cluster_env)
    idle = idle_latencies(model_datas, cluster_env, workload, rules, max_pp=max_pp, max_op=max_op)
    check_attainable(idle, target, model_datas, workload, cluster_env, where="at any rate")
    problem = ScaledProblem("rate", list(model_datas), workload, cluster_env, rules, target)
    search = ScaleSearch(
        problem, tolerance, find or settings.find, upper_bound or settings.bound, reporter(verbose, callback)
    )
    with settings.workers():
        return search.run(math.inf)


def tightest_slo_scale(
    model_datas: Sequence[ModelData],
    workload: Workload,
    target: float = 0.99,
    cluster_env: ClusterEnv | None = None,
    rules: ServingRules = ALPASERVE,
    *,
    tolerance: float = DEFAULT_TOLERANCE,
    time_budget: float = 10.0,
    max_evaluations: int | None = None,
    seed: int = 0,
    max_pp: int = 8,
    max_op: int = 8,
    num_workers: int = 1,
    address: str | None = None,
    verbose: int = 0,
    callback: ProgressCallback | None = None,
    find: FindPlacement | None = None,
    upper_bound: UpperBound | None = None,
) -> ScalePlan:
    """Find the tightest SLOs with which a cluster reaches an SLO attainment, with a placement that does.

    The scale is a factor on every SLO of the workload; arguments, search and errors are otherwise those of
    :func:`highest_rate_scale`.

    Returns
    -------
    ScalePlan
        Of scale 2**-20 where all SLOs down to there reach the target.
    """
    settings = SearchSettings(
        rules=rules,
        time_budget=time_budget,
        max_evaluations=max_evaluations,
        seed=seed,
        max_pp=max_pp,
        max_op=max_op,
        num_workers=num_workers,
        address=address,
    )
    check_target(target)
    cluster_env = check_cluster(cluster_env)
    idle = idle_latencies(model_datas, cluster_env, workload, rules, max_pp=max_pp, max_op=max_op)
    check_attainable(
        idle,
        target,
        model_datas,
        workload,
        cluster_env,
        where="on this cluster, whatever the SLOs,",
        slos_are_free=True,
    )
    problem = ScaledProblem("slo", list(model_datas), workload, cluster_env, rules, target)
    search = ScaleSearch(
        problem, tolerance, find or settings.find, upper_bound or settings.bound, reporter(verbose, callback)
    )
    tightest = idle.tightest_slo_scale(target)
    with settings.workers():
        return search.run(1 / tightest if tightest > 0 else math.inf)
