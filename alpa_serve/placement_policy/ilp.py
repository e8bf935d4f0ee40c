"""Placement as integer programs, solved by HiGHS through SciPy."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.errors import InfeasiblePlacementError, InvalidConfigError, InvalidProfileError, SolverStoppedError
from alpa_serve.placement import ModelPlacement
from alpa_serve.placement_policy.evaluator import model_weights
from alpa_serve.profiling import ParallelConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from alpa_serve.placement import ClusterEnv, ModelData

logger = logging.getLogger(__name__)

SUM_WEIGHT = 1e-4
"""Weight of the summed tolerances in the objective, beside that of the smallest."""

DEFAULT_TIME_LIMIT_S = 60.0

_SOLVER_TOLERANCE = 1e-6
_ROUNDING = 1e-12
_COUNT_ROUNDING = 1e-9


@dataclass
class _Program:
    """A mixed-integer linear program that is built row by row; maximised."""

    objective: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    integral: list[int] = field(default_factory=list)
    rows: list[Mapping[int, float]] = field(default_factory=list)
    row_lower: list[float] = field(default_factory=list)
    row_upper: list[float] = field(default_factory=list)

    def variable(self, upper: float, *, integral: bool, objective: float = 0.0) -> int:
        """Add a variable within [0, upper] and return its number."""
        self.objective.append(objective)
        self.upper.append(upper)
        self.integral.append(int(integral))
        return len(self.objective) - 1

    def constrain(self, row: Mapping[int, float], lower: float = -np.inf, upper: float = np.inf) -> None:
        """Demand lower <= sum of coefficient * variable <= upper."""
        self.rows.append(row)
        self.row_lower.append(lower)
        self.row_upper.append(upper)

    def solve(self, time_limit: float) -> NDArray[np.float64]:
        """Return the values of the variables.

        Raises
        ------
        InfeasiblePlacementError
            If there is no solution.
        SolverStoppedError
            If none was found in time.
        """
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        # HiGHS takes 32-bit indices; SciPy before 1.15 does not convert them
        columns = np.array([column for row in self.rows for column in row], dtype=np.int32)
        values = [value for row in self.rows for value in row.values()]
        row_ends = np.cumsum([0, *map(len, self.rows)], dtype=np.int32)
        matrix = csr_array((values, columns, row_ends), shape=(len(self.rows), len(self.objective)))
        integral = np.array(self.integral)
        upper = np.array(self.row_upper)
        while True:
            solution = milp(
                -np.array(self.objective),
                integrality=integral,
                bounds=Bounds(0, np.array(self.upper)),
                constraints=LinearConstraint(matrix, np.array(self.row_lower), upper),
                # the default gap of 1e-4 would hide the summed tolerances, which weigh as little
                options={"time_limit": time_limit, "mip_rel_gap": 0.0},
            )
            if solution.x is None:
                if solution.status == 2:
                    raise InfeasiblePlacementError("the integer program is infeasible: no placement meets all of it")
                raise SolverStoppedError(
                    f"the solver found no placement within {time_limit:g} s ({solution.message}); allow it more time"
                )
            whole = np.where(integral, np.rint(solution.x), solution.x)
            overflowing = matrix @ np.where(integral, whole, 0.0) > np.array(self.row_upper) + _ROUNDING
            if not (overflowing & self._integral_rows()).any():
                break
            # the solver lets a row overflow by its tolerance, memory does not
            upper = upper - np.where(overflowing, 2 * _SOLVER_TOLERANCE, 0.0)
        values_found: NDArray[np.float64] = whole
        return values_found

    def _integral_rows(self) -> NDArray[np.bool_]:
        """Tell which rows have integral variables only."""
        return np.array([all(self.integral[column] for column in row) for row in self.rows])


def _tolerance_objective(
    program: _Program, capacity: Sequence[Mapping[int, float]], model_datas: Sequence[ModelData]
) -> None:
    """Maximise min(tolerance) + SUM_WEIGHT * sum(tolerance), tolerance = capacity / rate, over models with a rate."""
    smallest = program.variable(np.inf, integral=False, objective=1.0)
    hopeless = []
    for terms, data in zip(capacity, model_datas, strict=True):
        if data.rate > 0:
            row = {variable: value / data.rate for variable, value in terms.items()}
            for variable, value in row.items():
                program.objective[variable] += SUM_WEIGHT * value
            program.constrain({smallest: -1.0, **row}, lower=0.0)
            if not any(program.upper[variable] * value > 0 for variable, value in row.items()):
                hopeless.append(data.name)
    if not any(data.rate > 0 for data in model_datas):
        raise InvalidConfigError("no model has a rate above 0: there is no tolerance to maximise")
    if hopeless:
        logger.warning(
            "no group can serve %s within memory and SLO: the smallest tolerance is 0 whatever is placed, "
            "and only the sum of tolerances is maximised",
            ", ".join(hopeless),
        )


def solve_replication(
    model_datas: Sequence[ModelData], cluster_env: ClusterEnv, time_limit: float = DEFAULT_TIME_LIMIT_S
) -> ModelPlacement:
    """Place replicas on single devices such that every model tolerates the largest multiple of its rate.

    Maximises min_i t_i + 1e-4 * sum_i t_i with t_i = replicas_i * throughput_i / rate_i, a device holding the weights
    of its models within the budget.

    Parameters
    ----------
    model_datas : sequence of ModelData
    cluster_env : ClusterEnv
    time_limit : float
        Seconds; the best solution found by then is returned.

    Raises
    ------
    InfeasiblePlacementError
        If no solution exists or none was found in time.
    """
    config = ParallelConfig(1, 1, 1)
    weights = model_weights(model_datas, config)
    devices = range(cluster_env.num_devices)
    program = _Program()
    replicas: list[list[int]] = []
    capacity: list[dict[int, float]] = []
    for data, weight in zip(model_datas, weights, strict=True):
        fits = weight <= cluster_env.mem_budget
        replicas.append([program.variable(float(fits), integral=True) for _ in devices])
        throughput = 0.0
        if fits:
            latency = data.profiling_result.stage_latency(config)
            _check_takes_time(data, latency)
            throughput = 1 / max(latency)
        capacity.append(dict.fromkeys(replicas[-1], throughput))
    for device in devices:
        program.constrain(
            {
                on_device[device]: weight / cluster_env.mem_budget
                for on_device, weight in zip(replicas, weights, strict=True)
                if np.isfinite(weight)
            },
            upper=1.0,
        )
    _tolerance_objective(program, capacity, model_datas)
    values = program.solve(time_limit)
    return ModelPlacement(
        [config] * len(devices),
        [
            [model_id for model_id, on_device in enumerate(replicas) if values[on_device[device]] > 0.5]
            for device in devices
        ],
    )


def _check_takes_time(data: ModelData, latency: Sequence[float]) -> None:
    if not max(latency) > 0:
        raise InvalidProfileError(f"model {data.name!r} takes no time by its profile: its capacity has no bound")


PIPELINE_CONFIGS = tuple(ParallelConfig(1, 1, num_stages) for num_stages in (1, 2, 4, 8))
"""The group configs that the model-parallel program chooses among."""

STAGE_DISCOUNT = 0.99
"""Factor on a model's capacity for each pipeline stage."""


def requests_within_slo(data: ModelData, config: ParallelConfig) -> float:
    """Return how many requests, pipelined one after the other, complete within the SLO; discounted by stage.

    0.99^pp times the largest n with sum(stage latencies) + (n - 1) * max(stage latencies) <= slo; 0 where the config is
    not profiled.

    Raises
    ------
    InvalidConfigError
        If the model has no finite SLO.
    """
    if config not in data.profiling_result.para_dict:
        return 0.0
    if not np.isfinite(data.slo):
        raise InvalidConfigError(f"model {data.name!r} needs a finite slo: capacity is counted in requests within it")
    latency = data.profiling_result.stage_latency(config)
    _check_takes_time(data, latency)
    # a completion at the SLO fits: not to be lost to rounding
    count = np.floor((data.slo - sum(latency)) / max(latency) + _COUNT_ROUNDING) + 1
    return float(max(count, 0.0)) * STAGE_DISCOUNT**config.pp


def solve_model_parallel(
    model_datas: Sequence[ModelData],
    cluster_env: ClusterEnv,
    configs: Sequence[ParallelConfig] = PIPELINE_CONFIGS,
    time_limit: float = DEFAULT_TIME_LIMIT_S,
) -> ModelPlacement:
    """Choose groups and replicas such that every model tolerates the largest multiple of its rate.

    Maximises min_i t_i + 1e-4 * sum_i t_i with t_i = capacity_i / rate_i, the capacity of a model being the sum over
    its groups of :func:`requests_within_slo`. Group sizes sum to the devices; a device holds the weights of its models
    within the budget.

    Parameters
    ----------
    model_datas : sequence of ModelData
    cluster_env : ClusterEnv
    configs : sequence of ParallelConfig
        What a group may be; it may also be unused.
    time_limit : float
        Seconds; the best solution found by then is returned.

    Raises
    ------
    InfeasiblePlacementError
        If no solution exists or none was found in time.
    """
    usable = [
        config
        for config in configs
        if config.num_devices <= cluster_env.num_devices and cluster_env.allows_group_of(config.num_devices)
    ]
    weights = {config: model_weights(model_datas, config) for config in usable}
    program = _Program()
    capacity: list[dict[int, float]] = [{} for _ in model_datas]
    # one slot per group that there could be of each config: the config of a group is then no decision of its own
    slots, slots_by_node = _group_slots(usable, cluster_env)
    opened = [program.variable(1.0, integral=True) for _ in slots]
    placed: list[dict[int, int]] = []
    for slot, config in enumerate(slots):
        members = {}
        for model_id, data in enumerate(model_datas):
            if weights[config][model_id] <= cluster_env.mem_budget:
                members[model_id] = program.variable(1.0, integral=True)
                capacity[model_id][members[model_id]] = requests_within_slo(data, config)
        placed.append(members)
        row = {variable: weights[config][model_id] / cluster_env.mem_budget for model_id, variable in members.items()}
        program.constrain({opened[slot]: -1.0, **row}, upper=0.0)
        for variable in members.values():
            program.constrain({variable: 1.0, opened[slot]: -1.0}, upper=0.0)
        if slot and slots[slot - 1] == config and not any(slot == node[0] for _, node in slots_by_node):
            # equal groups open in order, or the solver would try every permutation of them
            program.constrain({opened[slot]: 1.0, opened[slot - 1]: -1.0}, upper=0.0)
    for node_devices, members_of_node in slots_by_node:
        sizes = {opened[slot]: float(slots[slot].num_devices) for slot in members_of_node}
        program.constrain(sizes, lower=node_devices, upper=node_devices)
    _tolerance_objective(program, capacity, model_datas)
    values = program.solve(time_limit)
    chosen = [slot for slot in range(len(slots)) if values[opened[slot]] > 0.5]
    return ModelPlacement(
        [slots[slot] for slot in chosen],
        [[model_id for model_id, variable in placed[slot].items() if values[variable] > 0.5] for slot in chosen],
    )


def _group_slots(
    configs: Sequence[ParallelConfig], cluster_env: ClusterEnv
) -> tuple[list[ParallelConfig], list[tuple[int, range]]]:
    """List the groups that there could be, by parts of the cluster that are cut apart from each other.

    Groups of powers of two always fit nodes of a power of two: the cluster is one part. Other nodes are parts of their
    own, with groups within a node only.

    Returns
    -------
    slots : list of ParallelConfig
    parts : list of (int, range)
        Devices of each part, and the numbers of its slots.
    """
    num_devices, per_node = cluster_env.num_devices, cluster_env.num_devices_per_node
    whole = per_node & (per_node - 1) == 0
    part_size = num_devices if whole else per_node
    slots: list[ParallelConfig] = []
    parts = []
    for first in range(0, num_devices, part_size):
        size = min(part_size, num_devices - first)
        start = len(slots)
        slots += [config for config in configs for _ in range(size // config.num_devices)]
        parts.append((size, range(start, len(slots))))
    return slots, parts


def pack_all_models(
    model_datas: Sequence[ModelData],
    cluster_env: ClusterEnv,
    group_configs: Sequence[ParallelConfig],
    time_limit: float = DEFAULT_TIME_LIMIT_S,
) -> ModelPlacement | None:
    """Place every model once in the given groups, or return None if the memory does not allow it.

    Parameters
    ----------
    model_datas : sequence of ModelData
    cluster_env : ClusterEnv
        For its mem_budget.
    group_configs : sequence of ParallelConfig
    time_limit : float
        Seconds.

    Raises
    ------
    SolverStoppedError
        If neither a placement nor a proof that there is none was found in time.
    """
    weights = {config: model_weights(model_datas, config) for config in set(group_configs)}
    program = _Program()
    placed = [
        {
            model_id: program.variable(1.0, integral=True)
            for model_id in np.flatnonzero(weights[config] <= cluster_env.mem_budget).tolist()
        }
        for config in group_configs
    ]
    for config, members in zip(group_configs, placed, strict=True):
        program.constrain(
            {variable: weights[config][m] / cluster_env.mem_budget for m, variable in members.items()}, upper=1.0
        )
    for model_id in range(len(model_datas)):
        homes = {members[model_id]: 1.0 for members in placed if model_id in members}
        if not homes:
            return None
        program.constrain(homes, lower=1.0, upper=1.0)
    try:
        values = program.solve(time_limit)
    except SolverStoppedError:
        raise
    except InfeasiblePlacementError:
        return None
    return ModelPlacement(
        list(group_configs),
        [[model_id for model_id, variable in members.items() if values[variable] > 0.5] for members in placed],
    )
