"""Which requests are with which group."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TypeVar

Key = TypeVar("Key")


class InFlight:
    """Counts the requests that groups have, and waits for them.

    A group is known by the uid of its process.
    """

    def __init__(self) -> None:
        self._by_group: Counter[int] = Counter()
        self._by_replica: Counter[tuple[int, str]] = Counter()
        self._left = asyncio.Event()

    def enter(self, uid: int, model: str) -> None:
        """Note that a request goes to a group."""
        self._by_group[uid] += 1
        self._by_replica[uid, model] += 1

    def leave(self, uid: int, model: str) -> None:
        """Note that a request came back."""
        _decrement(self._by_group, uid)
        _decrement(self._by_replica, (uid, model))
        # each waiter has the event of its time: there may be several
        left, self._left = self._left, asyncio.Event()
        left.set()

    def of_group(self, uid: int) -> int:
        """Return how many requests the group has."""
        return self._by_group[uid]

    def of_replica(self, uid: int, model: str) -> int:
        """Return how many requests the group has for this model."""
        return self._by_replica[uid, model]

    async def drained(self, uid: int, model: str | None = None) -> None:
        """Wait until a group has no request any more, or none for this model."""
        while self._by_group[uid] if model is None else self._by_replica[uid, model]:
            await self._left.wait()


def _decrement(counter: Counter[Key], key: Key) -> None:
    counter[key] -= 1
    if not counter[key]:
        # groups come and go
        del counter[key]
