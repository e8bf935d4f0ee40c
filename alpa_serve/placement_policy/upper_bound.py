"""How much any placement can attain at most."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.placement_policy.capacity_bound import capacity_bound
from alpa_serve.placement_policy.group_jobs import BoundProblem
from alpa_serve.placement_policy.price_bound import price_bound
from alpa_serve.scheduling import ALPASERVE
from alpa_serve.validation import check_real

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alpa_serve.placement import ClusterEnv, ModelData
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload

DEFAULT_TIME_LIMIT_S = 10.0


def placement_upper_bound(
    model_datas: Sequence[ModelData],
    cluster_env: ClusterEnv,
    workload: Workload,
    rules: ServingRules = ALPASERVE,
    *,
    time_limit: float = DEFAULT_TIME_LIMIT_S,
) -> float:
    """Return an upper bound on the SLO attainment of every placement that is valid on the cluster.
    """
    start = time.perf_counter()
    check_real(time_limit, "time_limit (s)", minimum=0.0)
    problem = BoundProblem(model_datas, cluster_env, workload, rules)
    if not problem.num_requests:
        return 0.0
    bound = float(_servable(problem))
    if bound:
        bound = min(bound, capacity_bound(problem, max(time_limit - (time.perf_counter() - start), 0.0)))
        bound = min(bound, price_bound(problem, max(time_limit - (time.perf_counter() - start), 0.0)))
    return math.floor(bound) / problem.num_requests


def _servable(problem: BoundProblem) -> int:
    """Return how many requests some group could serve in time if it served nothing else."""
    servable = np.zeros(len(problem.arrivals), dtype=bool)
    for config, weights in zip(problem.configs, problem.weights, strict=True):
        jobs = problem.jobs(config)
        servable |= np.isfinite(weights)[problem.model_ids] & (jobs.ready + jobs.work <= jobs.latest)
    return int(np.count_nonzero(servable))
