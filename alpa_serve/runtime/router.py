"""Which group a request goes to, on the real clock, and what becomes of it when a group dies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from alpa_serve.errors import (
    GroupLostError,
    InvalidRequestError,
    ModelNotFoundError,
    OverloadedError,
    RequestRejectedError,
    RequestTimeoutError,
)
from alpa_serve.runtime.course import Course
from alpa_serve.runtime.dispatcher import Health, ModelCard
from alpa_serve.runtime.in_flight import InFlight
from alpa_serve.runtime.metrics import ServingMetrics, outcome_of
from alpa_serve.runtime.request import LONGEST_CONTEXT, shown, too_long
from alpa_serve.runtime.routing_table import GroupDiedError, RoutingTable
from alpa_serve.scheduling import Scheduler
from alpa_serve.scheduling.rules import WAY_IN_SHARE
from alpa_serve.scheduling.stage_clocks import choose_replica

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from alpa_serve.runtime.reply import Reply
    from alpa_serve.runtime.request import ServeRequest
    from alpa_serve.runtime.routing_table import GroupRoute, ModelRoute
    from alpa_serve.runtime.settings import ServerSettings
    from alpa_serve.scheduling import ServingRules


class RequestRouter:
    """Has requests answered by the groups of a routing table.

    Dispatch and admission are the simulator's (:class:`~alpa_serve.scheduling.Scheduler`), on the clocks of the stages,
    for models whose replicas say how long they take; others go where the fewest requests are in flight. A request whose
    group dies goes to another one, or waits for one to come up.

    Parameters
    ----------
    rules : ServingRules
    settings : ServerSettings
    on_group_lost : callable
        Told the uid of a group that was found dead.

    Attributes
    ----------
    in_flight : InFlight
    """

    def __init__(self, rules: ServingRules, settings: ServerSettings, on_group_lost: Callable[[int], None]) -> None:
        self.in_flight = InFlight()
        self._rules = rules
        self._settings = settings
        self._on_group_lost = on_group_lost
        self._scheduler = Scheduler(rules, since=time.monotonic())
        # what of the overhead lies behind a request when it comes here; it is not to be counted twice
        self._way_in_s = WAY_IN_SHARE * rules.fixed_overhead_s
        self._holds_back = rules.queueing == "global_fifo" or rules.dispatch_interval_s > 0
        self._table = RoutingTable(0)
        self._models: dict[str, ModelRoute] = {}
        self._groups: dict[int, GroupRoute] = {}
        self._lost: set[int] = set()
        self._routes: dict[str, list[GroupRoute]] = {}
        self._is_timed: dict[str, bool] = {}
        self._num_waiting = 0
        self._changed = asyncio.Event()
        self._is_draining = False
        self._metrics = ServingMetrics()
        self._reported: Iterable[tuple[str, str]] = ()

    # ---- what the controller tells ----------------------------------------------------------------------------------

    def apply(self, table: RoutingTable) -> None:
        """Send requests by this table from now on, unless a newer one is here already."""
        if table.version <= self._table.version:
            return
        self._table = table
        self._models = {model.name: model for model in table.models}
        for name in self._models:
            self._metrics.add_model(name)
        self._lost &= {route.uid for route in table.groups}
        self._set_groups({route.uid: route for route in table.groups if route.uid not in self._lost})

    def lose(self, uid: int) -> None:
        """Send no request to a group that was found dead."""
        if uid not in self._groups:
            return
        self._lost.add(uid)
        self._set_groups({other: route for other, route in self._groups.items() if other != uid})
        self._on_group_lost(uid)

    def drain(self) -> None:
        """Take no new requests from now on; those that wait for a group to come up wait no longer."""
        self._is_draining = True
        self._have_waiting_look_again()

    def _have_waiting_look_again(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _set_groups(self, groups: dict[int, GroupRoute]) -> None:
        for uid in self._groups.keys() - groups.keys():
            self._scheduler.remove_group(uid)
        for uid in sorted(groups):
            known = self._groups.get(uid)
            if known is None:
                self._scheduler.add_group(uid, since=time.monotonic())
            before, after = {} if known is None else known.timings, groups[uid].timings
            for model, timing in before.items():
                if timing is not None and after.get(model) != timing:
                    self._scheduler.remove_replica(model, uid)
            for model, timing in after.items():
                if timing is not None and before.get(model) != timing:
                    self._scheduler.add_replica(model, uid, timing)
        self._groups = groups
        self._routes = {}
        for uid in sorted(groups):
            for model in groups[uid].timings:
                self._routes.setdefault(model, []).append(groups[uid])
        self._is_timed = {
            model: all(route.timings[model] is not None for route in routes) for model, routes in self._routes.items()
        }
        self._have_waiting_look_again()

    # ---- what the HTTP server asks ----------------------------------------------------------------------------------

    async def answer(self, request: ServeRequest) -> Any:
        """Return what the model answers (:class:`~alpa_serve.runtime.dispatcher.Dispatcher`)."""
        course = Course(request, self._settings.request_timeout_s)
        try:
            while True:
                route = await self._next_route(course)
                try:
                    reply = await self._handle(route, course)
                except GroupDiedError:
                    course.deaths += 1
                    self.lose(route.uid)
                    continue
                if not isinstance(reply.error, GroupLostError):
                    break
                course.absent.add(route.uid)
            if reply.error is not None:
                raise reply.error
        except BaseException as error:
            self._observe(course, error)
            raise
        self._observe(course, None, reply.queue_s)
        return reply.answer

    async def stream(self, request: ServeRequest) -> AsyncIterator[Any]:
        """Yield what the model answers piece by piece (:class:`~alpa_serve.runtime.dispatcher.Dispatcher`)."""
        course = Course(request, self._settings.request_timeout_s)
        queue_s = 0.0
        has_begun = False
        try:
            while not has_begun:
                route = await self._next_route(course)
                try:
                    async with aclosing(self._pieces(route, course)) as pieces:
                        async for reply in pieces:
                            if isinstance(reply.error, GroupLostError) and not has_begun:
                                course.absent.add(route.uid)
                                break
                            if reply.error is not None:
                                raise reply.error
                            if not has_begun:
                                self._metrics.observe_first_token(request.model, time.monotonic() - course.sent)
                            has_begun = True
                            queue_s = reply.queue_s
                            yield reply.answer
                        else:
                            has_begun = True
                except GroupDiedError:
                    course.deaths += 1
                    self.lose(route.uid)
                    if has_begun:
                        raise GroupLostError("the group that was answering died") from None
        except BaseException as error:
            self._observe(course, error, queue_s)
            raise
        self._observe(course, None, queue_s)

    def model_cards(self) -> list[ModelCard]:
        """Return the models that are registered, in the order of registration."""
        return [ModelCard(model.name, model.created) for model in self._table.models]

    def health(self) -> Health:
        """Return whether all groups are up that are to be."""
        num_groups = self._table.num_groups
        num_up = sum(not route.is_leaving for route in self._groups.values())
        if self._is_draining:
            status = "draining"
        elif self._table.is_starting:
            status = "starting"
        elif num_up >= num_groups:
            status = "ok"
        else:
            status = "degraded" if num_up else "unavailable"
        return Health(status, num_up, num_groups)

    def count_error(self, status: int) -> None:
        """Note an answer of this HTTP status, 400 or more."""
        self._metrics.count_error(status)

    def metrics(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        # replicas that went have none; a group that leaves may have the number of one that came
        counts = dict.fromkeys(self._reported, 0)
        for route in self._groups.values():
            for model in route.timings:
                key = model, str(route.group_id)
                counts[key] = counts.get(key, 0) + self.in_flight.of_replica(route.uid, model)
            self._metrics.set_group_restarts(str(route.group_id), route.num_restarts)
        for (model, group), count in counts.items():
            self._metrics.set_in_flight(model, group, count)
        self._reported = counts.keys()
        return self._metrics.render()

    # ---- one request ------------------------------------------------------------------------------------------------

    async def _handle(self, route: GroupRoute, course: Course) -> Reply:
        model = course.request.model
        try:
            await self._hold_back(course)
            reply = await route.group.handle(model, course.request, course.remaining())
        finally:
            self.in_flight.leave(route.uid, model)
        self._settle(route, course, reply)
        return reply

    async def _pieces(self, route: GroupRoute, course: Course) -> AsyncGenerator[Reply, None]:
        model = course.request.model
        pieces: AsyncIterator[Reply] | None = None
        try:
            await self._hold_back(course)
            pieces = route.group.stream(model, course.request, self._settings.request_timeout_s)
            try:
                first = await asyncio.wait_for(_next_of(pieces), course.remaining())
            except asyncio.TimeoutError:
                raise RequestTimeoutError(f"model {model!r} did not begin its answer in time") from None
            if first is not None:
                self._settle(route, course, first)
                yield first
                async for reply in pieces:
                    self._settle(route, course, reply)
                    yield reply
        finally:
            self.in_flight.leave(route.uid, model)
            # a client that is gone is to free its group now, not when Python clears up
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()

    def _settle(self, route: GroupRoute, course: Course, reply: Reply) -> None:
        """Have the clocks of a group agree with what it replied: errors take no time, and nothing to do is nothing."""
        now = time.monotonic()
        if reply.error is not None and course.booked is not None:
            self._scheduler.give_back(course.booked, now)
            course.booked = None
        if not self.in_flight.of_group(route.uid):
            self._scheduler.set_idle(route.uid, now)

    async def _hold_back(self, course: Course) -> None:
        """Wait until a request is to begin, under rules by which that is not for its group to decide.

        Raises
        ------
        RequestTimeoutError
            If it may not take that long.
        """
        if self._holds_back:
            await asyncio.sleep(max(0.0, min(course.begin, course.deadline) - time.monotonic()))
            if course.begin > course.deadline:
                raise RequestTimeoutError(f"model {course.request.model!r} could not begin in time")
        course.given = time.monotonic()

    async def _next_route(self, course: Course) -> GroupRoute:
        """Return the group that takes a request now, and count it there; wait for one while there is none.

        Raises
        ------
        ServingError
            Why no group takes it.
        """
        if self._is_draining and course.attempts == 0:
            raise OverloadedError("the service is shutting down")
        if course.attempts >= self._settings.max_attempts:
            absent = course.attempts - course.deaths
            raise GroupLostError(f"no group answered: of those asked, {course.deaths} died, {absent} had no replica")
        course.attempts += 1
        until = min(time.monotonic() + self._settings.recovery_timeout_s, course.deadline)
        while True:
            self._check_is_served(course.request.model)
            changed = self._changed
            chosen = self._choose(course)
            if chosen is not None:
                # from here on it counts as in flight: its group waits for it before it ends
                self.in_flight.enter(chosen.uid, course.request.model)
                course.route = chosen
                return chosen
            if self._is_draining:
                raise OverloadedError("the service is shutting down, and no group that holds the model is up")
            await self._wait_for(changed, course.request.model, until)

    def _check_is_served(self, name: str) -> None:
        model = self._models.get(name)
        if model is None:
            raise ModelNotFoundError(f"no model {shown(name)}; /v1/models lists those that there are")
        if name not in self._routes and not model.is_placed:
            raise GroupLostError(f"no group holds model {name!r}")

    async def _wait_for(self, changed: asyncio.Event, model: str, until: float) -> None:
        if self._num_waiting >= self._settings.max_queue:
            raise OverloadedError("as many requests wait for a group as may wait")
        self._num_waiting += 1
        try:
            await asyncio.wait_for(changed.wait(), max(0.0, until - time.monotonic()))
        except asyncio.TimeoutError:
            raise GroupLostError(f"no group that holds model {model!r} came up in time") from None
        finally:
            self._num_waiting -= 1

    def _choose(self, course: Course) -> GroupRoute | None:
        """Return the group for a request; None if no group that holds its model is up.

        Raises
        ------
        OverloadedError
            If all that hold it have as many requests as they may have.
        RequestRejectedError
            If it cannot meet its SLO.
        """
        request = course.request
        routes = self._routes.get(request.model)
        if not routes:
            return None
        in_flight = self.in_flight.of_group
        limit = self._settings.max_queue
        excluded = [route.uid for route in routes if in_flight(route.uid) >= limit]
        if len(excluded) == len(routes):
            raise OverloadedError(f"every group that holds model {request.model!r} has {limit} requests")
        if any(route.uid not in course.absent and route.uid not in excluded for route in routes):
            excluded += course.absent
        now = time.monotonic()
        if not self._is_timed[request.model]:
            free = [route for route in routes if route.uid not in excluded]
            loads = {route.uid: in_flight(route.uid) for route in free}
            course.begin = now
            course.booked = None
            return free[choose_replica(loads, [route.uid for route in free], 0, len(free), -1.0)]
        inputs, outputs = self._tokens(course)
        came = max(course.sent, now - self._way_in_s)
        assignment = self._scheduler.place(
            request.model, came, request.slo, inputs, outputs, course.sent, excluded=excluded
        )
        if assignment is None:
            return None
        route = self._groups[assignment.group_id]
        if not assignment.admitted:
            course.route = route
            raise RequestRejectedError(f"the SLO of {request.slo:g} s cannot be met")
        course.begin = assignment.begin
        course.booked = assignment
        return route

    def _tokens(self, course: Course) -> tuple[int, int]:
        request = course.request
        if self._rules.service == "tokens" and (request.input_tokens is None or request.output_tokens is None):
            raise InvalidRequestError(
                f'model {request.model!r} is timed by tokens: "input_tokens" and "output_tokens" must be given'
            )
        inputs = request.input_tokens or 0
        outputs = 1 if request.output_tokens is None else request.output_tokens
        if self._rules.service == "tokens" and inputs + outputs > LONGEST_CONTEXT:
            # before its time is booked, which would be years
            raise InvalidRequestError(too_long(request.model, inputs, outputs))
        return inputs, outputs

    def _observe(self, course: Course, error: BaseException | None, queue_s: float = 0.0) -> None:
        """Count a request in the metrics."""
        request = course.request
        now = time.monotonic()
        self._metrics.observe(
            request.model,
            "" if course.route is None else str(course.route.group_id),
            outcome_of(error),
            latency_s=now - course.sent,
            queue_s=course.given - course.came + queue_s,
            slo_s=request.slo,
        )


async def _next_of(pieces: AsyncIterator[Reply]) -> Reply | None:
    """Return the next piece; None if there is none."""
    async for reply in pieces:
        return reply
    return None
