"""Simulating a placement under a workload and serving rules, the plain way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.errors import InvalidConfigError, InvalidPlacementError, InvalidWorkloadError
from alpa_serve.placement import Placement
from alpa_serve.scheduling import ALPASERVE, check_rules
from alpa_serve.scheduling.scheduler import dispatch_draws
from alpa_serve.simulator.columnar_workload import Workload
from alpa_serve.simulator.fast import simulate_requests
from alpa_serve.simulator.problem import ModelTable, ReplicaTable, RequestTable
from alpa_serve.simulator.segments import segments
from alpa_serve.simulator.stats import compute_stats

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import ArrayLike, NDArray

    from alpa_serve.placement import ModelData, ModelPlacement
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.fast import Counts, RequestOutcomes
    from alpa_serve.simulator.stats import StatsResult


@dataclass(frozen=True, eq=False)
class SimulationResult:
    """How each request of a workload fared; arrays of shape (n,), in the order of arrival.

    Attributes
    ----------
    arrivals : ndarray of float64
        Seconds.
    start : ndarray of float64
        Seconds: when its group began with it; the arrival if it was not served.
    finish : ndarray of float64
        Seconds; the arrival if it was not served.
    good : ndarray of bool
        Whether it met its SLO.
    group : ndarray of int32
        The group it was sent to; -1 if none holds its model.
    served : ndarray of bool
        False for a request that was dropped, or that no group could take.
    work : ndarray of float64
        Seconds that it took on all stages together.
    slos : ndarray of float64
        Seconds; infinity for none.
    model_ids : ndarray of int32
        Index into `model_names`, which are the workload's.
    model_names : tuple of str
    num_groups : int
        Groups of the placement, of the one with the most where placements take over from one another.
    """

    arrivals: NDArray[np.float64]
    start: NDArray[np.float64]
    finish: NDArray[np.float64]
    good: NDArray[np.bool_]
    group: NDArray[np.int32]
    served: NDArray[np.bool_]
    work: NDArray[np.float64]
    slos: NDArray[np.float64]
    model_ids: NDArray[np.int32]
    model_names: tuple[str, ...]
    num_groups: int

    def __len__(self) -> int:
        return len(self.arrivals)

    @property
    def latency(self) -> NDArray[np.float64]:
        """Seconds from arrival to finish, shape (n,); 0 for a request that was not served."""
        return self.finish - self.arrivals

    @property
    def goodput(self) -> float:
        """Share of all requests that met their SLO; 0 without requests."""
        return float(self.good.mean()) if len(self) else 0.0

    @property
    def group_num_requests(self) -> NDArray[np.int64]:
        """Requests sent to each group, shape (num_groups,)."""
        return np.bincount(self.group[self.group >= 0], minlength=self.num_groups)

    @property
    def group_work(self) -> NDArray[np.float64]:
        """Seconds of work that each group's stages did together, shape (num_groups,)."""
        sent = self.group >= 0
        return np.bincount(self.group[sent], weights=self.work[sent], minlength=self.num_groups).astype(np.float64)

    def stats(self, warmup: float = 0) -> StatsResult:
        """Return the statistics, `warmup` seconds cut from both ends.

        Raises
        ------
        InvalidWorkloadError
            If the warm-up leaves no request.
        """
        return compute_stats(
            self.model_ids,
            self.model_names,
            self.arrivals,
            self.finish,
            self.good,
            warmup,
            self.group_num_requests.tolist(),
        )

    def to_frame(self) -> pd.DataFrame:
        """Return a row per request: model, seconds (arrival_s, start_s, ...), served, good and group."""
        import pandas as pd

        return pd.DataFrame(
            {
                "model": pd.Categorical.from_codes(self.model_ids, pd.Index(self.model_names)),
                "arrival_s": self.arrivals,
                "start_s": self.start,
                "finish_s": self.finish,
                "latency_s": self.latency,
                "work_s": self.work,
                "slo_s": self.slos,
                "served": self.served,
                "good": self.good,
                "group": self.group,
            }
        )


def simulate(
    placement: Placement,
    model_datas: Sequence[ModelData],
    workload: Workload,
    rules: ServingRules = ALPASERVE,
    *,
    stalls: ArrayLike = (),
) -> SimulationResult:
    """Simulate a placement under a workload.

    Parameters
    ----------
    placement : ModelPlacement or ModelPlacementWithReplacement
        Of `model_datas`, by position. With replacement, each segment of arrivals runs under its own placement with
        fresh clocks.
    model_datas : sequence of ModelData
        Requests find their model by name; SLOs are the workload's.
    workload : Workload
        With token counts if service is by tokens.
    rules : ServingRules
        How the cluster serves.
    stalls : array_like of float, shape (num_stalls, 2)
        Start and end in seconds of periods during which nothing begins, such as the loading of a model; ascending and
        apart.

    Returns
    -------
    SimulationResult

    Raises
    ------
    InvalidPlacementError
        If it names a model that is not there, or a config that a model's profile lacks.
    InvalidProfileError
        If a profile is malformed, or has no prefill and decode times that service by tokens needs.
    InvalidWorkloadError
        If service is by tokens and requests have no token counts, or stalls are no periods.
    InvalidConfigError
        If two models have the same name, or the rules are none.
    """
    check_rules(rules)
    if not isinstance(placement, Placement):
        raise InvalidPlacementError(
            f"the placement must be a ModelPlacement, or one with replacement, got {placement!r}"
        )
    if not isinstance(workload, Workload):
        raise InvalidWorkloadError(f"the workload must be a Workload, got {type(workload).__name__}")
    names = [data.name for data in model_datas]
    if len(set(names)) != len(names):
        raise InvalidConfigError(f"model names must differ, got {names}")
    models = ModelTable(names, [data.profiling_result for data in model_datas], rules=rules)
    for segment in segments(placement, workload.arrivals):
        _check_profiled(segment.placement, models)
    if rules.service == "tokens":
        workload.require_tokens()
    requests = RequestTable.of_workload(workload, names)
    simulated = simulate_segments(placement, models, requests, stalls=_checked_stalls(stalls), detailed=True)
    outcomes = [outcome for outcome, _ in simulated]
    return SimulationResult(
        arrivals=requests.arrivals.copy(),
        start=np.concatenate([outcome.start for outcome in outcomes]),
        finish=np.concatenate([outcome.finish for outcome in outcomes]),
        good=np.concatenate([outcome.good for outcome in outcomes]),
        group=np.concatenate([outcome.group for outcome in outcomes]),
        served=np.concatenate([outcome.served for outcome in outcomes]),
        work=np.concatenate([outcome.work for outcome in outcomes]),
        slos=requests.slos.copy(),
        model_ids=workload.model_ids.copy(),
        model_names=workload.model_names,
        num_groups=max(len(counts.group_num_requests) for _, counts in simulated),
    )


def simulate_segments(
    placement: Placement,
    models: ModelTable,
    requests: RequestTable,
    batch_sizes: tuple[int, ...] | None = None,
    stalls: NDArray[np.float64] | None = None,
    detailed: bool = False,
) -> list[tuple[RequestOutcomes, Counts]]:
    """Simulate the requests under `placement` and the rules of `models`, each segment with fresh clocks.

    Parameters
    ----------
    placement : ModelPlacement or ModelPlacementWithReplacement
    models : ModelTable
    requests : RequestTable
    batch_sizes : tuple of int, optional
        Simulate batching with them.
    stalls : ndarray of float64, shape (num_stalls, 2), optional
        As :func:`simulate` takes them.
    detailed : bool
        Return start, served and work of each request too.

    Returns
    -------
    list of (RequestOutcomes, Counts)
        One per segment of arrivals, together all requests in their order.
    """
    # by position in the whole workload, so that a cut does not change who draws what
    draws = dispatch_draws(models.rules, len(requests)) if models.rules.dispatch == "random" else None
    return [
        simulate_requests(
            requests.part(segment.first, segment.past),
            ReplicaTable.of_placement(models, segment.placement),
            batch_sizes,
            stalls,
            None if draws is None else draws[segment.first : segment.past],
            segment.since,
            detailed,
        )
        for segment in segments(placement, requests.arrivals)
    ]


def _check_profiled(placement: ModelPlacement, models: ModelTable) -> None:
    for group_id, (config, members) in enumerate(zip(placement.group_configs, placement.group_models, strict=True)):
        for model_id in members:
            where = f"group {group_id} {tuple(config)}"
            if not 0 <= model_id < len(models):
                raise InvalidPlacementError(f"{where}: no model {model_id}; models are 0 to {len(models) - 1}")
            if not models.has(model_id, config):
                profiled = sorted(map(tuple, models.profiles[model_id].para_dict))
                raise InvalidPlacementError(
                    f"{where}: model {models.names[model_id]!r} is not profiled on it; profiled: {profiled}"
                )


def _checked_stalls(stalls: ArrayLike) -> NDArray[np.float64]:
    """Return `stalls` as an array of shape (num_stalls, 2)."""
    try:
        checked = np.array(stalls, dtype=np.float64)
    except (TypeError, ValueError):
        raise InvalidWorkloadError(f"stalls must be (start, end) pairs in seconds, got {stalls!r}") from None
    if checked.size == 0:
        return np.empty((0, 2))
    if checked.ndim != 2 or checked.shape[1] != 2:
        raise InvalidWorkloadError(f"stalls must be (start, end) pairs in seconds, got shape {checked.shape}")
    if not (np.isfinite(checked).all() and (np.diff(checked.ravel()) >= 0).all()):
        raise InvalidWorkloadError(f"stalls must be finite, ascending and apart, got {checked.tolist()}")
    return checked
