"""Sending requests when they are due, whatever became of those before: one event loop, a task per request in flight."""

from __future__ import annotations

import asyncio
import errno
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np

from alpa_serve.replay.results import Status
from alpa_serve.simulator.columns import UNKNOWN_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from alpa_serve.replay.endpoint import Endpoint

REPORT_INTERVAL_S = 0.25
"""Seconds between two reports of a part's progress."""

RETRY_DELAY_S = 0.05
"""Seconds before a request is sent again."""

SHORTEST_TIMEOUT_S = 1e-3
"""Seconds that a sending gets even if the time is up; 0 would mean that there is no limit."""

MAX_FAILURE_KINDS = 50
"""Different reasons of failures that are kept; others count as one."""

OTHER_FAILURES = "other reasons"

_SHOWN_CHARACTERS = 120
_OVERLOADED = (429, 503)
_LOST_CONNECTION = (errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE)


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """The requests that one process sends, in the order in which they are due; arrays of shape (n,).

    Attributes
    ----------
    idx : ndarray of int64
        Positions in the whole workload.
    due : ndarray of float64
        Seconds since the replay began.
    model_ids : ndarray of int32
    model_names : tuple of str
    slos : ndarray of float64
        Seconds; infinity for none.
    input_tokens, output_tokens : ndarray of int64 or None
    data : ndarray of object or None
    """

    idx: NDArray[np.int64]
    due: NDArray[np.float64]
    model_ids: NDArray[np.int32]
    model_names: tuple[str, ...]
    slos: NDArray[np.float64]
    input_tokens: NDArray[np.int64] | None
    output_tokens: NDArray[np.int64] | None
    data: NDArray[np.object_] | None

    def __len__(self) -> int:
        return len(self.due)


@dataclass(frozen=True, kw_only=True)
class SendSettings:
    """How requests are sent.

    Attributes
    ----------
    endpoint : Endpoint
    timeout_s : float
        Seconds from the first sending within which an answer must have come.
    retries : int
        How often a request is sent again whose connection could not be made, or was reset before anything of its answer
        came.
    from_schedule : bool
        Whether latency counts from when a request was due, for the server too.
    """

    endpoint: Endpoint
    timeout_s: float
    retries: int
    from_schedule: bool


@dataclass(frozen=True)
class PartProgress:
    """Requests of a part so far, and the sum and the maximum of their lateness in seconds."""

    sent: int = 0
    answered: int = 0
    done: int = 0
    good: int = 0
    lateness_sum: float = 0.0
    lateness_max: float = 0.0


@dataclass(frozen=True, eq=False)
class PartOutcome:
    """What became of the requests of a part: columns as :class:`~alpa_serve.replay.results.ReplayResult` has them."""

    sent: NDArray[np.float64]
    finish: NDArray[np.float64]
    status: NDArray[np.int8]
    http_status: NDArray[np.int16]
    retries: NDArray[np.int16]
    failures: Counter[str] = field(default_factory=Counter)

    @classmethod
    def unsent(cls, number: int) -> PartOutcome:
        """Return the outcome of `number` requests before any is sent."""
        return cls(
            sent=np.full(number, np.nan),
            finish=np.full(number, np.nan),
            status=np.full(number, Status.UNSENT, dtype=np.int8),
            http_status=np.zeros(number, dtype=np.int16),
            retries=np.zeros(number, dtype=np.int16),
        )


async def send_part(
    part: Part,
    settings: SendSettings,
    start: float,
    stop: asyncio.Event,
    report: Callable[[PartProgress], None] | None = None,
) -> PartOutcome:
    """Send each request when it is due, and wait for the answers.

    Parameters
    ----------
    part : Part
    settings : SendSettings
    start : float
        When the replay begins, in seconds of :func:`time.time`.
    stop : asyncio.Event
        When it is set, nothing more is sent or waited for.
    report : callable, optional
        Called with a PartProgress every :data:`REPORT_INTERVAL_S` and at the end.
    """
    async with settings.endpoint.session(settings.timeout_s) as session:
        sender = _Sender(part, settings, session, start)
        sending = asyncio.create_task(sender.send_all())
        stopping = asyncio.create_task(stop.wait())
        try:
            while not (sending.done() or stopping.done()):
                await asyncio.wait((sending, stopping), timeout=REPORT_INTERVAL_S, return_when=asyncio.FIRST_COMPLETED)
                if report is not None:
                    report(sender.progress())
        finally:
            await _cancel(sending, stopping, *sender.in_flight)
        if not sending.cancelled():
            # an error of this code, not of a request
            sending.result()
    return sender.outcome


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


class _Sender:
    def __init__(self, part: Part, settings: SendSettings, session: aiohttp.ClientSession, start: float) -> None:
        self.outcome = PartOutcome.unsent(len(part))
        self.in_flight: set[asyncio.Task[None]] = set()
        self._part = part
        self._settings = settings
        self._session = session
        self._start = start
        # from here on a clock that nobody sets
        self._zero = time.perf_counter() + (start - time.time())
        self._heads = [json.dumps({"model": name})[:-1] for name in part.model_names]
        self._sent = self._answered = self._done = self._good = 0
        self._lateness_sum = self._lateness_max = 0.0

    def progress(self) -> PartProgress:
        return PartProgress(self._sent, self._answered, self._done, self._good, self._lateness_sum, self._lateness_max)

    def _now(self) -> float:
        return time.perf_counter() - self._zero

    async def send_all(self) -> None:
        for position in range(len(self._part)):
            due = float(self._part.due[position])
            # made while there is time, not when it is due
            fields = self._fields(position)
            # at least once, so that answers are read even while sending is behind
            while True:
                await asyncio.sleep(max(due - self._now(), 0.0))
                if self._now() >= due:
                    break
            task = asyncio.create_task(self._send(position, due, fields))
            self.in_flight.add(task)
            task.add_done_callback(self.in_flight.discard)
        while self.in_flight:
            done, _ = await asyncio.wait(self.in_flight)
            for task in done:
                task.result()

    def _fields(self, position: int) -> str:
        """Return the JSON object of a request, up to the value of its last key, ``submit_time``."""
        part = self._part
        fields: dict[str, Any] = {"idx": int(part.idx[position])}
        slo = float(part.slos[position])
        if slo != np.inf:
            fields["slo"] = slo
        for key, tokens in (("input_tokens", part.input_tokens), ("output_tokens", part.output_tokens)):
            if tokens is not None and tokens[position] != UNKNOWN_TOKENS:
                fields[key] = int(tokens[position])
        if part.data is not None and part.data[position] is not None:
            fields["input"] = part.data[position]
        return f'{self._heads[part.model_ids[position]]}, {json.dumps(fields)[1:-1]}, "submit_time": '

    async def _send(self, position: int, due: float, fields: str) -> None:
        outcome = self.outcome
        sent = self._now()
        submitted = self._start + due if self._settings.from_schedule else time.time()
        outcome.sent[position] = sent
        outcome.status[position] = Status.UNANSWERED
        self._sent += 1
        self._lateness_sum += sent - due
        self._lateness_max = max(self._lateness_max, sent - due)
        body = f"{fields}{submitted!r}}}".encode()
        try:
            status = await self._ask(position, body, sent)
            outcome.status[position] = status
            if status == Status.SERVED:
                latency = self._now() - (due if self._settings.from_schedule else sent)
                self._good += latency <= self._part.slos[position]
        finally:
            outcome.finish[position] = self._now()
            self._answered += bool(outcome.http_status[position])
            self._done += 1

    async def _ask(self, position: int, body: bytes, sent: float) -> Status:
        """Send a request until there is an answer, or there will be none; return what became of it."""
        while True:
            left = self._settings.timeout_s - (self._now() - sent)
            begun = False
            try:
                async with self._session.post(
                    self._settings.endpoint.url,
                    data=body,
                    timeout=aiohttp.ClientTimeout(total=max(left, SHORTEST_TIMEOUT_S)),
                    allow_redirects=False,
                ) as response:
                    begun = True
                    answer = await response.read()
            except asyncio.TimeoutError:
                self._note(f"no answer within {self._settings.timeout_s:g} s")
                return Status.UNANSWERED
            except (aiohttp.ClientError, OSError) as error:
                if not begun and _lost_connection(error) and self.outcome.retries[position] < self._settings.retries:
                    self.outcome.retries[position] += 1
                    await asyncio.sleep(RETRY_DELAY_S)
                    continue
                self._note(f"{type(error).__name__}: {error}")
                return Status.FAILED
            self.outcome.http_status[position] = response.status
            return self._judge(response.status, answer)

    def _judge(self, http_status: int, answer: bytes) -> Status:
        if http_status in _OVERLOADED:
            return Status.OVERLOADED
        if http_status == 200:
            try:
                content = json.loads(answer)
            except ValueError:
                self._note("HTTP 200 with an answer that is no JSON")
                return Status.FAILED
            rejected = isinstance(content, dict) and content.get("rejected") is True
            return Status.REJECTED if rejected else Status.SERVED
        self._note(f"HTTP {http_status}: {answer[: 4 * _SHOWN_CHARACTERS].decode(errors='replace')}")
        return Status.FAILED

    def _note(self, reason: str) -> None:
        """Count a reason; it may be the server's words, of which the terminal must get no control characters."""
        line = "".join(character if character.isprintable() else " " for character in reason)[:_SHOWN_CHARACTERS]
        failures = self.outcome.failures
        failures[line if line in failures or len(failures) < MAX_FAILURE_KINDS else OTHER_FAILURES] += 1


def _lost_connection(error: Exception) -> bool:
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return True
    return isinstance(error, OSError) and error.errno in _LOST_CONNECTION
