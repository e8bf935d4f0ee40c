"""The processes of the runtime, as the controller starts, changes, finds again and ends them."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from alpa_serve.errors import (
    AlpaServeError,
    GroupLostError,
    InfeasiblePlacementError,
    InvalidConfigError,
    InvalidPlacementError,
    OverloadedError,
    ServingError,
)
from alpa_serve.runtime.controller_state import RESTARTING, UP, ControllerState, GroupInfo, ReplicaInfo
from alpa_serve.runtime.group_process import MAX_CONCURRENCY, GroupProcess, placement_groups
from alpa_serve.runtime.origin import NAMESPACE
from alpa_serve.runtime.ray_calls import cause_of, free_resources, future_of, is_alive, pickled_by_value
from alpa_serve.runtime.router_actor import Router
from alpa_serve.scheduling.registry import CreateInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alpa_serve.device_layout import Shape
    from alpa_serve.profiling import ParallelConfig
    from alpa_serve.runtime.origin import Origin
    from alpa_serve.runtime.reply import Reply
    from alpa_serve.runtime.request import ServeRequest
    from alpa_serve.runtime.settings import ServerSettings
    from alpa_serve.runtime.snapshots import Snapshot
    from alpa_serve.scheduling import ReplicaTiming, ServingRules

logger = logging.getLogger(__name__)

PEER_TIMEOUT_S = 5.0
"""How long a process may take to tell what a dead controller knew."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""How long to wait before a group that could not be restarted is tried again: at first, and at most."""


class Cluster:
    """The router and the groups of one controller.

    Parameters
    ----------
    origin : Origin
    rules : ServingRules
        How groups serve.
    settings : ServerSettings
    node_id : str
        Ray's name of the node on which the router listens.

    Attributes
    ----------
    state : ControllerState
    """

    def __init__(self, origin: Origin, rules: ServingRules, settings: ServerSettings, node_id: str) -> None:
        self.state = ControllerState()
        self.settings = settings
        self._origin = origin
        self._rules = rules
        self._node_id = node_id
        self._router: Any = None
        self._router_lock = asyncio.Lock()
        self._recoveries: set[asyncio.Task[None]] = set()
        self._is_closed = False

    # ---- as a whole -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Go on where a dead controller of the same run left off, or begin."""
        peers = await asyncio.to_thread(self._peers)
        newest = await self._newest_snapshot(peers)
        if newest is not None:
            self.state = ControllerState.restored(newest, self._origin)
            logger.warning("the controller goes on with version %d of what it knew", newest.version)
            self._router = peers.pop(self.router_name, None)
        groups = self.state.all_groups()
        devices = await asyncio.to_thread(placement_groups, self._origin.prefix)
        # what was started, but not noted any more before the controller died, has numbers, too
        self.state.skip_numbers(int(name.rpartition("-")[2]) for name in [*peers, *devices])
        for name in peers.keys() - {group.process.actor_name(group.uid) for group in groups}:
            ray.kill(peers[name])
        for name in devices.keys() - {group.process.placement_group_name for group in groups}:
            await asyncio.to_thread(remove_placement_group, devices[name])
        found = await asyncio.gather(*(group.process.find(group.uid) for group in groups))
        lost = [group for group, is_there in zip(groups, found, strict=True) if not is_there or group.state != UP]
        for group in lost:
            group.state = RESTARTING
        if newest is None:
            await self.check_router()
        else:
            await self._keep_router()
        for group in lost:
            self.recover(group)
        await self.publish()

    async def close(self) -> None:
        """Answer what was asked, then end every process, and give the devices back."""
        self._is_closed = True
        recoveries = list(self._recoveries)
        for task in recoveries:
            task.cancel()
        await asyncio.gather(*recoveries, return_exceptions=True)
        if self._router is not None:
            try:
                await self._router.stop.remote(self.settings.drain_timeout_s)
            except RayActorError:
                logger.warning("the router died while it was shut down")
            ray.kill(self._router)
        groups = self.state.all_groups()
        for group in groups:
            group.is_wanted = False
        await asyncio.gather(*(group.process.release() for group in groups))
        self.state.groups.clear()
        self.state.leaving.clear()
        self.state.models.clear()

    def _peers(self) -> dict[str, Any]:
        """Return the processes that there are, by name."""
        peers = {}
        for found in ray.util.list_named_actors(all_namespaces=True):
            name = found["name"]
            if found["namespace"] == NAMESPACE and name.startswith(self._origin.prefix):
                try:
                    peers[name] = ray.get_actor(name, NAMESPACE)
                except ValueError:
                    continue
        return peers

    async def _newest_snapshot(self, peers: Mapping[str, Any]) -> Snapshot | None:
        async def kept(peer: Any) -> Snapshot | None:
            try:
                found: Snapshot | None = await asyncio.wait_for(future_of(peer.kept.remote()), PEER_TIMEOUT_S)
            except (RayError, asyncio.TimeoutError):
                return None
            return found

        snapshots = [snapshot for snapshot in await asyncio.gather(*map(kept, peers.values())) if snapshot is not None]
        return max(snapshots, key=lambda snapshot: snapshot.version, default=None)

    # ---- the router -------------------------------------------------------------------------------------------------

    @property
    def router_name(self) -> str:
        """Name of the router's actor in Ray."""
        return f"{self._origin.prefix}router-{self.state.router_uid}"

    async def check_router(self) -> None:
        """Start a router if there is none that lives.

        Raises
        ------
        InvalidConfigError
            If it cannot listen on its address.
        OverloadedError
            If the service is shut down.
        """
        async with self._router_lock:
            if self._router is not None and await is_alive(self._router):
                return
            if self._is_closed:
                raise OverloadedError("the service is shutting down")
            if self._router is not None:
                logger.warning("the router died and is started anew")
                ray.kill(self._router)
            self.state.router_uid = self.state.new_number()
            settings = self.settings if self.state.port is None else replace(self.settings, port=self.state.port)
            actor = ray.remote(Router).options(
                name=self.router_name,
                namespace=NAMESPACE,
                lifetime="detached",
                num_cpus=0,
                max_restarts=0,
                max_concurrency=MAX_CONCURRENCY,
                scheduling_strategy=NodeAffinitySchedulingStrategy(self._node_id, soft=False),
            )
            self._router = actor.remote(self._origin, self._rules, settings)
            # whoever connects is to find every model
            await self._router.apply.remote(*self.state.publish())
            try:
                self.state.port = await self._router.listen.remote()
            except RayTaskError as error:
                ray.kill(self._router)
                raise cause_of(error) from None

    async def _keep_router(self) -> None:
        """See to it that there is a router that listens; where that fails, it is tried again soon."""
        try:
            await self.check_router()
            # a controller may have died before it told the router to
            self.state.port = await self._router.listen.remote()
        except (AlpaServeError, RayError):
            logger.exception("the router could not be started anew")

    async def publish(self) -> None:
        """Tell the router and, for a successor, all groups what there is now."""
        table, snapshot = self.state.publish()
        for group in self.state.all_groups():
            if group.state == UP and group.process.actor is not None:
                group.process.actor.keep.remote(snapshot)
        try:
            await self._router.apply.remote(table, snapshot)
        except RayActorError:
            await self._keep_router()

    async def answer(self, request: ServeRequest) -> Reply:
        """Have the router have a request answered; once more if it dies meanwhile."""
        try:
            reply: Reply = await self._router.handle_request.remote(request)
        except RayActorError:
            await self.check_router()
            reply = await self._router.handle_request.remote(request)
        return reply

    # ---- groups -----------------------------------------------------------------------------------------------------

    def new_group(
        self,
        group_id: int,
        shape: Shape | None,
        bundles: list[dict[str, float]],
        config: ParallelConfig | None = None,
    ) -> GroupInfo:
        """Return a group that is not started yet."""
        uid, slot = self.state.new_number(), self.state.new_number()
        return GroupInfo(group_id, uid, shape, config, GroupProcess(self._origin, slot, shape, bundles))

    async def start_group(self, group: GroupInfo) -> None:
        """Start the process of a new group; the caller has its lock.

        Raises
        ------
        InfeasiblePlacementError
            If the cluster has no room for it in time.
        """
        timeout_s = self.settings.devices_timeout_s
        try:
            await group.process.start(group.uid, group.group_id, self._rules, timeout_s)
        except asyncio.TimeoutError:
            await group.process.release()
            raise InfeasiblePlacementError(
                f"group {group.group_id}: the Ray cluster has no room for {group.process.bundles} within "
                f"{timeout_s:g} s; it has {free_resources()} free"
            ) from None
        except BaseException:
            await group.process.release()
            raise
        if self._is_closed:
            await group.process.release()
            raise ServingError(f"group {group.group_id}: the service was shut down meanwhile")
        group.state = UP

    async def remove_group(self, group: GroupInfo) -> None:
        """Have a group answer what it has been given, then end it; requests must not be routed to it any more."""
        group.is_wanted = False
        await self._drained(group.uid, None)
        async with group.lock:
            await group.process.release()

    async def _drained(self, uid: int, model: str | None) -> None:
        timeout = self.settings.drain_timeout_s
        try:
            if not await self._router.drained.remote(uid, model, timeout):
                logger.warning("a group still had requests after %g s", timeout)
        except RayActorError:
            # with the router, its requests are gone
            await self._keep_router()

    # ---- replicas ---------------------------------------------------------------------------------------------------

    async def make_replica(
        self, group: GroupInfo, name: str, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None
    ) -> None:
        """Make a replica of a registered model; the caller has the lock of the group.

        Raises
        ------
        InvalidPlacementError
            If the group has one already.
        InvalidConfigError
            If the model cannot be made; the message has its error.
        GroupLostError
            If the process dies meanwhile.
        """
        if name in group.replicas:
            raise InvalidPlacementError(f"group {group.group_id} has a replica of {name!r} already")
        if name not in self.state.models:
            raise InvalidPlacementError(f"replica of {name!r}: the model was deleted meanwhile")
        info = self.state.models[name].create_info
        complete = CreateInfo(
            info.model_def, (*info.init_args, *(args or ())), {**info.init_kwargs, **dict(kwargs or {})}
        )
        pickled = pickled_by_value(complete)
        timing = await self._create(group, name, pickled)
        group.replicas[name] = ReplicaInfo(pickled, timing)

    async def _create(self, group: GroupInfo, name: str, pickled: bytes) -> ReplicaTiming | None:
        try:
            timing: ReplicaTiming | None = await group.process.actor.create_replica.remote(name, pickled)
        except RayActorError as error:
            raise GroupLostError(f"group {group.group_id} died while it made a replica of {name!r}") from error
        except RayTaskError as error:
            cause = cause_of(error)
            if isinstance(cause, AlpaServeError):
                raise cause from None
            raise InvalidConfigError(
                f"model {name!r} cannot be made in group {group.group_id}: {type(cause).__name__}: {cause}"
            ) from None
        return timing

    async def remove_replica(self, group: GroupInfo, name: str) -> None:
        """Have a replica answer what it has been given, then let go of it; the caller has the lock of the group."""
        if group.replicas.pop(name, None) is None:
            return
        await self.publish()
        await self._drained(group.uid, name)
        try:
            await group.process.actor.delete_replica.remote(name)
        except RayTaskError as error:
            logger.warning("model %r could not be closed", name, exc_info=error)
        except RayActorError:
            logger.info("group %d died; its replica of %r is gone with it", group.group_id, name)

    async def warm_up(self, group: GroupInfo) -> None:
        """Measure how long the replicas of a group take in proportion to their profiles."""
        async with group.lock:
            for name, known in group.replicas.items():
                try:
                    scale = await group.process.actor.warmup.remote(name)
                except RayError as error:
                    logger.warning("model %r could not be warmed up in group %d", name, group.group_id, exc_info=error)
                    continue
                if scale is not None:
                    known.latency_scale = scale

    # ---- faults -----------------------------------------------------------------------------------------------------

    async def check(self) -> None:
        """See whether every process is alive; start anew what is not."""
        await self._keep_router()
        up = [(group.uid, group.process.actor) for group in self.state.all_groups() if group.state == UP]
        alive = await asyncio.gather(*(is_alive(actor) for _, actor in up))
        for (uid, _), lives in zip(up, alive, strict=True):
            if not lives:
                # unless the router has found out meanwhile
                self.lost(uid)

    def lost(self, uid: int) -> None:
        """Start the group anew whose process was found dead, unless that was known."""
        for group in self.state.all_groups():
            if group.uid == uid and group.state == UP:
                self.recover(group)

    def recover(self, group: GroupInfo) -> None:
        """Begin to start a group anew, with its replicas, on its devices."""
        group.state = RESTARTING
        group.num_restarts += 1
        task = asyncio.get_running_loop().create_task(self._recover(group))
        self._recoveries.add(task)
        task.add_done_callback(self._recoveries.discard)

    async def _recover(self, group: GroupInfo) -> None:
        began = time.monotonic()
        pause = FIRST_PAUSE_S
        async with group.lock:
            await self.publish()
            while group.is_wanted:
                group.process.kill()
                group.uid = self.state.new_number()
                try:
                    await group.process.start(group.uid, group.group_id, self._rules, self.settings.devices_timeout_s)
                    for name, known in group.replicas.items():
                        known.timing = await self._create(group, name, known.pickled)
                    break
                except (RayError, AlpaServeError, asyncio.TimeoutError):
                    logger.exception("group %d could not be restarted; next try in %g s", group.group_id, pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            group.state = UP
            if group.is_wanted:
                await self.publish()
                logger.warning("group %d is up again after %.1f s", group.group_id, time.monotonic() - began)
