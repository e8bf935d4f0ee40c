"""To which controller the processes of the runtime belong, and their end when it is gone for good."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any, NamedTuple

import ray

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


async def exit_if_orphaned(origin: Origin, placement_group_name: str | None = None) -> None:
    """End this process when its controller is gone for good.

    The processes outlive a controller that dies and is restarted, so nothing else would end them when the program that
    started the controller is gone.

    Parameters
    ----------
    origin : Origin
    placement_group_name : str, optional
        Of the devices to give back then.
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
    if placement_group_name is not None:
        await asyncio.to_thread(_remove_placement_group, placement_group_name)
    # the actor must not be restarted, and nothing waits for it
    os._exit(1)


def _actor_id(controller_name: str) -> Any:
    """Return Ray's number of the actor of this name, or None if there is none."""
    try:
        actor: Any = ray.get_actor(controller_name)
    except ValueError:
        return None
    return actor._actor_id


def _remove_placement_group(name: str) -> None:
    try:
        ray.util.remove_placement_group(ray.util.get_placement_group(name))
    except (ValueError, ray.exceptions.RayError):
        logger.warning("placement group %r could not be removed", name, exc_info=True)
