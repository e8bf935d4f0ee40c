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
from alpa_serve.placement_policy.rounds import (
    LONGEST_REMOTE_S,
    counted_parts,
    evaluations_per_second,
    run_round,
    timed_parts,
    trial,
)
from alpa_serve.placement_policy.search_parts import (
    MixedProblem,
    Part,
    PreparedProblem,
    compile_kernels,
    possible_configs,
    prepare_in_process,
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
    starts from AlpaServe's placements of every shape and from equal groups of every other config, and attains at least
    what the best of these does.

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
        Called with a SearchProgress before the start and after every round; what it raises ends the search.
    max_evaluations : int, optional
        Placements to simulate, however long that takes, in place of `time_budget`.
    address : str, optional
        Of the Ray cluster to join; a local one is started if left out.

    Notes
    -----
    A chain of annealing proposes a random change (a replica added, dropped, moved or swapped; a group reshaped, split,
    merged, made, or room made for one on a node), simulates the islands of groups that it touches, stops as soon as it
    is clear that the change will not be taken, and keeps or undoes it. What a chain maximises is good requests; latency
    and replicas decide between placements of equally many. Rounds of chains start from the best placements so far; in
    the first half of most chains each model's requests have a random weight, so that chains settle in different places.

    What was tried, on AlpaServe's problems of 6 to 16 models (``benchmarks/search_quality.py``), most tellingly on that
    of 12 models and 16 devices, where placements of 0.848 without the largest model are easy to find and those of 0.878
    (0.893 if all devices are one node) need its replica and a rearrangement of everything else:

    - one long chain from AlpaServe's placement, or chains from random placements, without weights: 0.848 in 51 of 54
      chains of 20,000 to 50,000 evaluations. With weights, 13 of 48 chains of 5,000 found 0.893;
    - chains of 25 to 400 evaluations for each model and device, at equal evaluations in all: for few models the short
      ones win (mean 0.872 with 25 or 50 against 0.859 with 200), for 128 models the long ones (0.969 against 0.963).
      Their length follows the number of pairs of a model and a device;
    - temperatures three times higher or lower at the start, or ten times higher at the end: not better;
    - islands of several results put together by an integer program (column generation, with the islands that chains
      found as columns), after each round: the same results without it, so it was left out;
    - starts from AlpaServe's placements of every shape beside the best one: kept, as they cost little. Starts from
      integer programs on expected rates (:class:`~.model_parallelism.ModelParallelismILP`) attain less than these on
      bursty requests;
    - following each change through a recorded simulation (:mod:`alpa_serve.simulator.incremental`) instead of
      simulating its islands: slower here, as these changes touch much; fast greedy gains by it.

    References
    ----------
    S. Kirkpatrick, C. D. Gelatt, M. P. Vecchi, Optimization by simulated annealing, Science 220, 1983; and for the
    weights I. Charon, O. Hudry, The noising method, Operations Research Letters 14, 1993.
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
            Further placements to start from; the result attains at least what any of them does, and is of no lower
            score if it attains the same.

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
        report = reporter(self.verbose, self.callback)
        elite: Elite | None = None
        seen = list(starts)
        try:
            report(SearchProgress("compiling on first use", 0, 0))
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
            num_evaluations, num_rounds, seconds = self._improve(problem, evaluator, elite, began, report)
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

        With equal groups of the configs that its shapes do not have. What there is so far is put in `seen`.
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
        filled = {config for placement in found for config in placement.group_configs}
        shapes = [
            group_partition.equal_groups(cluster_env, config)
            for config in configs
            if config not in filled or config.num_devices & (config.num_devices - 1)
        ]
        return found + [fill_greedily(ModelPlacement.empty_groups(shape), cluster_env, evaluator) for shape in shapes]

    def _improve(
        self,
        problem: MixedProblem,
        evaluator: PlacementEvaluator,
        elite: Elite,
        began: float,
        report: ProgressCallback,
    ) -> tuple[int, int, float]:
        """Run rounds of chains until the budget is used; return the numbers of evaluations and rounds, and seconds."""
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
            while not elite.is_perfect:
                if budget is None:
                    seconds = began + self.time_budget - time.monotonic()
                    longest = math.inf if self.num_workers == 1 else LONGEST_REMOTE_S
                    parts = timed_parts(problem, elite, self.seed, rounds, seconds, speed, num_parallel, longest)
                else:
                    parts = counted_parts(problem, elite, self.seed, rounds, budget - done)
                if not parts:
                    break
                results = run_round(runner, parts, elite)
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

        return RayRunner(run_part, problem, self.num_workers, self.address, prepare=prepare_in_process)
