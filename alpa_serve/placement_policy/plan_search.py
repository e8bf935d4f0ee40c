"""What the planners have in common: their settings, and the search for a placement that reaches a target."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from alpa_serve.errors import InfeasiblePlacementError, InvalidConfigError, SearchInterrupted
from alpa_serve.placement import ClusterEnv
from alpa_serve.placement_policy.mixed_parallelism_search import MixedParallelismSearch
from alpa_serve.placement_policy.plans import ROUNDING
from alpa_serve.placement_policy.search_parts import run_part
from alpa_serve.placement_policy.upper_bound import placement_upper_bound
from alpa_serve.scheduling import ALPASERVE, check_rules
from alpa_serve.validation import check_int, check_real

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from alpa_serve.placement import ModelData, ModelPlacement
    from alpa_serve.placement_policy.evaluator import Evaluation, PlacementEvaluator
    from alpa_serve.placement_policy.progress import ProgressCallback, SearchProgress
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload


class FindPlacement(Protocol):
    """Searches a placement."""

    def __call__(
        self,
        model_datas: Sequence[ModelData],
        cluster_env: ClusterEnv,
        workload: Workload,
        starts: Sequence[ModelPlacement],
        callback: ProgressCallback,
    ) -> ModelPlacement:
        """Return a placement, not worse than any of `starts`, which are valid on the cluster."""


class UpperBound(Protocol):
    """Bounds the SLO attainment of every placement on a cluster."""

    def __call__(
        self, model_datas: Sequence[ModelData], cluster_env: ClusterEnv, workload: Workload, rules: ServingRules
    ) -> float:
        """Return an SLO attainment that no placement exceeds."""


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How the placement of each point is searched.

    Attributes
    ----------
    rules : ServingRules
    time_budget : float
        Seconds for each search.
    max_evaluations : int or None
        Placements simulated in each search, for results that do not depend on the speed of the machine.
    seed : int
    max_pp, max_op : int
        Largest pipeline and tensor parallel degree.
    num_workers : int
    address : str or None
        Of the Ray cluster to join with more than one worker.

    Raises
    ------
    InvalidConfigError
        If one is out of range.
    """

    rules: ServingRules = ALPASERVE
    time_budget: float = 10.0
    max_evaluations: int | None = None
    seed: int = 0
    max_pp: int = 8
    max_op: int = 8
    num_workers: int = 1
    address: str | None = None

    def __post_init__(self) -> None:
        check_rules(self.rules)
        check_real(self.time_budget, "time_budget (s)", minimum=0.0, finite=False)
        if self.max_evaluations is not None:
            check_int(self.max_evaluations, "max_evaluations", minimum=0)
        elif math.isinf(self.time_budget):
            raise InvalidConfigError("an infinite time_budget (s) needs max_evaluations, or no search would ever end")
        check_int(self.seed, "seed", minimum=0)
        for name in ("max_pp", "max_op", "num_workers"):
            check_int(getattr(self, name), name, minimum=1)

    def find(
        self,
        model_datas: Sequence[ModelData],
        cluster_env: ClusterEnv,
        workload: Workload,
        starts: Sequence[ModelPlacement],
        callback: ProgressCallback,
    ) -> ModelPlacement:
        """Return what :class:`~.mixed_parallelism_search.MixedParallelismSearch` finds from `starts`."""
        policy = MixedParallelismSearch(
            self.time_budget,
            self.seed,
            self.max_pp,
            self.max_op,
            rules=self.rules,
            num_workers=self.num_workers,
            callback=callback,
            max_evaluations=self.max_evaluations,
            address=self.address,
        )
        return policy.solve_placement(model_datas, cluster_env, workload, starts=starts)[0]

    def workers(self) -> AbstractContextManager[object]:
        """Return a context in which all searches share one Ray, if they need any."""
        if self.num_workers == 1:
            return nullcontext()
        from alpa_serve.placement_policy.ray_runner import RayRunner

        # runs nothing itself: those of the searches find its Ray
        return RayRunner(run_part, None, self.num_workers, self.address)

    def bound(
        self, model_datas: Sequence[ModelData], cluster_env: ClusterEnv, workload: Workload, rules: ServingRules
    ) -> float:
        """Return a short :func:`~.upper_bound.placement_upper_bound`, of fixed effort if the searches are."""
        visits = None if self.max_evaluations is None else BOUND_VISITS
        return placement_upper_bound(
            model_datas, cluster_env, workload, rules, time_limit=BOUND_TIME_S, max_visits=visits
        )


BOUND_TIME_S = 3.0
"""For each bound, of which a plan may need many."""

BOUND_VISITS = 5_000_000
"""Requests that a bound looks at where it is not to depend on the speed of the machine."""


@dataclass(frozen=True, eq=False)
class Found:
    """A placement and what it attains at the point where it was evaluated.

    Attributes
    ----------
    placement : ModelPlacement
    evaluation : Evaluation
    """

    placement: ModelPlacement
    evaluation: Evaluation

    @property
    def attainment(self) -> float:
        """SLO attainment."""
        return self.evaluation.goodput

    def reaches(self, target: float) -> bool:
        """Tell whether the attainment is `target` at least."""
        return self.attainment >= target - ROUNDING


def better(one: Found | None, other: Found | None) -> Found | None:
    """Return the one that attains more; of equals, the first."""
    if one is None or (other is not None and other.attainment > one.attainment):
        return other
    return one


class Point:
    """One problem of a plan: models, cluster and workload, with the best placement known for it.

    Parameters
    ----------
    title : str
        What progress reports call it.
    evaluator : PlacementEvaluator
        Of the models, workload and rules; its cluster may have another number of devices.
    cluster_env : ClusterEnv
    target : float

    Attributes
    ----------
    best : Found or None
    """

    def __init__(self, title: str, evaluator: PlacementEvaluator, cluster_env: ClusterEnv, target: float) -> None:
        self.title = title
        self.evaluator = evaluator
        self.cluster_env = cluster_env
        self.target = target
        self.best: Found | None = None

    def consider(self, placement: ModelPlacement) -> Found:
        """Evaluate a placement, and keep it if it attains more than the best.

        Raises
        ------
        InvalidPlacementError
            If it is not possible on the cluster.
        """
        placement.verify(self.evaluator.model_datas, self.cluster_env)
        found = Found(placement, self.evaluator.evaluate(placement))
        self.best = better(self.best, found)
        return found

    @property
    def is_reached(self) -> bool:
        """Whether a placement is known that reaches the target."""
        return self.best is not None and self.best.reaches(self.target)

    def search(self, find: FindPlacement, starts: Iterable[ModelPlacement], report: ProgressCallback) -> None:
        """Search until the target is reached or the search ends.

        Parameters
        ----------
        find : FindPlacement
        starts : iterable of ModelPlacement
            Considered one by one; if one of them reaches the target, nothing is searched.
        report : callable
            Told of the progress of the search; what it raises ends the search.
        """
        tried = []
        for start in starts:
            tried.append(start)
            self.consider(start)
            if self.is_reached:
                return
        last = None

        def watch(progress: SearchProgress) -> None:
            nonlocal last
            report(replace(progress, stage=f"{self.title}: {progress.stage}"))
            if progress.placement is not None and progress.placement is not last:
                last = progress.placement
                # the search may go on changing its own lists
                if self.consider(last.copy()).reaches(self.target):
                    raise _TargetReached

        try:
            self.consider(find(self.evaluator.model_datas, self.cluster_env, self.evaluator.workload, tried, watch))
        except _TargetReached:
            pass
        except SearchInterrupted as stop:
            if stop.placement is not None:
                self.consider(stop.placement)
            raise
        except InfeasiblePlacementError:
            # nothing fits a cluster of this size
            pass


class _TargetReached(Exception):  # noqa: N818
    """Ends a search that has found enough."""


def check_target(target: float) -> float:
    """Return the target, checked to be an SLO attainment above 0."""
    checked = check_real(target, "target (SLO attainment)", minimum=0.0, exclusive=True)
    if checked > 1:
        raise InvalidConfigError(f"target (SLO attainment) must be a number in (0, 1], got {target!r}")
    return checked


def check_cluster(cluster_env: ClusterEnv | None) -> ClusterEnv:
    """Return the cluster, checked to be one."""
    if not isinstance(cluster_env, ClusterEnv):
        raise InvalidConfigError(
            "cluster_env must be a ClusterEnv, which says how much a device holds, such as "
            f"ClusterEnv(num_devices=8, mem_budget=24 * GB), got {cluster_env!r}"
        )
    return cluster_env
