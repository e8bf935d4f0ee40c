"""Capacity planning: the fewest devices that reach an SLO attainment."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from alpa_serve.errors import InfeasiblePlacementError, PlanInterrupted, SolverStoppedError
from alpa_serve.placement_policy.attainable import check_attainable, idle_latencies
from alpa_serve.placement_policy.evaluator import PlacementEvaluator
from alpa_serve.placement_policy.plan_search import (
    Found,
    Point,
    SearchSettings,
    better,
    check_cluster,
    check_target,
)
from alpa_serve.placement_policy.plans import ROUNDING, CapacityPlan, SizeTried
from alpa_serve.placement_policy.progress import SearchProgress, reporter
from alpa_serve.placement_policy.resizing import copied, devices_needed, shrunk
from alpa_serve.scheduling import ALPASERVE
from alpa_serve.validation import check_int

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from alpa_serve.placement import ClusterEnv, ModelData, ModelPlacement
    from alpa_serve.placement_policy.plan_search import FindPlacement, UpperBound
    from alpa_serve.placement_policy.progress import ProgressCallback
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload

DEFAULT_MAX_DEVICES = 1024
"""Devices beyond which no plan is searched, unless the search starts there."""


def plan_capacity(
    model_datas: Sequence[ModelData],
    workload: Workload,
    target: float = 0.99,
    cluster_env: ClusterEnv | None = None,
    rules: ServingRules = ALPASERVE,
    *,
    time_budget: float = 10.0,
    max_evaluations: int | None = None,
    seed: int = 0,
    max_pp: int = 8,
    max_op: int = 8,
    max_devices: int | None = None,
    num_workers: int = 1,
    address: str | None = None,
    verbose: int = 0,
    callback: ProgressCallback | None = None,
    find: FindPlacement | None = None,
    resize: bool = True,
    upper_bound: UpperBound | None = None,
) -> CapacityPlan:
    """Find the fewest devices that reach an SLO attainment, with a placement that does.

    The upper bound rules out sizes that are too small. From there, or from the size of `cluster_env` if that is larger,
    the size is doubled until a placement reaches the target, then bisected. Every placement found serves again: as it
    is and in copies for more devices, with groups dropped or shrunk for fewer. No search goes on once it has reached
    the target.

    Parameters
    ----------
    model_datas : sequence of ModelData
    workload : Workload
        What placements are simulated with.
    target : float
        SLO attainment to reach, in (0, 1].
    cluster_env : ClusterEnv
        What a device holds and how many devices form a node; its `num_devices` is only where the search starts.
    rules : ServingRules
        How the cluster serves.
    time_budget : float
        Seconds for the search at each size.
    max_evaluations : int, optional
        Placements simulated in the search at each size; with it, and an infinite `time_budget`, the plan does not
        depend on the speed of the machine.
    seed : int
    max_pp, max_op : int
        Largest pipeline and tensor parallel degree of a group.
    max_devices : int, optional
        No larger size is tried; 1024 (or the size of `cluster_env` if that is larger) if left out.
    num_workers : int
        Processes that search at once; more than one are Ray tasks.
    address : str, optional
        Of the Ray cluster to join for that; a local one is started for the whole plan if left out.
    verbose : int
        1 logs the progress of the search.
    callback : callable, optional
        Called with a SearchProgress; what it raises ends the search.
    find : callable, optional
        Searches the placement at each size, in place of the search that the other arguments describe.
    resize : bool
        Whether placements are also made of others, with groups dropped, shrunk or copied. Without, every placement is
        one that was searched; one for fewer devices still serves where the search for more finds nothing better.
    upper_bound : callable, optional
        Bounds the attainment at each size, in place of
        :func:`~alpa_serve.placement_policy.upper_bound.placement_upper_bound` for a few seconds.

    Returns
    -------
    CapacityPlan

    Raises
    ------
    InfeasiblePlacementError
        If no number of devices reaches the target, with the models that limit it; or if none up to `max_devices`
        does or can, with the best that was reached (then a SolverStoppedError, unless the bound proves it).
    InvalidConfigError, InvalidWorkloadError
        If an argument is out of range, there is no request, or none for any of the models.
    PlanInterrupted
        On KeyboardInterrupt: with the best plan so far, if there is one.
    """
    settings = SearchSettings(
        rules=rules,
        time_budget=time_budget,
        max_evaluations=max_evaluations,
        seed=seed,
        max_pp=max_pp,
        max_op=max_op,
        num_workers=num_workers,
        address=address,
    )
    check_target(target)
    cluster_env = check_cluster(cluster_env)
    if max_devices is None:
        max_devices = max(DEFAULT_MAX_DEVICES, cluster_env.num_devices)
    check_int(max_devices, "max_devices", minimum=1)
    largest = replace(cluster_env, num_devices=max_devices)
    idle = idle_latencies(model_datas, largest, workload, rules, max_pp=max_pp, max_op=max_op)
    unlimited = max_devices >= max_pp * max_op
    where = "on any number of devices" if unlimited else f"on up to {max_devices} devices (max_devices)"
    check_attainable(idle, target, model_datas, workload, largest, where=where)
    find = find or settings.find
    report = reporter(verbose, callback)
    search = _CapacitySearch(
        model_datas, workload, target, largest, rules, find, resize, upper_bound or settings.bound, report
    )
    with settings.workers():
        return search.run(min(cluster_env.num_devices, max_devices))


class _CapacitySearch:
    """The sizes tried so far, the placements found, and which size to try next."""

    def __init__(
        self,
        model_datas: Sequence[ModelData],
        workload: Workload,
        target: float,
        largest: ClusterEnv,
        rules: ServingRules,
        find: FindPlacement,
        resize: bool,
        upper_bound: UpperBound,
        report: ProgressCallback,
    ) -> None:
        self.target = target
        self.largest = largest
        self.rules = rules
        self.find = find
        self.resize = resize
        self.upper_bound = upper_bound
        self.report = report
        self.evaluator = PlacementEvaluator(model_datas, largest, workload, rules=rules)
        self.bounds: dict[int, float] = {}
        self.known: list[tuple[int, Found]] = []
        self.fewest: tuple[int, Found] | None = None
        self.searched_below: dict[int, Found | None] = {}

    def run(self, first: int) -> CapacityPlan:
        try:
            low = self.least_not_ruled_out(first)
            size = max(low, first)
            while not self.search(size):
                if size == self.largest.num_devices:
                    raise self.not_reached()
                low = size + 1
                size = min(2 * size, self.largest.num_devices)
            while low < self.size_reached():
                middle = (low + self.size_reached()) // 2
                if not self.search(middle):
                    low = middle + 1
            # a size below may have failed before the placement was known that now is shrunk for it
            while self.can_search_below():
                self.search(self.size_reached() - 1)
            return self.plan()
        except KeyboardInterrupt as stop:
            plan = None if self.fewest is None else self.plan()
            best = self.fewest[1] if self.fewest else self.best_of(self.largest.num_devices)
            raise PlanInterrupted(
                plan=plan,
                placement=None if best is None else best.placement,
                evaluation=None if best is None else best.evaluation,
            ) from stop

    def plan(self) -> CapacityPlan:
        """Return the plan of the fewest devices that reached the target so far."""
        assert self.fewest is not None
        num_devices, found = self.fewest
        return CapacityPlan(
            num_devices=num_devices,
            placement=found.placement,
            attainment=found.attainment,
            target=self.target,
            proven_minimum=self.proven_minimum(),
            tried=tuple(self.tried()),
        )

    # ---- what the bound says ----

    def is_ruled_out(self, size: int) -> bool:
        """Tell whether the bound proves that `size` devices cannot reach the target."""
        # what fits a size also fits a larger one, so that one answer serves for many sizes
        if any(other <= size and not self.is_below(bound) for other, bound in self.bounds.items()):
            return False
        if any(other >= size and self.is_below(bound) for other, bound in self.bounds.items()):
            return True
        self.report(SearchProgress(f"{size} devices: upper bound", 0, 0))
        cluster = replace(self.largest, num_devices=size)
        bound = self.upper_bound(self.evaluator.model_datas, cluster, self.evaluator.workload, self.rules)
        self.bounds[size] = bound
        self.report(SearchProgress(f"{size} devices attain at most {bound:.4f}", 1, 1))
        return self.is_below(bound)

    def is_below(self, bound: float) -> bool:
        """Tell whether a bound is below the target."""
        return bound < self.target - ROUNDING

    def least_not_ruled_out(self, first: int) -> int:
        """Return the fewest devices that the bound does not rule out, found by doubling from `first` and bisection."""
        ruled_out, possible = 0, first
        while self.is_ruled_out(possible):
            ruled_out = possible
            if possible == self.largest.num_devices:
                raise InfeasiblePlacementError(
                    f"an SLO attainment of {self.target:g} cannot be reached on up to {possible} devices "
                    f"(max_devices): at most {self.bounds[possible]:.4f} is possible there"
                )
            possible = min(2 * possible, self.largest.num_devices)
        while possible - ruled_out > 1:
            middle = (ruled_out + possible) // 2
            if self.is_ruled_out(middle):
                ruled_out = middle
            else:
                possible = middle
        return possible

    def proven_minimum(self) -> int:
        """Return the fewest devices that no bound so far rules out: what fits a size also fits a larger one."""
        ruled_out = [size for size, bound in self.bounds.items() if self.is_below(bound)]
        return max(ruled_out, default=0) + 1

    def tried(self) -> Iterator[SizeTried]:
        """Yield what is known of each size, ascending."""
        reached = {self.fewest[0]} if self.fewest else set()
        for size in sorted(self.bounds.keys() | self.searched_below.keys() | reached):
            best = self.best_of(size)
            # what bounds a larger size bounds this one
            bound = min((bound for other, bound in self.bounds.items() if other >= size), default=1.0)
            yield SizeTried(size, None if best is None else best.attainment, bound)

    # ---- what searches find ----

    def search(self, size: int) -> bool:
        """Search a placement on `size` devices; tell whether one reaches the target."""
        if self.is_ruled_out(size):
            return False
        self.searched_below[size] = None if self.fewest is None else self.fewest[1]
        cluster = replace(self.largest, num_devices=size)
        point = Point(f"{size} devices", self.evaluator, cluster, self.target)
        try:
            point.search(self.find, self.starts(cluster), self.report)
        finally:
            if point.best is not None:
                self.learn(point.best)
        best = self.best_of(size)
        self.report(
            SearchProgress(
                f"{size} devices {'reach' if point.is_reached else 'do not reach'} {self.target:g}",
                1,
                1,
                None if best is None else best.evaluation.score,
                None if best is None else best.placement,
            )
        )
        return point.is_reached

    def learn(self, found: Found) -> None:
        """Keep a placement; if it reaches the target, also what is left of it on the fewest devices that still do."""
        self.known.append((devices_needed(found.placement, self.largest), found))
        if not found.reaches(self.target):
            return
        self.keep_if_fewest(*self.known[-1])
        for placement in self.shrunk(found.placement):
            smaller = Found(placement, self.evaluator.evaluate(placement))
            needed = devices_needed(placement, self.largest)
            self.known.append((needed, smaller))
            if not smaller.reaches(self.target):
                break
            self.keep_if_fewest(needed, smaller)

    def keep_if_fewest(self, needed: int, found: Found) -> None:
        if self.fewest is None or (needed, -found.attainment) < (self.fewest[0], -self.fewest[1].attainment):
            self.fewest = needed, found

    def starts(self, cluster: ClusterEnv) -> Iterator[ModelPlacement]:
        """Yield placements made of what is known: the best that fits `cluster`, copies of it, a larger one shrunk."""
        best = self.best_of(cluster.num_devices)
        if best is not None:
            yield best.placement
            copies = copied(best.placement, cluster) if self.resize else best.placement
            if copies.num_replicas > best.placement.num_replicas:
                yield copies
        if self.fewest is not None:
            for placement in self.shrunk(self.fewest[1].placement):
                if devices_needed(placement, self.largest) <= cluster.num_devices:
                    yield placement
                    return

    def shrunk(self, placement: ModelPlacement) -> Iterable[ModelPlacement]:
        """Return placements made of this one, on ever fewer devices; none if placements are not to be resized."""
        return shrunk(placement, self.evaluator) if self.resize else ()

    def best_of(self, size: int) -> Found | None:
        """Return the placement that attains most of those known for `size` devices."""
        best = None
        for needed, found in self.known:
            if needed <= size:
                best = better(best, found)
        return best

    def size_reached(self) -> int:
        """Return the fewest devices that reached the target; one more than there may be if none did."""
        return self.largest.num_devices + 1 if self.fewest is None else self.fewest[0]

    def can_search_below(self) -> bool:
        """Tell whether the next smaller size is worth a search with the placement known by now."""
        assert self.fewest is not None
        below, found = self.fewest[0] - 1, self.fewest[1]
        return below > 0 and self.searched_below.get(below) is not found and not self.is_ruled_out(below)

    def not_reached(self) -> SolverStoppedError:
        size = self.largest.num_devices
        best = self.best_of(size)
        attained = "nothing could be placed" if best is None else f"the best attains {best.attainment:.4f}"
        return SolverStoppedError(
            f"no placement on up to {size} devices (max_devices) was found that reaches an SLO attainment of "
            f"{self.target:g}: {attained}; more is not proven to be impossible. "
            "Raise max_devices or time_budget, or lower the target"
        )
