"""What the controller knows: models, groups, and the replicas that they are to have."""

from __future__ import annotations

import asyncio
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Any

import ray.cloudpickle

from alpa_serve.runtime.group_process import GroupProcess, RayGroup
from alpa_serve.runtime.ray_calls import pickled_by_value
from alpa_serve.runtime.routing_table import GroupRoute, ModelRoute, RoutingTable
from alpa_serve.runtime.snapshots import Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable

    from alpa_serve.device_layout import Shape
    from alpa_serve.profiling import ParallelConfig
    from alpa_serve.runtime.origin import Origin
    from alpa_serve.scheduling import ReplicaTiming
    from alpa_serve.scheduling.registry import CreateInfo

STARTING, UP, RESTARTING = "starting", "up", "restarting"
"""What a group can be; requests go only to those that are up."""

VERSIONS_PER_RUN = 1 << 32
"""By how much the versions of a successor are beyond the newest that it found: its predecessor may have told newer ones
that none of the processes it found has kept."""


@dataclass
class ModelInfo:
    """A model that is registered.

    Attributes
    ----------
    create_info : CreateInfo
        How a replica is made.
    created : int
        Unix seconds of its registration.
    pickled : bytes
        What is kept of `create_info`: it goes into every snapshot, and arguments may be large or slow to pickle.
    """

    create_info: InitVar[CreateInfo]
    created: int
    pickled: bytes = field(init=False, repr=False)

    def __post_init__(self, create_info: CreateInfo) -> None:
        self.pickled = pickled_by_value(create_info)


@dataclass
class ReplicaInfo:
    """A replica that a group is to have.

    Attributes
    ----------
    pickled : bytes
        The positional and the keyword arguments that were appended for this group, to those of the model.
    timing : ReplicaTiming or None
        As it said itself.
    latency_scale : float
        What a request takes in proportion to that, measured by a warm-up.
    """

    pickled: bytes
    timing: ReplicaTiming | None
    latency_scale: float = 1.0

    @property
    def scaled_timing(self) -> ReplicaTiming | None:
        """By which requests are scheduled."""
        return None if self.timing is None else self.timing.scaled(self.latency_scale)


@dataclass(eq=False)
class GroupInfo:
    """A group that there is to be.

    Attributes
    ----------
    group_id : int
    uid : int
        Of its present process.
    shape : (int, int) or None
        Hosts, devices per host.
    config : (int, int, int) or None
        dp, op, pp, if it is of a placement.
    process : GroupProcess
    replicas : dict of str to ReplicaInfo
        By model.
    state : str
        One of :data:`STARTING`, :data:`UP`, :data:`RESTARTING`.
    num_restarts : int
        How often its process was started anew.
    is_wanted : bool
        False once it is to go.
    is_aside : bool
        True while it is up, but no request is to go to it.
    lock : asyncio.Lock
        Held by whoever changes its process or replicas.
    """

    group_id: int
    uid: int
    shape: Shape | None
    config: ParallelConfig | None
    process: GroupProcess
    replicas: dict[str, ReplicaInfo] = field(default_factory=dict)
    state: str = STARTING
    num_restarts: int = 0
    is_wanted: bool = True
    is_aside: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("lock", "process")} | {
            "slot": self.process.slot,
            "bundles": self.process.bundles,
        }

    def restore(self, origin: Origin) -> None:
        """Make what a pickle lacks, and forget what its controller was about to do with it."""
        self.is_aside = False
        self.lock = asyncio.Lock()
        self.process = GroupProcess(origin, self.__dict__.pop("slot"), self.shape, self.__dict__.pop("bundles"))


class ControllerState:
    """What the controller knows, and how it is handed on.

    Attributes
    ----------
    models : dict of str to ModelInfo
        In the order of registration.
    groups : dict of int to GroupInfo
        By number.
    leaving : list of GroupInfo
        Those that a new placement does without, until their requests are answered.
    is_starting : bool
        Whether the first placement is still to come, so that the service is not ready.
    expected : set of str
        Models that are to have replicas, whether they have any at the moment or not.
    port : int or None
        Of the HTTP server, once it listens.
    router_uid : int
        Of the present router.
    """

    def __init__(self, is_starting: bool = False) -> None:
        self.is_starting = is_starting
        self.models: dict[str, ModelInfo] = {}
        self.groups: dict[int, GroupInfo] = {}
        self.leaving: list[GroupInfo] = []
        self.expected: set[str] = set()
        self.port: int | None = None
        self.router_uid = 0
        self._version = 0
        self._last_number = 0

    def new_number(self) -> int:
        """Return a number that no process and no devices had so far, larger than all before."""
        self._last_number += 1
        return self._last_number

    def skip_numbers(self, taken: Iterable[int]) -> None:
        """Let new numbers be larger than these, too."""
        self._last_number = max(self._last_number, *taken, 0)

    def all_groups(self) -> list[GroupInfo]:
        """Return every group, those that leave too."""
        return [*self.groups.values(), *self.leaving]

    def groups_of(self, model: str) -> list[int]:
        """Return the groups that hold `model`, ascending."""
        return sorted(group_id for group_id, group in self.groups.items() if model in group.replicas)

    def latency_scales(self) -> dict[str, dict[int, float]]:
        """Return model -> group -> measured / profiled time."""
        return {
            name: {group_id: self.groups[group_id].replicas[name].latency_scale for group_id in self.groups_of(name)}
            for name in self.models
        }

    def describe(self) -> dict[str, Any]:
        """Return what operators see of it: models, groups, and what of each (``Controller.get_info`` says more)."""
        groups = sorted(self.groups.items())
        return {
            "models": {name: self.groups_of(name) for name in self.models},
            "groups": {group_id: list(group.replicas) for group_id, group in groups},
            "group_configs": {group_id: group.config for group_id, group in groups},
            "group_states": {group_id: group.state for group_id, group in groups},
            "group_names": {group_id: group.process.actor_name(group.uid) for group_id, group in groups},
            "latency_scales": self.latency_scales(),
        }

    def publish(self) -> tuple[RoutingTable, Snapshot]:
        """Return what the router needs, and what a successor of the controller needs, of a new version."""
        self._version += 1
        placed = self.expected.union(*(group.replicas for group in self.all_groups()))
        table = RoutingTable(
            self._version,
            tuple(ModelRoute(name, model.created, name in placed) for name, model in self.models.items()),
            tuple(
                GroupRoute(
                    group.uid,
                    group.group_id,
                    RayGroup(group.process.actor),
                    {name: replica.scaled_timing for name, replica in group.replicas.items()},
                    group.num_restarts,
                    group in self.leaving,
                )
                for group in self.all_groups()
                # a restored group has no process before it was looked for
                if group.state == UP and not group.is_aside and group.process.actor is not None
            ),
            len(self.groups),
            self.is_starting,
        )
        return table, Snapshot(self._version, pickled_by_value(self))

    @classmethod
    def restored(cls, snapshot: Snapshot, origin: Origin) -> ControllerState:
        """Return what a predecessor knew."""
        state: ControllerState = ray.cloudpickle.loads(snapshot.pickled)
        for group in state.all_groups():
            group.restore(origin)
        state._version = snapshot.version + VERSIONS_PER_RUN
        return state
