"""What every placement policy has in common, and AlpaServe's names for the parts that policies are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from alpa_serve.device_layout import group_shape
from alpa_serve.placement import (
    ClusterEnv,
    ModelData,
    ModelPlacement,
    ModelPlacementWithReplacement,
    Placement,
)
from alpa_serve.placement_policy.beam import replica_placement_beam_search, replica_placement_on_last_group
from alpa_serve.placement_policy.evaluator import PlacementEvaluator
from alpa_serve.placement_policy.evolutionary import evolutionary_search
from alpa_serve.placement_policy.greedy import replica_placement_fast_greedy, replica_placement_round_robin
from alpa_serve.placement_policy.training import gen_train_workload
from alpa_serve.scheduling import ALPASERVE, check_rules
from alpa_serve.validation import check_int

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload

__all__ = [
    "BasePlacementPolicy",
    "ClusterEnv",
    "ModelData",
    "ModelPlacement",
    "ModelPlacementWithReplacement",
    "PlacementEvaluator",
    "evolutionary_search",
    "gen_train_workload",
    "replica_placement_beam_search",
    "replica_placement_fast_greedy",
    "replica_placement_on_last_group",
    "replica_placement_round_robin",
]

EVOLUTION_ITERATIONS = 200
"""Generations of the evolutionary search that policies run with ``use_evo_search``."""


class BasePlacementPolicy(ABC):
    """Decides which groups there are and which models each holds.

    Parameters
    ----------
    verbose : int
        0 is silent; 1 logs the progress of the search.
    rules : ServingRules
        How the cluster serves: what the search simulates. Policies that simulate nothing take it all the same, so
        that policies can be exchanged.
    """

    def __init__(self, verbose: int = 0, *, rules: ServingRules = ALPASERVE) -> None:
        self.rules = check_rules(rules)
        self.verbose = check_int(int(verbose) if isinstance(verbose, bool) else verbose, "verbose", minimum=0)

    @abstractmethod
    def solve_placement(
        self,
        model_datas: Sequence[ModelData],
        cluster_env: ClusterEnv,
        train_workload: Workload | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Find a placement.

        Parameters
        ----------
        model_datas : sequence of ModelData
        cluster_env : ClusterEnv
        train_workload : Workload, optional
            What placements are simulated with; drawn from the rates of `model_datas` if left out.

        Returns
        -------
        placement : ModelPlacement or ModelPlacementWithReplacement
        info : dict
            What the policy has to say about its search.

        Raises
        ------
        InfeasiblePlacementError
            If nothing can be placed; the message says what to change.
        """

    def place_models(
        self,
        controller: Any,
        cluster_env: ClusterEnv,
        model_datas: Sequence[ModelData],
        train_workload: Workload | None = None,
    ) -> Placement:
        """Find a placement, check it, and have `controller` create its groups and replicas.

        Raises
        ------
        InvalidPlacementError
            If the placement found is not possible on the cluster.
        """
        placement: Placement
        placement, _ = self.solve_placement(model_datas, cluster_env, train_workload)
        placement.verify(model_datas, cluster_env)
        first = placement if isinstance(placement, ModelPlacement) else placement.placements[0]
        self.place_models_impl(controller, cluster_env, model_datas, first)
        return placement

    def place_models_impl(
        self,
        controller: Any,
        cluster_env: ClusterEnv,
        model_datas: Sequence[ModelData],
        placement: ModelPlacement,
    ) -> None:
        """Have `controller` create the groups and replicas of `placement`, and wait for it.

        A replica is made with (parallel config, virtual mesh shape) appended to its model's arguments; the shape is
        (hosts, devices per host).
        """
        for group_id, (config, models) in enumerate(zip(placement.group_configs, placement.group_models, strict=True)):
            shape = group_shape(config.num_devices, cluster_env.num_devices_per_node)
            controller.create_mesh_group_manager.remote(group_id, shape)
            for model_id in models:
                controller.create_replica.remote(model_datas[model_id].name, group_id, [config, shape])
        controller.sync()

    def __str__(self) -> str:
        return type(self).__name__
