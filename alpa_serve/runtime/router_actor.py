"""The process that listens on HTTP and sends requests to groups; runs as a Ray actor."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any

import ray

from alpa_serve.errors import RequestRejectedError, ServingError
from alpa_serve.runtime.http.app import build_app
from alpa_serve.runtime.http.server import HttpServer
from alpa_serve.runtime.origin import exit_if_orphaned
from alpa_serve.runtime.reply import Reply
from alpa_serve.runtime.router import RequestRouter
from alpa_serve.runtime.snapshots import Snapshot, SnapshotKeeper

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from alpa_serve.runtime.origin import Origin
    from alpa_serve.runtime.request import ServeRequest
    from alpa_serve.runtime.routing_table import RoutingTable
    from alpa_serve.runtime.settings import ServerSettings
    from alpa_serve.scheduling import ServingRules

logger = logging.getLogger(__name__)


class Router:
    """Listens on HTTP, and has the requests answered by the groups that the controller names.

    It goes on while the controller is being restarted, and keeps what its successor needs.

    Parameters
    ----------
    origin : Origin
        The controller that it belongs to; without it, the router ends.
    rules : ServingRules
        How the cluster serves.
    settings : ServerSettings
    """

    def __init__(self, origin: Origin, rules: ServingRules, settings: ServerSettings) -> None:
        self._origin = origin
        self._settings = settings
        self._router = RequestRouter(rules, settings, self._report_lost)
        self._snapshots = SnapshotKeeper()
        self._server: HttpServer | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        # requests that came over Ray; the HTTP server knows of its own
        self._answering: set[asyncio.Task[Any]] = set()
        self._spawn(exit_if_orphaned(origin))

    async def listen(self) -> int:
        """Begin to listen; return the port.

        Raises
        ------
        InvalidConfigError
            If the address cannot be listened on.
        """
        if self._server is None:
            self._server = HttpServer(build_app(self._router, self._settings), self._settings)
            self._spawn(self._server.serve())
        return self._server.port

    async def apply(self, table: RoutingTable, snapshot: Snapshot) -> None:
        """Send requests by this table from now on, and keep what the controller knows."""
        self._snapshots.keep(snapshot)
        self._router.apply(table)

    async def drained(self, uid: int, model: str | None, timeout_s: float) -> bool:
        """Wait until a group has no request any more, or none for `model`; return whether it came to that in time."""
        try:
            await asyncio.wait_for(self._router.in_flight.drained(uid, model), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True

    async def handle_request(self, request: ServeRequest) -> Reply:
        """Have a request answered that came over Ray."""
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        try:
            return Reply(await self._router.answer(request))
        except RequestRejectedError:
            return Reply({"rejected": True})
        except ServingError as error:
            return Reply(None, error)

    async def stop(self, drain_timeout_s: float) -> None:
        """Take no new requests, wait for those that are being answered, and listen no more."""
        self._router.drain()
        waits: list[Awaitable[Any]] = [] if self._server is None else [self._server.stop(drain_timeout_s)]
        if self._answering:
            waits.append(asyncio.wait(self._answering, timeout=drain_timeout_s))
        await asyncio.gather(*waits)

    async def ping(self) -> int:
        """Return the number of this process."""
        return os.getpid()

    async def kept(self) -> Snapshot | None:
        """Return what the controller last knew."""
        return self._snapshots.newest

    def _report_lost(self, uid: int) -> None:
        self._spawn(asyncio.to_thread(self._tell_controller, uid))

    def _tell_controller(self, uid: int) -> None:
        try:
            ray.get_actor(self._origin.controller_name).group_lost.remote(uid)
        except (ValueError, ray.exceptions.RayError):
            # it will find out by itself
            logger.info("group process %d died while there was no controller", uid)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task of the router failed", exc_info=task.exception())
