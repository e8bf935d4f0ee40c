"""Running a serving case on the fast simulator: AlpaServe's names for it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alpa_serve.errors import InvalidConfigError
from alpa_serve.profiling import ProfilingResult
from alpa_serve.scheduling import ALPASERVE
from alpa_serve.scheduling.registry import check_new_group, check_new_name, check_replica
from alpa_serve.simulator.fast import check_batching
from alpa_serve.simulator.problem import ModelTable, RequestTable
from alpa_serve.simulator.simulation import simulate_segments
from alpa_serve.simulator.stats import DEFAULT_WARMUP, compute_stats, goodput_stats, request_rate
from alpa_serve.simulator.util import install_remote_methods
from alpa_serve.util import ServingCase, batchsize_config

if TYPE_CHECKING:
    from collections.abc import Sequence
    from functools import partial

    from numpy.typing import ArrayLike, NDArray

    from alpa_serve.placement import ModelPlacement, Placement
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.stats import StatsResult

logger = logging.getLogger(__name__)


class DummyController:
    """Stands in for the controller while a case registers and places its models; keeps their profiles.

    Every method can be called as ``controller.method.remote(...)`` too.

    Attributes
    ----------
    profiles : dict of str to ProfilingResult
        By model name, in the order of registration.
    """

    def __init__(self) -> None:
        self.profiles: dict[str, ProfilingResult] = {}
        self._groups: set[int] = set()
        install_remote_methods(self)

    def register_model(
        self,
        name: str,
        model_def: partial[Any],
        init_args: Sequence[Any] | None = None,
        init_kwargs: dict[str, Any] | None = None,
        override: bool = False,
    ) -> None:
        """Register a model.

        Parameters
        ----------
        name : str
        model_def : functools.partial
            With a ProfilingResult among its positional arguments.
        init_args, init_kwargs : sequence and dict, optional
            Without effect: no model is made.
        override : bool
            Replace a model of this name.

        Raises
        ------
        InvalidConfigError
            If there is no profile, or the name is taken.
        """
        profile = next((arg for arg in getattr(model_def, "args", ()) if isinstance(arg, ProfilingResult)), None)
        if profile is None:
            raise InvalidConfigError(
                f"model {name!r}: model_def must be a functools.partial with a ProfilingResult among its "
                f"positional arguments, got {model_def!r}"
            )
        check_new_name(name, self.profiles, override)
        self.profiles[name] = profile

    def create_mesh_group_manager(
        self, group_id: int, virtual_mesh_shape: tuple[int, int] | None = None, num_gpus: int = 0
    ) -> None:
        """Note that a group exists; its shape is in the placement."""
        check_new_group(group_id, self._groups)
        self._groups.add(group_id)

    def create_replica(
        self,
        name: str,
        group_id: int,
        append_init_args: Sequence[Any] | None = None,
        append_init_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Check that a replica is of a registered model and in a group that exists."""
        check_replica(name, group_id, self.profiles, self._groups)

    def sync(self) -> None:
        """Return at once: every call has been carried out."""


class PlacementRun(NamedTuple):
    """What one simulated placement did, request by request and in counts.

    Attributes
    ----------
    start, finish : ndarray of float64, shape (n,)
        Seconds; `start` is the arrival, `finish` too for a request that was not served.
    good : ndarray of bool, shape (n,)
    model_num_requests, model_num_good_requests : ndarray of int64, shape (num_models,)
    group_num_requests, group_num_good_requests : ndarray of int64, shape (num_groups,)
    """

    start: NDArray[np.float64]
    finish: NDArray[np.float64]
    good: NDArray[np.bool_]
    model_num_requests: NDArray[np.int64]
    model_num_good_requests: NDArray[np.int64]
    group_num_requests: NDArray[np.int64]
    group_num_good_requests: NDArray[np.int64]


def approximate_one_case(
    case: ServingCase,
    seed: int = 0,
    warmup: float = DEFAULT_WARMUP,
    debug: bool = False,
    fast_stats: bool = False,
    enable_batching: bool = False,
    *,
    rules: ServingRules = ALPASERVE,
) -> tuple[StatsResult, Placement]:
    """Simulate a serving case with the fast simulator.

    A replica on a config that its model's profile lacks serves nothing, with a warning: some of AlpaServe's policies
    make such replicas. (:func:`~.simulation.simulate` and the event-driven simulator refuse them.)

    Parameters
    ----------
    case : ServingCase
        ``register_models(controller)``, ``generate_workload()`` and ``placement_policy(controller)``, called in this
        order; the last returns a ModelPlacement or a ModelPlacementWithReplacement.
    seed : int
        Without effect: what the rules leave to chance is drawn with their own seed.
    warmup : float
        Seconds cut from both ends of the statistics; not with `fast_stats`.
    debug : bool
        Log the placement.
    fast_stats : bool
        Only count: nothing is cut, latencies per model are 0.
    enable_batching : bool
        Serve in batches of 1, 2, 4, 8 and 16; profiles must have these batch sizes.
    rules : ServingRules
        How the cluster serves.

    Returns
    -------
    (StatsResult, placement)

    Raises
    ------
    AlpaServeError
        If the workload, the placement, a profile or the rules do not fit.
    """
    register_models, generate_workload, place_models = case
    controller = DummyController()
    register_models(controller)
    workload = generate_workload()
    placement: Placement = place_models(controller)
    if debug:
        logger.info("placement: %s", placement)
    names = tuple(controller.profiles)
    batch_sizes = _batch_sizes(enable_batching, rules)
    models = ModelTable(names, tuple(controller.profiles.values()), batch_sizes or (1,), rules)
    if rules.service == "tokens":
        workload.require_tokens()
    run = _run(placement, models, RequestTable.of_workload(workload, names), batch_sizes)
    group_num_requests = [int(count) for count in run.group_num_requests]
    if fast_stats:
        stats = goodput_stats(
            names,
            run.model_num_requests,
            run.model_num_good_requests,
            group_num_requests,
            len(workload),
            float((run.finish - run.start).mean()) if len(workload) else 0.0,
            request_rate(workload.arrivals),
        )
    else:
        stats = compute_stats(
            workload.model_ids,
            workload.model_names,
            run.start,
            run.finish,
            run.good,
            warmup,
            group_num_requests,
        )
    return stats, placement


def approximate_one_case_one_placement(
    placement: ModelPlacement,
    model_names: Sequence[str],
    prof_ress: Sequence[ProfilingResult],
    model_ids: NDArray[np.int32],
    slos: NDArray[np.float64],
    arrivals: NDArray[np.float64],
    mixed: bool = True,
    enable_batching: bool = False,
    *,
    rules: ServingRules = ALPASERVE,
    input_tokens: ArrayLike | None = None,
    output_tokens: ArrayLike | None = None,
) -> PlacementRun:
    """Simulate one placement with the fast simulator.

    Parameters
    ----------
    placement : ModelPlacement
    model_names : sequence of str, length num_models
    prof_ress : sequence of ProfilingResult, length num_models
    model_ids : ndarray of int, shape (n,)
        Model of each request; -1 for one that is not registered.
    slos, arrivals : ndarray of float, shape (n,)
        Seconds; arrivals must not descend.
    mixed : bool
        Without effect: one kernel serves groups of equal and of mixed configs.
    enable_batching : bool
        Serve in batches of 1, 2, 4, 8 and 16.
    rules : ServingRules
        How the cluster serves.
    input_tokens, output_tokens : array_like of int, shape (n,), optional
        Needed if service is by tokens.

    Returns
    -------
    PlacementRun

    Raises
    ------
    AlpaServeError
        If the requests, the placement or a profile does not fit.
    """
    batch_sizes = _batch_sizes(enable_batching, rules)
    models = ModelTable(model_names, prof_ress, batch_sizes or (1,), rules)
    requests = RequestTable.of_arrays(
        arrivals, model_ids, slos, len(models), input_tokens=input_tokens, output_tokens=output_tokens
    )
    requests.check_for(rules)
    return _run(placement, models, requests, batch_sizes)


def _batch_sizes(enable_batching: bool, rules: ServingRules) -> tuple[int, ...] | None:
    if not enable_batching:
        return None
    check_batching(rules)
    return tuple(batchsize_config)


def _run(
    placement: Placement, models: ModelTable, requests: RequestTable, batch_sizes: tuple[int, ...] | None
) -> PlacementRun:
    """Simulate all segments of arrivals and add up their counts."""
    simulated = simulate_segments(placement, models, requests, batch_sizes)
    finish, good, group = (
        np.concatenate([getattr(outcomes, name) for outcomes, _ in simulated]) for name in ("finish", "good", "group")
    )
    num_groups = max(len(counts.group_num_requests) for _, counts in simulated)
    return PlacementRun(
        start=requests.arrivals,
        finish=finish,
        good=good,
        model_num_requests=requests.model_num_requests,
        model_num_good_requests=np.sum([counts.model_num_good for _, counts in simulated], axis=0),
        group_num_requests=np.bincount(group[group >= 0], minlength=num_groups),
        group_num_good_requests=np.bincount(group[good], minlength=num_groups),
    )
