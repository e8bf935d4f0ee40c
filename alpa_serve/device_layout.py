"""The shapes of groups of devices, and where groups lie on the nodes of a cluster: within one, or on whole nodes."""

from __future__ import annotations

from functools import cache
from itertools import accumulate

from alpa_serve.errors import InvalidPlacementError
from alpa_serve.validation import check_int

Shape = tuple[int, int]
"""Hosts, devices per host."""


def check_shape(shape: object) -> Shape:
    """Return `shape` as (hosts, devices per host).

    Raises
    ------
    InvalidPlacementError
        If it is not two whole numbers >= 1.
    """
    if not isinstance(shape, (tuple, list)) or len(shape) != 2:
        raise InvalidPlacementError(f"the shape of a mesh is (hosts, devices per host), got {shape!r}")
    hosts, devices = (
        check_int(number, f"{what} of mesh {tuple(shape)}", minimum=1, error=InvalidPlacementError)
        for number, what in zip(shape, ("hosts", "devices per host"), strict=True)
    )
    return hosts, devices


def group_shape(num_devices: int, per_node: int) -> Shape:
    """Return (hosts, devices per host) of a group that lies within a node of `per_node` devices or takes whole ones."""
    return (1, num_devices) if num_devices <= per_node else (num_devices // per_node, per_node)


def first_devices(sizes: list[int], num_devices: int, per_node: int) -> list[int]:
    """Return the first device of each group: in the order of the groups if that tears no node.

    Parameters
    ----------
    sizes : list of int
        Devices of each group.
    num_devices, per_node : int
        Devices of the cluster and of each of its nodes; the last node may have fewer.

    Raises
    ------
    InvalidPlacementError
        If the devices or the nodes do not suffice.
    """
    if sum(sizes) > num_devices:
        raise InvalidPlacementError(f"the groups need {sum(sizes)} devices, the cluster has {num_devices}")
    for group_id, size in enumerate(sizes):
        if size > per_node and size % per_node:
            raise InvalidPlacementError(
                f"group {group_id} of {size} devices is neither within a node of {per_node} nor whole nodes"
            )
    starts = list(accumulate(sizes, initial=0))[:-1]
    if any(_tears_node(start, size, per_node) for start, size in zip(starts, sizes, strict=True)):
        return _pack_nodes(sizes, num_devices, per_node)
    return starts


def _tears_node(start: int, size: int, per_node: int) -> bool:
    """Tell whether devices [start, start + size) lie neither within one node nor on whole nodes."""
    return start % per_node != 0 if size > per_node else start // per_node != (start + size - 1) // per_node


def _pack_nodes(sizes: list[int], num_devices: int, per_node: int) -> list[int]:
    """Return the first device of each group such that no group tears a node."""
    starts = [0] * len(sizes)
    next_device = 0
    for group_id, size in enumerate(sizes):
        if size > per_node:
            starts[group_id] = next_device
            next_device += size
    small = sorted((g for g, size in enumerate(sizes) if size <= per_node), key=lambda g: -sizes[g])
    rest = range(next_device, num_devices, per_node)
    free = tuple(min(per_node, num_devices - node) for node in rest)
    chosen = _bin_pack(tuple(sizes[g] for g in small), free)
    if chosen is None or next_device > num_devices:
        raise InvalidPlacementError(
            f"groups of {sizes} devices cannot lie within nodes of {per_node} on a cluster of {num_devices} devices"
        )
    used = [0] * len(free)
    for group_id, node in zip(small, chosen, strict=True):
        starts[group_id] = rest[node] + used[node]
        used[node] += sizes[group_id]
    return starts


def _bin_pack(sizes: tuple[int, ...], free: tuple[int, ...]) -> list[int] | None:
    """Choose a bin for every size (descending), tightest fitting bin first.

    Exact up to a hundred sizes above one; beyond, a packing that this order does not find counts as none.
    """

    @cache
    def feasible(index: int, spaces: tuple[int, ...]) -> bool:
        if index == len(sizes) or sizes[index] == 1:
            return sum(sizes[index:]) <= sum(spaces)
        return any(
            feasible(index + 1, tuple(sorted(_take(spaces, k, sizes[index]))))
            for k in _candidate_bins(sizes[index], spaces)
        )

    exact = sum(size > 1 for size in sizes) <= 100
    chosen: list[int] = []
    spaces = free
    for index, size in enumerate(sizes):
        for k in _candidate_bins(size, spaces):
            after = _take(spaces, k, size)
            if not exact or feasible(index + 1, tuple(sorted(after))):
                chosen.append(k)
                spaces = after
                break
        else:
            return None
    return chosen


def _take(spaces: tuple[int, ...], k: int, size: int) -> tuple[int, ...]:
    """Return `spaces` with `size` taken from the k-th."""
    return (*spaces[:k], spaces[k] - size, *spaces[k + 1 :])


def _candidate_bins(size: int, spaces: tuple[int, ...]) -> list[int]:
    """Return one bin per distinct space that fits `size`, tightest first."""
    distinct = {space: k for k, space in reversed(list(enumerate(spaces))) if space >= size}
    return [distinct[space] for space in sorted(distinct)]
