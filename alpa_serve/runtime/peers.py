"""The processes that a controller which died has left, and what they know of it."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ActorUnavailableError, RayError

from alpa_serve.runtime.origin import NAMESPACE
from alpa_serve.runtime.ray_calls import HUNG_AFTER_S, future_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alpa_serve.runtime.snapshots import Snapshot

logger = logging.getLogger(__name__)

LATER_ANSWERS_S = 2.0
"""How long the others may take to tell what a dead controller knew, once one has told."""

PAUSE_S = 0.5
"""How long to wait before a process that could not be reached is asked again."""


def find_peers(prefix: str) -> dict[str, Any]:
    """Return the processes whose names begin with `prefix`, by name."""
    peers = {}
    for found in ray.util.list_named_actors(all_namespaces=True):
        name = found["name"]
        if found["namespace"] == NAMESPACE and name.startswith(prefix):
            try:
                peers[name] = ray.get_actor(name, NAMESPACE)
            except ValueError:
                continue
    return peers


async def newest_snapshot(peers: Mapping[str, Any], patience_s: float = HUNG_AFTER_S) -> Snapshot | None:
    """Return the newest of what the peers have kept; None if none of them has anything.

    A busy process answers late, which must not cost everything that the controller knew: the first answer is waited
    for as long as a process counts as alive.

    Parameters
    ----------
    peers : mapping of str to actor handle
    patience_s : float
        Seconds to wait for the first answer.
    """
    waiting = {asyncio.ensure_future(_kept(peer)) for peer in peers.values()}
    newest: Snapshot | None = None
    until = time.monotonic() + patience_s
    while waiting and (remaining_s := until - time.monotonic()) > 0:
        done, waiting = await asyncio.wait(waiting, timeout=remaining_s, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            snapshot = task.result()
            if snapshot is None:
                continue
            if newest is None:
                until = min(until, time.monotonic() + LATER_ANSWERS_S)
            if newest is None or snapshot.version > newest.version:
                newest = snapshot
    for task in waiting:
        task.cancel()
    if waiting and newest is None:
        logger.error(
            "none of %d processes told within %g s what the controller knew; it begins anew", len(peers), patience_s
        )
    return newest


async def _kept(peer: Any) -> Snapshot | None:
    while True:
        try:
            found: Snapshot | None = await future_of(peer.kept.remote())
        except ActorUnavailableError:
            await asyncio.sleep(PAUSE_S)
        except RayError:
            return None
        else:
            return found
