"""Groups whose processes died, and how they come up again."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from alpa_serve.runtime.controller_state import RESTARTING, UP
from alpa_serve.runtime.keyed_tasks import KeyedTasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from alpa_serve.runtime.controller_state import GroupInfo

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""How long to wait before a group that could not be restarted is tried again: at first, and at most."""


class GroupRecovery:
    """Starts groups anew, again and again where that fails, each in a task of its own.

    Parameters
    ----------
    restart : callable
        Makes one attempt; called with the lock of the group, it leaves the group up, or raises.
    publish : callable
        Tells everybody what there is now.
    """

    def __init__(self, restart: Callable[[GroupInfo], Awaitable[None]], publish: Callable[[], Awaitable[None]]) -> None:
        self._restart = restart
        self._publish = publish
        self._tasks = KeyedTasks()
        self._is_closed = False

    def begin(self, group: GroupInfo) -> None:
        """Begin to start a group anew; without effect if it is to go, or everything is."""
        if self._is_closed or not group.is_wanted:
            return
        group.state = RESTARTING
        group.num_restarts += 1
        self._tasks.begin(group, partial(self._recover, group))

    async def cancel(self, group: GroupInfo) -> None:
        """Try no more to start a group anew."""
        await self._tasks.cancel(group)

    async def close(self) -> None:
        """Try no more to start any group anew."""
        self._is_closed = True
        await self._tasks.close()

    async def _recover(self, group: GroupInfo) -> None:
        began = time.monotonic()
        pause = FIRST_PAUSE_S
        await self._tell()
        # it may die again while others are told that it is up
        while group.is_wanted and group.state != UP:
            # only while it is tried: a group that cannot be restarted must not keep its replicas from being deleted
            async with group.lock:
                try:
                    await self._restart(group)
                except Exception:
                    logger.exception("group %d could not be restarted; next try in %g s", group.group_id, pause)
            if group.state == UP:
                logger.warning("group %d is up again after %.1f s", group.group_id, time.monotonic() - began)
                await self._tell()
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _tell(self) -> None:
        try:
            await self._publish()
        except Exception:
            # the router is told when it is looked after
            logger.exception("what became of a group could not be told")
