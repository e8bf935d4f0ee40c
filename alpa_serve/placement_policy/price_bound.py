"""Upper bounds by prices: a request costs its price, and a group keeps what its requests are worth beyond it."""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.placement_policy.dispatch_value import best_dispatch
from alpa_serve.placement_policy.group_jobs import BoundProblem
from alpa_serve.placement_policy.group_shapes import Shapes
from alpa_serve.placement_policy.group_value import best_selection
from alpa_serve.placement_policy.tiny_problem import tiny_problem
from alpa_serve.scheduling import ALPASERVE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alpa_serve.placement_policy.group_jobs import StagedJobs
    from alpa_serve.placement_policy.group_shapes import Counts

_PRICE_UNIT = 2.0**-20
"""Prices are whole multiples of it: sums of values, up to 2^33 requests, are exact in floating point."""

_LOWEST_PRICE = -4.0
"""Of a request that every group would rather not get, where one of them must."""

_START_LEVELS = (0.3, 0.5, 0.7, 0.85)
"""Prices, the same for all requests, of which the best starts the search."""

_SEARCH_STATES, _PROOF_STATES = 32, 64
"""How many states a group's value is computed with: while prices are sought, and for the bound."""

_DROP_STATES = 2
"""How many times as many where it matters what a group drops."""

_KEPT_SETS = 6
"""Sets of models per config that prices are sought with, at most: those of the highest value."""

_STEPS_PER_PROOF = 20
"""Changes of the prices between two bounds."""

_FIRST_STEP, _LAST_STEP, _STEP_FACTOR, _PATIENCE = 0.03, 2e-4, 0.6, 5
"""A step aims at a decrease by this share; the share shrinks by the factor after so many steps without a decrease."""

_SHAPE_FIRST_STEP, _SHAPE_LAST_STEP, _DROP_FIRST_STEP = 0.01, 5e-4, 0.02
"""The same for the prices of one shape, which start from those of all shapes."""

_MOMENTUM = 0.7

_SECONDS_PER_JOB = 2e-7
"""What a group's value costs per request, roughly."""

_LEAST_PROOFS = 40
"""With fewer bounds in the time given, prices come to nothing."""


class _Effort(Enum):
    """What was tried to lower the bound of a shape."""

    SOME = auto()
    ALL_ABOVE_ZERO = auto()


@dataclass(order=True)
class _Sets:
    """The sets of models between two, on a group of some config.

    Attributes
    ----------
    negative_value : float
        No group that holds one of these sets is worth more.
    largest, fixed : ndarray of bool, shape (num_models,)
        Models that some of the sets have, and that all have.
    selected : ndarray of bool, shape (n,)
        Requests that give `largest` its value.
    fits : bool
        Whether `largest` fits the memory: then its value is that of the best of these sets.
    """

    negative_value: float
    largest: NDArray[np.bool_] = field(compare=False)
    fixed: NDArray[np.bool_] = field(compare=False)
    selected: NDArray[np.bool_] = field(compare=False)
    fits: bool = field(compare=False)


def price_bound(problem: BoundProblem, time_limit: float, max_visits: int | None = None) -> float:
    """Return an upper bound on the number of good requests; infinite if there is no time for one.

    Parameters
    ----------
    problem : BoundProblem
    time_limit : float
        Seconds; which problems are too large for it is told by their size.
    max_visits : int, optional
        Requests to visit, instead of the seconds: for a bound that does not depend on the speed of the machine.

    Notes
    -----
    :func:`~alpa_serve.placement_policy.upper_bound.placement_upper_bound` has the proof.
    """
    jobs = len(problem.model_ids) * len(problem.configs)
    if not jobs or jobs * _SECONDS_PER_JOB * _LEAST_PROOFS > time_limit:
        return np.inf
    deadline = time.perf_counter() + time_limit if max_visits is None else np.inf
    search = _PriceSearch(problem, deadline, np.inf if max_visits is None else max_visits)
    bound, prices = search.lowest(*search.start(), _FIRST_STEP, _LAST_STEP)
    return min(bound, search.by_shape(prices))


@cache
def compile_kernels() -> None:
    """Have the kernels of the price bound compiled, if that was not done before."""
    search = _PriceSearch(BoundProblem(*tiny_problem(), ALPASERVE), np.inf, np.inf)
    held, prices = np.ones(1, dtype=bool), np.ones(1)
    for search._drops in (False, True):
        search._value(0, held, prices, _SEARCH_STATES)


class _PriceSearch:
    """Subgradient descent on the prices, for all shapes or, given the groups of each config, for one."""

    def __init__(self, problem: BoundProblem, deadline: float, max_visits: float) -> None:
        self._problem = problem
        self._deadline = deadline
        self._max_visits = max_visits
        self._visits = 0
        self._jobs = [problem.jobs(config) for config in problem.configs]
        cluster = problem.cluster_env
        sizes = tuple(config.num_devices for config in problem.configs)
        self._shapes = Shapes(sizes, cluster.num_devices, cluster.num_devices_per_node)
        self._staged_jobs: dict[int, StagedJobs] = {}
        # whether a request must be dropped or served by some group, at prices below zero too
        self._drops = False
        # per config, the sets of models that were some bound's best
        self._known: list[dict[bytes, NDArray[np.bool_]]] = [{} for _ in problem.configs]

    def start(self) -> tuple[float, NDArray[np.float64]]:
        """Return the lowest bound of equal prices, and the prices."""
        equal = [np.full(len(self._problem.model_ids), level // _PRICE_UNIT * _PRICE_UNIT) for level in _START_LEVELS]
        return min(((self._proven(prices), prices) for prices in equal), key=lambda entry: entry[0])

    def lowest(
        self,
        bound: float,
        prices: NDArray[np.float64],
        step: float,
        last_step: float,
        shape: Counts | None = None,
        enough: float = -np.inf,
    ) -> tuple[float, NDArray[np.float64]]:
        """Return the lowest bound found, and its prices.

        Parameters
        ----------
        bound : float
            That `prices` prove.
        prices : ndarray of float64, shape (n,)
        step, last_step : float
            Shares of the bound by which steps aim to decrease it.
        shape : tuple of int, optional
            Of which to find a bound; any if left out.
        enough : float
            A bound that needs not be lowered.
        """
        best_prices = prices
        while step > last_step and bound > enough and not self._is_late():
            prices, step = self._descend(prices, step, shape)
            proven = self._proven(prices, shape)
            if proven >= bound:
                step *= _STEP_FACTOR
            else:
                bound, best_prices = proven, prices
        return bound, best_prices

    def by_shape(self, prices: NDArray[np.float64]) -> float:
        """Return the highest of the bounds of all shapes, each with prices of its own that start from `prices`.

        The shape of the highest bound is always the next: first with prices of its own, then with prices below zero too
        where groups drop nothing but what is late.
        """
        values = [
            -self._best_sets(config_id, prices)[0].negative_value for config_id in range(len(self._problem.configs))
        ]
        income = self._income(prices)[0]
        coming = ((income + value, shape) for value, shape in self._shapes.descending(values))
        ahead = next(coming, None)
        if ahead is None:
            return np.inf
        # (negative bound, number, state, shape, prices)
        opened: list[tuple[float, int, _Effort, Counts, NDArray[np.float64]]] = []
        number = 0
        resolved = -np.inf
        while True:
            second = max(-opened[0][0] if opened else -np.inf, resolved)
            if ahead is not None and ahead[0] > second:
                (bound, shape), own, effort = ahead, prices, _Effort.SOME
                ahead = next(coming, None)
            elif not opened or -opened[0][0] <= resolved:
                return resolved
            else:
                negative, _, effort, shape, own = heapq.heappop(opened)
                bound = -negative
                second = max(-opened[0][0] if opened else -np.inf, ahead[0] if ahead else -np.inf, resolved)
            if self._is_late():
                return bound
            if effort is _Effort.SOME:
                bound, own = self.lowest(bound, own, _SHAPE_FIRST_STEP, _SHAPE_LAST_STEP, shape, second)
                effort = _Effort.SOME if bound <= second else _Effort.ALL_ABOVE_ZERO
            elif self._problem.drops_what_is_late:
                self._drops = True
                bound = min(bound, self.lowest(np.inf, own, _DROP_FIRST_STEP, _LAST_STEP, shape, resolved)[0])
                self._drops = False
                resolved = max(resolved, bound)
                continue
            else:
                resolved = max(resolved, bound)
                continue
            number += 1
            heapq.heappush(opened, (-bound, number, effort, shape, own))

    def _is_late(self) -> bool:
        return self._visits > self._max_visits or time.perf_counter() > self._deadline

    def _descend(
        self, prices: NDArray[np.float64], step: float, shape: Counts | None
    ) -> tuple[NDArray[np.float64], float]:
        """Return better prices as far as the known sets tell, and the step to go on with."""
        kept = self._most_valuable(prices, shape)
        lowest, best_prices = np.inf, prices
        direction = None
        failures = 0
        floor = _LOWEST_PRICE if self._problem.serves_late or self._drops else 0.0
        for _ in range(_STEPS_PER_PROOF):
            bound, excess = self._estimated(prices, kept, shape)
            if bound < lowest * (1 - 1e-6):
                lowest, best_prices, failures = bound, prices, 0
            else:
                failures += 1
            if failures > _PATIENCE:
                step, failures, prices, direction = step * _STEP_FACTOR, 0, best_prices, None
            direction = excess if direction is None else _MOMENTUM * direction + (1 - _MOMENTUM) * excess
            length = float(direction @ direction)
            if length == 0 or self._is_late():
                break
            prices = np.clip(prices - step * lowest / length * direction, floor, 1.0)
            prices = np.rint(prices / _PRICE_UNIT) * _PRICE_UNIT
        return best_prices, step

    def _most_valuable(self, prices: NDArray[np.float64], shape: Counts | None) -> list[list[NDArray[np.bool_]]]:
        """Return per config the known sets of the highest value, none where the shape has no group."""
        kept: list[list[NDArray[np.bool_]]] = [[] for _ in self._known]
        for config_id, known in enumerate(self._known):
            if shape is None or shape[config_id]:
                sets = list(known.values())
                values = [self._value(config_id, held, prices, _SEARCH_STATES)[0] for held in sets]
                kept[config_id] = [sets[k] for k in np.argsort(values)[::-1][:_KEPT_SETS]]
        return kept

    def _value(
        self, config_id: int, held: NDArray[np.bool_], prices: NDArray[np.float64], max_states: int
    ) -> tuple[float, NDArray[np.bool_]]:
        """Return what a group that holds these models is worth at most, and with which requests."""
        self._visits += len(prices)
        selected = np.zeros(len(prices), dtype=bool)
        model_ids = self._problem.model_ids
        if self._drops:
            if config_id not in self._staged_jobs:
                self._staged_jobs[config_id] = self._problem.staged_jobs(self._problem.configs[config_id])
            staged = self._staged_jobs[config_id]
            limits = staged.entered, staged.work, staged.latest, staged.rounding
            value = best_dispatch(
                self._problem.arrivals, *limits, prices, model_ids, held, _DROP_STATES * max_states, selected
            )
            return value, selected
        jobs = self._jobs[config_id]
        late = self._problem.serves_late
        value = best_selection(
            jobs.idle_until, jobs.ready, jobs.work, jobs.latest, prices, model_ids, held, late, max_states, selected
        )
        return value, selected

    def _sets(
        self, config_id: int, largest: NDArray[np.bool_], fixed: NDArray[np.bool_], prices: NDArray[np.float64]
    ) -> _Sets:
        """Return the sets between `fixed` and `largest`, without the models that no longer fit beside `fixed`."""
        weights, budget = self._problem.weights[config_id], self._problem.budget
        largest = largest & (fixed | (weights + weights[fixed].sum() <= budget))
        value, selected = self._value(config_id, largest, prices, _PROOF_STATES)
        return _Sets(-value, largest, fixed, selected, bool(weights[largest].sum() <= budget))

    def _all_sets(self, config_id: int, prices: NDArray[np.float64]) -> list[_Sets]:
        """Return all sets of models that a group may hold, as a heap of one."""
        none = np.zeros(self._problem.num_models, dtype=bool)
        return [self._sets(config_id, np.isfinite(self._problem.weights[config_id]), none, prices)]

    def _split_best(self, config_id: int, heap: list[_Sets], prices: NDArray[np.float64]) -> None:
        """Part the sets of the highest value by their heaviest model that not all of them have: with it and without."""
        sets = heapq.heappop(heap)
        undecided = np.flatnonzero(sets.largest & ~sets.fixed)
        heaviest = undecided[np.argmax(self._problem.weights[config_id][undecided])]
        with_it, without_it = sets.fixed.copy(), sets.largest.copy()
        with_it[heaviest], without_it[heaviest] = True, False
        heapq.heappush(heap, self._sets(config_id, sets.largest, with_it, prices))
        heapq.heappush(heap, self._sets(config_id, without_it, sets.fixed, prices))

    def _best_sets(self, config_id: int, prices: NDArray[np.float64]) -> list[_Sets]:
        """Return the sets of a config as a heap, with one that fits on top if there is time to find it."""
        heap = self._all_sets(config_id, prices)
        while not heap[0].fits and not self._is_late():
            self._split_best(config_id, heap, prices)
        return heap

    def _proven(self, prices: NDArray[np.float64], shape: Counts | None = None) -> float:
        """Return the bound that `prices` prove; learn the sets of models that matter."""
        heaps = [
            self._all_sets(config_id, prices) if shape is None or shape[config_id] else []
            for config_id in range(len(self._problem.configs))
        ]
        while True:
            total, counts = self._total([-heap[0].negative_value if heap else 0.0 for heap in heaps], shape)
            open_ids = [c for c, heap in enumerate(heaps) if counts[c] and not heap[0].fits]
            if not open_ids or self._is_late():
                break
            for config_id in open_ids:
                self._split_best(config_id, heaps[config_id], prices)
        for known, heap in zip(self._known, heaps, strict=True):
            known.update({sets.largest.tobytes(): sets.largest for sets in heap if sets.fits})
        return self._income(prices)[0] + total

    def _estimated(
        self, prices: NDArray[np.float64], kept: Sequence[Sequence[NDArray[np.bool_]]], shape: Counts | None
    ) -> tuple[float, NDArray[np.float64]]:
        """Return the bound that `prices` would prove if groups held kept sets only, and its subgradient, shape (n,)."""
        best: list[tuple[float, NDArray[np.bool_] | None]] = []
        for config_id, sets in enumerate(kept):
            values = [self._value(config_id, held, prices, _SEARCH_STATES) for held in sets]
            best.append(max(values, key=lambda entry: entry[0], default=(0.0, None)))
        total, counts = self._total([value for value, _ in best], shape)
        income, excess = self._income(prices)
        for count, (_, selected) in zip(counts, best, strict=True):
            if count and selected is not None:
                excess -= count * selected
        return income + total, excess

    def _total(self, values: Sequence[float], shape: Counts | None) -> tuple[float, Counts]:
        """Return the value of all groups of the shape, or of the best shape, and the shape."""
        if shape is None:
            return self._shapes.best(values)
        return sum(count * value for count, value in zip(shape, values, strict=True)), shape

    def _income(self, prices: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return the prices of the requests of all models that bring more than they cost, and which these are."""
        model_ids = self._problem.model_ids
        of_model = np.bincount(model_ids, weights=prices, minlength=self._problem.num_models)
        return float(np.maximum(of_model, 0.0).sum()), (of_model > 0)[model_ids].astype(np.float64)
