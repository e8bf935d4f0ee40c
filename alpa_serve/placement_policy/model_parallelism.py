"""Policies that split models over groups of devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alpa_serve.errors import InfeasiblePlacementError
from alpa_serve.placement import ModelPlacement
from alpa_serve.placement_policy import group_partition
from alpa_serve.placement_policy.base_policy import BasePlacementPolicy
from alpa_serve.placement_policy.feasibility import check_groups_fit, check_something_fits
from alpa_serve.placement_policy.fixed_groups import FixedGroupsGreedy
from alpa_serve.placement_policy.greedy import replica_placement_round_robin
from alpa_serve.placement_policy.ilp import (
    DEFAULT_TIME_LIMIT_S,
    PIPELINE_CONFIGS,
    solve_model_parallel,
)
from alpa_serve.placement_policy.model_parallelism_search import ModelParallelismSearch, check_limits
from alpa_serve.profiling import ParallelConfig
from alpa_serve.scheduling import ALPASERVE
from alpa_serve.validation import check_int, check_real

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alpa_serve.placement import ClusterEnv, ModelData
    from alpa_serve.placement_policy.progress import ProgressCallback
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload

__all__ = [
    "ModelParallelismEqual",
    "ModelParallelismGreedy",
    "ModelParallelismILP",
    "ModelParallelismRR",
    "ModelParallelismSearch",
]

ROUND_ROBIN_STAGES = 4
"""Pipeline stages of the groups that ModelParallelismRR fills."""


class ModelParallelismILP(BasePlacementPolicy):
    """Pipelines and replicas chosen by an integer program on expected rates (:func:`~.ilp.solve_model_parallel`).

    Parameters
    ----------
    verbose : int
    time_limit : float
        Seconds for the solver; the best placement found by then is taken.
    rules : ServingRules
        Without effect: nothing is simulated.
    """

    def __init__(
        self, verbose: int = 0, *, time_limit: float = DEFAULT_TIME_LIMIT_S, rules: ServingRules = ALPASERVE
    ) -> None:
        super().__init__(verbose, rules=rules)
        self.time_limit = check_real(time_limit, "time_limit (s)", minimum=0.0, exclusive=True)

    def solve_placement(
        self, model_datas: Sequence[ModelData], cluster_env: ClusterEnv, train_workload: Workload | None = None
    ) -> tuple[ModelPlacement, dict[str, Any]]:
        """Find a placement; `train_workload` has no effect."""
        usable = [config for config in PIPELINE_CONFIGS if config.num_devices <= cluster_env.num_devices]
        check_something_fits(model_datas, cluster_env, usable)
        return solve_model_parallel(model_datas, cluster_env, time_limit=self.time_limit), {}


class ModelParallelismRR(BasePlacementPolicy):
    """Pipelines of four stages (and of what is left over), filled in turn.

    Parameters
    ----------
    max_bs, max_pp, max_op : int
        Without effect; AlpaServe takes them.
    verbose : int
    rules : ServingRules
        Without effect: nothing is simulated.
    """

    def __init__(
        self,
        max_bs: int = 1,
        max_pp: int = 8,
        max_op: int = 4,
        verbose: int = 0,
        *,
        rules: ServingRules = ALPASERVE,
    ) -> None:
        super().__init__(verbose, rules=rules)
        self.max_bs, self.max_pp, self.max_op = check_limits(max_bs, max_pp, max_op)

    def solve_placement(
        self, model_datas: Sequence[ModelData], cluster_env: ClusterEnv, train_workload: Workload | None = None
    ) -> tuple[ModelPlacement, dict[str, Any]]:
        """Find a placement; `train_workload` has no effect."""
        configs = group_partition.pipelines(cluster_env, ROUND_ROBIN_STAGES, remainder=True)
        check_groups_fit(cluster_env, configs)
        check_something_fits(model_datas, cluster_env, configs)
        empty = ModelPlacement.empty_groups(configs)
        placement = replica_placement_round_robin(empty, model_datas, cluster_env, train_workload, self.verbose)
        if not placement.num_replicas:
            raise InfeasiblePlacementError(
                f"no model fits the first group {tuple(configs[0])}, whose turn it is: round robin places nothing"
            )
        return placement, {}


class ModelParallelismGreedy(FixedGroupsGreedy):
    """Fast greedy on pipelines of `group_size` stages, as many as the devices allow.

    Parameters
    ----------
    group_size : int
    use_evo_search : bool
        Improve the result by evolutionary search.
    verbose : int
    callback : callable, optional
        Called with a SearchProgress after every step.
    rules : ServingRules
        How the cluster serves, for the simulations of the search.
    """

    def __init__(
        self,
        group_size: int = 2,
        use_evo_search: bool = False,
        verbose: int = 0,
        *,
        callback: ProgressCallback | None = None,
        rules: ServingRules = ALPASERVE,
    ) -> None:
        super().__init__(use_evo_search, verbose, callback=callback, rules=rules)
        self.group_size = check_int(group_size, "group_size", minimum=1)

    def group_configs(self, cluster_env: ClusterEnv) -> list[ParallelConfig]:
        """Return pipelines of `group_size` stages."""
        return group_partition.pipelines(cluster_env, self.group_size, remainder=False)


class ModelParallelismEqual(FixedGroupsGreedy):
    """Fast greedy on groups that all have the config (1, `op`, `pp`), as many as the devices allow.

    Parameters
    ----------
    pp, op : int
        Pipeline stages and tensor parallel degree of every group.
    verbose : int
    callback : callable, optional
        Called with a SearchProgress after every step.
    rules : ServingRules
        How the cluster serves, for the simulations of the search.
    """

    def __init__(
        self,
        pp: int,
        op: int,
        verbose: int = 0,
        *,
        callback: ProgressCallback | None = None,
        rules: ServingRules = ALPASERVE,
    ) -> None:
        super().__init__(False, verbose, callback=callback, rules=rules)
        self.pp = check_int(pp, "pp", minimum=1)
        self.op = check_int(op, "op", minimum=1)

    def group_configs(self, cluster_env: ClusterEnv) -> list[ParallelConfig]:
        """Return groups of (1, `op`, `pp`)."""
        config = ParallelConfig(1, self.op, self.pp)
        return [config] * (cluster_env.num_devices // config.num_devices)
