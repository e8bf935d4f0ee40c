"""A placement under simulation that changes replica by replica, each change at the cost of what it touches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.simulator.compiled import compiled
from alpa_serve.simulator.difference import make_difference, put_on_record
from alpa_serve.simulator.groups import add_replica, make_groups, move_rank
from alpa_serve.simulator.incremental import (
    find_difference,
    forget,
    note_changes,
    note_rank,
)
from alpa_serve.simulator.recorded import make_record, record_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alpa_serve.simulator.difference import Difference
    from alpa_serve.simulator.groups import Groups
    from alpa_serve.simulator.search_problem import SearchProblem

Resimulate = Callable[[list[int], list[list[int]]], tuple["NDArray[np.int64]", float, "NDArray[np.int64]"]]
"""From the configs (ids) and models of groups to good requests per model, seconds of latency, requests per group."""


class PlacementSimulation:
    """Groups of a fixed shape that replicas are added to, with what they attain at any time.

    Parameters
    ----------
    problem : SearchProblem
    configs : sequence of int
        Config id of each group, which is its slot number.
    models : sequence of sequence of int
        Model ids of each group, sorted: groups ascend by their models.
    resimulate : callable, optional
        Where changes cannot be followed (one queue for all groups, or another simulator): simulates the whole.

    Attributes
    ----------
    problem : SearchProblem
    groups : Groups
    order : ndarray of int64, shape (num_groups,)
        Slots, sorted by their models.
    model_num_good : ndarray of int64, shape (num_models,)
    group_num_requests : ndarray of int64, shape (num_groups,)
        Requests sent to each group, by slot.
    """

    def __init__(
        self,
        problem: SearchProblem,
        configs: Sequence[int],
        models: Sequence[Sequence[int]],
        resimulate: Resimulate | None = None,
    ) -> None:
        num_models, _, max_stages = problem.latency.shape
        self.problem = problem
        self.groups = make_groups(len(configs), num_models, configs, models)
        self.order: NDArray[np.int64] = np.arange(len(configs), dtype=np.int64)
        self._resimulate = resimulate
        if resimulate is not None:
            self._simulate_whole(resimulate)
            return
        sizes = len(problem.arrivals), len(configs), num_models, max_stages
        self._record = make_record(*sizes)
        self._difference = make_difference(*sizes)
        record_all(problem, self.groups, self._record)
        self.model_num_good = self._record.model_num_good
        self.group_num_requests = self._record.group_num_requests

    def _simulate_whole(self, resimulate: Resimulate) -> None:
        configs = self.groups.config[self.order].tolist()
        self.model_num_good, self._latency, by_rank = resimulate(configs, self.group_models())
        self.group_num_requests = np.empty_like(by_rank)
        self.group_num_requests[self.order] = by_rank

    @property
    def latency_sum(self) -> float:
        """Seconds of latency over all served requests."""
        return float(self._record.model_latency.sum()) if self._resimulate is None else self._latency

    def add_replica(self, slot: int, model: int) -> None:
        """Put a model into a group, and the group where it belongs in the order."""
        if self._resimulate is None:
            problem, groups, record, difference = self.problem, self.groups, self._record, self._difference
            _note_replica(groups, difference, self.order, slot, model)
            find_difference(problem, groups, record, difference, len(problem.arrivals))
            put_on_record(problem, groups, record, difference)
            forget(groups, difference)
            return
        add_replica(self.groups, slot, model)
        move_rank(self.groups, slot, self.order)
        self.groups.log_length[0] = 0
        self._simulate_whole(self._resimulate)

    def group_models(self) -> list[list[int]]:
        """Return the models of each group, in the order of the groups."""
        groups = self.groups
        return [groups.models[slot, : groups.num_models[slot]].tolist() for slot in self.order.tolist()]


@compiled
def _note_replica(groups: Groups, difference: Difference, order: NDArray[np.int64], slot: int, model: int) -> None:
    """Add a replica and note what is changed by it, all in one call: to hand over so many arrays takes time."""
    add_replica(groups, slot, model)
    note_changes(groups, difference)
    move_rank(groups, slot, order)
    note_rank(groups, difference, slot)
