"""The controller of the event-driven simulator: AlpaServe's runtime on simulated time."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from alpa_serve.errors import AlpaServeError, InvalidWorkloadError
from alpa_serve.scheduling import ALPASERVE, Scheduler, check_rules
from alpa_serve.scheduling.registry import CreateInfo, check_new_group, check_new_name, check_replica, create_info
from alpa_serve.scheduling.stage_clocks import begin_in_queue, ready_at
from alpa_serve.simulator.delays import MARGIN_DEVIATIONS, RESPONSE_SHARE, draw_delays
from alpa_serve.simulator.event_loop import current_loop, go_on_at
from alpa_serve.simulator.group_manager import GroupManager
from alpa_serve.simulator.util import install_remote_methods
from alpa_serve.util import inf

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from alpa_serve.device_layout import Shape
    from alpa_serve.scheduling import Assignment, ServingRules
    from alpa_serve.simulator.request import Request

ROUNDING_S = 1e-9
"""Seconds below which an event time and the scheduler's are the same."""

REJECTED = MappingProxyType({"rejected": True})
"""The answer to a request that is not served."""


class Controller:
    """Takes requests, chooses their group, and admits those that can meet their SLO; all on simulated time.

    Every method can be called as ``controller.method.remote(...)`` too.

    Parameters
    ----------
    rules : ServingRules
    num_earlier : int
        Requests of the same workload that another controller took before.
    since : float
        Seconds from which on its groups are there, idle.

    Attributes
    ----------
    models : dict of str to CreateInfo
        By name, in the order of registration.
    groups : dict of int to GroupManager
    debug : bool
        Whether each request notes in its `time_stamp` when it passed which station.
    """

    def __init__(self, rules: ServingRules = ALPASERVE, num_earlier: int = 0, since: float = 0.0) -> None:
        self.rules = check_rules(rules)
        self.debug = False
        self.models: dict[str, CreateInfo] = {}
        self.groups: dict[int, GroupManager] = {}
        self._scheduler = Scheduler(rules, num_earlier, since)
        self._delays = draw_delays(rules, num_earlier)
        self._margin = MARGIN_DEVIATIONS * rules.overhead_jitter * rules.fixed_overhead_s
        self._response_delay = RESPONSE_SHARE * rules.fixed_overhead_s
        self._by_tokens = rules.service == "tokens"
        # streams hold back requests whose devices are busy; what else holds back those of a queue is here
        self._has_queue = rules.queueing == "global_fifo" or rules.dispatch_interval_s > 0
        self._last_begin: dict[int, float] = {}
        install_remote_methods(self)

    def register_model(
        self,
        name: str,
        model_def: Callable[..., Any],
        init_args: Sequence[Any] | None = None,
        init_kwargs: dict[str, Any] | None = None,
        override: bool = False,
    ) -> None:
        """Register a model: replicas are made by ``model_def(*init_args, **init_kwargs)``.

        Parameters
        ----------
        name : str
        model_def : callable
            Makes an object with ``async def handle_request(self, request)``; one with ``get_latency_dict()`` is
            scheduled by its latency. ``partial(Executable, profiling_result)`` makes a simulated model.
        init_args, init_kwargs : sequence and dict, optional
        override : bool
            Replace a model of this name; its replicas stay as they are.

        Raises
        ------
        InvalidConfigError
            If the name is taken, or `model_def` cannot be called.
        """
        created_by = create_info(name, model_def, init_args, init_kwargs)
        check_new_name(name, self.models, override)
        self.models[name] = created_by

    def create_mesh_group_manager(
        self, group_id: int, virtual_mesh_shape: Shape | None = None, num_gpus: int = 0
    ) -> None:
        """Create a group of devices; `num_gpus` is without effect."""
        check_new_group(group_id, self.groups)
        self.groups[group_id] = GroupManager(group_id, virtual_mesh_shape, self.rules.execution == "exclusive")
        self._scheduler.add_group(group_id)

    def create_replica(
        self,
        name: str,
        group_id: int,
        append_init_args: Sequence[Any] | None = None,
        append_init_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Make a replica of a registered model in a group; the arguments are appended to those of the registration."""
        check_replica(name, group_id, self.models, self.groups)
        info = self.models[name]
        group = self.groups[group_id]
        group.create_replica(
            name,
            CreateInfo(
                info.model_def,
                (*info.init_args, *(append_init_args or ())),
                {**info.init_kwargs, **(append_init_kwargs or {})},
            ),
        )
        try:
            timing = group.timing(name, self.rules)
        except AlpaServeError:
            del group.replicas[name]
            raise
        self._scheduler.add_replica(name, group_id, timing)

    def get_info(self) -> dict[str, dict[Any, Any]]:
        """Return which groups each model has replicas in, and which models each group holds."""
        return {
            "models": {name: list(self._scheduler.groups_of(name)) for name in self.models},
            "groups": {group_id: list(group.replicas) for group_id, group in self.groups.items()},
        }

    def sync(self) -> None:
        """Return at once: every call has been carried out."""

    async def handle_request(self, request: Request) -> Any:
        """Serve a request that is sent now.

        Returns
        -------
        object
            What its model answers; :data:`REJECTED` if it was dropped for its SLO or no group has its model.
        """
        outcome = await self.serve(request)
        return outcome.answer if outcome.served else REJECTED

    async def serve(self, request: Request) -> Outcome:
        """Serve a request, from when it is sent to when its response is there, and tell what became of it.

        Its SLO counts from its `submit_time`; that is set to now if it is None.

        Raises
        ------
        InvalidWorkloadError
            If service is by tokens and the request has no token counts.
        """
        loop = current_loop()
        if request.submit_time is None:
            request.submit_time = loop.now
        sent = request.submit_time
        http, dispatch, to_group = next(self._delays)
        if http or dispatch:
            # nothing happens between the two
            await go_on_at(loop.now + http + dispatch)
        name = request.model_name
        slo = inf if request.slo is None else request.slo
        if self._by_tokens:
            assignment = self._scheduler.place(name, sent, slo - self._margin, *_tokens_of(request))
        else:
            assignment = self._scheduler.place(name, sent, slo - self._margin)
        if self.debug:
            request.time_stamp.update(sent=sent, received=sent + http, dispatched=loop.now)
        if assignment is None:
            return Outcome(False, sent, -1, None)
        group_id = assignment.group_id
        if not assignment.admitted:
            return Outcome(False, sent, group_id, None)
        if to_group:
            await go_on_at(loop.now + to_group)
        begin = self._begin_in_queue(name, assignment) if self._has_queue else 0.0
        if self.debug:
            request.time_stamp.update(at_group=loop.now)
        answer = await self.groups[group_id].handle_request(name, request, assignment.stage_latency, begin)
        # event times carry the rounding of the delays that they add up: without jitter they are what was planned
        finish = loop.now + self._response_delay
        planned = assignment.end + self.rules.fixed_overhead_s
        if abs(finish - planned) <= ROUNDING_S:
            finish = planned
        if self.debug:
            request.time_stamp.update(executed=loop.now, finished=finish)
        return Outcome(True, finish, group_id, answer)

    def _begin_in_queue(self, name: str, assignment: Assignment) -> float:
        """Return when a request that has reached its group may begin, after those before it in its queue."""
        queue = 0 if self.rules.queueing == "global_fifo" else assignment.group_id
        ready = ready_at(current_loop().now, self.groups[assignment.group_id].free_at(name))
        begin = begin_in_queue(ready, self._last_begin.get(queue, 0.0), self.rules.dispatch_interval_s)
        self._last_begin[queue] = begin
        return begin


def _tokens_of(request: Request) -> tuple[int, int]:
    if request.input_tokens is None or request.output_tokens is None:
        raise InvalidWorkloadError(
            f"service='tokens' needs token counts; request {request.idx} for model {request.model_name!r} has "
            f"input_tokens={request.input_tokens}, output_tokens={request.output_tokens}"
        )
    return request.input_tokens, request.output_tokens


class Outcome(NamedTuple):
    """What became of a request.

    Attributes
    ----------
    served : bool
    finish : float
        Seconds: when its response was there; when it was sent if it was not served.
    group_id : int
        The group that it was for; -1 if none has its model.
    answer : object
        What the model answered.
    """

    served: bool
    finish: float
    group_id: int
    answer: Any
