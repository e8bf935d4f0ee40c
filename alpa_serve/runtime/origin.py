"""To which controller the processes of the runtime belong, and their end when it is gone for good."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any, NamedTuple

import ray
from ray.util.placement_group import get_placement_group, placement_group_table, remove_placement_group

logger = logging.getLogger(__name__)

NAMESPACE = "alpa_serve"
"""Ray's namespace of the processes that outlive their controller; their names have its run."""

CHECK_INTERVAL_S = 2.0
"""How often a process looks whether its controller is there."""

MISSING_BEFORE_END = 3
"""How often in a row it must be missing: a controller that is being restarted is not missing."""


class Origin(NamedTuple):
    """The controller that a process belongs to.

    Attributes
    ----------
    controller_name : str
        Of its actor, in the namespace of the process.
    run_id : str
        Of this controller and its restarts, but of no other of the same name.
    """

    controller_name: str
    run_id: str

    @property
    def prefix(self) -> str:
        """How the names of all actors and placement groups of this controller begin."""
        return f"{self.controller_name}:{self.run_id}:"


async def exit_if_orphaned(origin: Origin) -> None:
    """End this process when its controller is gone for good, and give back the devices of all its groups.

    The processes outlive a controller that dies and is restarted, so nothing else would end them when the program that
    started the controller is gone; nor would devices be given back that are waited for, and have no process yet.

    Parameters
    ----------
    origin : Origin
    """
    missing = 0
    # restarts keep it, but another program may take the name
    actor_id = None
    while missing < MISSING_BEFORE_END:
        try:
            found = await asyncio.to_thread(_actor_id, origin.controller_name)
        except ray.exceptions.RayError:
            # which says nothing about the controller
            logger.info("Ray does not answer", exc_info=True)
        else:
            actor_id = found if actor_id is None else actor_id
            missing = 0 if found is not None and found == actor_id else missing + 1
        await asyncio.sleep(CHECK_INTERVAL_S)
    logger.warning("the controller %r is gone; its process %d ends", origin.controller_name, os.getpid())
    await asyncio.to_thread(_remove_placement_groups, origin.prefix)
    # the actor must not be restarted, and nothing waits for it
    os._exit(1)


def _actor_id(controller_name: str) -> Any:
    """Return Ray's number of the actor of this name, or None if there is none."""
    try:
        actor: Any = ray.get_actor(controller_name)
    except ValueError:
        return None
    return actor._actor_id


def placement_groups(prefix: str) -> dict[str, Any]:
    """Return Ray's placement groups whose names begin with `prefix`, by name."""
    found = {}
    for entry in placement_group_table().values():
        if entry["name"].startswith(prefix) and entry["state"] != "REMOVED":
            try:
                found[entry["name"]] = get_placement_group(entry["name"])
            except ValueError:
                continue
    return found


def _remove_placement_groups(prefix: str) -> None:
    try:
        for found in placement_groups(prefix).values():
            # ends the processes on it, this one perhaps among them
            remove_placement_group(found)
    except ray.exceptions.RayError:
        logger.warning("the placement groups of %s could not be removed", prefix, exc_info=True)
