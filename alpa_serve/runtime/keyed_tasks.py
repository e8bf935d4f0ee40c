"""Work in the background, one task for each thing that is worked on."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable

logger = logging.getLogger(__name__)


class KeyedTasks:
    """Runs at most one task per key; an error ends that task only, and is logged."""

    def __init__(self) -> None:
        self._tasks: dict[Hashable, asyncio.Task[None]] = {}

    def begin(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begin the work for `key`, unless its task still runs."""
        running = self._tasks.get(key)
        if running is not None and not running.done():
            return
        task = asyncio.get_running_loop().create_task(work())
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._end(key, done))

    async def cancel(self, key: Hashable) -> None:
        """End the task for `key`, and wait until it has ended; without effect if there is none."""
        task = self._tasks.get(key)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def close(self) -> None:
        """End all tasks, and wait until they have ended."""
        await asyncio.gather(*map(self.cancel, list(self._tasks)))

    def _end(self, key: Hashable, task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled() and task.exception() is not None:
            logger.error("work in the background failed", exc_info=task.exception())
