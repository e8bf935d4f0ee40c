"""A group of devices on Ray: the replicas on it, and the requests that they answer."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any

import ray
import ray.cloudpickle

from alpa_serve.errors import (
    GroupLostError,
    InvalidConfigError,
    InvalidPlacementError,
    ModelFailedError,
    ServingError,
)
from alpa_serve.runtime.models.emulated_devices import EmulatedDevices
from alpa_serve.runtime.models.protocol import replica_timing_of
from alpa_serve.runtime.origin import exit_if_orphaned
from alpa_serve.runtime.reply import Reply
from alpa_serve.runtime.snapshots import Snapshot, SnapshotKeeper

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from alpa_serve.device_layout import Shape
    from alpa_serve.runtime.origin import Origin
    from alpa_serve.runtime.request import ServeRequest
    from alpa_serve.scheduling import ReplicaTiming, ServingRules

logger = logging.getLogger(__name__)


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
    placement_group_name : str, optional
        Of its devices, which it gives back then.
    """

    def __init__(
        self,
        group_id: int,
        shape: Shape | None,
        rules: ServingRules,
        origin: Origin,
        placement_group_name: str | None = None,
    ) -> None:
        self._group_id = group_id
        self._rules = rules
        self._replicas: dict[str, Any] = {}
        self._devices = EmulatedDevices(shape)
        self._snapshots = SnapshotKeeper()
        self._watch = asyncio.get_running_loop().create_task(exit_if_orphaned(origin, placement_group_name))

    async def create_replica(self, name: str, pickled: bytes) -> ReplicaTiming | None:
        """Make a replica of a model.

        Parameters
        ----------
        name : str
        pickled : bytes
            The :class:`~alpa_serve.scheduling.registry.CreateInfo`, from the controller.

        Returns
        -------
        ReplicaTiming or None
            By which it is scheduled; None if it does not tell, and goes by the requests in flight.

        Raises
        ------
        InvalidPlacementError
            If the group has one already.
        InvalidConfigError
            If what was made cannot handle requests.
        """
        if name in self._replicas:
            raise InvalidPlacementError(f"group {self._group_id} has a replica of {name!r} already")
        info = ray.cloudpickle.loads(pickled)
        # in a thread: loading a model can take minutes, in which the others are to answer
        replica = await asyncio.to_thread(info.model_def, *info.init_args, **info.init_kwargs)
        if not callable(getattr(replica, "handle_request", None)):
            raise InvalidConfigError(
                f"model {name!r}: {info.model_def!r} makes a {type(replica).__name__}, which has no handle_request"
            )
        if hasattr(replica, "place_on"):
            replica.place_on(self._devices)
        timing = replica_timing_of(replica, name, self._rules)
        self._replicas[name] = replica
        return timing

    async def delete_replica(self, name: str) -> None:
        """Let go of a replica; without effect if there is none."""
        replica = self._replicas.pop(name, None)
        if hasattr(replica, "close"):
            await replica.close()

    async def warmup(self, name: str) -> float | None:
        """Have a replica answer a request of its own.

        Returns
        -------
        float or None
            Seconds that it took, in proportion to what its profile says; None if it does not tell.
        """
        replica = self._replicas[name]
        return await replica.warmup() if hasattr(replica, "warmup") else None

    async def handle_request(self, name: str, request: ServeRequest) -> Reply:
        """Have the replica of model `name` answer."""
        replica = self._replicas.get(name)
        if replica is None:
            return Reply(None, self._absent(name))
        try:
            answer = await replica.handle_request(request)
        except Exception as error:
            return Reply(None, self._failure(name, error), request.queue_s)
        # the request itself comes back as the plain object that it stands for
        return Reply(dict(answer) if answer is request else answer, None, request.queue_s)

    async def stream_request(self, name: str, request: ServeRequest) -> AsyncIterator[Reply]:
        """Have the replica of model `name` answer piece by piece; pieces that are there at once come together."""
        replica = self._replicas.get(name)
        if replica is None or not hasattr(replica, "stream_request"):
            reply = await self.handle_request(name, request)
            yield reply if reply.error else Reply([reply.answer], None, reply.queue_s)
            return
        pieces = replica.stream_request(request)
        try:
            async for piece in pieces:
                yield Reply([piece], None, request.queue_s)
        except Exception as error:
            yield Reply(None, self._failure(name, error), request.queue_s)
        finally:
            if hasattr(pieces, "aclose"):
                await pieces.aclose()

    def _absent(self, name: str) -> ServingError:
        return GroupLostError(f"group {self._group_id} has no replica of {name!r}")

    def _failure(self, name: str, error: Exception) -> ServingError:
        if isinstance(error, ServingError):
            return error
        logger.error("model %r in group %d failed", name, self._group_id, exc_info=error)
        return ModelFailedError(f"model {name!r} failed with {type(error).__name__}")

    async def ping(self) -> int:
        """Return the number of this process."""
        return os.getpid()

    async def keep(self, snapshot: Snapshot) -> None:
        """Keep what the controller knows, in case that it dies."""
        self._snapshots.keep(snapshot)

    async def kept(self) -> Snapshot | None:
        """Return the newest that was kept."""
        return self._snapshots.newest
