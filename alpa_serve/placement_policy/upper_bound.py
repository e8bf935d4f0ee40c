"""How much any placement can attain at most."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.placement_policy.capacity_bound import capacity_bound
from alpa_serve.placement_policy.group_jobs import BoundProblem
from alpa_serve.placement_policy.price_bound import compile_kernels, price_bound
from alpa_serve.scheduling import ALPASERVE
from alpa_serve.validation import check_int, check_real

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alpa_serve.placement import ClusterEnv, ModelData
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload

DEFAULT_TIME_LIMIT_S = 10.0


VISITS_PER_ITERATION = 500
"""Visits of requests that take about as long as an iteration of the linear program."""


def placement_upper_bound(
    model_datas: Sequence[ModelData],
    cluster_env: ClusterEnv,
    workload: Workload,
    rules: ServingRules = ALPASERVE,
    *,
    time_limit: float = DEFAULT_TIME_LIMIT_S,
    max_visits: int | None = None,
) -> float:
    """Return an upper bound on the SLO attainment of every placement that is valid on the cluster.

    No :class:`~alpa_serve.placement.ModelPlacement` that passes ``verify``, whatever its configs, groups and models,
    attains more in the compiled simulator, unbatched and without stalls. The event-driven simulator draws its overheads
    around those of the rules, so it may come out higher by chance.

    Parameters
    ----------
    model_datas : sequence of ModelData
    cluster_env : ClusterEnv
    workload : Workload
        Requests find their model by name; SLOs are the workload's.
    rules : ServingRules
    time_limit : float
        Seconds after which the bound is what it is by then; with more it may be tighter. It is no limit on the steps
        without which there is no bound: reading the requests, a few passes over them per config, one linear program
        of a size that does not grow with them.
    max_visits : int, optional
        Instead of the seconds, how many requests of groups may be looked at while the bound is tightened (about ten
        million a second), and in proportion how many iterations the linear program may take: for a bound that does not
        depend on the speed of the machine. Whether a problem is too large to be
        tightened at all is told by `time_limit`.

    Returns
    -------
    float
        Good requests / requests, as :attr:`~alpa_serve.placement_policy.evaluator.Evaluation.goodput` has it: a whole
        number of requests, those for unregistered models not good; 0 without requests.

    Raises
    ------
    AlpaServeError
        As :class:`~alpa_serve.placement_policy.evaluator.PlacementEvaluator` raises it.

    Notes
    -----
    The lowest of three bounds, each valid by itself. With many models that have enough devices, from some tens of
    either on, it tends to 1: too many requests for the third, and the second knows little of bursts.

    1. The requests that some group could serve in time if it served nothing else.
    2. A linear program of classes of equal models: :func:`~alpa_serve.placement_policy.capacity_bound.capacity_bound`.
    3. Prices (Lagrangian relaxation), if the requests are few enough. Give every request r a price p_r. A
       placement sends each request of a placed model to exactly one group, so that

           good = sum over placed models' requests p_r + sum over groups g sum over requests r sent to g (good_r - p_r)
               <= sum over models max(0, sum of their p_r) + highest sum over groups of V_c(g),

       where V_c is the most that one group of config c can make of any requests of any models that fit its memory, each
       sent to it or not. The highest sum over all shapes of the cluster is a knapsack
       (:class:`~alpa_serve.placement_policy.group_shapes.Shapes`). V_c is the highest over sets of models, found by
       branch and bound: a set that does not fit bounds its subsets. The value of a set is a dynamic program over the
       requests: :func:`~alpa_serve.placement_policy.group_value.best_selection` takes the stage with the most work
       for the group, which serves requests in their order and whatever it likes of them. It is an upper bound while
       prices are >= 0, where nothing is gained by late requests, and for any prices where all requests are served, late
       ones included. Where groups drop exactly what they cannot serve in time,
       :func:`~alpa_serve.placement_policy.dispatch_value.best_dispatch` follows all stages and allows any prices: a
       price below 0 pays for a request that some group must take or be too busy for.

       This holds for every choice of prices. They come from subgradient descent, first for all shapes together; then
       the shape of the highest bound gets prices of its own, again and again, and the highest bound counts. Shapes with
       room for one more group need not be looked at, as it is worth at least 0.

    What the rules do beyond that (one queue for all groups, how a replica is chosen, penalties after a pause) only
    delays requests, and is left out. Rounding: prices are whole multiples of 2^-20, so that the sums are exact; times
    err on the side of serving more, by more than the simulator's own sums can; the linear program's bound follows
    from its dual prices alone, whatever the solver's tolerances.

    References
    ----------
    M. L. Fisher, The Lagrangian relaxation method for solving integer programming problems, Management Science 27,
    1981.
    """
    compile_kernels()
    start = time.perf_counter()
    check_real(time_limit, "time_limit (s)", minimum=0.0)
    if max_visits is not None:
        check_int(max_visits, "max_visits", minimum=0)

    def spent() -> float:
        return 0.0 if max_visits is not None else time.perf_counter() - start

    iterations = None if max_visits is None else max_visits // VISITS_PER_ITERATION
    problem = BoundProblem(model_datas, cluster_env, workload, rules)
    if not problem.num_requests:
        return 0.0
    bound = float(_servable(problem))
    if bound:
        bound = min(bound, capacity_bound(problem, max(time_limit - spent(), 0.0), iterations))
        bound = min(bound, price_bound(problem, max(time_limit - spent(), 0.0), max_visits))
    return math.floor(bound) / problem.num_requests


def _servable(problem: BoundProblem) -> int:
    """Return how many requests some group could serve in time if it served nothing else."""
    servable = np.zeros(len(problem.arrivals), dtype=bool)
    for config, weights in zip(problem.configs, problem.weights, strict=True):
        jobs = problem.jobs(config)
        servable |= np.isfinite(weights)[problem.model_ids] & (jobs.ready + jobs.work <= jobs.latest)
    return int(np.count_nonzero(servable))
