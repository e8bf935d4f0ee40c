"""A group of the event-driven simulator: its devices and the replicas on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alpa_serve.errors import InvalidConfigError, InvalidPlacementError
from alpa_serve.scheduling import ReplicaTiming, replica_timing
from alpa_serve.scheduling.timing import declared_timing
from alpa_serve.simulator.cluster import VirtualMesh
from alpa_serve.simulator.event_loop import current_loop, go_on_at, sleep_until
from alpa_serve.simulator.executable import Executable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alpa_serve.device_layout import Shape
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.scheduling.registry import CreateInfo


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
            return declared_timing(name, replica.get_latency_dict())
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
