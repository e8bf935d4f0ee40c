"""The devices of a group, which serve on the real clock as the simulator says that they would."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from alpa_serve.device_layout import check_shape
from alpa_serve.errors import InvalidPlacementError, RequestRejectedError
from alpa_serve.runtime.models.batch_queue import BatchQueues, Waiting
from alpa_serve.runtime.models.sleeper import Sleeper
from alpa_serve.scheduling import Scheduler

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from alpa_serve.device_layout import Shape
    from alpa_serve.runtime.request import ServeRequest
    from alpa_serve.scheduling import ReplicaTiming, ServingRules

_GROUP = 0


class Service(NamedTuple):
    """When a request is served, in seconds of the event loop's clock.

    Attributes
    ----------
    arrival : float
        When it came to the group.
    begin, end : float
        When the first stage begins with it and the last is done with it.
    batch_size : int
    """

    arrival: float
    begin: float
    end: float
    batch_size: int


class EmulatedDevices:
    """The devices of a group: each stage serves one request, or one batch, at a time, in the order of arrival.

    All replicas of the group share them. Begin and end of each request are computed when it comes, or when its batch is
    taken, by the code of the simulators and on absolute times, so that no timer's lateness adds up. Who is dispatched
    and admitted is decided before a request comes here; only under batching the group itself rejects requests.

    The first replica says by which rules, and whether in batches, these devices serve; the others must agree.

    Parameters
    ----------
    shape : (int, int), optional
        Hosts, devices per host; if left out, as many devices as the replicas need.

    Raises
    ------
    InvalidPlacementError
        If `shape` is not two whole numbers >= 1.
    """

    def __init__(self, shape: Shape | None = None) -> None:
        self.shape = None if shape is None else check_shape(shape)
        self._rules: ServingRules | None = None
        self._scheduler: Scheduler | None = None
        self._batches: BatchQueues | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sleeper = Sleeper()

    def add_replica(
        self, replica: Hashable, timings: Mapping[int, ReplicaTiming], rules: ServingRules, num_devices: int = 1
    ) -> None:
        """Add a replica.

        Parameters
        ----------
        replica : hashable
            By which it is known here.
        timings : mapping of int to ReplicaTiming
            Its times by batch size, 1 among them; with others it is served in batches.
        rules : ServingRules
        num_devices : int
            Devices that it needs.

        Raises
        ------
        InvalidPlacementError
            If there are too few devices, the replica is there already, or the replicas before it have other rules or
            differ in whether they are served in batches.
        InvalidConfigError
            If the rules do not go with batches.
        """
        if self.shape is not None and self.shape[0] * self.shape[1] < num_devices:
            raise InvalidPlacementError(
                f"replica {replica!r} needs {num_devices} devices; a mesh of shape {self.shape} has "
                f"{self.shape[0] * self.shape[1]}"
            )
        in_batches = len(timings) > 1
        if self._rules is None:
            self._begin(rules, in_batches)
        elif rules != self._rules:
            raise InvalidPlacementError(
                f"replica {replica!r} has other rules than those before it in its group: {rules} and {self._rules}"
            )
        elif in_batches != (self._batches is not None):
            raise InvalidPlacementError(
                f"replica {replica!r} is served {'in batches' if in_batches else 'alone'} and those before it in its "
                "group are not; pass enable_batching=False to all, or give each a profile with several batch sizes"
            )
        if self._batches is not None:
            self._batches.add_model(replica, timings)
        elif self._scheduler is not None:
            self._scheduler.add_replica(replica, _GROUP, timings[1])

    def remove_replica(self, replica: Hashable) -> None:
        """Remove a replica; requests that came are served, and the stages stay busy with them.

        Raises
        ------
        InvalidPlacementError
            If it is not there.
        """
        if self._batches is not None:
            self._batches.remove_model(replica)
        elif self._scheduler is not None:
            self._scheduler.remove_replica(replica, _GROUP)
        else:
            raise InvalidPlacementError(f"there is no replica {replica!r}")

    async def start(
        self, replica: Hashable, request: ServeRequest, input_tokens: int = 0, output_tokens: int = 1
    ) -> Service:
        """Return when `request` is served, once that is known; sets its ``queue_s``.

        Cancelling it takes a request that waits for its batch out of the queue; a batch that was taken goes on.

        Raises
        ------
        RequestRejectedError
            If its batch could not meet its deadline.
        InvalidPlacementError
            If there is no such replica.
        """
        now = asyncio.get_running_loop().time()
        if self._batches is None:
            service = self._place(replica, now, input_tokens, output_tokens)
        else:
            service = await self._wait_for_batch(self._batches, replica, request, now, input_tokens, output_tokens)
        request.queue_s = service.begin - service.arrival
        return service

    async def sleep_until(self, when: float) -> None:
        """Return at `when`, in seconds of the event loop's clock, to a millisecond or so; at once if that is past."""
        await self._sleeper.sleep_until(when)

    def _begin(self, rules: ServingRules, in_batches: bool) -> None:
        if in_batches:
            self._batches = BatchQueues(rules)
        else:
            # the clock of a loop begins anywhere; these devices were never busy
            self._scheduler = Scheduler(
                replace(rules, admission="all", dispatch="least_loaded", queueing="per_group"), since=-math.inf
            )
            self._scheduler.add_group(_GROUP)
        self._rules = rules

    def _place(self, replica: Hashable, now: float, input_tokens: int, output_tokens: int) -> Service:
        placed = None
        if self._scheduler is not None:
            placed = self._scheduler.place(replica, now, math.inf, input_tokens, output_tokens)
        if placed is None:
            raise InvalidPlacementError(f"there is no replica {replica!r}")
        return Service(now, placed.begin, placed.end, 1)

    async def _wait_for_batch(
        self,
        batches: BatchQueues,
        replica: Hashable,
        request: ServeRequest,
        now: float,
        input_tokens: int,
        output_tokens: int,
    ) -> Service:
        # what was due before this request came is taken without it, however late the timer is
        self._take_batches(batches, now)
        # it was sent on the clock of the day, which may be set; never after it came
        sent = now - max(time.time() - request.sent, 0.0)
        decided: asyncio.Future[Service] = asyncio.get_running_loop().create_future()
        waiting = Waiting(now, sent, request.slo, input_tokens, output_tokens, decided)
        batches.join(replica, waiting)
        self._take_batches(batches, now)
        try:
            return await decided
        except asyncio.CancelledError:
            batches.leave(replica, waiting)
            raise

    def _take_batches(self, batches: BatchQueues, now: float) -> None:
        for batch in batches.take(now):
            for request in batch.dropped:
                _decide(request, RequestRejectedError(_TOO_LATE))
            for request in batch.taken:
                _decide(request, Service(request.arrival, batch.begin, batch.end, len(batch.taken)))
        following = batches.next_at()
        if self._timer is not None:
            if self._timer.when() == following:
                return
            self._timer.cancel()
            self._timer = None
        if following is not None:
            self._timer = asyncio.get_running_loop().call_at(following, self._on_timer, batches)

    def _on_timer(self, batches: BatchQueues) -> None:
        self._timer = None
        self._take_batches(batches, asyncio.get_running_loop().time())


_TOO_LATE = "the request would miss its SLO even alone and at once when its group was free for it"


def _decide(request: Waiting, outcome: Service | RequestRejectedError) -> None:
    """Tell the coroutine that waits for it, unless that has gone."""
    decided: asyncio.Future[Service] = request.tag
    if decided.done():
        return
    if isinstance(outcome, Service):
        decided.set_result(outcome)
    else:
        decided.set_exception(outcome)
