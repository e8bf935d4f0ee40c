"""Groups of devices and their models as arrays that compiled searches change in place.

A group has a number, its *slot*, which stays the same while groups come and go; a slot without a config is free. Every
change is written to a log, so that it can be undone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alpa_serve.errors import InvalidPlacementError
from alpa_serve.simulator.compiled import compiled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

FREE = -1
"""Config of a slot that has no group."""

_ADDED, _REMOVED, _CONFIG, _NODE = 0, 1, 2, 3

_LOG_PER_MODEL, _LOG_PER_SLOT = 32, 8
"""Room in the log: a step of a search clears and fills a few groups before it is undone or kept."""


class Groups(NamedTuple):
    """Groups, the models that each holds, and the groups that each model is in.

    Attributes
    ----------
    config : ndarray of int64, shape (num_slots,)
        Config id of each group; :data:`FREE` for a free slot.
    node : ndarray of int64, shape (num_slots,)
        First node of each group.
    rank : ndarray of int64, shape (num_slots,)
        Dispatch prefers the lower rank on a tie.
    num_models : ndarray of int64, shape (num_slots,)
    models : ndarray of int32, shape (num_slots, num_models)
        The first ``num_models[slot]`` are the models of the group, ascending.
    holds : ndarray of bool, shape (num_slots, num_models)
    num_replicas : ndarray of int64, shape (num_models,)
    slots : ndarray of int32, shape (num_models, num_slots)
        The first ``num_replicas[m]`` are the groups that hold model m, by rank.
    log : ndarray of int64, shape (log_size, 3)
        What was changed: (kind, slot, model or value before).
    log_length : ndarray of int64, shape (1,)
    """

    config: NDArray[np.int64]
    node: NDArray[np.int64]
    rank: NDArray[np.int64]
    num_models: NDArray[np.int64]
    models: NDArray[np.int32]
    holds: NDArray[np.bool_]
    num_replicas: NDArray[np.int64]
    slots: NDArray[np.int32]
    log: NDArray[np.int64]
    log_length: NDArray[np.int64]


def make_groups(
    num_slots: int,
    num_models: int,
    configs: Sequence[int],
    models: Sequence[Sequence[int]],
    nodes: Sequence[int] | None = None,
) -> Groups:
    """Return groups in slots 0, 1, ..., ranked in this order; the slots after them are free.

    Parameters
    ----------
    num_slots, num_models : int
    configs : sequence of int
        Config id of each group.
    models : sequence of sequence of int
        Model ids of each group.
    nodes : sequence of int, optional
        First node of each group; 0 if left out.

    Raises
    ------
    InvalidPlacementError
        If there are more groups than slots, or a group holds a model twice or one that does not exist.
    """
    _check_groups(num_slots, num_models, configs, models)
    log_size = _LOG_PER_MODEL * (num_models + 4) + _LOG_PER_SLOT * num_slots
    groups = Groups(
        config=np.full(num_slots, FREE, np.int64),
        node=np.zeros(num_slots, np.int64),
        rank=np.arange(num_slots, dtype=np.int64),
        num_models=np.zeros(num_slots, np.int64),
        models=np.zeros((num_slots, num_models), np.int32),
        holds=np.zeros((num_slots, num_models), np.bool_),
        num_replicas=np.zeros(num_models, np.int64),
        slots=np.zeros((num_models, num_slots), np.int32),
        log=np.zeros((log_size, 3), np.int64),
        log_length=np.zeros(1, np.int64),
    )
    groups.config[: len(configs)] = configs
    if nodes is not None:
        groups.node[: len(configs)] = nodes
    for slot, members in enumerate(models):
        for model in members:
            _insert(groups, slot, model)
    return groups


def _check_groups(num_slots: int, num_models: int, configs: Sequence[int], models: Sequence[Sequence[int]]) -> None:
    """Check what compiled code would write beyond its arrays for."""
    if len(configs) != len(models):
        raise InvalidPlacementError(f"{len(configs)} configs but models of {len(models)} groups")
    if len(configs) > num_slots:
        raise InvalidPlacementError(f"{len(configs)} groups do not fit in {num_slots} slots")
    for group_id, members in enumerate(models):
        for model in members:
            if not 0 <= model < num_models:
                raise InvalidPlacementError(f"group {group_id}: no model {model}; models are 0 to {num_models - 1}")
        if len(set(members)) < len(members):
            raise InvalidPlacementError(f"group {group_id} holds a model twice: {list(members)}")


@compiled
def add_replica(groups: Groups, slot: int, model: int) -> None:
    """Put a model into a group that lacks it."""
    _note(groups, _ADDED, slot, model)
    _insert(groups, slot, model)


@compiled
def remove_replica(groups: Groups, slot: int, model: int) -> None:
    """Take a model out of a group that holds it."""
    _note(groups, _REMOVED, slot, model)
    _delete(groups, slot, model)


@compiled
def clear_group(groups: Groups, slot: int) -> None:
    """Take all models out of a group."""
    while groups.num_models[slot]:
        remove_replica(groups, slot, groups.models[slot, groups.num_models[slot] - 1])


@compiled
def set_config(groups: Groups, slot: int, config: int) -> None:
    """Give a group that holds no model another config, or free its slot.

    Models that it held before, or will hold, are on record as changed, which is why nothing else has to be.
    """
    _note(groups, _CONFIG, slot, groups.config[slot])
    groups.config[slot] = config


@compiled
def set_node(groups: Groups, slot: int, node: int) -> None:
    """Put a group on another node."""
    _note(groups, _NODE, slot, groups.node[slot])
    groups.node[slot] = node


@compiled
def undo(groups: Groups) -> None:
    """Take back all changes in the log, and empty it."""
    for k in range(groups.log_length[0] - 1, -1, -1):
        kind, slot, value = groups.log[k]
        if kind == _ADDED:
            _delete(groups, slot, value)
        elif kind == _REMOVED:
            _insert(groups, slot, value)
        elif kind == _CONFIG:
            groups.config[slot] = value
        else:
            groups.node[slot] = value
    groups.log_length[0] = 0


@compiled
def is_replica_change(groups: Groups, k: int) -> bool:
    """Tell whether entry `k` of the log is a replica added or removed."""
    return bool(groups.log[k, 0] <= _REMOVED)


@compiled
def used_bytes(groups: Groups, weights: NDArray[np.float64], slot: int, config: int) -> float:
    """Return the bytes that the models of a group need on each device under `config`."""
    used = 0.0
    for k in range(groups.num_models[slot]):
        used += weights[groups.models[slot, k], config]
    return used


@compiled
def move_rank(groups: Groups, slot: int, order: NDArray[np.int64]) -> None:
    """Move a group to its place among groups sorted by their models, and keep `order` sorted.

    Parameters
    ----------
    groups : Groups
    slot : int
        The only one that may be out of place.
    order : ndarray of int64, shape (num_groups,)
        Slots by rank; ranks are positions in it.
    """
    place = groups.rank[slot]
    while place > 0 and _sorts_before(groups, slot, order[place - 1]):
        order[place] = order[place - 1]
        groups.rank[order[place]] = place
        place -= 1
    while place < len(order) - 1 and _sorts_before(groups, order[place + 1], slot):
        order[place] = order[place + 1]
        groups.rank[order[place]] = place
        place += 1
    order[place] = slot
    groups.rank[slot] = place


@compiled
def resort_slots(groups: Groups, model: int) -> bool:
    """Sort the groups of a model by rank again; tell whether that changed their order."""
    changed = False
    slots = groups.slots[model]
    for k in range(1, groups.num_replicas[model]):
        slot = slots[k]
        j = k
        while j > 0 and groups.rank[slots[j - 1]] > groups.rank[slot]:
            slots[j] = slots[j - 1]
            j -= 1
            changed = True
        slots[j] = slot
    return changed


@compiled
def _sorts_before(groups: Groups, slot: int, other: int) -> bool:
    """Compare two groups by their sorted lists of models."""
    n, m = groups.num_models[slot], groups.num_models[other]
    for k in range(min(n, m)):
        if groups.models[slot, k] != groups.models[other, k]:
            return bool(groups.models[slot, k] < groups.models[other, k])
    return bool(n < m)


@compiled
def _note(groups: Groups, kind: int, slot: int, value: int) -> None:
    k = groups.log_length[0]
    if k == len(groups.log):
        raise OverflowError("the log of changes is full: they have to be undone or forgotten now and then")
    groups.log[k, 0] = kind
    groups.log[k, 1] = slot
    groups.log[k, 2] = value
    groups.log_length[0] = k + 1


@compiled
def _insert(groups: Groups, slot: int, model: int) -> None:
    models = groups.models[slot]
    k = groups.num_models[slot]
    while k > 0 and models[k - 1] > model:
        models[k] = models[k - 1]
        k -= 1
    models[k] = model
    groups.num_models[slot] += 1
    groups.holds[slot, model] = True
    slots = groups.slots[model]
    k = groups.num_replicas[model]
    while k > 0 and groups.rank[slots[k - 1]] > groups.rank[slot]:
        slots[k] = slots[k - 1]
        k -= 1
    slots[k] = slot
    groups.num_replicas[model] += 1


@compiled
def _delete(groups: Groups, slot: int, model: int) -> None:
    models = groups.models[slot]
    k = 0
    while models[k] != model:
        k += 1
    groups.num_models[slot] -= 1
    for j in range(k, groups.num_models[slot]):
        models[j] = models[j + 1]
    groups.holds[slot, model] = False
    slots = groups.slots[model]
    k = 0
    while slots[k] != slot:
        k += 1
    groups.num_replicas[model] -= 1
    for j in range(k, groups.num_replicas[model]):
        slots[j] = slots[j + 1]
