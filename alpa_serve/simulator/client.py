"""Running a workload on the event-driven simulator."""

from __future__ import annotations

import gc
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alpa_serve.errors import InvalidPlacementError, InvalidWorkloadError
from alpa_serve.scheduling import ALPASERVE
from alpa_serve.simulator.event_controller import Controller
from alpa_serve.simulator.event_loop import Signal, current_loop, go_on_at, run_event_loop
from alpa_serve.simulator.problem import report_unregistered
from alpa_serve.simulator.request import Request
from alpa_serve.simulator.segments import Segment, segments
from alpa_serve.simulator.stats import DEFAULT_WARMUP, compute_stats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from alpa_serve.placement import Placement
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload
    from alpa_serve.simulator.event_controller import Outcome
    from alpa_serve.simulator.stats import StatsResult
    from alpa_serve.util import ServingCase

logger = logging.getLogger(__name__)


class Client:
    """Sends the requests of workloads to a controller, and keeps what became of them.

    Parameters
    ----------
    controller : Controller
    debug : bool
        Have each request note when it passed which station; `requests` then keeps them.

    Attributes
    ----------
    requests : list of Request
        Those that were sent, with notes in `time_stamp`; empty without `debug`.
    """

    def __init__(self, controller: Controller, debug: bool = False) -> None:
        self.controller = controller
        self.debug = debug
        self.requests: list[Request] = []
        controller.debug = debug
        self._num_pending = 0
        self._all_done = Signal()
        # with the workload, so that its id is not given to another
        self._results: dict[int, tuple[Workload, ClientResult]] = {}

    def submit_workload(self, workload: Workload) -> ClientResult:
        """Send every request of `workload` at its arrival; :meth:`wait_all` waits for the responses.

        Returns
        -------
        ClientResult
            Where they are noted; :meth:`result` gives that of the last time that a workload was submitted.
        """
        result = ClientResult(workload)
        self._results[id(workload)] = workload, result
        if not self._num_pending:
            self._all_done = Signal()
        self._num_pending += len(workload)
        current_loop().spawn(self._send_all(workload, result))
        return result

    async def _send_all(self, workload: Workload, result: ClientResult) -> None:
        loop = current_loop()
        for request in _requests(workload):
            sent: float = request.submit_time  # type: ignore[assignment]
            if sent > loop.now:
                await go_on_at(sent)
            if self.debug:
                self.requests.append(request)
            loop.start(self._send(request, result))

    async def _send(self, request: Request, result: ClientResult) -> None:
        outcome = await self.controller.serve(request)
        result.record(request.idx, outcome)
        self._num_pending -= 1
        if not self._num_pending:
            self._all_done.give()

    async def wait_all(self) -> None:
        """Wait until every request that was submitted has its response."""
        if self._num_pending:
            await self._all_done

    def result(self, workload: Workload) -> ClientResult:
        """Return what became of the requests of a workload that was submitted.

        Raises
        ------
        InvalidWorkloadError
            If it was not.
        """
        if id(workload) not in self._results:
            raise InvalidWorkloadError(f"{workload!r} was not submitted to this client")
        return self._results[id(workload)][1]

    def compute_stats(self, workload: Workload, warmup: float) -> StatsResult:
        """Return the statistics of a workload that was submitted (:func:`~.stats.compute_stats`)."""
        result = self.result(workload)
        return compute_stats(
            workload.model_ids,
            workload.model_names,
            workload.arrivals,
            result.finish,
            result.good,
            warmup,
            result.group_num_requests(len(self.controller.groups)),
        )


class ClientResult:
    """What became of the requests of a workload.

    Parameters
    ----------
    workload : Workload
        Before any of its requests is sent.
    """

    def __init__(self, workload: Workload) -> None:
        self._arrivals: list[float] = workload.arrivals.tolist()
        self._slos: list[float] = workload.slos.tolist()
        self._finish: list[float] = workload.arrivals.tolist()
        self._good = [False] * len(workload)
        self._group = [-1] * len(workload)

    def record(self, idx: int, outcome: Outcome) -> None:
        """Note what became of request `idx`."""
        self._group[idx] = outcome.group_id
        if outcome.served:
            self._finish[idx] = outcome.finish
            self._good[idx] = outcome.finish - self._arrivals[idx] <= self._slos[idx]

    @property
    def finish(self) -> NDArray[np.float64]:
        """Seconds, shape (n,); the arrival for a request that was not served."""
        return np.array(self._finish, dtype=np.float64)

    @property
    def good(self) -> NDArray[np.bool_]:
        """Whether each request was served within its SLO, shape (n,)."""
        return np.array(self._good, dtype=np.bool_)

    @property
    def group(self) -> NDArray[np.int32]:
        """The group that each request was for, shape (n,); -1 if none has its model."""
        return np.array(self._group, dtype=np.int32)

    def group_num_requests(self, num_groups: int) -> list[int]:
        """Return how many requests each of the groups 0 to `num_groups` - 1 was to serve."""
        group = self.group
        counts: list[int] = np.bincount(group[group >= 0], minlength=num_groups).tolist()
        return counts


def _requests(workload: Workload) -> Iterator[Request]:
    """Yield the requests of a workload as plain objects, which are faster than its view, with their `submit_time`."""
    nothing = [None] * len(workload)
    names = workload.model_names
    columns = zip(
        workload.arrivals.tolist(),
        workload.model_ids.tolist(),
        workload.slos.tolist(),
        nothing if workload.data is None else workload.data,
        nothing if workload.input_tokens is None else workload.input_tokens.tolist(),
        nothing if workload.output_tokens is None else workload.output_tokens.tolist(),
        strict=True,
    )
    for idx, (arrival, model_id, slo, data, inputs, outputs) in enumerate(columns):
        yield Request(names[model_id], data, slo, idx, {}, arrival, input_tokens=inputs, output_tokens=outputs)


async def run_workload(client: Client, workload: Workload, warmup: float = DEFAULT_WARMUP) -> StatsResult:
    """Send a workload, wait for all responses, and return the statistics."""
    client.submit_workload(workload)
    await client.wait_all()
    return client.compute_stats(workload, warmup)


def simulate_one_case(
    case: ServingCase,
    warmup: float = DEFAULT_WARMUP,
    debug: bool = False,
    *,
    rules: ServingRules = ALPASERVE,
) -> tuple[StatsResult, Placement]:
    """Simulate a serving case with the event-driven simulator.

    Every request travels to the controller, to its group, from stage to stage and back, with delays that are drawn;
    who serves it and whether it is admitted is decided by :class:`~alpa_serve.scheduling.Scheduler`, by the clocks of
    the stages. (AlpaServe's own event-driven simulator sends it where the fewest requests are in flight; here both
    simulators follow one rule, so that they agree request by request where nothing is random.)

    Parameters
    ----------
    case : ServingCase
        ``register_models(controller)``, ``generate_workload()`` and ``placement_policy(controller)``, called in this
        order; the last returns a placement. Groups and replicas that it does not create on the controller are made
        from the placement.
    warmup : float
        Seconds cut from both ends of the statistics.
    debug : bool
        Log the placement and when each request passed which station.
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
    controller = Controller(rules)
    register_models(controller)
    workload = generate_workload()
    placement: Placement = place_models(controller)
    if debug:
        logger.info("placement: %s", placement)
    result = simulate_on(controller, placement, workload, debug)
    stats = compute_stats(
        workload.model_ids,
        workload.model_names,
        workload.arrivals,
        result.finish,
        result.good,
        warmup,
        result.group_num_requests().tolist(),
    )
    return stats, placement


class EventResult(NamedTuple):
    """What became of the requests of a workload, arrays of shape (n,).

    Attributes
    ----------
    finish : ndarray of float64
        Seconds; the arrival for a request that was not served.
    good : ndarray of bool
        Whether it was served within its SLO.
    group : ndarray of int32
        The group that it was for; -1 if none has its model.
    num_groups : int
        Groups of the placement, of the one with the most where placements take over from one another.
    """

    finish: NDArray[np.float64]
    good: NDArray[np.bool_]
    group: NDArray[np.int32]
    num_groups: int

    def group_num_requests(self) -> NDArray[np.int64]:
        """Return how many requests were for each group, shape (num_groups,)."""
        return np.bincount(self.group[self.group >= 0], minlength=self.num_groups)


def simulate_on(controller: Controller, placement: Placement, workload: Workload, debug: bool = False) -> EventResult:
    """Simulate a workload on a controller whose models are registered.

    Parameters
    ----------
    controller : Controller
        If it has groups already, they serve the first placement; else they are made from it.
    placement : ModelPlacement or ModelPlacementWithReplacement
        Model ids are positions in the order of registration.
    workload : Workload
    debug : bool
        Log when each request passed which station.
    """
    if controller.rules.service == "tokens":
        workload.require_tokens()
    report_unregistered(workload, controller.models)
    results = []
    num_groups = 0
    for number, segment in enumerate(segments(placement, workload.arrivals)):
        if number or not controller.groups:
            controller = _with_placement(controller, segment)
        is_whole = segment.past - segment.first == len(workload)
        part = workload if is_whole else workload[segment.first : segment.past]
        client = Client(controller, debug)
        with _paused_garbage_collection():
            run_event_loop(_submit(client, part))
        results.append(client.result(part))
        num_groups = max(num_groups, len(controller.groups))
        for request in client.requests:
            logger.debug("request %d: %s", request.idx + segment.first, request.time_stamp)
    return EventResult(
        np.concatenate([result.finish for result in results]),
        np.concatenate([result.good for result in results]),
        np.concatenate([result.group for result in results]),
        num_groups,
    )


async def _submit(client: Client, workload: Workload) -> None:
    client.submit_workload(workload)


def _with_placement(registered: Controller, segment: Segment) -> Controller:
    """Return a new controller with the models of another one, and the groups and replicas of the segment.

    Model ids are positions in the order of registration.
    """
    controller = Controller(registered.rules, segment.first, segment.since)
    placement = segment.placement
    names = list(registered.models)
    controller.models.update(registered.models)
    for group_id, (config, members) in enumerate(zip(placement.group_configs, placement.group_models, strict=True)):
        shape = (1, config.num_devices)
        controller.create_mesh_group_manager(group_id, shape)
        for model_id in members:
            if not 0 <= model_id < len(names):
                raise InvalidPlacementError(f"group {group_id}: no model {model_id}; models are 0 to {len(names) - 1}")
            controller.create_replica(names[model_id], group_id, [config, shape])
    return controller


@contextmanager
def _paused_garbage_collection() -> Iterator[None]:
    """Pause the search for cycles: a run makes objects by the million and no cycle among them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
