"""What can be attained on idle devices: the limit that more devices do not move, and the models that set it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.errors import InfeasiblePlacementError, InvalidConfigError, InvalidWorkloadError
from alpa_serve.placement_policy.evaluator import model_weights
from alpa_serve.profiling import ParallelConfig
from alpa_serve.scheduling import ALPASERVE, replica_timing
from alpa_serve.simulator.problem import ModelTable, RequestTable
from alpa_serve.util import GB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alpa_serve.placement import ClusterEnv, ModelData
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload

_ROUNDING = 1e-9
"""Part of a time by which the simulator's sums may come out shorter than the sum taken at once."""


@dataclass(frozen=True, eq=False)
class IdleLatencies:
    """How fast each request can be served by a group that has nothing else to do.

    Attributes
    ----------
    requests : RequestTable
    latency : ndarray of float64, shape (n,)
        Seconds from arrival to completion on the fastest config; infinite where the model fits no group.
    smallest_weights : ndarray of float64, shape (num_models,)
        Bytes a device that the model needs on the config where it needs least; infinite if no group can have a config
        that it is profiled on.
    """

    requests: RequestTable
    latency: NDArray[np.float64]
    smallest_weights: NDArray[np.float64]

    def attainable(self, slo_scale: float = 1.0) -> NDArray[np.bool_]:
        """Tell which requests could meet `slo_scale` times their SLO, shape (n,)."""
        slack = _ROUNDING * (1 + self.requests.arrivals)
        return np.isfinite(self.latency) & (self.latency <= self.requests.slos * slo_scale + slack)

    def limit(self, slo_scale: float = 1.0) -> float:
        """Return the share of requests that could meet `slo_scale` times their SLO; 0 without requests."""
        return float(self.attainable(slo_scale).mean()) if len(self.latency) else 0.0

    def tightest_slo_scale(self, target: float) -> float:
        """Return the factor on every SLO below which fewer than `target` of the requests could meet theirs."""
        with np.errstate(divide="ignore", invalid="ignore"):
            # an SLO of 0 is met by what takes no time, one of infinity by whatever is served
            scales = np.where(np.isfinite(self.latency), self.latency / self.requests.slos, np.inf)
        scales = np.sort(np.where(np.isnan(scales), 0.0, scales))
        return float(scales[max(int(np.ceil(target * len(scales) - _ROUNDING)), 1) - 1])


def idle_latencies(
    model_datas: Sequence[ModelData],
    cluster_env: ClusterEnv,
    workload: Workload,
    rules: ServingRules = ALPASERVE,
    *,
    max_pp: int,
    max_op: int,
) -> IdleLatencies:
    """Return how fast each request can be served by an idle group of the cluster.

    Parameters
    ----------
    model_datas : sequence of ModelData
    cluster_env : ClusterEnv
    workload : Workload
    rules : ServingRules
    max_pp, max_op : int
        Largest pipeline and tensor parallel degree of a group.

    Raises
    ------
    InvalidConfigError
        If there is no model, or two have the same name.
    InvalidWorkloadError
        If there is no request, or none that names a model.
    InvalidProfileError
        If a profile is malformed.
    """
    names = [data.name for data in model_datas]
    if not names:
        raise InvalidConfigError("there is no model to place")
    if len(set(names)) != len(names):
        raise InvalidConfigError(f"model names must differ, got {names}")
    if not len(workload):
        raise InvalidWorkloadError("the workload has no request, so that there is nothing to plan for")
    if rules.service == "tokens":
        workload.require_tokens()
    models = ModelTable(names, [data.profiling_result for data in model_datas], rules=rules)
    requests = RequestTable.of_workload(workload, names)
    if not requests.model_num_requests.any():
        raise InvalidWorkloadError(
            f"no request names a model: requests are for {', '.join(map(repr, workload.model_names))}, "
            f"models are {', '.join(map(repr, names))}"
        )
    latency = np.full(len(requests), np.inf)
    smallest = np.full(len(names), np.inf)
    tokens = rules.service == "tokens"
    further = np.maximum(requests.output_tokens - 1, 0)
    own = [np.flatnonzero(requests.model_ids == model_id) for model_id in range(len(names))]
    for config in models.config_ids:
        if not _is_allowed(config, cluster_env, max_pp, max_op):
            continue
        weights = model_weights(model_datas, config)
        smallest = np.minimum(smallest, weights)
        for model_id in np.flatnonzero(weights <= cluster_env.mem_budget).tolist():
            timing = replica_timing(model_datas[model_id].profiling_result, config, rules)
            seconds: float | NDArray[np.float64] = (
                rules.dispatch_interval_s + sum(timing.latency) + rules.fixed_overhead_s
            )
            mine = own[model_id]
            if tokens:
                per_stage = timing.input_rate * requests.input_tokens[mine] + timing.further_rate * further[mine]
                seconds = seconds + config.pp * per_stage
            latency[mine] = np.minimum(latency[mine], seconds)
    return IdleLatencies(requests, latency, smallest)


def _is_allowed(config: ParallelConfig, cluster_env: ClusterEnv, max_pp: int, max_op: int) -> bool:
    size = config.num_devices
    return (
        config.pp <= max_pp
        and config.op <= max_op
        and size <= cluster_env.num_devices
        and cluster_env.allows_group_of(size)
    )


def check_attainable(
    idle: IdleLatencies,
    target: float,
    model_datas: Sequence[ModelData],
    workload: Workload,
    cluster_env: ClusterEnv,
    *,
    where: str,
    slos_are_free: bool = False,
) -> None:
    """Check that `target` of the requests could meet their SLO if each were alone on idle devices.

    Parameters
    ----------
    idle : IdleLatencies
        Of `workload`.
    target : float
    model_datas : sequence of ModelData
    workload : Workload
    cluster_env : ClusterEnv
    where : str
        What the limit holds for, as the message says it.
    slos_are_free : bool
        Only models that fit no group and requests with an SLO of 0 count as a limit.

    Raises
    ------
    InfeasiblePlacementError
        With the limit, and for each model that sets it its share of the requests and its figures.
    """
    served = np.isfinite(idle.latency) & (idle.requests.slos > 0) if slos_are_free else idle.attainable()
    limit = float(served.mean())
    if limit >= target - _ROUNDING:
        return
    n = len(served)
    lines = []
    for model_id, data in enumerate(model_datas):
        mine = idle.requests.model_ids == model_id
        lost = int(np.count_nonzero(mine & ~served))
        if not lost:
            continue
        share = f"model {data.name!r} ({mine.sum() / n:.1%} of the requests)"
        need = idle.smallest_weights[model_id]
        if need == np.inf:
            lines.append(f"{share} is profiled on no config that a group can have here")
        elif need > cluster_env.mem_budget:
            lines.append(
                f"{share} fits no group: it needs at least {need / GB:.3f} GiB a device, "
                f"mem_budget is {cluster_env.mem_budget / GB:.3f} GiB"
            )
        else:
            late = mine & ~served
            first = int(np.flatnonzero(late)[0])
            lines.append(
                f"{share} cannot meet the SLO of {lost} of its {int(mine.sum())} requests even alone on idle devices: "
                f"request {first} takes {idle.latency[first]:.4g} s at least, its SLO is "
                f"{idle.requests.slos[first]:.4g} s"
            )
    unknown = int(np.count_nonzero(idle.requests.model_ids < 0))
    if unknown:
        names = {data.name for data in model_datas}
        foreign = ", ".join(repr(name) for name in workload.model_names if name not in names)
        lines.append(f"{unknown} of {n} requests name no model ({foreign})")
    raise InfeasiblePlacementError(
        f"an SLO attainment of {target:g} cannot be reached: {where} at most {limit:.4f} is possible; "
        f"{'; '.join(lines)}. Lower the target, or change what limits it"
    )
