"""The controller: AlpaServe's calls for registering models, groups and replicas; runs as a Ray actor."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Any

import ray

from alpa_serve.device_layout import check_shape
from alpa_serve.errors import InvalidConfigError, InvalidPlacementError, ServingError
from alpa_serve.runtime.change_lock import ChangeLock
from alpa_serve.runtime.cluster import Cluster
from alpa_serve.runtime.controller_state import ModelInfo
from alpa_serve.runtime.group_process import bundles_of
from alpa_serve.runtime.placement_change import change_placement
from alpa_serve.runtime.ray_calls import extend_import_path
from alpa_serve.runtime.request import request_of
from alpa_serve.scheduling.registry import check_new_group, check_new_name, check_replica, create_info
from alpa_serve.validation import check_int, check_real

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from alpa_serve.device_layout import Shape
    from alpa_serve.runtime.controller_state import GroupInfo
    from alpa_serve.runtime.origin import Origin
    from alpa_serve.runtime.placement_moves import GroupSpec
    from alpa_serve.runtime.settings import ServerSettings
    from alpa_serve.scheduling import ServingRules

logger = logging.getLogger(__name__)

HEALTH_INTERVAL_S = 1.0
"""How often the controller looks whether every process is alive."""

RESTART_PAUSE_S = 1.0
"""How long a restarted controller waits before it tries again to go on where it died."""

START_TIMEOUT_S = 60.0
"""How long a shutdown waits for a controller that is being restarted to know what there is."""

ORDER_TIMEOUT_S = 2.0
"""How long a replica waits for the calls that register its model and create its group, sent before."""


class Controller:
    """Says which models, groups and replicas there are, and sees to it that there are.

    Requests over HTTP do not pass it: they are served while it is being restarted.

    Parameters
    ----------
    origin : Origin
        Its name, and its run.
    rules : ServingRules
        How the cluster serves.
    settings : ServerSettings
    node_id : str
        Ray's name of the node on which to listen.
    import_path : list of str
        Where the program that started it finds its modules.
    awaits_placement : bool
        Whether the service is not ready before a placement is applied.
    """

    def __init__(
        self,
        origin: Origin,
        rules: ServingRules,
        settings: ServerSettings,
        node_id: str,
        import_path: list[str],
        awaits_placement: bool = False,
    ) -> None:
        extend_import_path(import_path)
        self._settings = settings
        self._cluster = Cluster(origin, rules, settings, node_id, awaits_placement)
        self._is_closed = False
        self._ending: asyncio.Task[None] | None = None
        self._changes = ChangeLock()
        loop = asyncio.get_running_loop()
        self._started = loop.create_task(self._start())
        self._health = loop.create_task(self._look_after())

    async def _start(self) -> None:
        while True:
            try:
                await self._cluster.start()
            except Exception:
                # at first whoever started the service is told; later nobody is there who could start it again
                if not ray.get_runtime_context().was_current_actor_reconstructed:
                    raise
                logger.exception("the restarted controller could not go on; next try in %g s", RESTART_PAUSE_S)
            else:
                return
            await asyncio.sleep(RESTART_PAUSE_S)

    async def _look_after(self) -> None:
        await self._started
        while True:
            await asyncio.sleep(HEALTH_INTERVAL_S)
            try:
                self._cluster.check()
            except Exception:
                logger.exception("looking after the processes failed; it is tried again")

    async def _ready(self) -> Cluster:
        """Return the cluster once it has started."""
        if self._is_closed:
            raise ServingError("this controller was shut down")
        # a waiter that is cancelled must not cancel it for the others
        await asyncio.shield(self._started)
        return self._cluster

    # ---- models, groups, replicas -----------------------------------------------------------------------------------

    async def register_model(
        self,
        name: str,
        model_def: Callable[..., Any],
        init_args: Sequence[Any] | None = None,
        init_kwargs: dict[str, Any] | None = None,
        override: bool = False,
    ) -> None:
        """Register a model: replicas are made by ``model_def(*init_args, **init_kwargs)``, in the process of a group.

        Parameters
        ----------
        name : str
        model_def : callable
            Makes an object with ``async def handle_request(self, request)``
            (:class:`~alpa_serve.runtime.models.protocol.Model` says what else it may have).
        init_args, init_kwargs : sequence and dict, optional
        override : bool
            Replace a model of this name; its replicas answer what they have been given, and are deleted.

        Raises
        ------
        InvalidConfigError
            If the name is taken, or is no name, or `model_def` cannot be called.
        """
        cluster = await self._ready()
        if not isinstance(name, str) or not name:
            raise InvalidConfigError(f"the name of a model must be text that is not empty, got {name!r}")
        created_by = create_info(name, model_def, init_args, init_kwargs)
        models = cluster.state.models
        check_new_name(name, models, override)
        if name not in models:
            # nobody can have a replica of it yet, so it need not wait for other changes
            models[name] = ModelInfo(created_by, int(time.time()))
            await cluster.publish()
            return
        async with self._changes.shared():
            models[name] = ModelInfo(created_by, int(time.time()))
            await self._delete_replicas(name)
            await cluster.publish()

    async def create_mesh_group_manager(
        self, group_id: int, virtual_mesh_shape: Shape | None = None, num_gpus: int = 0
    ) -> None:
        """Create a group of devices.

        Parameters
        ----------
        group_id : int
        virtual_mesh_shape : (int, int), optional
            Hosts, devices per host.
        num_gpus : int
            GPUs of Ray's that are set aside for it, spread evenly over the hosts.

        Raises
        ------
        InvalidPlacementError
            If there is a group of this number.
        InfeasiblePlacementError
            If the cluster has no room for it.
        """
        cluster = await self._ready()
        check_int(group_id, "group_id", minimum=0, error=InvalidPlacementError)
        check_real(num_gpus, "num_gpus", minimum=0.0)
        shape = None if virtual_mesh_shape is None else check_shape(virtual_mesh_shape)
        async with self._changes.shared():
            check_new_group(group_id, cluster.state.groups)
            group = cluster.new_group(group_id, shape, bundles_of(shape, num_gpus))
            # known from now on, so that replicas can be asked for before it runs
            cluster.state.groups[group_id] = group
            async with group.lock:
                try:
                    await cluster.start_group(group)
                except BaseException:
                    if cluster.state.groups.get(group_id) is group:
                        del cluster.state.groups[group_id]
                    raise
            await cluster.publish()

    async def create_replica(
        self,
        name: str,
        group_id: int,
        append_init_args: Sequence[Any] | None = None,
        append_init_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Make a replica of a registered model in a group; the arguments are appended to those of the registration.

        Raises
        ------
        InvalidPlacementError
            If the model or the group is not known, or the group has a replica of it already.
        InvalidConfigError
            If the model cannot be made; the message has its error.
        """
        cluster = await self._ready()
        async with self._changes.shared():
            await self._let_earlier_calls_begin(name, group_id)
            state = cluster.state
            check_replica(name, group_id, state.models, state.groups)
            group = state.groups[group_id]
            async with group.lock:
                # its group may have failed to start meanwhile, or another one have its number
                check_replica(name, group_id, state.models, {group_id} if state.groups.get(group_id) is group else ())
                model = state.models[name]
                await cluster.make_replica(group, name, append_init_args, append_init_kwargs)
                if state.models.get(name) is not model:
                    # whoever deleted the replicas did not see this one
                    await cluster.remove_replica(group, name)
                    raise InvalidPlacementError(f"replica of {name!r}: the model was deleted or replaced meanwhile")
            await cluster.publish()

    async def _let_earlier_calls_begin(self, name: str, group_id: int) -> None:
        """Wait a moment for the model and the group: Ray may begin calls of an actor in another order than sent."""
        state = self._cluster.state
        until = time.monotonic() + ORDER_TIMEOUT_S
        while (name not in state.models or group_id not in state.groups) and time.monotonic() < until:
            await asyncio.sleep(0.01)

    async def delete_replica(self, name: str, group_id: int) -> None:
        """Delete a replica, once it has answered what it has been given.

        For that it has ``request_timeout_s``; requests that come meanwhile go elsewhere.

        Raises
        ------
        InvalidPlacementError
            If there is none.
        """
        cluster = await self._ready()
        async with self._changes.shared():
            check_replica(name, group_id, cluster.state.models, cluster.state.groups)
            group = cluster.state.groups[group_id]
            async with group.lock:
                if name not in group.replicas:
                    raise InvalidPlacementError(f"group {group_id} has no replica of {name!r}")
                if cluster.state.groups_of(name) == [group_id]:
                    # requests for it must not wait for what is not coming
                    cluster.state.expected.discard(name)
                await cluster.remove_replica(group, name)

    async def delete_model(self, name: str) -> None:
        """Delete a model and its replicas, once these have answered what they have been given.

        For that they have ``request_timeout_s``; requests that come meanwhile are answered that there is no such model.

        Raises
        ------
        InvalidPlacementError
            If it is not registered.
        """
        cluster = await self._ready()
        async with self._changes.shared():
            # at first, so that no replica of it is made any more
            if cluster.state.models.pop(name, None) is None:
                raise InvalidPlacementError(f"no model {name!r}; registered: {', '.join(cluster.state.models)}")
            cluster.state.expected.discard(name)
            await cluster.publish()
            await self._delete_replicas(name)

    async def delete_mesh_group_manager(self, group_id: int) -> None:
        """Delete a group and its replicas, once these have answered what they have been given.

        For that they have ``request_timeout_s``; requests that come meanwhile go elsewhere.

        Raises
        ------
        InvalidPlacementError
            If there is no such group.
        """
        cluster = await self._ready()
        async with self._changes.shared():
            state = cluster.state
            group = state.groups.pop(group_id, None)
            if group is None:
                raise InvalidPlacementError(f"no group {group_id}; groups: {sorted(state.groups)}")
            # requests for what was only there must not wait for what is not coming
            state.expected -= {name for name in group.replicas if not state.groups_of(name)}
            await cluster.publish()
            await cluster.remove_group(group)

    async def _delete_replicas(self, name: str) -> None:
        async def delete(group: GroupInfo) -> None:
            async with group.lock:
                await self._cluster.remove_replica(group, name)

        # groups without a replica are not waited for; at once, so that none serves while others answer what they have
        await asyncio.gather(*(delete(group) for group in self._cluster.state.all_groups() if name in group.replicas))

    async def apply_placement(self, wanted: Sequence[GroupSpec], with_gpus: bool = False) -> None:
        """Move to another placement while requests are served (:func:`~.placement_change.change_placement`).

        Not tried again by Ray if the controller dies, for it could come after a later one then: the caller is to try.
        """
        cluster = await self._ready()
        async with self._changes.alone():
            await change_placement(cluster, wanted, with_gpus)

    # ---- requests ---------------------------------------------------------------------------------------------------

    @ray.method(max_task_retries=3)
    async def handle_request(self, obj: Any) -> Any:
        """Have a request answered, as one that is posted.

        Parameters
        ----------
        obj : dict, or a request
            An object with "model"; or anything that :func:`~.request.request_of` knows.

        Returns
        -------
        object
            What the model answers; ``{"rejected": True}`` if it was not admitted.

        Raises
        ------
        ServingError
            If there is no answer; its class says why.
        """
        cluster = await self._ready()
        reply = await cluster.answer(await request_of(obj))
        if reply.error is not None:
            raise reply.error
        return reply.answer

    async def warmup(self) -> dict[str, dict[int, float]]:
        """Measure by requests of their own how long replicas take, in proportion to their profiles.

        Requests are scheduled by that from then on. One group after the other answers what it has been given, and is
        measured; it takes no other requests meanwhile: those for a model that no other group holds wait, up to
        ``recovery_timeout_s``.

        Returns
        -------
        dict of str to dict of int to float
            Model -> group -> measured / profiled time; 1 where a model does not tell.
        """
        cluster = await self._ready()
        for group in list(cluster.state.groups.values()):
            await cluster.warm_up(group)
        return self._cluster.state.latency_scales()

    # ---- the controller itself --------------------------------------------------------------------------------------

    @ray.method(max_task_retries=-1)
    async def ready(self) -> int:
        """Return the number of this process, once the service has started.

        Raises
        ------
        InvalidConfigError
            If it cannot listen on its address.
        """
        await self._ready()
        return os.getpid()

    async def sync(self) -> None:
        """Wait until the service has started."""
        await self._ready()

    @ray.method(max_task_retries=-1)
    async def get_info(self) -> dict[str, Any]:
        """Return what there is.

        Returns
        -------
        dict
            ``models``: model -> its groups; ``groups``: group -> its models; ``group_configs``: group -> (dp, op, pp),
            None if it is not of a placement; ``group_states``: group -> "starting", "up" or "restarting";
            ``group_names``: group -> the actor's name in Ray; ``latency_scales``: as :meth:`warmup` returns them;
            ``host``, ``port``, ``root_path``; ``url``, where clients of this machine reach it; ``pid`` of the
            controller and ``router_name``, the name of the actor that listens; ``closed``: whether it was shut down.
        """
        if not self._is_closed:
            await self._ready()
        state = self._cluster.state
        settings = self._settings
        return {
            **state.describe(),
            "host": settings.host,
            "port": state.port,
            "root_path": settings.root_path,
            "url": None if state.port is None else settings.url(state.port),
            "pid": os.getpid(),
            "router_name": self._cluster.router_name,
            "closed": self._is_closed,
        }

    async def group_lost(self, uid: int) -> None:
        """Take note of the router's finding that the process of a group is dead."""
        (await self._ready()).lost(uid)

    @ray.method(max_task_retries=-1)
    async def shutdown(self) -> None:
        """Answer what was asked, then end every process of the service but this one; return when that is done.

        Whoever calls it again waits for the end, too.
        """
        self._is_closed = True
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end())
        # a caller that gives up must not stop it for the others
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        # whether it could start or not: there may be processes of a predecessor
        await asyncio.wait([self._started], timeout=START_TIMEOUT_S)
        self._started.cancel()
        self._health.cancel()
        await self._cluster.close()
