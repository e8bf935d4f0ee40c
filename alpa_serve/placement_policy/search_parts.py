"""Parts of the mixed search: chains of annealing that can run anywhere, and what comes of them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.placement import ModelPlacement
from alpa_serve.placement_policy.annealing import anneal, make_chain, start_chain
from alpa_serve.placement_policy.evaluator import PlacementEvaluator
from alpa_serve.placement_policy.greedy import fill_greedily
from alpa_serve.placement_policy.moves import make_cluster
from alpa_serve.placement_policy.tiny_problem import TINY_CONFIG, tiny_problem
from alpa_serve.simulator.groups import FREE, make_groups

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alpa_serve.placement import ClusterEnv, ModelData
    from alpa_serve.placement_policy.annealing import Chain
    from alpa_serve.placement_policy.part_runner import Stopped
    from alpa_serve.profiling import ParallelConfig
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload
    from alpa_serve.simulator.groups import Groups

PLACED_VALUE = 10.0
"""Score of placing a model, where all have to be placed: more than anything else can be worth."""

_FIRST_STRETCH = 32
_STRETCH_S = 0.02
"""Evaluations, then seconds, between two looks at whether to stop."""


@dataclass(frozen=True)
class MixedProblem:
    """A placement problem as it is sent to the processes that work on it.

    Attributes
    ----------
    model_datas : list of ModelData
    cluster_env : ClusterEnv
    workload : Workload
    rules : ServingRules
    configs : tuple of ParallelConfig
        What groups may be.
    require_all_models : bool
    """

    model_datas: list[ModelData]
    cluster_env: ClusterEnv
    workload: Workload
    rules: ServingRules
    configs: tuple[ParallelConfig, ...]
    require_all_models: bool


@dataclass(frozen=True)
class Part:
    """A chain of annealing to run.

    Attributes
    ----------
    start : ModelPlacement
    seed : int
    num_evaluations : int
    hot, cold : float
        Temperatures, in units of the score.
    noise : float
        For the first half of the evaluations, the requests of each model are weighted by the exponential of this times
        a normal draw, so that chains settle in different places.
    deadline : float
        Seconds since the epoch at which it ends in any case.
    """

    start: ModelPlacement
    seed: int
    num_evaluations: int
    hot: float
    cold: float
    noise: float
    deadline: float


@dataclass(frozen=True)
class PartResult:
    """The best placement of a chain.

    Attributes
    ----------
    placement : ModelPlacement
    num_evaluations : int
    """

    placement: ModelPlacement
    num_evaluations: int


class PreparedProblem:
    """A placement problem compiled into arrays, once in every process.

    Parameters
    ----------
    problem : MixedProblem
    evaluator : PlacementEvaluator, optional
        Of the same problem; made if left out.
    """

    def __init__(self, problem: MixedProblem, evaluator: PlacementEvaluator | None = None) -> None:
        self.cluster_env = problem.cluster_env
        self.configs = problem.configs
        self.evaluator = evaluator or PlacementEvaluator(
            problem.model_datas, problem.cluster_env, problem.workload, rules=problem.rules
        )
        self.num_requests = len(problem.workload)
        self.placed_value = PLACED_VALUE if problem.require_all_models else 0.0
        self.arrays = self.evaluator.search_problem(problem.configs)
        self.cluster = make_cluster(problem.cluster_env, problem.configs)

    def groups_of(self, placement: ModelPlacement) -> Groups:
        """Return the groups of a placement as arrays, with room for as many as there are devices."""
        per_node = self.cluster_env.num_devices_per_node
        position = {config: config_id for config_id, config in enumerate(self.configs)}
        return make_groups(
            self.cluster_env.num_devices,
            len(self.arrays.weights),
            [position[config] for config in placement.group_configs],
            placement.group_models,
            [devices[0] // per_node for devices in placement.assign_devices(self.cluster_env)],
        )

    def best_of(self, chain: Chain) -> ModelPlacement:
        """Return the best placement of a chain; groups without models are left out."""
        used = np.flatnonzero((chain.best_config != FREE) & chain.best_holds.any(axis=1))
        return ModelPlacement(
            [self.configs[config] for config in chain.best_config[used]],
            [np.flatnonzero(chain.best_holds[slot]).tolist() for slot in used],
        )


def run_part(prepared: PreparedProblem, part: Part, stopped: Stopped) -> PartResult:
    """Run a chain of annealing, until it has done its evaluations, its time is over or it is stopped."""
    groups = prepared.groups_of(part.start)
    chain = make_chain(groups, part.seed)
    halves = [(0, part.num_evaluations, part.hot, part.cold)]
    if part.noise:
        middle = part.num_evaluations // 2
        warm = (part.hot * part.cold) ** 0.5
        halves = [(0, middle, part.hot, warm), (middle, part.num_evaluations, warm, part.cold)]
    for number, (first, end, hot, cold) in enumerate(halves):
        noisy = part.noise and number == 0
        chain.value[:] = _noisy_values(prepared, part) if noisy else 1.0
        start_chain(prepared.arrays, groups, chain, prepared.num_requests, prepared.placed_value)
        stretch, until = _FIRST_STRETCH, first
        while until < end:
            if stopped() or time.time() >= part.deadline:
                break
            until = min(until + stretch, end)
            began = time.perf_counter()
            anneal(
                prepared.arrays,
                prepared.cluster,
                groups,
                chain,
                prepared.num_requests,
                prepared.placed_value,
                hot,
                cold,
                first,
                end,
                until,
            )
            if time.perf_counter() - began < _STRETCH_S:
                stretch *= 2
            if chain.num_evaluations[0] < until:
                # hardly anything can be changed
                break
    return PartResult(prepared.best_of(chain), int(chain.num_evaluations[0]))


def _noisy_values(prepared: PreparedProblem, part: Part) -> NDArray[np.float64]:
    """Return what a good request of each model counts in the first half of a chain; 1 on average."""
    requests = np.diff(prepared.arrays.first_request)
    values: NDArray[np.float64] = np.exp(part.noise * np.random.default_rng(part.seed).standard_normal(len(requests)))
    values *= requests.sum() / max(float((values * requests).sum()), 1e-300)
    return values


def possible_configs(
    model_datas: Sequence[ModelData], cluster_env: ClusterEnv, max_pp: int, max_op: int
) -> list[ParallelConfig]:
    """List the profiled configs (1, op, pp) of groups that lie within a node of the cluster or take whole nodes."""
    profiled = {config for data in model_datas for config in data.profiling_result.para_dict}
    return sorted(
        config
        for config in profiled
        if config.dp == 1
        and config.pp <= max_pp
        and config.op <= max_op
        and config.num_devices <= cluster_env.num_devices
        and cluster_env.can_hold([config.num_devices])
    )


@cache
def compile_kernels(rules: ServingRules) -> None:
    """Have everything compiled that a search under `rules` runs, if that was not done before, by one of no size."""
    models, cluster, workload = tiny_problem()
    problem = MixedProblem(models, cluster, workload, rules, (TINY_CONFIG,), False)
    prepared = PreparedProblem(problem)
    placement = fill_greedily(ModelPlacement([TINY_CONFIG], [[]]), cluster, prepared.evaluator)
    prepared.evaluator.evaluate(placement)
    run_part(prepared, Part(placement, 0, 1, 1.0, 1.0, 0.0, math.inf), lambda: False)
