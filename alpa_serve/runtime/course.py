"""A request on its way through the router."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alpa_serve.runtime.request import ServeRequest
    from alpa_serve.runtime.routing_table import GroupRoute
    from alpa_serve.scheduling import Assignment


class Course:
    """What became of a request so far.

    Times are seconds of :func:`time.monotonic`.

    Parameters
    ----------
    request : ServeRequest
    timeout_s : float
        Seconds that it may take.
    """

    def __init__(self, request: ServeRequest, timeout_s: float) -> None:
        self.request = request
        self.came = time.monotonic()
        # when it was sent, on the clock of the router
        self.sent = self.came - max(0.0, time.time() - request.sent)
        self.deadline = self.came + timeout_s
        self.attempts = 0
        self.deaths = 0
        self.route: GroupRoute | None = None
        # groups that had no replica for it after all
        self.absent: set[int] = set()
        self.given = self.came
        self.begin = self.came
        # the time on its group that is booked for it, where its model says how long it takes
        self.booked: Assignment | None = None

    def remaining(self) -> float:
        """Return the seconds that it may still take."""
        return max(0.0, self.deadline - time.monotonic())
