"""The search for the hardest workload that a cluster can take, on the axes of rate and SLO."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from alpa_serve.errors import InfeasiblePlacementError, PlanInterrupted, SolverStoppedError
from alpa_serve.placement_policy.evaluator import PlacementEvaluator
from alpa_serve.placement_policy.plan_search import Found, Point, better
from alpa_serve.placement_policy.plans import ROUNDING, ScalePlan, ScaleTried
from alpa_serve.placement_policy.progress import SearchProgress
from alpa_serve.simulator.columnar_workload import Workload
from alpa_serve.validation import check_real

if TYPE_CHECKING:
    from alpa_serve.placement import ClusterEnv, ModelData, ModelPlacement
    from alpa_serve.placement_policy.plan_search import FindPlacement, UpperBound
    from alpa_serve.placement_policy.progress import ProgressCallback
    from alpa_serve.scheduling import ServingRules

LARGEST_FACTOR = 2.0**20
"""How much harder or milder than the given workload a scale may be."""

_STEP_DOWN = 4.0
"""Factor by which the workload is made milder until the target is reached."""

_BOUND_DOUBLINGS = 4
"""How often the load is doubled to find one that the bound rules out, before anything is searched."""

_BOUND_WIDTH = 1.05
"""Relative width of the interval in which the load is left that the bound rules out: a bound takes long."""

_JUST_ABOVE = 1 + 1e-6
"""Factor that tells a limit from what exceeds it."""

_STARTS = 4
"""Placements, the latest, that a search starts from."""


def scaled_workload(workload: Workload, *, rate_scale: float = 1.0, slo_scale: float = 1.0) -> Workload:
    """Return the requests of `workload` with arrivals divided by `rate_scale` and SLOs times `slo_scale`."""
    return Workload.from_columns(
        workload.arrivals / rate_scale,
        workload.model_ids,
        workload.model_names,
        workload.slos * slo_scale,
        None if workload.data is None else list(workload.data),
        input_tokens=workload.input_tokens,
        output_tokens=workload.output_tokens,
    )


@dataclass(frozen=True, eq=False)
class ScaledProblem:
    """A problem on one axis. Its hardness is 1 as given, and grows with the rate and with shorter SLOs."""

    axis: str
    model_datas: list[ModelData]
    workload: Workload
    cluster_env: ClusterEnv
    rules: ServingRules
    target: float

    def scale(self, hardness: float) -> float:
        """Return the scale of a hardness, and the hardness of a scale."""
        return hardness if self.axis == "rate" else 1 / hardness

    def title(self, hardness: float) -> str:
        """Return what reports call the point."""
        return f"{self.axis} scale {self.scale(hardness):.4g}"

    def point(self, hardness: float) -> Point:
        """Return the problem of this hardness."""
        scale = self.scale(hardness)
        if self.axis == "rate":
            workload = scaled_workload(self.workload, rate_scale=scale)
            datas = [replace(data, rate=data.rate * scale) for data in self.model_datas]
        else:
            workload = scaled_workload(self.workload, slo_scale=scale)
            datas = [replace(data, slo=data.slo * scale) for data in self.model_datas]
        evaluator = PlacementEvaluator(datas, self.cluster_env, workload, rules=self.rules)
        return Point(self.title(hardness), evaluator, self.cluster_env, self.target)


class ScaleSearch:
    """The scales tried so far, the placements found, and which scale to try next; in terms of hardness."""

    def __init__(
        self,
        problem: ScaledProblem,
        tolerance: float,
        find: FindPlacement,
        upper_bound: UpperBound,
        report: ProgressCallback,
    ) -> None:
        self.problem = problem
        self.width = 1 + check_real(tolerance, "tolerance (relative)", minimum=0.0, exclusive=True)
        self.find = find
        self.upper_bound = upper_bound
        self.report = report
        self.bounds: dict[float, float] = {}
        self.attained: dict[float, float] = {}
        self.placements: list[ModelPlacement] = []
        self.reached: tuple[float, Found] | None = None
        self.best: Found | None = None

    def run(self, limit: float) -> ScalePlan:
        """Search; `limit` is a hardness beyond which requests cannot meet their SLO even alone."""
        try:
            possible, past = self.bracket(limit)
            hardness = min(1.0, possible)
            while not self.search(hardness):
                past = hardness
                hardness /= _STEP_DOWN
                if hardness < 1 / LARGEST_FACTOR:
                    raise self.not_reached()
            low = self.extend(past)
            # a search that fails takes all its time: first try just beyond what is reached, then ever farther
            stride = self.width
            while low * self.width < past and low < LARGEST_FACTOR:
                hardness = min(low * stride, math.sqrt(low * past), LARGEST_FACTOR)
                if self.search(hardness):
                    low = self.extend(past)
                    stride *= stride
                else:
                    past = hardness
            self.complete()
            return self.plan()
        except KeyboardInterrupt as stop:
            best = self.reached[1] if self.reached else self.best
            raise PlanInterrupted(
                plan=self.plan() if self.reached else None,
                placement=None if best is None else best.placement,
                evaluation=None if best is None else best.evaluation,
            ) from stop

    def plan(self) -> ScalePlan:
        """Return the plan of the hardest point that reached the target so far."""
        assert self.reached is not None
        hardness, found = self.reached
        scale = self.problem.scale
        ruled_out = [x for x, bound in self.bounds.items() if self.is_below(bound)]
        tried = sorted(self.bounds.keys() | self.attained.keys(), key=scale)
        return ScalePlan(
            axis=self.problem.axis,
            scale=scale(hardness),
            placement=found.placement,
            attainment=found.attainment,
            target=self.problem.target,
            ruled_out=scale(min(ruled_out)) if ruled_out else None,
            tried=tuple(ScaleTried(scale(x), self.attained.get(x), self.bounds.get(x)) for x in tried),
        )

    # ---- what the bound says ----

    def is_ruled_out(self, hardness: float) -> bool:
        """Tell whether the bound proves that the target is out of reach there, or at a milder scale."""
        if any(other >= hardness and not self.is_below(bound) for other, bound in self.bounds.items()):
            return False
        if any(other <= hardness and self.is_below(bound) for other, bound in self.bounds.items()):
            return True
        problem = self.problem
        title = problem.title(hardness)
        self.report(SearchProgress(f"{title}: upper bound", 0, 0))
        evaluator = problem.point(hardness).evaluator
        bound = self.upper_bound(evaluator.model_datas, problem.cluster_env, evaluator.workload, problem.rules)
        self.bounds[hardness] = bound
        self.report(SearchProgress(f"{title} attains at most {bound:.4f}", 1, 1))
        return self.is_below(bound)

    def is_below(self, bound: float) -> bool:
        """Tell whether a bound is below the target."""
        return bound < self.problem.target - ROUNDING

    def bracket(self, limit: float) -> tuple[float, float]:
        """Return a hardness that the bound does not rule out, and one not much larger that it does (or infinity)."""
        possible, ruled_out = min(1.0, limit), math.inf
        if math.isfinite(limit) and self.is_ruled_out(limit * _JUST_ABOVE):
            ruled_out = limit * _JUST_ABOVE
        while self.is_ruled_out(possible):
            ruled_out = possible
            possible /= _STEP_DOWN
            if possible < 1 / LARGEST_FACTOR:
                raise InfeasiblePlacementError(
                    f"an SLO attainment of {self.problem.target:g} cannot be reached at any {self.problem.axis} scale: "
                    f"at {self.problem.scale(ruled_out):.4g} at most {self.bounds[ruled_out]:.4f} is possible"
                )
        for _ in range(_BOUND_DOUBLINGS if math.isinf(ruled_out) else 0):
            harder = 2 * possible
            if self.is_ruled_out(harder):
                ruled_out = harder
                break
            possible = harder
        while math.isfinite(ruled_out) and possible * max(self.width, _BOUND_WIDTH) < ruled_out:
            middle = math.sqrt(possible * ruled_out)
            if self.is_ruled_out(middle):
                ruled_out = middle
            else:
                possible = middle
        return possible, ruled_out

    # ---- what searches find ----

    def search(self, hardness: float) -> bool:
        """Search a placement for this hardness; tell whether one reaches the target."""
        if self.is_ruled_out(hardness):
            return False
        point = self.problem.point(hardness)
        try:
            point.search(self.find, self.placements[:_STARTS], self.report)
        finally:
            if point.best is not None:
                self.learn(hardness, point.best)
        said = "reaches" if point.is_reached else "does not reach"
        self.report(
            SearchProgress(
                f"{point.title} {said} {self.problem.target:g}",
                1,
                1,
                None if point.best is None else point.best.evaluation.score,
                None if point.best is None else point.best.placement,
            )
        )
        return point.is_reached

    def learn(self, hardness: float, found: Found) -> None:
        """Keep a placement, the latest first."""
        self.attained[hardness] = max(found.attainment, self.attained.get(hardness, 0.0))
        self.best = better(self.best, found)
        self.placements = [found.placement, *(known for known in self.placements if known != found.placement)]
        if found.reaches(self.problem.target) and (self.reached is None or hardness > self.reached[0]):
            self.reached = hardness, found

    def extend(self, past: float) -> float:
        """Return the hardest point below `past` at which a known placement reaches the target; nothing is searched."""
        assert self.reached is not None
        low = self.reached[0]
        while low < LARGEST_FACTOR and low * self.width < past:
            harder = math.sqrt(low * past) if 2 * low >= past else 2 * low
            if self.holds(harder):
                low = harder
            else:
                past = harder
        return low

    def holds(self, hardness: float) -> bool:
        """Tell whether a known placement reaches the target."""
        point = self.problem.point(hardness)
        for placement in self.placements[:_STARTS]:
            if point.consider(placement).reaches(self.problem.target):
                assert point.best is not None
                self.learn(hardness, point.best)
                return True
        return False

    def complete(self) -> None:
        """Evaluate the plan's placement at the points that were searched before it was known."""
        assert self.reached is not None
        placement = self.reached[1].placement
        for hardness in sorted(self.attained):
            self.learn(hardness, self.problem.point(hardness).consider(placement))

    def not_reached(self) -> SolverStoppedError:
        """Return the error that says what was attained."""
        best = "nothing could be placed" if self.best is None else f"the best attains {self.best.attainment:.4f}"
        return SolverStoppedError(
            f"no placement was found that reaches an SLO attainment of {self.problem.target:g} at any "
            f"{self.problem.axis} scale tried, down to a millionth of the load: {best}; "
            "raise time_budget, lower the target, or give more devices"
        )
