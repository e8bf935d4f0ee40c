"""A search over groups of mixed shapes: annealing from many starts, and islands of different results put together."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from alpa_serve.errors import InfeasiblePlacementError, InvalidConfigError, InvalidWorkloadError, SearchInterrupted
from alpa_serve.placement import ModelPlacement
from alpa_serve.placement_policy import group_partition
from alpa_serve.placement_policy.base_policy import BasePlacementPolicy
from alpa_serve.placement_policy.elite import Elite
from alpa_serve.placement_policy.evaluator import PlacementEvaluator
from alpa_serve.placement_policy.feasibility import check_room_for_all, check_something_fits
from alpa_serve.placement_policy.greedy import fill_greedily
from alpa_serve.placement_policy.model_parallelism_search import ModelParallelismSearch, check_limits
from alpa_serve.placement_policy.part_runner import NUM_THREADS, LocalRunner
from alpa_serve.placement_policy.progress import SearchProgress, reporter
from alpa_serve.placement_policy.rounds import counted_parts, evaluations_per_second, run_round, timed_parts, trial
from alpa_serve.placement_policy.search_parts import (
    MixedProblem,
    Part,
    PreparedProblem,
    compile_kernels,
    possible_configs,
    run_part,
)
from alpa_serve.placement_policy.training import workload_or_training
from alpa_serve.scheduling import ALPASERVE
from alpa_serve.validation import check_int, check_real

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alpa_serve.placement import ClusterEnv, ModelData
    from alpa_serve.placement_policy.part_runner import PartRunner
    from alpa_serve.placement_policy.progress import ProgressCallback
    from alpa_serve.placement_policy.search_parts import PartResult
    from alpa_serve.profiling import ParallelConfig
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload


class MixedParallelismSearch(BasePlacementPolicy):
    """Groups of any size and config, each model in any of them: a search by simulated annealing from many starts.

    Groups are of any size within a node, or whole nodes, and each has its own (op, pp) among those profiled. The search
    starts from AlpaServe's placements of every shape, and is never worse than the best of these.

    Parameters
    ----------
    time_budget : float
        Seconds; 0 returns the start. Making the start is part of it, but is always finished; compiling on first use and
        starting Ray are not.
    seed : int
        Equal seeds and equal `max_evaluations` give equal results on any machine and any number of workers.
    max_pp, max_op : int
        Most pipeline stages and largest tensor parallel degree of a group.
    require_all_models : bool
        Only placements that hold every model.
    rules : ServingRules
        How the cluster serves.
    num_workers : int
        1 searches on two threads of this process; more run the chains as Ray tasks on as many processes.
    verbose : int
        1 logs the progress.
    callback : callable, optional
        Called with a SearchProgress after every round; what it raises ends the search.
    max_evaluations : int, optional
        Placements to simulate, instead of `time_budget`.
    address : str, optional
        Of the Ray cluster to join; a local one is started if left out.
    """

    def __init__(
        self,
        time_budget: float = 10.0,
        seed: int = 0,
        max_pp: int = 8,
        max_op: int = 8,
        require_all_models: bool = False,
        rules: ServingRules = ALPASERVE,
        num_workers: int = 1,
        verbose: int = 0,
        callback: ProgressCallback | None = None,
        *,
        max_evaluations: int | None = None,
        address: str | None = None,
    ) -> None:
        super().__init__(verbose, rules=rules)
        self.time_budget = check_real(time_budget, "time_budget (s)", minimum=0.0, finite=False)
        self.max_evaluations = (
            None if max_evaluations is None else check_int(max_evaluations, "max_evaluations", minimum=0)
        )
        if math.isinf(self.time_budget) and max_evaluations is None:
            raise InvalidConfigError("an infinite time_budget (s) needs max_evaluations, or the search would never end")
        self.seed = check_int(seed, "seed", minimum=0)
        _, self.max_pp, self.max_op = check_limits(1, max_pp, max_op)
        self.require_all_models = require_all_models
        self.num_workers = check_int(num_workers, "num_workers", minimum=1)
        self.callback = callback
        self.address = address

    def solve_placement(
        self,
        model_datas: Sequence[ModelData],
        cluster_env: ClusterEnv,
        train_workload: Workload | None = None,
        *,
        starts: Sequence[ModelPlacement] = (),
    ) -> tuple[ModelPlacement, dict[str, Any]]:
        """Find a placement (see :class:`~.base_policy.BasePlacementPolicy`).

        Parameters
        ----------
        model_datas : sequence of ModelData
        cluster_env : ClusterEnv
        train_workload : Workload, optional
        starts : sequence of ModelPlacement
            Further placements to start from; the result is not worse than any of them.

        Returns
        -------
        placement : ModelPlacement
            In the order of groups in which it was simulated; not normalised.
        info : dict
            ``attainment`` and ``score`` of the placement, ``start_attainment`` of the best start, ``num_evaluations``,
            ``num_rounds``, ``seconds`` without what is not counted.

        Raises
        ------
        InfeasiblePlacementError
            If nothing can be placed, or with `require_all_models` no placement of all models was found; at once where
            the models cannot fit by their weights alone.
        InvalidWorkloadError
            If the workload has no request.
        InvalidPlacementError
            If one of `starts` is not possible on the cluster.
        SearchInterrupted
            On Ctrl-C; the best placement so far is attached.
        """
        workload = workload_or_training(train_workload, model_datas)
        if not len(workload):
            raise InvalidWorkloadError("the workload has no request: there is nothing to search a placement for")
        for start in starts:
            start.verify(model_datas, cluster_env)
        configs = possible_configs(model_datas, cluster_env, self.max_pp, self.max_op)
        self._check_feasible(model_datas, cluster_env, configs, starts)
        elite: Elite | None = None
        seen = list(starts)
        try:
            compile_kernels(self.rules)
            began = time.monotonic()
            evaluator = PlacementEvaluator(model_datas, cluster_env, workload, rules=self.rules)
            elite = Elite(evaluator, self.require_all_models)
            for start in (*starts, *self._classic_placements(model_datas, cluster_env, evaluator, configs, seen)):
                elite.add(start)
            start_attainment = elite.best.evaluation.goodput
            others = {config for start in elite.placements for config in start.group_configs}.difference(configs)
            problem = MixedProblem(
                list(model_datas),
                cluster_env,
                workload,
                self.rules,
                tuple(configs),
                tuple(sorted(others)),
                self.require_all_models,
            )
            num_evaluations, num_rounds, seconds = self._improve(problem, evaluator, elite, began)
        except KeyboardInterrupt as interrupt:
            if elite is None:
                raise SearchInterrupted from interrupt
            for placement in seen:
                elite.add(placement)
            if not elite.placements:
                raise SearchInterrupted from interrupt
            raise SearchInterrupted(placement=elite.best.placement, evaluation=elite.best.evaluation) from interrupt
        best = elite.best
        if self.require_all_models and len(best.placement.placed_models()) < len(model_datas):
            raise InfeasiblePlacementError(
                f"require_all_models: found no placement that holds all {len(model_datas)} models on "
                f"{cluster_env.num_devices} devices; allow more memory, devices or time"
            )
        return best.placement, {
            "attainment": best.evaluation.goodput,
            "score": best.evaluation.score,
            "start_attainment": start_attainment,
            "num_evaluations": num_evaluations,
            "num_rounds": num_rounds,
            "seconds": seconds,
        }

    def _check_feasible(
        self,
        model_datas: Sequence[ModelData],
        cluster_env: ClusterEnv,
        configs: Sequence[ParallelConfig],
        starts: Sequence[ModelPlacement],
    ) -> None:
        """Check what can be told without a search."""
        if not starts:
            if model_datas and not configs:
                raise InfeasiblePlacementError(
                    f"no model is profiled on a group config within max_pp={self.max_pp} and max_op={self.max_op} that "
                    f"fits {cluster_env.num_devices} devices in nodes of {cluster_env.num_devices_per_node}"
                )
            check_something_fits(model_datas, cluster_env, configs)
        if self.require_all_models:
            of_starts = {config for start in starts for config in start.group_configs}
            check_room_for_all(model_datas, cluster_env, of_starts.union(configs))

    def _classic_placements(
        self,
        model_datas: Sequence[ModelData],
        cluster_env: ClusterEnv,
        evaluator: PlacementEvaluator,
        configs: Sequence[ParallelConfig],
        seen: list[ModelPlacement],
    ) -> list[ModelPlacement]:
        """Return what AlpaServe's search makes of each shape of groups, holding every model if that is required.

        If it has no shape for these models, equal groups of each config. What there is so far is put in `seen`.
        """

        def note(progress: SearchProgress) -> None:
            if progress.placement is not None:
                seen.append(progress.placement)

        def search(require_all: bool) -> list[ModelPlacement]:
            policy = ModelParallelismSearch(
                max_pp=self.max_pp, max_op=self.max_op, require_all_models=require_all, callback=note, rules=self.rules
            )
            try:
                return policy.placements_by_shape(model_datas, cluster_env, evaluator)
            except InfeasiblePlacementError:
                return []

        # mixed shapes may hold all models where no shape does
        found = search(True) if self.require_all_models else []
        if not found:
            found = search(False)
        if found:
            return found
        shapes = [group_partition.equal_groups(cluster_env, config) for config in configs]
        return [fill_greedily(ModelPlacement.empty_groups(shape), cluster_env, evaluator) for shape in shapes]

    def _improve(
        self, problem: MixedProblem, evaluator: PlacementEvaluator, elite: Elite, began: float
    ) -> tuple[int, int, float]:
        """Run rounds of chains until the budget is used; return the numbers of evaluations and rounds, and seconds."""
        report = reporter(self.verbose, self.callback)
        budget = self.max_evaluations
        if budget == 0 or (budget is None and time.monotonic() - began >= self.time_budget):
            return 0, 0, time.monotonic() - began
        num_parallel = NUM_THREADS if self.num_workers == 1 else self.num_workers
        prepared = PreparedProblem(problem, evaluator)
        pause = time.monotonic()
        done = rounds = 0
        with self._runner(problem, prepared) as runner:
            speed = 0.0
            if budget is None:
                tried = run_round(runner, [trial(elite, self.seed, self.time_budget)] * num_parallel, elite)
                done += sum(result.num_evaluations for result in tried)
                speed = evaluations_per_second(tried)
                # what is not searching is not counted
                began += time.monotonic() - pause - max(result.seconds for result in tried)
            while True:
                if budget is None:
                    seconds = began + self.time_budget - time.monotonic()
                    parts = timed_parts(problem, elite, self.seed, rounds, seconds, speed, num_parallel)
                else:
                    parts = counted_parts(problem, elite, self.seed, rounds, budget - done)
                if not parts:
                    break
                results = run_round(runner, parts, elite)
                elite.combine(problem.cluster_env)
                done += sum(result.num_evaluations for result in results)
                rounds += 1
                best = elite.best
                report(SearchProgress("mixed groups", done, budget or 0, best.evaluation.score, best.placement))
                speed = evaluations_per_second(results)
                if not speed:
                    # nothing can be changed
                    break
            return done, rounds, time.monotonic() - began

    def _runner(self, problem: MixedProblem, prepared: PreparedProblem) -> PartRunner[Part, PartResult]:
        if self.num_workers == 1:
            return LocalRunner(run_part, prepared, NUM_THREADS)
        from alpa_serve.placement_policy.ray_runner import RayRunner

        return RayRunner(run_part, problem, self.num_workers, self.address, prepare=PreparedProblem)
