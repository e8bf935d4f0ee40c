"""Scores of placements: what the search methods see of the simulator."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidConfigError, InvalidProfileError
from alpa_serve.placement import ModelPlacement
from alpa_serve.scheduling import ALPASERVE, check_rules
from alpa_serve.scheduling.scheduler import dispatch_draws
from alpa_serve.simulator.client import simulate_on
from alpa_serve.simulator.event_controller import Controller
from alpa_serve.simulator.executable import Executable
from alpa_serve.simulator.fast import simulate_counts
from alpa_serve.simulator.placement_simulation import PlacementSimulation
from alpa_serve.simulator.problem import ModelTable, ReplicaTable, RequestTable
from alpa_serve.simulator.search_problem import search_problem, with_configs
from alpa_serve.simulator.stats import goodput_stats, request_rate
from alpa_serve.util import eps
from alpa_serve.validation import check_known

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alpa_serve.placement import ClusterEnv, ModelData
    from alpa_serve.profiling import ParallelConfig
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload
    from alpa_serve.simulator.fast import Counts
    from alpa_serve.simulator.search_problem import SearchProblem
    from alpa_serve.simulator.stats import StatsResult

METHODS = ("fast_simulator", "simulator")
"""How placements can be evaluated: compiled, or event by event, with drawn delays and at a thousandth of the speed."""

_MEMO_SIZE = 20_000

_FEW_REQUESTS = 0.1
"""Share of the requests up to which it is cheaper to pick them out than to pass over all others."""

Island = tuple[tuple["ParallelConfig", tuple[int, ...]], ...]
"""Groups that are linked by the models they share: (config, models) per group, in the order of the groups."""


@dataclass(frozen=True)
class Evaluation:
    """What a placement attains on the workload of its evaluator.

    Attributes
    ----------
    goodput : float
        SLO attainment over all requests.
    latency_mean : float
        Seconds over all requests; one that was dropped counts 0.
    num_replicas : int
    model_goodput : ndarray of float64, shape (num_models,)
        Good requests / (requests + 1e-6).
    model_num_good : ndarray of int64, shape (num_models,)
    group_num_requests : ndarray of int64, shape (num_groups,)
    """

    goodput: float
    latency_mean: float
    num_replicas: int
    model_goodput: NDArray[np.float64]
    model_num_good: NDArray[np.int64]
    group_num_requests: NDArray[np.int64]

    @property
    def score(self) -> float:
        """What the searches maximise: goodput, then short latency, then replicas."""
        return _score(self.goodput, self.latency_mean, self.num_replicas)


def _score(goodput: float, latency_mean: float, num_replicas: int) -> float:
    return goodput - latency_mean / 10000 + num_replicas / 1e6


class PlacementEvaluator:
    """Evaluates placements of some models under a workload.

    Models and requests are compiled into arrays once, here. An evaluation simulates only those islands (groups linked
    by the models they share) of a placement that no earlier evaluation has met: islands do not influence each other,
    unless the rules give all groups one queue.

    Parameters
    ----------
    model_datas : sequence of ModelData
    cluster_env : ClusterEnv
    workload : Workload
        Requests find their model by name.
    method : {"fast_simulator", "simulator"}
        The compiled simulator or the event-driven one.
    parallel : bool
        Evaluate several placements on as many threads as there are cores.
    rules : ServingRules
        How the cluster serves.

    Attributes
    ----------
    model_num_requests : ndarray of int64, shape (num_models,)

    Raises
    ------
    AlpaServeError
        If a profile, the workload or the method is not valid.
    """

    def __init__(
        self,
        model_datas: Sequence[ModelData],
        cluster_env: ClusterEnv,
        workload: Workload,
        method: str = "fast_simulator",
        parallel: bool = False,
        *,
        rules: ServingRules = ALPASERVE,
    ) -> None:
        self.model_datas = list(model_datas)
        self.cluster_env = cluster_env
        self.workload = workload
        self.method = check_known(method, METHODS, "evaluation method")
        self.parallel = parallel
        self.rules = check_rules(rules)
        names = [data.name for data in self.model_datas]
        if len(set(names)) != len(names):
            raise InvalidConfigError(f"model names must differ, got {names}")
        if rules.service == "tokens":
            workload.require_tokens()
        self._models = ModelTable(names, [data.profiling_result for data in self.model_datas], rules=rules)
        self._requests = RequestTable.of_workload(workload, names)
        self._weights: dict[ParallelConfig, NDArray[np.float64]] = {}
        self._problem: SearchProblem | None = None
        self._memo: dict[Island, tuple[list[int], Counts]] = {}

    @property
    def model_num_requests(self) -> NDArray[np.int64]:
        """Requests per model, shape (num_models,)."""
        return self._requests.model_num_requests

    def weights(self, config: ParallelConfig) -> NDArray[np.float64]:
        """Return the weight bytes of each model on one device of a group of `config`; infinite if not profiled."""
        if config not in self._weights:
            self._weights[config] = model_weights(self.model_datas, config)
        return self._weights[config]

    def search_problem(self, configs: Sequence[ParallelConfig]) -> SearchProblem:
        """Return the problem in the form of the compiled searches; config ids are positions in `configs`."""
        weights = np.empty((len(self._models), len(configs)))
        for column, config in enumerate(configs):
            weights[:, column] = self.weights(config)
        if self._problem is None:
            self._problem = search_problem(self._models, self._requests, configs, weights)
            return self._problem
        return with_configs(self._problem, self._models, configs, weights)

    @property
    def follows_changes(self) -> bool:
        """Whether what a change touches can be told from what it does not: by the rules, and by this simulator."""
        return self.method == "fast_simulator" and self.rules.queueing == "per_group"

    def simulation(self, start: ModelPlacement) -> PlacementSimulation:
        """Return a simulation of `start` (normalised) to which replicas can be added one by one."""
        configs = sorted(set(start.group_configs))
        problem = self.search_problem(configs)
        # a replica that its profile rules out serves nothing, which only a whole simulation knows
        rules_out = [set(np.flatnonzero(np.isinf(self.weights(config))).tolist()) for config in start.group_configs]
        all_serve = all(map(set.isdisjoint, rules_out, start.group_models))

        def resimulate(config_ids: list[int], models: list[list[int]]) -> tuple[NDArray[Any], float, NDArray[Any]]:
            evaluation = self.evaluate(ModelPlacement([configs[c] for c in config_ids], models))
            latency_sum = evaluation.latency_mean * len(self._requests)
            return evaluation.model_num_good, latency_sum, evaluation.group_num_requests

        return PlacementSimulation(
            problem,
            [configs.index(config) for config in start.group_configs],
            start.group_models,
            None if self.follows_changes and all_serve else resimulate,
        )

    def score(self, num_good: int, latency_sum: float, num_replicas: int) -> float:
        """Return the score of a placement of so many good requests, seconds of latency and replicas."""
        n = len(self._requests)
        return _score(num_good / n, latency_sum / n, num_replicas) if n else _score(0.0, 0.0, num_replicas)

    def evaluate(self, placement: ModelPlacement) -> Evaluation:
        """Return what `placement` attains.

        Exactly what one simulation of the whole gives: latencies are summed without rounding.
        """
        if self.method == "simulator":
            return self._evaluate_by_events(placement)
        num_good = np.zeros(len(self._models), np.int64)
        latency = np.zeros(len(self._models))
        group_num_requests = np.zeros(len(placement.group_configs), np.int64)
        for group_ids in self._islands(placement):
            island = tuple((placement.group_configs[g], tuple(placement.group_models[g])) for g in group_ids)
            members, counts = self._simulate(island)
            num_good[members] = counts.model_num_good
            latency[members] = counts.model_latency
            group_num_requests[group_ids] = counts.group_num_requests
        return self._evaluation(placement, num_good, float(latency.sum()), group_num_requests)

    def _evaluate_by_events(self, placement: ModelPlacement) -> Evaluation:
        controller = Controller(self.rules)
        for data in self.model_datas:
            controller.register_model(data.name, partial(Executable, data.profiling_result))
        result = simulate_on(controller, placement, self.workload)
        good_models = self._requests.model_ids[result.good]
        latency = float((result.finish - self._requests.arrivals).sum())
        num_good = np.bincount(good_models, minlength=len(self._models))
        return self._evaluation(placement, num_good, latency, result.group_num_requests())

    def _evaluation(
        self,
        placement: ModelPlacement,
        num_good: NDArray[np.int64],
        latency_sum: float,
        group_num_requests: NDArray[np.int64],
    ) -> Evaluation:
        n = len(self._requests)
        return Evaluation(
            goodput=int(num_good.sum()) / n if n else 0.0,
            latency_mean=latency_sum / n if n else 0.0,
            num_replicas=placement.num_replicas,
            model_goodput=num_good / (self.model_num_requests + eps),
            model_num_good=num_good,
            group_num_requests=group_num_requests,
        )

    def _islands(self, placement: ModelPlacement) -> list[list[int]]:
        if self.rules.queueing == "per_group":
            return linked_groups(placement.group_models)
        return [list(range(len(placement.group_models)))]

    def _simulate(self, island: Island) -> tuple[list[int], Counts]:
        """Return the models of an island and what it adds up to, per model in that order and per group."""
        known = self._memo.get(island)
        if known is None:
            replicas = ReplicaTable.of_groups(
                self._models, [config for config, _ in island], [models for _, models in island]
            )
            members = sorted({model_id for _, models in island for model_id in models})
            counts = self._counts(members, replicas)
            known = (
                members,
                replace(
                    counts,
                    model_num_good=counts.model_num_good[members],
                    model_latency=counts.model_latency[members],
                ),
            )
            if len(self._memo) >= _MEMO_SIZE:
                self._memo.clear()
            self._memo[island] = known
        return known

    def _counts(self, members: list[int], replicas: ReplicaTable) -> Counts:
        """Simulate replicas of these models, on their requests alone where those are few."""
        if self.model_num_requests[members].sum() > _FEW_REQUESTS * len(self._requests):
            return simulate_counts(self._requests, replicas)
        positions = self._requests.positions_of(members)
        draws = self._draws[positions] if self.rules.dispatch == "random" else None
        return simulate_counts(self._requests.at(positions), replicas, draws)

    @cached_property
    def _draws(self) -> NDArray[np.float64]:
        return dispatch_draws(self.rules, len(self._requests))

    def evaluate_all(self, placements: Sequence[ModelPlacement]) -> list[Evaluation]:
        """Return what each placement attains, in their order."""
        if self.parallel and len(placements) > 1:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return list(pool.map(self.evaluate, placements))
        return [self.evaluate(placement) for placement in placements]

    def get_scores(self, sols: Sequence[ModelPlacement]) -> NDArray[np.float64]:
        """Return the score of each placement: goodput - latency_mean / 10000 + num_replicas / 1e6."""
        return np.array([evaluation.score for evaluation in self.evaluate_all(sols)])

    def get_stats(self, sols: Sequence[ModelPlacement]) -> list[tuple[float, list[float], list[int], StatsResult]]:
        """Return (goodput, goodput per model, requests per group, StatsResult) of each placement."""
        stats = []
        for evaluation in self.evaluate_all(sols):
            result = goodput_stats(
                self._models.names,
                self.model_num_requests,
                evaluation.model_num_good,
                evaluation.group_num_requests.tolist(),
                len(self._requests),
                evaluation.latency_mean,
                request_rate(self._requests.arrivals),
            )
            stats.append((evaluation.goodput, evaluation.model_goodput.tolist(), result.group_num_requests, result))
        return stats


def model_weights(model_datas: Sequence[ModelData], config: ParallelConfig) -> NDArray[np.float64]:
    """Return the bytes of each model, weights and KV cache, on the fullest device of a group of `config`.

    Returns
    -------
    ndarray of float64, shape (num_models,)
        Infinite for a model whose profile lacks the config.

    Raises
    ------
    InvalidProfileError
        If a profile has the config, but no valid weights, batch size 1 or, with concurrent tokens, KV cache on it.
    """
    weights = np.full(len(model_datas), np.inf)
    # many models may share a profile, and checking one takes time
    known: dict[tuple[int, int], float] = {}
    for model_id, data in enumerate(model_datas):
        profile = data.profiling_result
        if config in profile.para_dict:
            key = id(profile), data.concurrent_tokens
            if key not in known:
                try:
                    profile.stage_latency(config)
                    known[key] = data.memory_bytes(config)
                except InvalidProfileError as error:
                    raise InvalidProfileError(f"model {data.name!r}: {error}") from error
            weights[model_id] = known[key]
    return weights


def linked_groups(group_models: Sequence[Sequence[int]]) -> list[list[int]]:
    """Sort groups into islands: two groups that hold the same model are in one island.

    Returns
    -------
    list of list of int
        Group ids, ascending within an island; islands by their first group.
    """
    parent = list(range(len(group_models)))

    def root(group_id: int) -> int:
        while parent[group_id] != group_id:
            parent[group_id] = parent[parent[group_id]]
            group_id = parent[group_id]
        return group_id

    holder: dict[int, int] = {}
    for group_id, models in enumerate(group_models):
        for model_id in models:
            one, other = root(holder.setdefault(model_id, group_id)), root(group_id)
            # the smaller id stays root, so that islands come out in order
            parent[max(one, other)] = min(one, other)
    islands: dict[int, list[int]] = {}
    for group_id in range(len(group_models)):
        islands.setdefault(root(group_id), []).append(group_id)
    return list(islands.values())
