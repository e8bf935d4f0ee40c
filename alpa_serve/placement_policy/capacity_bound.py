"""A coarse upper bound: capacity, memory and bursts of classes of equal models, as a small linear program."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.placement_policy.group_jobs import equal_models

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from alpa_serve.placement_policy.group_jobs import BoundProblem

_MAX_PERIODS = 64
"""Periods of equal length that the workload is cut into, at most."""

_MAX_SERVED_VARIABLES = 60_000
"""Of classes, configs and periods together, at most."""

_BURSTS = (0.25, 1.0, 4.0, 16.0)
"""Lengths of the windows in which bursts are counted, as multiples of the median SLO of a class."""

_TANGENTS = 24
"""Tangents to the served requests of a class as a function of its replicas, at most."""

_TOLERANCE = 1e-9
"""Relative rounding that the value of a dual solution may have, far above what its sums can gather."""


@dataclass
class _Program:
    """A linear program, maximised, over variables within [0, upper] and rows that are at most their limit."""

    objective: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    rows: list[Mapping[int, float]] = field(default_factory=list)
    limits: list[float] = field(default_factory=list)

    def variable(self, upper: float, objective: float = 0.0) -> int:
        """Add a variable and return its number."""
        self.objective.append(objective)
        self.upper.append(upper)
        return len(self.objective) - 1

    def constrain(self, row: Mapping[int, float], limit: float) -> None:
        """Demand that the sum of coefficient * variable is at most `limit`."""
        self.rows.append(row)
        self.limits.append(limit)

    def bound(self, time_limit: float, max_iterations: int | None) -> float:
        """Return an upper bound on the optimum, proven by a dual solution, whatever the solver is worth.

        For every price >= 0 of the rows, no solution exceeds the prices of the limits plus, for each variable, its
        upper limit times what its objective exceeds the prices of its coefficients by (A. Neumaier and O. Shcherbina,
        Safe bounds in linear and mixed-integer linear programming, Mathematical Programming 99, 2004). The
        prices are those that HiGHS returns; all zero if it fails.
        """
        from scipy.optimize import linprog
        from scipy.sparse import csr_array

        columns = np.array([column for row in self.rows for column in row], dtype=np.int32)
        values = np.array([value for row in self.rows for value in row.values()])
        row_ends = np.cumsum([0, *map(len, self.rows)], dtype=np.int32)
        matrix: Any = csr_array((values, columns, row_ends), shape=(len(self.rows), len(self.objective)))
        objective, upper, limits = np.array(self.objective), np.array(self.upper), np.array(self.limits)
        prices = np.zeros(len(limits))
        if len(limits):
            solution = linprog(
                -objective,
                A_ub=matrix,
                b_ub=limits,
                bounds=[(0.0, most) for most in self.upper],
                method="highs",
                options={"time_limit": time_limit} if max_iterations is None else {"maxiter": max_iterations},
            )
            if solution.status == 0:
                prices = np.maximum(-np.asarray(solution.ineqlin.marginals, dtype=np.float64), 0.0)
        excess = np.maximum(objective - matrix.T @ prices, 0.0)
        rounding = _TOLERANCE * (
            np.abs(limits) @ prices + upper @ (np.abs(objective) + abs(matrix).T @ prices * np.finfo(np.float32).eps)
        )
        return float(limits @ prices + upper @ excess + rounding)


def capacity_bound(problem: BoundProblem, time_limit: float, max_iterations: int | None = None) -> float:
    """Return an upper bound on the number of good requests.

    Parameters
    ----------
    problem : BoundProblem
    time_limit : float
        Seconds for the solver.
    max_iterations : int, optional
        Of the solver, instead of the seconds.

    Notes
    -----
    A linear program over n_c groups of each config c, a_kc replicas of the models of class k on them, and s_kct
    requests of that class from period t that such groups serve in time. Every valid placement gives a solution:

    - the groups fit the devices, and the weights on them the memory; more than j models that each need over 1 / (j + 1)
      of it do not fit in one group;
    - a group holds a model once: a_kc is at most the class's models times n_c;
    - a machine of a group (:meth:`~alpa_serve.placement_policy.group_jobs.BoundProblem.jobs`) does the work of what it
      serves from a period between the first time that one of these is ready and the last time when one is due;
    - a replica on c serves at most b_c requests from each of the windows of equal length that time is cut into: as many
      of the least work as fit between ready and due. So a model with a_c replicas has at most
      sum over windows of min(requests, sum_c b_c a_c) good requests; of such functions for the models of a class, the
      sum is at most the concave function whose slopes are all of theirs in descending order, and so below its tangents.

    Requests without a finite SLO are taken to be served, if their model fits anywhere.
    """
    finite = np.isfinite(problem.slos)
    fits: NDArray[np.bool_] = np.isfinite(problem.weights).max(axis=0, initial=False)
    useful = fits[problem.model_ids]
    free = int(np.count_nonzero(useful & ~finite))
    counted = np.flatnonzero(useful & finite)
    if not len(counted):
        return float(free)
    program = _Program()
    classes = equal_models(problem)
    class_ids = classes[problem.model_ids[counted]]
    num_classes = int(classes.max()) + 1
    num_configs = len(problem.configs)
    class_sizes = np.bincount(classes, minlength=num_classes)
    representative = np.array([int(np.flatnonzero(classes == k)[0]) for k in range(num_classes)])
    num_periods = int(np.clip(_MAX_SERVED_VARIABLES // (num_classes * num_configs), 1, _MAX_PERIODS))
    arrivals = problem.arrivals[counted]
    first, last = arrivals[0], arrivals[-1]
    length = max((last - first) / num_periods, np.finfo(np.float64).tiny)
    periods = np.minimum(((arrivals - first) / length).astype(np.int64), num_periods - 1)
    cells = class_ids * num_periods + periods
    num_cells = num_classes * num_periods
    arrived = np.bincount(cells, minlength=num_cells).reshape(num_classes, num_periods)
    devices = problem.cluster_env.num_devices
    max_groups = [devices // config.num_devices for config in problem.configs]
    groups = [program.variable(most) for most in max_groups]
    program.constrain(
        {groups[c]: float(config.num_devices) for c, config in enumerate(problem.configs)}, float(devices)
    )
    served_of_cell: dict[tuple[int, int], dict[int, float]] = {}
    served_of_class: list[dict[int, float]] = [{} for _ in range(num_classes)]
    replicas: list[dict[int, int]] = [{} for _ in range(num_classes)]
    spare: list[dict[int, tuple[float, float]]] = [{} for _ in range(num_classes)]
    for c, config in enumerate(problem.configs):
        jobs = problem.jobs(config)
        ready, work, latest = jobs.ready[counted], jobs.work[counted], jobs.latest[counted]
        in_time = ready + work <= latest
        ready, work, latest = ready[in_time], work[in_time], latest[in_time]
        cell, class_of, period_of = cells[in_time], class_ids[in_time], periods[in_time]
        least_work = _least(work, cell, num_cells).reshape(num_classes, num_periods)
        can = np.bincount(cell, minlength=num_cells).reshape(num_classes, num_periods)
        since = _least(ready, period_of, num_periods)
        until = -_least(-latest, period_of, num_periods)
        class_work = _least(work, class_of, num_classes)
        class_spare = -_least(ready - latest, class_of, num_classes)
        rows: list[dict[int, float]] = [{} for _ in range(num_periods)]
        memory: dict[int, float] = {}
        for k in range(num_classes):
            weight = float(problem.weights[c, representative[k]])
            if not np.isfinite(weight) or not can[k].any():
                continue
            most = float(class_sizes[k] * max_groups[c])
            replicas[k][c] = program.variable(most)
            spare[k][c] = (float(class_spare[k]), float(class_work[k]))
            program.constrain({replicas[k][c]: 1.0, groups[c]: -float(class_sizes[k])}, 0.0)
            memory[replicas[k][c]] = weight / problem.budget
            for t in np.flatnonzero(can[k]).tolist():
                served = program.variable(float(can[k, t]), 1.0)
                served_of_cell.setdefault((k, t), {})[served] = 1.0
                served_of_class[k][served] = 1.0
                if least_work[k, t] > 0:
                    rows[t][served] = float(least_work[k, t])
        for t, row in enumerate(rows):
            if row:
                program.constrain({**row, groups[c]: -float(until[t] - since[t])}, 0.0)
        if memory:
            program.constrain({**memory, groups[c]: -1.0}, 0.0)
            for j in range(1, 9):
                heavy = {variable: 1.0 for variable, share in memory.items() if share * (j + 1) > 1.0}
                if heavy:
                    program.constrain({**heavy, groups[c]: -float(j)}, 0.0)
    for (k, t), row in served_of_cell.items():
        if len(row) > 1:
            program.constrain(row, float(arrived[k, t]))
    models = problem.model_ids[counted]
    for k in range(num_classes):
        own = class_ids == k
        if served_of_class[k]:
            _constrain_bursts(
                program,
                served_of_class[k],
                {replicas[k][c]: spare[k][c] for c in replicas[k]},
                arrivals[own],
                models[own],
                float(np.median(problem.slos[counted][own])),
            )
    return program.bound(time_limit, max_iterations) + free


def _least(values: NDArray[np.float64], keys: NDArray[np.int64], num_keys: int) -> NDArray[np.float64]:
    """Return the smallest value of each key, infinity without any."""
    least = np.full(num_keys, np.inf)
    np.minimum.at(least, keys, values)
    return least


def _constrain_bursts(
    program: _Program,
    served: Mapping[int, float],
    spare: Mapping[int, tuple[float, float]],
    arrivals: NDArray[np.float64],
    models: NDArray[np.int32],
    slo: float,
) -> None:
    """Limit what the replicas of a class serve by the bursts of its models.

    Parameters
    ----------
    program : _Program
    served : mapping of int to float
        Variables of the served requests of the class: 1.
    spare : mapping of int to (float, float)
        Per variable of replicas: the most seconds between ready and due of a request, and its least work.
    arrivals, models : ndarray, shape (n,)
        Of the requests of the class.
    slo : float
        Seconds that the lengths of windows are multiples of.
    """
    for multiple in _BURSTS:
        length = multiple * slo
        if not length > 0 or any(work <= 0 for _, work in spare.values()):
            continue
        window = np.floor(arrivals / length)
        order = np.lexsort((window, models))
        starts = np.flatnonzero(np.r_[True, (np.diff(window[order]) != 0) | (np.diff(models[order]) != 0)])
        sizes = np.diff(np.r_[starts, len(order)])
        owner = models[order][starts]
        # slope j of a model: its windows with more than j requests
        deepest = int(sizes.max())
        by_owner = np.unique(owner, return_inverse=True)[1]
        table = np.zeros((int(by_owner.max()) + 1, deepest + 1), dtype=np.int64)
        np.add.at(table, (by_owner, sizes), 1)
        more_than = np.cumsum(table[:, ::-1], axis=1)[:, ::-1][:, 1:]
        slopes = np.sort(more_than.ravel())[::-1]
        slopes = slopes[slopes > 0]
        total = np.cumsum(slopes)
        capacity = {}
        for variable, (seconds, work) in spare.items():
            capacity[variable] = float(np.floor((length + seconds) / work * (1 + _TOLERANCE) + _TOLERANCE))
        at = np.unique(np.geomspace(1, len(slopes), _TANGENTS).astype(np.int64)) - 1
        for j in at.tolist():
            # the tangent along segment j, through its end
            slope = float(slopes[j])
            row = dict(served)
            row.update({variable: -slope * most for variable, most in capacity.items()})
            program.constrain(row, float(total[j] - slope * (j + 1)))
