"""AlpaServe's own search: every shape of equal groups, filled by fast greedy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InfeasiblePlacementError, InvalidConfigError
from alpa_serve.placement import ModelPlacement
from alpa_serve.placement_policy import group_partition
from alpa_serve.placement_policy.base_policy import EVOLUTION_ITERATIONS, BasePlacementPolicy
from alpa_serve.placement_policy.beam import DEFAULT_BEAM_SIZE, replica_placement_on_last_group
from alpa_serve.placement_policy.evaluator import PlacementEvaluator
from alpa_serve.placement_policy.evolutionary import evolutionary_search
from alpa_serve.placement_policy.feasibility import check_something_fits, why_not_all
from alpa_serve.placement_policy.greedy import fill_greedily
from alpa_serve.placement_policy.ilp import (
    pack_all_models,
)
from alpa_serve.placement_policy.part_runner import NUM_THREADS, LocalRunner
from alpa_serve.placement_policy.progress import SearchProgress, reporter
from alpa_serve.placement_policy.separation import Separation, separations
from alpa_serve.placement_policy.training import workload_or_training
from alpa_serve.profiling import ParallelConfig
from alpa_serve.scheduling import ALPASERVE
from alpa_serve.util import get2tok
from alpa_serve.validation import check_int

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alpa_serve.placement import ClusterEnv, ModelData
    from alpa_serve.placement_policy.part_runner import Stopped
    from alpa_serve.placement_policy.progress import ProgressCallback
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload


class ModelParallelismSearch(BasePlacementPolicy):
    """AlpaServe's search: every shape of equal groups, each filled by fast greedy; the best score wins.

    Parameters
    ----------
    max_bs : int
        Without effect: placements are simulated one request at a time, as AlpaServe does.
    max_pp, max_op : int
        Most pipeline stages and largest tensor parallel degree of the regular groups.
    use_evo_search : bool
        Improve the result by evolutionary search.
    use_separation : bool
        Also try to give models of different speed devices of their own; the better one wins.
    verbose : int
    require_all_models : bool
        Only placements that hold every model.
    num_groups : int, optional
        Only shapes of exactly this many groups.
    callback : callable, optional
        Called with a SearchProgress after every shape.
    rules : ServingRules
        How the cluster serves, for the simulations of the search.

    References
    ----------
    Z. Li et al., "AlpaServe: Statistical Multiplexing with Model Parallelism for Deep Learning Serving", OSDI 2023,
    section 4.2.
    """

    def __init__(
        self,
        max_bs: int = 1,
        max_pp: int = 8,
        max_op: int = 4,
        use_evo_search: bool = False,
        use_separation: bool = False,
        verbose: int = 0,
        *,
        require_all_models: bool = False,
        num_groups: int | None = None,
        callback: ProgressCallback | None = None,
        rules: ServingRules = ALPASERVE,
    ) -> None:
        super().__init__(verbose, rules=rules)
        self.max_bs, self.max_pp, self.max_op = check_limits(max_bs, max_pp, max_op)
        self.use_evo_search = use_evo_search
        self.use_separation = use_separation
        self.require_all_models = require_all_models
        self.num_groups = None if num_groups is None else check_int(num_groups, "num_groups", minimum=1)
        self.callback = callback
        if use_separation and num_groups is not None:
            raise InvalidConfigError("use_separation solves parts of the cluster apart; it cannot keep num_groups")

    def solve_placement(
        self, model_datas: Sequence[ModelData], cluster_env: ClusterEnv, train_workload: Workload | None = None
    ) -> tuple[ModelPlacement, dict[str, Any]]:
        """Find a placement (see :class:`~.base_policy.BasePlacementPolicy`)."""
        if not self.use_separation:
            return self.solve_placement_one_eco(model_datas, cluster_env, train_workload)
        train_workload = workload_or_training(train_workload, model_datas)
        evaluator = PlacementEvaluator(model_datas, cluster_env, train_workload, rules=self.rules)
        best = None
        try:
            best = self.solve_placement_one_eco(model_datas, cluster_env, train_workload)[0]
        except InfeasiblePlacementError as error:
            infeasible = error
        best_score = -np.inf if best is None else evaluator.evaluate(best).score
        report = reporter(self.verbose, self.callback)
        found = self.enumerate_separations(model_datas, cluster_env)
        for number, separation in enumerate(found, start=1):
            placement = self._solve_separately(separation, model_datas, cluster_env, train_workload)
            if placement is not None and (score := evaluator.evaluate(placement).score) > best_score:
                best, best_score = placement, score
            report(SearchProgress("separations", number, len(found), best_score, best))
        if best is None:
            raise infeasible
        return best, {}

    def solve_placement_one_eco(
        self, model_datas: Sequence[ModelData], cluster_env: ClusterEnv, train_workload: Workload | None = None
    ) -> tuple[ModelPlacement, dict[str, Any]]:
        """Find a placement in which all models may share groups."""
        shapes = self._possible_shapes(model_datas, cluster_env)
        workload = workload_or_training(train_workload, model_datas)
        evaluator = PlacementEvaluator(model_datas, cluster_env, workload, rules=self.rules)
        found = self._fill_shapes(shapes, model_datas, cluster_env, evaluator)
        if not found:
            raise InfeasiblePlacementError(why_not_all(model_datas, cluster_env, shapes))
        best = found[int(np.argmax(evaluator.get_scores(found)))]
        if self.use_evo_search:
            best = self._evolve(best, found, model_datas, cluster_env, evaluator)
        return best, {}

    def placements_by_shape(
        self, model_datas: Sequence[ModelData], cluster_env: ClusterEnv, evaluator: PlacementEvaluator
    ) -> list[ModelPlacement]:
        """Return what fast greedy makes of each shape of groups: the placements that the search chooses from.

        None if every model is required and no shape holds them all.

        Raises
        ------
        InfeasiblePlacementError
            If nothing can be placed.
        """
        return self._fill_shapes(self._possible_shapes(model_datas, cluster_env), model_datas, cluster_env, evaluator)

    def _possible_shapes(self, model_datas: Sequence[ModelData], cluster_env: ClusterEnv) -> list[list[ParallelConfig]]:
        shapes = [
            sol.group_configs
            for sol in self.enumerate_group_configs_uneven(cluster_env)
            if self.num_groups in (None, len(sol.group_configs))
        ]
        if not shapes:
            raise InfeasiblePlacementError(
                f"{cluster_env.num_devices} devices in nodes of {cluster_env.num_devices_per_node} cannot form "
                f"{'groups' if self.num_groups is None else f'exactly {self.num_groups} group(s)'} "
                f"within max_pp={self.max_pp} and max_op={self.max_op}"
            )
        if not self.require_all_models:
            check_something_fits(model_datas, cluster_env, group_partition.all_configs(shapes))
        elif not model_datas:
            raise InvalidConfigError("there is no model to place")
        return shapes

    def _fill_shapes(
        self,
        shapes: Sequence[Sequence[ParallelConfig]],
        model_datas: Sequence[ModelData],
        cluster_env: ClusterEnv,
        evaluator: PlacementEvaluator,
    ) -> list[ModelPlacement]:
        """Fill every shape on two threads, leaving out those that cannot hold every model where that is required."""
        report = reporter(self.verbose, self.callback)
        results: dict[int, ModelPlacement | None] = {}
        best, best_score = None, -np.inf

        def fill(_problem: None, configs: Sequence[ParallelConfig], stopped: Stopped) -> ModelPlacement | None:
            return self._fill(configs, model_datas, cluster_env, evaluator, stopped)

        with LocalRunner(fill, None, NUM_THREADS) as runner:
            number = 0
            for position, result in runner.run(shapes):
                results[position] = result
                # in the order of the shapes, whichever is done first: who ends the search by its reports ends it alike
                while number in results:
                    placement = results[number]
                    number += 1
                    if placement is not None and (score := evaluator.evaluate(placement).score) > best_score:
                        best, best_score = placement, score
                    shown = None if best is None else best_score
                    report(SearchProgress("shapes of groups", number, len(shapes), shown, best))
        in_order = [results[position] for position in range(len(shapes))]
        return [placement for placement in in_order if placement is not None]

    def _fill(
        self,
        configs: Sequence[ParallelConfig],
        model_datas: Sequence[ModelData],
        cluster_env: ClusterEnv,
        evaluator: PlacementEvaluator,
        stopped: Stopped,
    ) -> ModelPlacement | None:
        """Fill groups of these configs by fast greedy; None if every model is required and they cannot all fit."""

        def greedy(start: ModelPlacement) -> ModelPlacement:
            return fill_greedily(start, cluster_env, evaluator, stopped=stopped)

        placement = greedy(ModelPlacement.empty_groups(configs))
        if self.require_all_models and len(placement.placed_models()) < len(model_datas):
            # greedy may spend memory on replicas that a model without any would need
            packed = pack_all_models(model_datas, cluster_env, configs)
            return None if packed is None else greedy(packed)
        return placement

    def _evolve(
        self,
        best: ModelPlacement,
        placements: Sequence[ModelPlacement],
        model_datas: Sequence[ModelData],
        cluster_env: ClusterEnv,
        evaluator: PlacementEvaluator,
    ) -> ModelPlacement:
        evolved = evolutionary_search(
            placements,
            model_datas,
            cluster_env,
            evaluator,
            EVOLUTION_ITERATIONS,
            self.verbose,
            callback=self.callback,
        )
        holds_all = len(evolved.placed_models()) == len(model_datas)
        return evolved if holds_all or not self.require_all_models else best

    def _solve_separately(
        self,
        separation: Separation,
        model_datas: Sequence[ModelData],
        cluster_env: ClusterEnv,
        train_workload: Workload,
    ) -> ModelPlacement | None:
        """Solve each part alone and put the parts together; None if nothing can be placed, or a node is torn."""
        configs: list[ParallelConfig] = []
        group_models: list[list[int]] = []
        for model_ids, part_env in separation:
            members = [model_datas[m] for m in model_ids]
            workload = train_workload.select_models(data.name for data in members)
            try:
                part = self.solve_placement_one_eco(members, part_env, workload)[0]
            except InfeasiblePlacementError:
                # these models get no devices that they fit on; the others may still be worth it
                if self.require_all_models:
                    return None
                continue
            configs += part.group_configs
            group_models += [[model_ids[m] for m in models] for models in part.group_models]
        if not configs or not cluster_env.can_hold([config.num_devices for config in configs]):
            return None
        return ModelPlacement(configs, group_models).normalize()

    def enumerate_group_configs(self, cluster_env: ClusterEnv) -> list[ModelPlacement]:
        """List the shapes of equal groups that use all devices, as placements without models."""
        shapes = group_partition.even_shapes(cluster_env, self.max_pp, self.max_op)
        return [ModelPlacement.empty_groups(configs) for configs in shapes]

    def enumerate_group_configs_uneven(self, cluster_env: ClusterEnv) -> list[ModelPlacement]:
        """List the shapes that the search tries, as placements without models: equal groups and a remainder."""
        shapes = group_partition.uneven_shapes(cluster_env, self.max_pp, self.max_op)
        return [ModelPlacement.empty_groups(configs) for configs in shapes]

    def enumerate_separations(self, model_datas: Sequence[ModelData], cluster_env: ClusterEnv) -> list[Separation]:
        """List the ways to give models of different speed devices of their own (:func:`~.separation.separations`)."""
        return separations(model_datas, cluster_env)

    def greedy_group_configs(
        self,
        model_datas: Sequence[ModelData],
        cluster_env: ClusterEnv,
        train_workload: Workload | None = None,
        evaluator: PlacementEvaluator | None = None,
        beam_size: int = DEFAULT_BEAM_SIZE,
    ) -> ModelPlacement:
        """Build a placement group by group, each time the config and the models that score best.

        Parameters
        ----------
        model_datas : sequence of ModelData
        cluster_env : ClusterEnv
        train_workload : Workload, optional
            Needed only without `evaluator`.
        evaluator : PlacementEvaluator, optional
            Of `model_datas`.
        beam_size : int
            Of the search for the models of each new group.

        Returns
        -------
        ModelPlacement
            Uses every device; groups may differ in size (powers of two) and config.
        """
        if evaluator is None:
            train_workload = workload_or_training(train_workload, model_datas)
            evaluator = PlacementEvaluator(model_datas, cluster_env, train_workload, rules=self.rules)
        placement = ModelPlacement([], [])
        sizes: list[int] = []
        rest = cluster_env.num_devices
        check_something_fits(
            model_datas,
            cluster_env,
            [
                config
                for size in get2tok(rest)
                if cluster_env.allows_group_of(size)
                for config in group_partition.configs_of_size(size, self.max_pp, self.max_op)
            ],
            strictly=True,
        )
        while rest:
            grown = [
                replica_placement_on_last_group(
                    ModelPlacement([*placement.group_configs, config], [*placement.group_models, []]),
                    model_datas,
                    cluster_env,
                    train_workload,
                    evaluator,
                    beam_size,
                )
                for size in get2tok(rest)
                if cluster_env.can_hold([*sizes, size, *[1] * (rest - size)])
                for config in group_partition.configs_of_size(size, self.max_pp, self.max_op)
            ]
            # per device, or the largest group would always win
            scores = [
                (score - evaluator.evaluate(placement).score) / new.group_configs[-1].num_devices
                for score, new in zip(evaluator.get_scores(grown), grown, strict=True)
            ]
            placement = grown[int(np.argmax(scores))]
            sizes = [config.num_devices for config in placement.group_configs]
            rest = cluster_env.num_devices - sum(sizes)
        return placement


def check_limits(max_bs: int, max_pp: int, max_op: int) -> tuple[int, int, int]:
    """Return the limits of a search, checked to be whole numbers >= 1."""
    return (
        check_int(max_bs, "max_bs", minimum=1),
        check_int(max_pp, "max_pp", minimum=1),
        check_int(max_op, "max_op", minimum=1),
    )
