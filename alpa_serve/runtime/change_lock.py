"""Which changes of the service may run at the same time."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


class ChangeLock:
    """Lets small changes run side by side, and a change of everything alone.

    A small change does not wait for a change of everything that has not begun: it may be what another small change,
    which runs already, waits for. Changes of everything come in the order in which they were asked for.
    """

    def __init__(self) -> None:
        self._num_shared = 0
        self._is_alone = False
        self._in_order = asyncio.Lock()
        self._changed = asyncio.Event()

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Run while no change of everything does."""
        await self._until(lambda: not self._is_alone)
        self._num_shared += 1
        try:
            yield
        finally:
            self._num_shared -= 1
            self._tell()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Run while nothing else does."""
        async with self._in_order:
            await self._until(lambda: self._num_shared == 0)
            self._is_alone = True
            try:
                yield
            finally:
                self._is_alone = False
                self._tell()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            await self._changed.wait()

    def _tell(self) -> None:
        # each waiter has the event of its time
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
