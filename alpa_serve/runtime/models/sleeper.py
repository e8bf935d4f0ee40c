"""Sleeping until a moment on the clock of asyncio."""

from __future__ import annotations

import asyncio

LARGEST_LEAD_S = 0.002
"""A loop that wakes later than this is busy, which waking earlier would not mend."""

_NEWEST_WEIGHT = 0.1
"""Weight of the latest measurement in the mean lateness."""


class Sleeper:
    """Sleeps until given moments and wakes on time on average.

    Timers of an event loop fire up to a millisecond late, because it waits for sockets in whole milliseconds. So the
    mean lateness is measured, and timers are set that much earlier.

    Attributes
    ----------
    lead_s : float
        Seconds by which timers are set earlier.
    """

    def __init__(self) -> None:
        self.lead_s = 0.0

    async def sleep_until(self, when: float) -> None:
        """Return at `when`, in seconds of the running loop's clock; at once if that is past."""
        loop = asyncio.get_running_loop()
        aimed = when - self.lead_s
        if aimed <= loop.time():
            return
        woken = loop.create_future()
        timer = loop.call_at(aimed, woken.set_result, None)
        try:
            await woken
        finally:
            timer.cancel()
        late = min(max(loop.time() - aimed, 0.0), LARGEST_LEAD_S)
        self.lead_s += _NEWEST_WEIGHT * (late - self.lead_s)
