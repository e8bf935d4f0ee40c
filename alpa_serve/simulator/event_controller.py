"""The controller and the group managers of the event-driven simulator: AlpaServe's runtime on simulated time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alpa_serve.errors import AlpaServeError, InvalidConfigError, InvalidPlacementError, InvalidWorkloadError
from alpa_serve.scheduling import ALPASERVE, ReplicaTiming, Scheduler, check_rules, replica_timing
from alpa_serve.scheduling.stage_clocks import begin_in_queue, ready_at
from alpa_serve.simulator.cluster import VirtualMesh
from alpa_serve.simulator.event_loop import current_loop, go_on_at, sleep_until
from alpa_serve.simulator.executable import Executable
from alpa_serve.simulator.registry import check_new_group, check_new_name, check_replica
from alpa_serve.simulator.util import install_remote_methods
from alpa_serve.util import inf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from alpa_serve.scheduling import Assignment, ServingRules
    from alpa_serve.simulator.cluster import Shape
    from alpa_serve.simulator.request import Request

HTTP_SHARE, DISPATCH_SHARE, GROUP_SHARE, RESPONSE_SHARE = 2.5 / 11, 2.5 / 11, 5 / 11, 1 / 11
"""How `fixed_overhead_s` (AlpaServe's 11 ms) is spent: 2.5 ms to the controller, 2.5 ms in it, 5 ms to the group and in
its manager, 1 ms back. The first three are AlpaServe's figures."""

MARGIN_DEVIATIONS = 2
"""Standard deviations of a delay that admission keeps in reserve: 1 ms with AlpaServe's jitter, beside the response's
1 ms. AlpaServe keeps 4 ms, but leaves the pipeline penalty out of its reckoning, which is in here."""

ROUNDING_S = 1e-9
"""Seconds below which an event time and the scheduler's are the same."""

REJECTED = MappingProxyType({"rejected": True})
"""The answer to a request that is not served."""

_DELAY_STREAM = 0x64656C
_DRAWS_AT_ONCE = 4096


Delays = tuple[float, float, float]
"""Seconds that a request spends on its way to the controller, in the controller, and on its way to its group."""


def draw_delays(rules: ServingRules, num_earlier: int = 0) -> Iterator[Delays]:
    """Yield the delays of one request after the other, without end: |Normal(share of the overhead, jitter)|.

    Those of the first `num_earlier` requests are left out.
    """
    means = np.array([HTTP_SHARE, DISPATCH_SHARE, GROUP_SHARE]) * rules.fixed_overhead_s
    deviation = rules.overhead_jitter * rules.fixed_overhead_s
    if deviation == 0:
        yield from itertools.repeat((means[0].item(), means[1].item(), means[2].item()))
    generator = np.random.default_rng([_DELAY_STREAM, rules.seed])
    generator.normal(size=(num_earlier, 3))
    while True:
        block = np.abs(generator.normal(means, deviation, size=(_DRAWS_AT_ONCE, 3)))
        yield from zip(*block.T.tolist(), strict=True)


@dataclass(frozen=True)
class CreateInfo:
    """How to make a replica of a model.

    Attributes
    ----------
    model_def : callable
    init_args : tuple
    init_kwargs : dict
    """

    model_def: Callable[..., Any]
    init_args: tuple[Any, ...] = ()
    init_kwargs: dict[str, Any] = field(default_factory=dict)


class GroupManager:
    """A group of devices and the replicas on it.

    Parameters
    ----------
    group_id : int
    virtual_mesh_shape : (int, int), optional
        Hosts, devices per host; every replica brings devices of its own if left out.
    exclusive : bool
        Whether a request holds all devices from start to end.
    """

    def __init__(self, group_id: int, virtual_mesh_shape: Shape | None = None, exclusive: bool = False) -> None:
        self.group_id = group_id
        self.virtual_mesh = None if virtual_mesh_shape is None else VirtualMesh(virtual_mesh_shape)
        self.exclusive = exclusive
        self.replicas: dict[str, Any] = {}
        self._all_streams: tuple[str, ...] = ()
        # then requests pass every stage in the order in which they pass the first, and all stages can be kept for a
        # request as soon as the first is
        self._stages_are_shared = True

    def create_replica(self, name: str, create_info: CreateInfo) -> None:
        """Make a replica of a model on the devices of this group.

        Raises
        ------
        InvalidPlacementError
            If the group has one already.
        InvalidConfigError
            If what was made cannot handle requests.
        """
        if name in self.replicas:
            raise InvalidPlacementError(f"group {self.group_id} has a replica of {name!r} already")
        replica = create_info.model_def(*create_info.init_args, **create_info.init_kwargs)
        if not callable(getattr(replica, "handle_request", None)):
            raise InvalidConfigError(
                f"model {name!r}: {create_info.model_def!r} makes a {type(replica).__name__}, "
                "which has no handle_request"
            )
        if isinstance(replica, Executable):
            if self.virtual_mesh is None:
                self.virtual_mesh = replica.virtual_mesh
            else:
                replica.place_on(self.virtual_mesh)
            self._all_streams = tuple(gpu.stream_name for gpu in self.virtual_mesh.gpus)
        self.replicas[name] = replica
        stages = [other.stage_streams for other in self.replicas.values() if isinstance(other, Executable)]
        self._stages_are_shared = all(other == stages[0] for other in stages)

    def timing(self, name: str, rules: ServingRules) -> ReplicaTiming:
        """Return how long the replica of a model takes; a model that does not tell counts as taking no time.

        The rules change the times of an :class:`Executable` only: others take the time that they take.
        """
        replica = self.replicas[name]
        if isinstance(replica, Executable):
            return replica_timing(replica.profiling_result, replica.parallel_config, rules)
        if hasattr(replica, "get_latency_dict"):
            latencies = replica.get_latency_dict()
            if 1 not in latencies:
                raise InvalidConfigError(
                    f"model {name!r}: get_latency_dict() has no batch size 1, by which it is scheduled; it has "
                    f"{sorted(latencies)}"
                )
            return ReplicaTiming(tuple(map(float, latencies[1])))
        return ReplicaTiming((0.0,))

    def free_at(self, name: str) -> float:
        """Return when the replica could begin with a request: when its first stage is free, or the whole group."""
        replica = self.replicas[name]
        if not isinstance(replica, Executable):
            return 0.0
        streams = self._all_streams if self.exclusive else replica.stage_streams[0]
        free_at = current_loop().free_at
        return max(free_at.get(stream, 0.0) for stream in streams)

    async def handle_request(self, name: str, request: Any, stage_latency: Sequence[float], begin: float = 0.0) -> Any:
        """Have the replica of model `name` serve a request, not before `begin`.

        Returns
        -------
        object
            What the model answers; None from an :class:`Executable`.
        """
        replica = self.replicas[name]
        loop = current_loop()
        if not isinstance(replica, Executable):
            await sleep_until(begin)
            return await replica.handle_request(request)
        begin = max(begin, loop.now)
        if self.exclusive:
            await go_on_at(loop.reserve(self._all_streams, sum(stage_latency), begin))
            return None
        for streams, seconds in zip(replica.stage_streams, stage_latency, strict=True):
            begin = loop.reserve(streams, seconds, begin)
            if not self._stages_are_shared:
                await go_on_at(begin)
        if self._stages_are_shared:
            await go_on_at(begin)
        return None


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
        if not callable(model_def):
            raise InvalidConfigError(f"model {name!r}: model_def must be callable, got {model_def!r}")
        check_new_name(name, self.models, override)
        self.models[name] = CreateInfo(model_def, tuple(init_args or ()), dict(init_kwargs or {}))

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
