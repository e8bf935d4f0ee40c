"""The processes of the runtime, as the controller starts, changes, finds again and ends them."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import remove_placement_group

from alpa_serve.errors import (
    AlpaServeError,
    GroupLostError,
    InfeasiblePlacementError,
    InvalidConfigError,
    InvalidPlacementError,
    ServingError,
)
from alpa_serve.runtime.controller_state import RESTARTING, UP, ControllerState, GroupInfo, ReplicaInfo
from alpa_serve.runtime.group_process import GroupProcess
from alpa_serve.runtime.group_recovery import GroupRecovery
from alpa_serve.runtime.keyed_tasks import KeyedTasks
from alpa_serve.runtime.origin import placement_groups
from alpa_serve.runtime.peers import find_peers, newest_snapshot
from alpa_serve.runtime.ray_calls import cause_of, free_resources, is_alive, pickled_by_value
from alpa_serve.runtime.router_supervisor import RouterSupervisor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alpa_serve.device_layout import Shape
    from alpa_serve.profiling import ParallelConfig
    from alpa_serve.runtime.origin import Origin
    from alpa_serve.runtime.reply import Reply
    from alpa_serve.runtime.request import ServeRequest
    from alpa_serve.runtime.settings import ServerSettings
    from alpa_serve.scheduling import ReplicaTiming, ServingRules

logger = logging.getLogger(__name__)


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
    is_starting : bool
        Whether the service is not ready before a placement is applied; what a predecessor knew goes before it.

    Attributes
    ----------
    state : ControllerState
    """

    def __init__(
        self, origin: Origin, rules: ServingRules, settings: ServerSettings, node_id: str, is_starting: bool = False
    ) -> None:
        self.settings = settings
        self._origin = origin
        self._rules = rules
        self._node_id = node_id
        self._recovery = GroupRecovery(self._restart, self.publish)
        self._watches = KeyedTasks()
        self._is_closed = False
        self._know(ControllerState(is_starting))

    def _know(self, state: ControllerState) -> None:
        self.state = state
        self._router = RouterSupervisor(state, self._origin, self._rules, self.settings, self._node_id)

    # ---- as a whole -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Go on where a dead controller of the same run left off, or begin; it can be called again if it fails.

        Raises
        ------
        InvalidConfigError
            If the router cannot listen on its address.
        """
        prefix = self._origin.prefix
        peers = await asyncio.to_thread(find_peers, prefix)
        newest = await newest_snapshot(peers)
        if newest is not None:
            self._know(ControllerState.restored(newest, self._origin))
            logger.warning("the controller goes on with version %d of what it knew", newest.version)
            self._router.actor = peers.pop(self.router_name, None)
        groups = self.state.all_groups()
        devices = await asyncio.to_thread(placement_groups, prefix)
        # what was started, but not noted any more before the controller died, has numbers, too
        self.state.skip_numbers(int(name.rpartition("-")[2]) for name in [*peers, *devices])
        for name in peers.keys() - {group.process.actor_name(group.uid) for group in groups}:
            ray.kill(peers[name])
        for name in devices.keys() - {group.process.placement_group_name for group in groups}:
            await asyncio.to_thread(remove_placement_group, devices[name])
        found = await asyncio.gather(*(group.process.find(group.uid) for group in groups))
        lost = [group for group, is_there in zip(groups, found, strict=True) if not is_there or group.state != UP]
        for group in groups:
            if group not in lost:
                # a replica that was made, but not noted any more, has no place there; the group may be busy
                group.process.actor.retain.remote(list(group.replicas))
        for group in lost:
            group.state = RESTARTING
        if newest is None:
            await self._router.check()
        else:
            await self._router.keep()
        await self.publish()
        for group in lost:
            self._recovery.begin(group)

    async def close(self) -> None:
        """Answer what was asked, then end every process, and give the devices back."""
        self._is_closed = True
        await self._watches.close()
        await self._recovery.close()
        await self._router.stop()
        groups = self.state.all_groups()
        for group in groups:
            group.is_wanted = False
        for result in await asyncio.gather(*(group.process.release() for group in groups), return_exceptions=True):
            if isinstance(result, Exception):
                logger.error("a group could not be given back", exc_info=result)
        self.state.groups.clear()
        self.state.leaving.clear()
        self.state.models.clear()

    # ---- the router -------------------------------------------------------------------------------------------------

    @property
    def router_name(self) -> str:
        """Name of the router's actor in Ray."""
        return self._router.name

    async def publish(self) -> None:
        """Tell the router and, for a successor, all groups what there is now."""
        table, snapshot = self.state.publish()
        for group in self.state.all_groups():
            if group.state == UP and group.process.actor is not None:
                group.process.actor.keep.remote(snapshot, group.group_id)
        await self._router.apply(table, snapshot)

    async def answer(self, request: ServeRequest) -> Reply:
        """Have the router have a request answered; once more if it dies meanwhile."""
        return await self._router.answer(request)

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
        GroupLostError
            If its process dies before it runs.
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
        except RayError as error:
            await group.process.release()
            raise GroupLostError(f"group {group.group_id} died while it was started") from error
        except BaseException:
            await group.process.release()
            raise
        if self._is_closed:
            await group.process.release()
            raise ServingError(f"group {group.group_id}: the service was shut down meanwhile")
        group.state = UP

    async def remove_group(self, group: GroupInfo) -> None:
        """Have a group answer what it has been given, then end it; requests must not be routed to it any more.

        It has as long as a request may take, ``settings.request_timeout_s``. One that is being restarted ends at once.
        """
        group.is_wanted = False
        await self._recovery.cancel(group)
        await self._router.drained(group.uid, None)
        async with group.lock:
            await group.process.release()

    async def _restart(self, group: GroupInfo) -> None:
        group.process.kill()
        group.uid = self.state.new_number()
        await group.process.start(group.uid, group.group_id, self._rules, self.settings.devices_timeout_s)
        for name, known in group.replicas.items():
            # one whose model was deleted is about to go, too
            if name in self.state.models:
                known.timing = await self._create(group, name, known.pickled)
        group.state = UP

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
            If the process dies meanwhile, or is being restarted.
        """
        if group.state != UP:
            raise GroupLostError(f"group {group.group_id} is {group.state}; no replica of {name!r} can be made")
        if name in group.replicas:
            raise InvalidPlacementError(f"group {group.group_id} has a replica of {name!r} already")
        if name not in self.state.models:
            raise InvalidPlacementError(f"replica of {name!r}: the model was deleted meanwhile")
        appended = pickled_by_value((tuple(args or ()), dict(kwargs or {})))
        timing = await self._create(group, name, appended)
        group.replicas[name] = ReplicaInfo(appended, timing)

    async def _create(self, group: GroupInfo, name: str, appended: bytes) -> ReplicaTiming | None:
        create = group.process.actor.create_replica.remote
        try:
            timing: ReplicaTiming | None = await create(name, self.state.models[name].pickled, appended)
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
        """Have a replica answer what it has been given, then let go of it; the caller has the lock of the group.

        It has as long as a request may take, ``settings.request_timeout_s``.
        """
        if group.replicas.pop(name, None) is None:
            return
        await self.publish()
        await self._router.drained(group.uid, name)
        if group.state != UP:
            # it went with its process, and is not among those of the next
            return
        try:
            await group.process.actor.delete_replica.remote(name)
        except RayTaskError as error:
            logger.warning("model %r could not be closed", name, exc_info=error)
        except RayActorError:
            logger.info("group %d died; its replica of %r is gone with it", group.group_id, name)

    async def warm_up(self, group: GroupInfo) -> None:
        """Measure how long the replicas of a group take in proportion to their profiles.

        No request goes to the group meanwhile: others would be measured along. Those that it has been given are waited
        for. One that has no other group to go to waits, up to ``settings.recovery_timeout_s``.
        """
        if group.state != UP:
            # its lock may be held for long
            return
        async with group.lock:
            if group.state != UP or not group.is_wanted:
                return
            group.is_aside = True
            try:
                await self.publish()
                await self._router.drained(group.uid, None)
                for name, known in group.replicas.items():
                    await self._measure(group, name, known)
            finally:
                group.is_aside = False
                await self.publish()

    async def _measure(self, group: GroupInfo, name: str, known: ReplicaInfo) -> None:
        if group.state != UP:
            return
        try:
            scale = await group.process.actor.warmup.remote(name)
        except RayError as error:
            logger.warning("model %r could not be warmed up in group %d", name, group.group_id, exc_info=error)
            return
        if scale is not None:
            known.latency_scale = scale

    # ---- faults -----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Begin to see whether every process is alive, and to start anew what is not.

        Each is looked at by itself: one that is busy keeps none of the others from being found dead.
        """
        if self._is_closed:
            return
        self._watches.begin("router", self._router.keep)
        for group in self.state.all_groups():
            if group.state == UP:
                self._watches.begin(group.uid, partial(self._check_group, group.uid, group.process.actor))

    async def _check_group(self, uid: int, actor: Any) -> None:
        if not await is_alive(actor):
            # unless the router has found out meanwhile
            self.lost(uid)

    def lost(self, uid: int) -> None:
        """Start the group anew whose process was found dead, unless that was known."""
        for group in self.state.all_groups():
            if group.uid == uid and group.state == UP:
                self._recovery.begin(group)
