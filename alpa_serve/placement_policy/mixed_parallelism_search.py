"""A search over groups of mixed shapes: annealing from many starts, and islands of different results put together."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InfeasiblePlacementError, InvalidConfigError, InvalidWorkloadError, SearchInterrupted
from alpa_serve.placement_policy.base_policy import BasePlacementPolicy
from alpa_serve.placement_policy.elite import Elite
from alpa_serve.placement_policy.evaluator import PlacementEvaluator
from alpa_serve.placement_policy.model_parallelism_search import ModelParallelismSearch, check_limits
from alpa_serve.placement_policy.part_runner import NUM_THREADS, LocalRunner
from alpa_serve.placement_policy.progress import SearchProgress, reporter
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

    from alpa_serve.placement import ClusterEnv, ModelData, ModelPlacement
    from alpa_serve.placement_policy.part_runner import PartRunner
    from alpa_serve.placement_policy.progress import ProgressCallback
    from alpa_serve.placement_policy.search_parts import PartResult
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload

EVALUATIONS_PER_PIECE = 200
"""Evaluations of a chain for each model and each device, given the budget."""

CHAINS = 8
"""Chains of a round at most; fewer, and longer, where the budget is short for the size of the problem."""

HOT_LOSS = 0.1
COLD_SHARE = 0.01
"""Temperature at the start of a chain, times the number of models: what it hurts to serve a model worse; and at its
end, as a share of that."""

NOISE = 1.0
"""Spread (of the logarithm) of the weights of models in chains that look for other places."""

_CALIBRATION_S = 0.05


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
            ``num_rounds``, ``seconds``.

        Raises
        ------
        InfeasiblePlacementError
            If nothing can be placed, or with `require_all_models` no placement of all models was found.
        InvalidWorkloadError
            If the workload has no request.
        InvalidPlacementError
            If one of `starts` is not possible on the cluster.
        SearchInterrupted
            On Ctrl-C; the best placement so far is attached.
        """
        compile_kernels(self.rules)
        began = time.monotonic()
        workload = workload_or_training(train_workload, model_datas)
        if not len(workload):
            raise InvalidWorkloadError("the workload has no request: there is nothing to search a placement for")
        for start in starts:
            start.verify(model_datas, cluster_env)
        evaluator = PlacementEvaluator(model_datas, cluster_env, workload, rules=self.rules)
        elite = Elite(evaluator, self.require_all_models)
        try:
            for start in (*starts, *self._classic_placements(model_datas, cluster_env, evaluator)):
                elite.add(start)
            configs = set(possible_configs(model_datas, cluster_env, self.max_pp, self.max_op))
            problem = MixedProblem(
                list(model_datas),
                cluster_env,
                workload,
                self.rules,
                tuple(sorted(configs.union(*(start.group_configs for start in elite.placements)))),
                self.require_all_models,
            )
            start_attainment = elite.best.evaluation.goodput
            num_evaluations, num_rounds = self._improve(problem, evaluator, elite, began)
        except KeyboardInterrupt as interrupt:
            best = elite.best if elite.placements else None
            raise SearchInterrupted(
                placement=None if best is None else best.placement,
                evaluation=None if best is None else best.evaluation,
            ) from interrupt
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
            "seconds": time.monotonic() - began,
        }

    def _classic_placements(
        self, model_datas: Sequence[ModelData], cluster_env: ClusterEnv, evaluator: PlacementEvaluator
    ) -> list[ModelPlacement]:
        """Return what AlpaServe's search makes of each shape of groups, holding every model if that is required."""

        def search(require_all: bool) -> list[ModelPlacement]:
            policy = ModelParallelismSearch(
                max_pp=self.max_pp, max_op=self.max_op, require_all_models=require_all, rules=self.rules
            )
            return policy.placements_by_shape(model_datas, cluster_env, evaluator)

        try:
            return search(self.require_all_models)
        except InfeasiblePlacementError:
            if not self.require_all_models:
                raise
        # mixed shapes may hold them all
        return search(False)

    def _improve(
        self, problem: MixedProblem, evaluator: PlacementEvaluator, elite: Elite, began: float
    ) -> tuple[int, int]:
        """Run rounds of chains until the budget is used; return the numbers of evaluations and rounds."""
        report = reporter(self.verbose, self.callback)
        budget = self.max_evaluations
        prepared = PreparedProblem(problem, evaluator)
        pause = time.monotonic()
        done = rounds = 0
        with self._runner(problem, prepared) as runner:
            # what is not searching is not counted
            began += time.monotonic() - pause
            deadline = math.inf if budget is not None else began + self.time_budget
            speed = 0.0 if budget is not None else _evaluations_per_second(prepared, elite, deadline)
            while True:
                seconds = deadline - time.monotonic()
                if budget is None:
                    rest = speed * seconds * (NUM_THREADS if self.num_workers == 1 else self.num_workers)
                else:
                    rest = budget - done
                if rest < 1 or seconds <= 0:
                    return done, rounds
                parts = self._parts(problem, elite, rounds, int(rest), time.time() + seconds)
                round_began = time.monotonic()
                results: list[PartResult | None] = [None] * len(parts)
                try:
                    for position, result in runner.run(parts):
                        results[position] = result
                finally:
                    # also when it is stopped: in the order of the parts, whichever came first
                    for ended in results:
                        if ended is not None:
                            done += ended.num_evaluations
                            elite.add(ended.placement)
                elite.combine(problem.cluster_env)
                rounds += 1
                num_parallel = NUM_THREADS if self.num_workers == 1 else self.num_workers
                in_parallel = math.ceil(len(parts) / num_parallel)
                spent = max(time.monotonic() - round_began, 1e-6) / in_parallel
                speed = parts[0].num_evaluations / spent
                best = elite.best
                report(SearchProgress("mixed groups", done, budget or 0, best.evaluation.score, best.placement))
                if not any(result is not None and result.num_evaluations for result in results):
                    # nothing can be changed
                    return done, rounds

    def _runner(self, problem: MixedProblem, prepared: PreparedProblem) -> PartRunner[Part, PartResult]:
        if self.num_workers == 1:
            return LocalRunner(run_part, prepared, NUM_THREADS)
        from alpa_serve.placement_policy.ray_runner import RayRunner

        return RayRunner(run_part, problem, self.num_workers, self.address, prepare=PreparedProblem)

    def _parts(self, problem: MixedProblem, elite: Elite, round_number: int, rest: int, deadline: float) -> list[Part]:
        """Return the chains of a round: some that refine the best, others that look elsewhere."""
        pieces = len(problem.model_datas) + problem.cluster_env.num_devices
        length = EVALUATIONS_PER_PIECE * pieces
        num_chains = max(min(CHAINS, rest // length), NUM_THREADS)
        length = max(min(length, rest // num_chains), 1)
        hot = HOT_LOSS / len(problem.model_datas)
        seeds = np.random.SeedSequence([self.seed, round_number]).generate_state(num_chains, np.uint64)
        alone = num_chains <= NUM_THREADS
        parts = []
        for chain, seed in enumerate(seeds.tolist()):
            refines = alone or chain % 4 == 0
            start = elite.placements[0] if refines else elite.some(seed)
            parts.append(
                Part(
                    start=start,
                    seed=seed,
                    num_evaluations=length,
                    hot=hot / (1 + 9 * (refines and round_number > 0)),
                    cold=hot * COLD_SHARE,
                    noise=0.0 if refines else NOISE,
                    deadline=deadline,
                )
            )
        return parts


def _evaluations_per_second(prepared: PreparedProblem, elite: Elite, deadline: float) -> float:
    """Return the speed of a chain on one thread, from a short one."""
    number = 8
    while True:
        began = time.monotonic()
        part = Part(elite.placements[0], 0, number, 1e-3, 1e-3, 0.0, time.time() + deadline - began)
        result = run_part(prepared, part, lambda: False)
        seconds = time.monotonic() - began
        if seconds > _CALIBRATION_S or result.num_evaluations < number or time.monotonic() >= deadline:
            return max(result.num_evaluations, 1) / max(seconds, 1e-6)
        number *= 4
