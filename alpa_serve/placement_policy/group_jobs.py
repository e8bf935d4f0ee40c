"""What each request costs a group of each configuration: the arrays that upper bounds are computed from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.errors import InvalidConfigError
from alpa_serve.placement_policy.evaluator import model_weights
from alpa_serve.scheduling import check_rules
from alpa_serve.simulator.problem import ModelTable, RequestTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alpa_serve.placement import ClusterEnv, ModelData
    from alpa_serve.profiling import ParallelConfig
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload

_WEIGHT_ROUNDING = 1e-9
"""Share of the budget by which a sum of weights may err."""

_OPERATIONS = 16
"""Roundings in the simulated time of a request on one stage, at most, and as many for its deadline."""

_FAR = 1e300
"""Seconds until no request."""


@dataclass(frozen=True, eq=False)
class Jobs:
    """The requests as jobs of one machine: the stage of a group that has the most to do, or the whole group.

    Attributes
    ----------
    idle_until, ready, work, latest : ndarray of float64, shape (n,)
        As :func:`~alpa_serve.placement_policy.group_value.best_selection` takes them: seconds, each a little on the
        side of serving more, so that rounding excludes nothing that the simulator serves.
    """

    idle_until: NDArray[np.float64]
    ready: NDArray[np.float64]
    work: NDArray[np.float64]
    latest: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StagedJobs:
    """The requests as jobs that pass all stages of a group, as the simulator has it.

    Attributes
    ----------
    entered : ndarray of float64, shape (num_stages,)
    work : ndarray of float64, shape (n, num_stages)
    latest : ndarray of float64, shape (n,)
    rounding : float
        As :func:`~alpa_serve.placement_policy.dispatch_value.best_dispatch` takes them.
    """

    entered: NDArray[np.float64]
    work: NDArray[np.float64]
    latest: NDArray[np.float64]
    rounding: float


class BoundProblem:
    """Models, cluster and registered requests, as upper bounds need them.

    Parameters
    ----------
    model_datas : sequence of ModelData
    cluster_env : ClusterEnv
    workload : Workload
    rules : ServingRules

    Attributes
    ----------
    num_requests : int
        Of the whole workload.
    arrivals, slos : ndarray of float64, shape (n,)
        Seconds, of the requests whose model is registered.
    model_ids : ndarray of int32, shape (n,)
    configs : list of ParallelConfig
        Those that some model is profiled on and that the cluster has room for.
    weights : ndarray of float64, shape (num_configs, num_models)
        Bytes on a device; infinite where a model cannot be, or would be of no use.
    budget : float
        Bytes, a little more than a device holds.

    Raises
    ------
    AlpaServeError
        If a profile or the workload is not valid, names repeat, or the rules are none.
    """

    def __init__(
        self, model_datas: Sequence[ModelData], cluster_env: ClusterEnv, workload: Workload, rules: ServingRules
    ) -> None:
        self.rules = check_rules(rules)
        self.cluster_env = cluster_env
        names = [data.name for data in model_datas]
        if len(set(names)) != len(names):
            raise InvalidConfigError(f"model names must differ, got {names}")
        if rules.service == "tokens":
            workload.require_tokens()
        self._models = ModelTable(names, [data.profiling_result for data in model_datas], rules=rules)
        requests = RequestTable.of_workload(workload, names)
        known = np.flatnonzero(requests.model_ids >= 0)
        self.num_requests = len(requests)
        self.arrivals = requests.arrivals[known]
        self.slos = requests.slos[known]
        self.model_ids = requests.model_ids[known]
        self.num_models = len(names)
        self._input_tokens, self._further_tokens = np.zeros((2, len(known)))
        if rules.service == "tokens":
            self._input_tokens = requests.input_tokens[known].astype(np.float64)
            self._further_tokens = np.maximum(requests.output_tokens[known] - 1, 0).astype(np.float64)
        self.budget = cluster_env.mem_budget * (1 + _WEIGHT_ROUNDING)
        self.configs: list[ParallelConfig] = []
        weights = []
        for config in self._models.config_ids:
            size = config.num_devices
            if size <= cluster_env.num_devices and cluster_env.allows_group_of(size):
                weight = model_weights(model_datas, config)
                weight[weight > self.budget] = np.inf
                weight[~self._is_of_use(config)] = np.inf
                if np.isfinite(weight).any():
                    self.configs.append(config)
                    weights.append(weight)
        self.weights: NDArray[np.float64] = np.array(weights).reshape(len(self.configs), self.num_models)

    @property
    def drops_what_is_late(self) -> bool:
        """Whether a group drops what its own admitted requests make late, and nothing else."""
        rules = self.rules
        return rules.admission == "deadline" and rules.queueing == "per_group" and rules.idle_penalty_s == 0.0

    @property
    def serves_late(self) -> bool:
        """Whether every request of a placed model is served, be it late."""
        return self.rules.admission == "all"

    def _is_of_use(self, config: ParallelConfig) -> NDArray[np.bool_]:
        """Tell which models have a request that a group of `config` could serve in time, or serve late, or drop.

        What it drops matters where that is all that keeps it from serving.
        """
        jobs = self.jobs(config)
        # NaN where the model is not profiled, which compares as False
        takes_all = self.serves_late or self.drops_what_is_late
        useful = jobs.work >= 0.0 if takes_all else jobs.ready + jobs.work <= jobs.latest
        of_use: NDArray[np.bool_] = np.bincount(self.model_ids[useful], minlength=self.num_models) > 0
        return of_use

    def model_figures(self) -> NDArray[np.float64]:
        """Return all that tells a model from another as a row, shape (num_models, num_figures)."""
        figures = [self._models.stage_latency, self._models.token_rates, self.weights.T]
        flat = np.concatenate([np.reshape(part, (self.num_models, -1)) for part in figures], axis=1)
        # unlike NaN, equal to itself
        figures_only: NDArray[np.float64] = np.nan_to_num(flat, nan=-1.0, posinf=-2.0)
        return figures_only

    def stage_seconds(self, config: ParallelConfig) -> tuple[NDArray[np.float64], float]:
        """Return how long each request keeps each stage of a group of `config`, and how far sums of it may be off.

        Returns
        -------
        seconds : ndarray of float64, shape (n, num_stages)
            The dispatch interval before its start is part of the first stage. Under exclusive execution the group is
            one stage. NaN where the model is not profiled.
        rounding : float
            More than what a time of the simulation, a few sums of these, can err by.
        """
        config_id = self._models.config_ids[config]
        rates = self._models.token_rates[self.model_ids, config_id]
        extra = rates[:, 0] * self._input_tokens + rates[:, 1] * self._further_tokens
        latency = self._models.stage_latency[self.model_ids, config_id, 0, : config.pp]
        seconds: NDArray[np.float64] = latency + extra[:, None]
        if self.rules.execution == "exclusive":
            seconds = seconds.sum(axis=1, keepdims=True)
        seconds[:, 0] += self.rules.dispatch_interval_s
        longest_slo = self.slos[np.isfinite(self.slos)].max(initial=0.0)
        horizon = self.arrivals.max(initial=0.0) + longest_slo + np.nansum(seconds) + self.rules.fixed_overhead_s
        return seconds, float(_OPERATIONS * (config.pp + 1) * np.finfo(np.float64).eps * horizon)

    def jobs(self, config: ParallelConfig) -> Jobs:
        """Return the requests as jobs of a machine of a group of `config`; NaN where the model is not profiled.

        Notes
        -----
        The machine is the stage of the group with the most work. Admitted requests pass it one after the other in their
        order, each for its latency there. A request cannot enter it before its arrival and its latencies on the
        stages before, and is late unless it leaves it its latencies on the stages after and the fixed overhead
        before its deadline.
        """
        seconds, rounding = self.stage_seconds(config)
        # of stages with equal work the last: it cannot begin before the others are done with a request
        stage = seconds.shape[1] - 1 - int(np.argmax(np.nansum(seconds, axis=0)[::-1]))
        waits = seconds[:, :stage].sum(axis=1)
        ready = self.arrivals + waits - rounding
        return Jobs(
            idle_until=self.arrivals + np.fmin.reduce(waits, initial=_FAR) - 2 * rounding,
            ready=ready,
            work=np.maximum(seconds[:, stage] - rounding, 0.0),
            latest=self._deadlines - seconds[:, stage + 1 :].sum(axis=1) + rounding,
        )

    def staged_jobs(self, config: ParallelConfig) -> StagedJobs:
        """Return the requests as jobs that pass all stages of a group of `config`, with figures as for :meth:`jobs`."""
        seconds, rounding = self.stage_seconds(config)
        before = np.cumsum(seconds, axis=1) - seconds
        entered = np.fmin.reduce(before, axis=0, initial=_FAR) - rounding
        return StagedJobs(entered, seconds, self._deadlines, rounding)

    @property
    def _deadlines(self) -> NDArray[np.float64]:
        return self.arrivals + self.slos - self.rules.fixed_overhead_s


def equal_models(problem: BoundProblem) -> NDArray[np.int64]:
    """Return a class number per model, shape (num_models,): models of one class need and take the same everywhere."""
    _, classes = np.unique(problem.model_figures(), axis=0, return_inverse=True)
    return np.asarray(classes, dtype=np.int64).reshape(problem.num_models)
