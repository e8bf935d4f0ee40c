"""Upper bounds by prices: a request costs its price, and a group keeps what its requests are worth beyond it."""

from __future__ import annotations

import heapq
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.placement_policy.best_shape import best_shape
from alpa_serve.placement_policy.group_value import best_selection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alpa_serve.placement_policy.group_jobs import BoundProblem

_PRICE_UNIT = 2.0**-20
"""Prices are whole multiples of it: sums of values, up to 2^33 requests, are exact in floating point."""

_LOWEST_PRICE = -1.0
"""Of a request that every group would rather not serve, where it must be served."""

_START_LEVELS = (0.3, 0.5, 0.7, 0.85)
"""Prices, the same for all requests, of which the best starts the search."""

_SEARCH_STATES, _PROOF_STATES = 32, 64
"""How many states a group's value is computed with: while prices are sought, and for the bound."""

_KEPT_SETS = 6
"""Sets of models per config that prices are sought with, at most: those of the highest value."""

_STEPS_PER_PROOF = 20
"""Changes of the prices between two bounds."""

_FIRST_STEP, _LAST_STEP, _STEP_FACTOR, _PATIENCE = 0.03, 2e-4, 0.6, 5
"""A step aims at a decrease by this share; the share shrinks by the factor after so many steps without a decrease."""

_MOMENTUM = 0.7

_SECONDS_PER_JOB = 2e-7
"""What a group's value costs per request, roughly."""

_LEAST_PROOFS = 40
"""With fewer bounds in the time given, prices come to nothing."""


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


def price_bound(problem: BoundProblem, time_limit: float) -> float:
    """Return an upper bound on the number of good requests; infinite if there is no time for one.

    Parameters
    ----------
    problem : BoundProblem
    time_limit : float
        Seconds.
    """
    jobs = len(problem.model_ids) * len(problem.configs)
    if not jobs or jobs * _SECONDS_PER_JOB * _LEAST_PROOFS > time_limit:
        return np.inf
    return _PriceSearch(problem, time.perf_counter() + time_limit).run()


class _PriceSearch:
    """Subgradient descent on the prices."""

    def __init__(self, problem: BoundProblem, deadline: float) -> None:
        self._problem = problem
        self._deadline = deadline
        self._jobs = [problem.jobs(config) for config in problem.configs]
        # per config, the sets of models that were some bound's best
        self._known: list[dict[bytes, NDArray[np.bool_]]] = [{} for _ in problem.configs]

    def run(self) -> float:
        """Return the lowest bound found."""
        n = len(self._problem.model_ids)
        bounds = {level: self._proven(np.full(n, level // _PRICE_UNIT * _PRICE_UNIT)) for level in _START_LEVELS}
        lowest, level = min((bound, level) for level, bound in bounds.items())
        prices = np.full(n, level // _PRICE_UNIT * _PRICE_UNIT)
        step = _FIRST_STEP
        while step > _LAST_STEP and not self._is_late():
            prices, step = self._descend(prices, step)
            lowest = min(lowest, self._proven(prices))
        return lowest

    def _is_late(self) -> bool:
        return time.perf_counter() > self._deadline

    def _descend(self, prices: NDArray[np.float64], step: float) -> tuple[NDArray[np.float64], float]:
        """Return better prices as far as the known sets tell, and the step to go on with."""
        kept = self._most_valuable(prices)
        lowest, best_prices = np.inf, prices
        direction = None
        failures = 0
        floor = _LOWEST_PRICE if self._problem.serves_late else 0.0
        for _ in range(_STEPS_PER_PROOF):
            bound, excess = self._estimated(prices, kept)
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

    def _most_valuable(self, prices: NDArray[np.float64]) -> list[list[NDArray[np.bool_]]]:
        """Return per config the known sets of the highest value."""
        kept = []
        for config_id, known in enumerate(self._known):
            sets = list(known.values())
            values = [self._value(config_id, held, prices, _SEARCH_STATES)[0] for held in sets]
            kept.append([sets[k] for k in np.argsort(values)[::-1][:_KEPT_SETS]])
        return kept

    def _value(
        self, config_id: int, held: NDArray[np.bool_], prices: NDArray[np.float64], max_states: int
    ) -> tuple[float, NDArray[np.bool_]]:
        """Return what a group that holds these models is worth at most, and with which requests."""
        jobs = self._jobs[config_id]
        selected = np.zeros(len(prices), dtype=bool)
        value = best_selection(
            jobs.idle_until,
            jobs.ready,
            jobs.work,
            jobs.latest,
            prices,
            self._problem.model_ids,
            held,
            self._problem.serves_late,
            max_states,
            selected,
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

    def _halves(self, config_id: int, sets: _Sets, prices: NDArray[np.float64]) -> list[_Sets]:
        """Return those of the sets with the heaviest model that is not in all of them, and those without."""
        undecided = np.flatnonzero(sets.largest & ~sets.fixed)
        heaviest = undecided[np.argmax(self._problem.weights[config_id][undecided])]
        with_it, without_it = sets.fixed.copy(), sets.largest.copy()
        with_it[heaviest], without_it[heaviest] = True, False
        return [
            self._sets(config_id, sets.largest, with_it, prices),
            self._sets(config_id, without_it, sets.fixed, prices),
        ]

    def _shape(self, values: Sequence[float]) -> tuple[float, list[int]]:
        cluster = self._problem.cluster_env
        sizes = [config.num_devices for config in self._problem.configs]
        return best_shape(list(values), sizes, cluster.num_devices, cluster.num_devices_per_node)

    def _proven(self, prices: NDArray[np.float64]) -> float:
        """Return the bound that `prices` prove; learn the sets of models that matter."""
        none = np.zeros(self._problem.num_models, dtype=bool)
        heaps = [
            [self._sets(config_id, np.isfinite(weights), none, prices)]
            for config_id, weights in enumerate(self._problem.weights)
        ]
        while True:
            total, counts = self._shape([-heap[0].negative_value for heap in heaps])
            open_ids = [c for c, heap in enumerate(heaps) if counts[c] and not heap[0].fits]
            if not open_ids or self._is_late():
                break
            for config_id in open_ids:
                for half in self._halves(config_id, heapq.heappop(heaps[config_id]), prices):
                    heapq.heappush(heaps[config_id], half)
        for known, heap in zip(self._known, heaps, strict=True):
            known.update({sets.largest.tobytes(): sets.largest for sets in heap if sets.fits})
        return self._income(prices)[0] + total

    def _estimated(
        self, prices: NDArray[np.float64], kept: Sequence[Sequence[NDArray[np.bool_]]]
    ) -> tuple[float, NDArray[np.float64]]:
        """Return the bound that `prices` would prove if groups held kept sets only, and its subgradient, shape (n,)."""
        best: list[tuple[float, NDArray[np.bool_] | None]] = []
        for config_id, sets in enumerate(kept):
            values = [self._value(config_id, held, prices, _SEARCH_STATES) for held in sets]
            best.append(max(values, key=lambda entry: entry[0], default=(0.0, None)))
        total, counts = self._shape([value for value, _ in best])
        income, excess = self._income(prices)
        for count, (_, selected) in zip(counts, best, strict=True):
            if count and selected is not None:
                excess -= count * selected
        return income + total, excess

    def _income(self, prices: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return the prices of the requests of all models that bring more than they cost, and which these are."""
        model_ids = self._problem.model_ids
        of_model = np.bincount(model_ids, weights=prices, minlength=self._problem.num_models)
        return float(np.maximum(of_model, 0.0).sum()), (of_model > 0)[model_ids].astype(np.float64)
