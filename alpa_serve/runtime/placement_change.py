"""From one placement to another, while requests are served."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from alpa_serve.errors import AlpaServeError, InfeasiblePlacementError, InvalidPlacementError
from alpa_serve.runtime.controller_state import UP
from alpa_serve.runtime.group_process import bundles_of
from alpa_serve.runtime.placement_moves import kept_groups
from alpa_serve.runtime.ray_calls import free_resources, node_resources

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alpa_serve.runtime.cluster import Cluster
    from alpa_serve.runtime.controller_state import GroupInfo
    from alpa_serve.runtime.placement_moves import GroupSpec

logger = logging.getLogger(__name__)


async def change_placement(cluster: Cluster, wanted: Sequence[GroupSpec], with_gpus: bool) -> None:
    """Have the groups of `wanted`, numbered by position, and no others.

    Groups of the same config and shape that are up stay, and only their replicas change. What is new is started first
    where the cluster has room for it beside what is there; then requests go to the new groups, and those that leave
    answer what they have been given, for up to ``request_timeout_s``. Requests for models that have no replica in
    between wait, for up to ``recovery_timeout_s``.

    What there is no room for after all, because what is free is scattered over the nodes, is started last, once
    ``devices_timeout_s`` have shown it.

    Nothing has changed if a group that is started first cannot be. If a replica of a group that stays cannot be made,
    or one of the groups that are started last, the rest is as wanted, without any group that is started last.

    Parameters
    ----------
    cluster : Cluster
    wanted : sequence of GroupSpec
    with_gpus : bool
        Whether every device of a group is a GPU of Ray's.

    Raises
    ------
    InvalidPlacementError
        If a model is not registered, or twice in a group.
    InfeasiblePlacementError
        If the cluster has no room for a group.
    InvalidConfigError
        If a model cannot be made.
    GroupLostError
        If a group dies while it makes a replica.
    """
    state = cluster.state
    _check(wanted, list(state.models))
    # one that is not up may never be again: it is replaced, and not waited for
    running = {
        group_id: (group.config, group.shape, group.replicas)
        for group_id, group in state.groups.items()
        if group.state == UP
    }
    kept = kept_groups(running, wanted)
    placed = {name for spec in wanted for name in spec.members}
    groups = {position: state.groups[group_id] for position, group_id in kept.items()}

    def new_group(position: int) -> GroupInfo:
        spec = wanted[position]
        bundles = bundles_of(spec.shape, spec.num_devices if with_gpus else 0)
        return cluster.new_group(position, spec.shape, bundles, spec.config)

    new = [new_group(position) for position in range(len(wanted)) if position not in kept]
    some_leave = len(groups) < len(state.all_groups())
    first = _fitting(new) if some_leave else new
    later = new[len(first) :]
    without_room = await _start_all(cluster, first, wanted, may_come_later=some_leave)
    first = [group for group in first if group not in without_room]
    # the devices of the one that was given up may not be free yet
    later = [new_group(group.group_id) for group in without_room] + later
    state.expected |= placed
    # those too that came while others were started, or that a controller which is gone saw leave but not gone
    gone = [group for group in state.all_groups() if group not in groups.values()]
    for position, group in groups.items():
        group.group_id = position
    state.groups = dict(sorted((groups | {group.group_id: group for group in first}).items()))
    state.leaving = gone
    await cluster.publish()
    # those that only gain replicas go first: what another one loses may move there
    order = sorted(groups.values(), key=lambda group: bool(group.replicas.keys() - set(wanted[group.group_id].members)))
    failures: list[AlpaServeError] = []
    for group in order:
        try:
            await _change_replicas(cluster, group, wanted[group.group_id])
        except AlpaServeError as error:
            failures.append(error)
    state.leaving = []
    await cluster.publish()
    await asyncio.gather(*(cluster.remove_group(group) for group in gone))
    try:
        await _start_all(cluster, later, wanted)
        state.groups = dict(sorted((state.groups | {group.group_id: group for group in later}).items()))
    except AlpaServeError as error:
        failures.append(error)
    # what could not be made is not coming: requests for it must not wait
    state.expected = placed if not failures else set()
    state.is_starting = False
    await cluster.publish()
    if failures:
        raise failures[0]


def _check(wanted: Sequence[GroupSpec], registered: list[str]) -> None:
    for position, spec in enumerate(wanted):
        unknown = [name for name in spec.members if name not in registered]
        if unknown:
            raise InvalidPlacementError(
                f"group {position}: model {unknown[0]!r} is not registered; registered: {', '.join(registered)}"
            )
        if len(set(spec.members)) != len(spec.members):
            raise InvalidPlacementError(f"group {position} holds a model twice: {list(spec.members)}")


def _fitting(groups: list[GroupInfo]) -> list[GroupInfo]:
    """Return the first groups that the cluster has room for now; it may still be scattered over too many nodes."""
    free = free_resources()
    fitting = []
    for group in groups:
        for bundle in group.process.bundles:
            for kind, amount in bundle.items():
                free[kind] = free.get(kind, 0.0) - amount
        if all(amount >= 0 for amount in free.values()):
            fitting.append(group)
        else:
            break
    return fitting


async def _start_all(
    cluster: Cluster, groups: list[GroupInfo], wanted: Sequence[GroupSpec], *, may_come_later: bool = False
) -> list[GroupInfo]:
    """Start groups with their replicas, all or none.

    Parameters
    ----------
    may_come_later : bool
        Leave out those that there is no room for, and that there may be when others have left.

    Returns
    -------
    list of GroupInfo
        Those that were left out.
    """

    async def start(group: GroupInfo) -> None:
        async with group.lock:
            await cluster.start_group(group)
            for name in wanted[group.group_id].members:
                await cluster.make_replica(group, name, *wanted[group.group_id].appended)

    try:
        results = await asyncio.gather(*map(start, groups), return_exceptions=True)
        without_room = []
        failures = []
        for group, result in zip(groups, results, strict=True):
            if may_come_later and isinstance(result, InfeasiblePlacementError) and _could_fit(group):
                without_room.append(group)
            elif isinstance(result, BaseException):
                failures.append(result)
        if failures:
            raise failures[0]
    except BaseException:
        await asyncio.gather(*(group.process.release() for group in groups))
        raise
    return without_room


def _could_fit(group: GroupInfo) -> bool:
    """Tell whether there is a node for every bundle of a group, were it empty."""
    nodes = node_resources()
    return all(
        any(all(node.get(kind, 0.0) >= amount for kind, amount in bundle.items()) for node in nodes)
        for bundle in group.process.bundles
    )


async def _change_replicas(cluster: Cluster, group: GroupInfo, spec: GroupSpec) -> None:
    async with group.lock:
        # removed before others are added: the devices may not hold both
        for name in list(group.replicas.keys() - set(spec.members)):
            await cluster.remove_replica(group, name)
        missing = [name for name in spec.members if name not in group.replicas]
        for name in missing:
            await cluster.make_replica(group, name, *spec.appended)
    if missing:
        await cluster.publish()
