"""Fast greedy on groups whose shape is given: what the greedy policies share."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from alpa_serve.placement import ModelPlacement
from alpa_serve.placement_policy.base_policy import EVOLUTION_ITERATIONS, BasePlacementPolicy
from alpa_serve.placement_policy.evaluator import PlacementEvaluator
from alpa_serve.placement_policy.evolutionary import evolutionary_search
from alpa_serve.placement_policy.feasibility import check_groups_fit, check_something_fits
from alpa_serve.placement_policy.greedy import replica_placement_fast_greedy
from alpa_serve.placement_policy.training import workload_or_training
from alpa_serve.scheduling import ALPASERVE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alpa_serve.placement import ClusterEnv, ModelData
    from alpa_serve.placement_policy.progress import ProgressCallback
    from alpa_serve.profiling import ParallelConfig
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload


class FixedGroupsGreedy(BasePlacementPolicy):
    """Replicas added one by one where most requests are unserved, in groups that the subclass fixes.

    Parameters
    ----------
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
        use_evo_search: bool = False,
        verbose: int = 0,
        *,
        callback: ProgressCallback | None = None,
        rules: ServingRules = ALPASERVE,
    ) -> None:
        super().__init__(verbose, rules=rules)
        self.use_evo_search = use_evo_search
        self.callback = callback

    @abstractmethod
    def group_configs(self, cluster_env: ClusterEnv) -> list[ParallelConfig]:
        """Return the groups to fill."""

    def solve_placement(
        self, model_datas: Sequence[ModelData], cluster_env: ClusterEnv, train_workload: Workload | None = None
    ) -> tuple[ModelPlacement, dict[str, Any]]:
        """Find a placement (see :class:`~.base_policy.BasePlacementPolicy`)."""
        configs = self.group_configs(cluster_env)
        check_groups_fit(cluster_env, configs)
        check_something_fits(model_datas, cluster_env, configs)
        train_workload = workload_or_training(train_workload, model_datas)
        evaluator = PlacementEvaluator(model_datas, cluster_env, train_workload, rules=self.rules)
        placement = replica_placement_fast_greedy(
            ModelPlacement.empty_groups(configs),
            model_datas,
            cluster_env,
            train_workload,
            evaluator,
            self.verbose,
            callback=self.callback,
        )
        if self.use_evo_search:
            placement = evolutionary_search(
                [placement],
                model_datas,
                cluster_env,
                evaluator,
                EVOLUTION_ITERATIONS,
                self.verbose,
                callback=self.callback,
            )
        return placement, {}
