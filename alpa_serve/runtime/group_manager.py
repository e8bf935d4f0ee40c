"""A group of devices on Ray: the replicas on it, and the requests that they answer."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import statistics
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import ray
import ray.cloudpickle

from alpa_serve.errors import (
    GroupLostError,
    InvalidConfigError,
    ModelFailedError,
    ServingError,
)
from alpa_serve.runtime.models.emulated_devices import EmulatedDevices
from alpa_serve.runtime.models.protocol import (
    ClosableModel,
    LatencyModel,
    PlacedModel,
    StreamingModel,
    WarmedModel,
    replica_timing_of,
)
from alpa_serve.runtime.origin import exit_if_orphaned
from alpa_serve.runtime.ray_calls import extend_import_path
from alpa_serve.runtime.reply import Reply
from alpa_serve.runtime.request import ServeRequest
from alpa_serve.runtime.snapshots import Snapshot, SnapshotKeeper
from alpa_serve.scheduling.timing import declared_timing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence

    from alpa_serve.device_layout import Shape
    from alpa_serve.runtime.origin import Origin
    from alpa_serve.scheduling import ReplicaTiming, ServingRules

logger = logging.getLogger(__name__)

WARM_REQUESTS = 3
"""Requests whose median says how long a model takes, after a first one that does not count."""


class GroupManager:
    """Makes the replicas of a group, and has them answer requests; runs as a Ray actor.

    Parameters
    ----------
    group_id : int
    shape : (int, int) or None
        Hosts, devices per host; None for as many devices as its models need.
    rules : ServingRules
        How the cluster serves.
    origin : Origin
        The controller that it belongs to; without it, the group ends.
    import_path : sequence of str
        Where the program that started the controller finds its modules.
    """

    def __init__(
        self,
        group_id: int,
        shape: Shape | None,
        rules: ServingRules,
        origin: Origin,
        import_path: Sequence[str] = (),
    ) -> None:
        extend_import_path(import_path)
        self._group_id = group_id
        self._rules = rules
        self._replicas: dict[str, Any] = {}
        # a call of a controller that died meanwhile and one of its successor may make the same replica
        self._changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._devices = EmulatedDevices(shape)
        self._snapshots = SnapshotKeeper()
        self._watch = asyncio.get_running_loop().create_task(exit_if_orphaned(origin))

    async def create_replica(self, name: str, pickled: bytes, appended: bytes) -> ReplicaTiming | None:
        """Make a replica of a model; it replaces one that is there.

        Parameters
        ----------
        name : str
        pickled : bytes
            The model's :class:`~alpa_serve.scheduling.registry.CreateInfo`, from the controller.
        appended : bytes
            Positional and keyword arguments, a pickled pair, to append to those of the model.

        Returns
        -------
        ReplicaTiming or None
            By which it is scheduled; None if it does not tell, and goes by the requests in flight.

        Raises
        ------
        InvalidConfigError
            If what was made cannot handle requests, or tells times that are none.
        """
        async with self._changing[name]:
            return await self._create(name, pickled, appended)

    async def _create(self, name: str, pickled: bytes, appended: bytes) -> ReplicaTiming | None:
        # the controller knows of none: one that is here was made for a controller that died meanwhile
        await self._delete(name)
        info = ray.cloudpickle.loads(pickled)
        args, kwargs = ray.cloudpickle.loads(appended)
        # in a thread: loading a model can take minutes, in which the others are to answer
        replica = await asyncio.to_thread(info.model_def, *info.init_args, *args, **{**info.init_kwargs, **kwargs})
        try:
            _check(replica, name, info.model_def)
            if isinstance(replica, PlacedModel):
                replica.place_on(self._devices)
            timing = replica_timing_of(replica, name, self._rules)
        except BaseException:
            # it must not stay on the devices
            await _close(replica)
            raise
        self._replicas[name] = replica
        return timing

    async def delete_replica(self, name: str) -> None:
        """Let go of a replica; without effect if there is none."""
        async with self._changing[name]:
            await self._delete(name)

    async def _delete(self, name: str) -> None:
        await _close(self._replicas.pop(name, None))

    async def retain(self, names: Collection[str]) -> None:
        """Let go of all replicas but these, of those too that are being made: a successor does not know them."""
        await self._let_go((self._replicas.keys() | self._changing.keys()) - set(names))

    async def close(self) -> None:
        """Let go of all replicas; those that cannot be closed are logged."""
        await self._let_go(self._replicas.keys() | self._changing.keys())

    async def _let_go(self, names: Collection[str]) -> None:
        ends = await asyncio.gather(*map(self.delete_replica, names), return_exceptions=True)
        for name, end in zip(names, ends, strict=True):
            if isinstance(end, Exception):
                logger.warning("model %r in group %d could not be closed", name, self._group_id, exc_info=end)

    async def warmup(self, name: str) -> float | None:
        """Have a replica answer requests of its own, for its first one may take longer than all others.

        A model that says how long it takes, but has no ``warmup``, is sent objects with nothing but ``"model"``.

        Returns
        -------
        float or None
            Seconds that a request takes, in proportion to what its profile says; None if it does not tell.
        """
        replica = self._replicas[name]
        if isinstance(replica, WarmedModel):
            scale: float | None = await replica.warmup()
            return scale
        declared = replica.get_latency_dict() if isinstance(replica, LatencyModel) else None
        if declared is None:
            return None
        profiled_s = sum(declared_timing(name, declared).latency)
        seconds = []
        for _ in range(1 + WARM_REQUESTS):
            began = time.monotonic()
            await replica.handle_request(ServeRequest({"model": name}))
            seconds.append(time.monotonic() - began)
        return statistics.median(seconds[1:]) / profiled_s if profiled_s > 0 else None

    async def handle_request(self, name: str, request: ServeRequest) -> Reply:
        """Have the replica of model `name` answer."""
        replica = self._replicas.get(name)
        if replica is None:
            return Reply(None, self._absent(name))
        try:
            answer = replica.handle_request(request)
            if inspect.isawaitable(answer):
                answer = await answer
        # a model that wants to leave the program must not take the others of its group with it
        except (Exception, SystemExit) as error:
            return Reply(None, self._failure(name, error), request.queue_s)
        # the request itself comes back as the plain object that it stands for
        return Reply(dict(answer) if answer is request else answer, None, request.queue_s)

    async def stream_request(self, name: str, request: ServeRequest) -> AsyncIterator[Reply]:
        """Have the replica of model `name` answer piece by piece; the whole answer is one if it does not stream."""
        replica = self._replicas.get(name)
        if replica is None or not isinstance(replica, StreamingModel):
            yield await self.handle_request(name, request)
            return
        pieces = replica.stream_request(request)
        try:
            async for piece in pieces:
                yield Reply(piece, None, request.queue_s)
        except (Exception, SystemExit) as error:
            yield Reply(None, self._failure(name, error), request.queue_s)
        finally:
            if hasattr(pieces, "aclose"):
                await pieces.aclose()

    def _absent(self, name: str) -> ServingError:
        return GroupLostError(f"group {self._group_id} has no replica of {name!r}")

    def _failure(self, name: str, error: BaseException) -> ServingError:
        if isinstance(error, ServingError):
            return error
        logger.error("model %r in group %d failed", name, self._group_id, exc_info=error)
        return ModelFailedError(f"model {name!r} failed with {type(error).__name__}")

    async def ping(self) -> int:
        """Return the number of this process."""
        return os.getpid()

    async def keep(self, snapshot: Snapshot, group_id: int) -> None:
        """Keep what the controller knows, in case that it dies, and go by the number that the group has by now."""
        if self._snapshots.keep(snapshot):
            self._group_id = group_id

    async def kept(self) -> Snapshot | None:
        """Return the newest that was kept."""
        return self._snapshots.newest


async def _close(replica: object) -> None:
    if isinstance(replica, ClosableModel):
        # a plain function will do as well
        closing: object = replica.close()
        if inspect.isawaitable(closing):
            await closing


def _check(replica: object, name: str, model_def: object) -> None:
    """Check that a replica can handle requests."""
    made = f"model {name!r}: {model_def!r} makes a {type(replica).__name__}"
    handle_request = getattr(replica, "handle_request", None)
    if not callable(handle_request):
        raise InvalidConfigError(f"{made}, which has no handle_request")
    if inspect.isasyncgenfunction(handle_request) or inspect.isgeneratorfunction(handle_request):
        raise InvalidConfigError(
            f"{made}, whose handle_request yields: it must return the answer; what yields it piece by piece is called "
            "stream_request"
        )
