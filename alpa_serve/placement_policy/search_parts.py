"""Parts of the mixed search: chains of annealing that can run anywhere, and what comes of them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.placement import ModelPlacement
from alpa_serve.placement_policy.annealing import MOST_FRUITLESS, anneal, make_chain, start_chain
from alpa_serve.placement_policy.cluster_arrays import make_cluster
from alpa_serve.placement_policy.evaluator import PlacementEvaluator
from alpa_serve.placement_policy.greedy import fill_greedily
from alpa_serve.placement_policy.moves import log_size
from alpa_serve.placement_policy.part_runner import never_stopped
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

UNLIMITED = 2**62
"""Evaluations of a chain that time ends."""

PLACED_VALUE = 10.0
"""Score of placing a model, where all have to be placed: more than anything else can be worth."""

_STRETCH_S = 0.02
"""Seconds between two looks at whether to stop."""

_VALUE_UNIT = 2.0**-20
"""Of what a good request counts."""


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
        What groups can become.
    other_configs : tuple of ParallelConfig
        What groups of a start may be beside that.
    require_all_models : bool
    """

    model_datas: list[ModelData]
    cluster_env: ClusterEnv
    workload: Workload
    rules: ServingRules
    configs: tuple[ParallelConfig, ...]
    other_configs: tuple[ParallelConfig, ...]
    require_all_models: bool


@dataclass(frozen=True)
class Part:
    """A chain of annealing to run.

    Attributes
    ----------
    start : ModelPlacement
    seed : int
    hot, cold : float
        Temperatures, in units of the score.
    noise : float
        For the first half, the requests of each model are weighted by the exponential of this times a normal draw, so
        that chains settle in different places.
    num_evaluations : int
        After which it ends; :data:`UNLIMITED` for one that has so many `seconds`.
    seconds : float
        From its own beginning, as clocks of different machines differ; infinite for one that has so many evaluations.
    """

    start: ModelPlacement
    seed: int
    hot: float
    cold: float
    noise: float
    num_evaluations: int
    seconds: float


@dataclass(frozen=True)
class PartResult:
    """The best placement of a chain.

    Attributes
    ----------
    placement : ModelPlacement
    num_evaluations : int
    seconds : float
    """

    placement: ModelPlacement
    num_evaluations: int
    seconds: float


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
        self.configs = (*problem.configs, *problem.other_configs)
        self.evaluator = evaluator or PlacementEvaluator(
            problem.model_datas, problem.cluster_env, problem.workload, rules=problem.rules
        )
        self.num_requests = len(problem.workload)
        self.placed_value = PLACED_VALUE if problem.require_all_models else 0.0
        self.arrays = self.evaluator.search_problem(self.configs)
        self.cluster = make_cluster(problem.cluster_env, problem.configs)

    def groups_of(self, placement: ModelPlacement) -> Groups:
        """Return the groups of a placement as arrays, with room for as many as there are devices."""
        per_node = self.cluster_env.num_devices_per_node
        position = {config: config_id for config_id, config in enumerate(self.configs)}
        groups = make_groups(
            self.cluster_env.num_devices,
            len(self.arrays.weights),
            [position[config] for config in placement.group_configs],
            placement.group_models,
            [devices[0] // per_node for devices in placement.assign_devices(self.cluster_env)],
        )
        return groups._replace(log=np.zeros((log_size(len(self.arrays.weights), self.cluster), 3), np.int64))

    def best_of(self, chain: Chain) -> ModelPlacement:
        """Return the best placement of a chain; groups without models are left out."""
        used = np.flatnonzero((chain.best_config != FREE) & chain.best_holds.any(axis=1))
        return ModelPlacement(
            [self.configs[config] for config in chain.best_config[used]],
            [np.flatnonzero(chain.best_holds[slot]).tolist() for slot in used],
        )


def run_part(prepared: PreparedProblem, part: Part, stopped: Stopped) -> PartResult:
    """Run a chain of annealing, until it has done its evaluations, its time is over or it is stopped."""
    began = time.perf_counter()
    groups = prepared.groups_of(part.start)
    chain = make_chain(groups, part.seed)
    phases = [(1.0, part.hot, part.cold)]
    if part.noise:
        warm = (part.hot * part.cold) ** 0.5
        phases = [(0.5, part.hot, warm), (1.0, warm, part.cold)]
    for number, (share, hot, cold) in enumerate(phases):
        noisy = part.noise and number == 0
        chain.value[:] = _noisy_values(prepared, part) if noisy else 1.0
        start_chain(prepared.arrays, groups, chain, prepared.num_requests, prepared.placed_value)
        _run_phase(
            prepared,
            groups,
            chain,
            (hot, cold),
            int(part.num_evaluations * share),
            began + part.seconds * share,
            stopped,
        )
    best = prepared.best_of(chain)
    if not prepared.cluster_env.can_hold([config.num_devices for config in best.group_configs]):
        # it lies within the nodes, but of very many groups that is not always found again
        best = part.start
    return PartResult(best, int(chain.num_evaluations[0]), time.perf_counter() - began)


def _run_phase(
    prepared: PreparedProblem,
    groups: Groups,
    chain: Chain,
    temperatures: tuple[float, float],
    last: int,
    deadline: float,
    stopped: Stopped,
) -> None:
    """Anneal from the first to the second temperature, until evaluation `last` or the `deadline`."""
    hot, cold = temperatures
    first = done = int(chain.num_evaluations[0])
    began = time.perf_counter()
    stretch = 1
    while done < last and chain.num_fruitless[0] < MOST_FRUITLESS and not stopped():
        now = time.perf_counter()
        if now >= deadline:
            return
        end = last
        if math.isfinite(deadline):
            # where the deadline will find it at this speed
            end = min(
                last, done + int((done - first) / (now - began) * (deadline - now)) if done > first else UNLIMITED
            )
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
            min(done + stretch, last),
        )
        done = int(chain.num_evaluations[0])
        if time.perf_counter() - now < _STRETCH_S:
            stretch *= 2


def _noisy_values(prepared: PreparedProblem, part: Part) -> NDArray[np.float64]:
    """Return what a good request of each model counts in the first half of a chain; about 1 on average."""
    requests = np.diff(prepared.arrays.first_request)
    values: NDArray[np.float64] = np.exp(part.noise * np.random.default_rng(part.seed).standard_normal(len(requests)))
    values *= requests.sum() / max(float((values * requests).sum()), 1e-300)
    return np.ceil(values / _VALUE_UNIT) * _VALUE_UNIT


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


def prepare_in_process(problem: MixedProblem) -> PreparedProblem:
    """Return the problem as a process of its own takes it, with everything compiled that its chains run."""
    compile_kernels(problem.rules)
    return PreparedProblem(problem)


@cache
def compile_kernels(rules: ServingRules) -> None:
    """Have everything compiled that a search under `rules` runs, if that was not done before, by one of no size."""
    models, cluster, workload = tiny_problem()
    problem = MixedProblem(models, cluster, workload, rules, (TINY_CONFIG,), (), False)
    prepared = PreparedProblem(problem)
    placement = fill_greedily(ModelPlacement([TINY_CONFIG], [[]]), cluster, prepared.evaluator)
    prepared.evaluator.evaluate(placement)
    run_part(prepared, Part(placement, 0, 1.0, 1.0, 0.0, 1, math.inf), never_stopped)
