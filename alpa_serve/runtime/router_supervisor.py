"""The router's process, as the controller starts it, talks to it, and replaces it when it died."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from alpa_serve.errors import AlpaServeError, OverloadedError
from alpa_serve.runtime.group_process import MAX_CONCURRENCY
from alpa_serve.runtime.origin import NAMESPACE
from alpa_serve.runtime.ray_calls import cause_of, is_alive
from alpa_serve.runtime.router_actor import Router

if TYPE_CHECKING:
    from alpa_serve.runtime.controller_state import ControllerState
    from alpa_serve.runtime.origin import Origin
    from alpa_serve.runtime.reply import Reply
    from alpa_serve.runtime.request import ServeRequest
    from alpa_serve.runtime.routing_table import RoutingTable
    from alpa_serve.runtime.settings import ServerSettings
    from alpa_serve.runtime.snapshots import Snapshot
    from alpa_serve.scheduling import ServingRules

logger = logging.getLogger(__name__)

DRAIN_ATTEMPTS = 3
"""How often the router is asked whether a group is drained, when it dies or cannot be reached meanwhile."""


class RouterSupervisor:
    """Keeps one router alive that listens and knows the newest table.

    Parameters
    ----------
    state : ControllerState
        What the router is told; its ``router_uid`` and ``port`` are those of the router.
    origin : Origin
    rules : ServingRules
        How the cluster serves.
    settings : ServerSettings
    node_id : str
        Ray's name of the node on which the router listens.

    Attributes
    ----------
    actor : ActorHandle or None
        The present router.
    """

    def __init__(
        self, state: ControllerState, origin: Origin, rules: ServingRules, settings: ServerSettings, node_id: str
    ) -> None:
        self.actor: Any = None
        self._state = state
        self._origin = origin
        self._rules = rules
        self._settings = settings
        self._node_id = node_id
        self._lock = asyncio.Lock()
        self._is_behind = False
        self._is_closed = False

    @property
    def name(self) -> str:
        """Name of the router's actor in Ray."""
        return f"{self._origin.prefix}router-{self._state.router_uid}"

    async def check(self) -> None:
        """Start a router if there is none that lives; tell one that lives what did not reach it.

        Raises
        ------
        InvalidConfigError
            If it cannot listen on its address.
        OverloadedError
            If the service is shut down.
        """
        async with self._lock:
            if self.actor is not None and await is_alive(self.actor):
                if self._is_behind:
                    await self._apply(*self._state.publish())
                return
            if self._is_closed:
                raise OverloadedError("the service is shutting down")
            if self.actor is not None:
                logger.warning("the router died and is started anew")
                ray.kill(self.actor)
            await self._start()

    async def keep(self) -> None:
        """See to it that there is a router that listens; where that fails, it is tried again soon."""
        try:
            await self.check()
            # a controller may have died before it told the router to
            self._state.port = await self.actor.listen.remote()
        except (AlpaServeError, RayError):
            logger.exception("the router could not be started anew")

    async def apply(self, table: RoutingTable, snapshot: Snapshot) -> None:
        """Tell the router what there is now; if it cannot be reached, it is told as soon as it can."""
        try:
            await self._apply(table, snapshot)
        except RayActorError:
            await self.keep()

    async def drained(self, uid: int, model: str | None) -> None:
        """Wait until a group has no request any more, or none for `model`, as long as a request may take."""
        timeout_s = self._settings.request_timeout_s
        for _ in range(DRAIN_ATTEMPTS):
            try:
                if not await self.actor.drained.remote(uid, model, timeout_s):
                    logger.warning("a group still had requests after %g s", timeout_s)
                return
            except RayActorError:
                # the requests of a router that died are gone with it, but it may be out of reach only
                await self.keep()

    async def answer(self, request: ServeRequest) -> Reply:
        """Have the router have a request answered; once more if it dies meanwhile."""
        try:
            reply: Reply = await self.actor.handle_request.remote(request)
        except RayActorError:
            await self.check()
            reply = await self.actor.handle_request.remote(request)
        return reply

    async def stop(self) -> None:
        """Answer what was asked, then end the router; none is started any more."""
        self._is_closed = True
        if self.actor is None:
            return
        try:
            await self.actor.stop.remote(self._settings.drain_timeout_s)
        except RayActorError:
            logger.warning("the router died while it was shut down")
        except RayError:
            # the groups, and their devices, must be given back whatever happened
            logger.exception("the router failed while it was shut down")
        ray.kill(self.actor)

    async def _start(self) -> None:
        state = self._state
        state.router_uid = state.new_number()
        settings = self._settings if state.port is None else replace(self._settings, port=state.port)
        actor = ray.remote(Router).options(
            name=self.name,
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_restarts=0,
            max_concurrency=MAX_CONCURRENCY,
            scheduling_strategy=NodeAffinitySchedulingStrategy(self._node_id, soft=False),
        )
        self.actor = actor.remote(self._origin, self._rules, settings)
        # whoever connects is to find every model
        await self._apply(*state.publish())
        try:
            state.port = await self.actor.listen.remote()
        except RayTaskError as error:
            ray.kill(self.actor)
            raise cause_of(error) from None

    async def _apply(self, table: RoutingTable, snapshot: Snapshot) -> None:
        try:
            await self.actor.apply.remote(table, snapshot)
        except RayError:
            self._is_behind = True
            raise
        self._is_behind = False
