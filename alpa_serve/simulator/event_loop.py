"""An event loop on simulated time: plain coroutines, resumed in the order of a heap.

A coroutine that awaits :func:`sleep` or a stream goes on when simulated time has come that far; nothing waits in real
time. Every run has a loop of its own, so runs can be nested and go on in several threads.
"""

from __future__ import annotations

import itertools
import logging
import threading
import types
from functools import wraps
from heapq import heappop, heappush
from math import isfinite
from typing import TYPE_CHECKING, Any, TypeVar

from alpa_serve.errors import InvalidConfigError
from alpa_serve.validation import check_real

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Hashable, Sequence

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Signal:
    """Something that coroutines can await until it is given."""

    __slots__ = ("done", "waiting")

    def __init__(self) -> None:
        self.done = False
        self.waiting: list[Task] = []

    def __await__(self) -> Generator[Any, None, Any]:
        if not self.done:
            yield self

    def give(self) -> None:
        """Let all go on that wait, now, and let nobody wait any more."""
        self.done = True
        if self.waiting:
            loop = current_loop()
            for task in self.waiting:
                loop.resume(task)
            self.waiting.clear()


class Task(Signal):
    """A coroutine that a loop runs; awaiting it gives its result."""

    __slots__ = ("coroutine", "error", "result")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        # what Signal's does, without the call: there is a task per request
        self.done = False
        self.waiting = []
        self.coroutine = coroutine
        self.result: Any = None
        self.error: BaseException | None = None

    @property
    def name(self) -> str:
        """What the coroutine calls itself."""
        return getattr(self.coroutine, "__qualname__", repr(self.coroutine))

    def __await__(self) -> Generator[Any, None, Any]:
        yield from super().__await__()
        if self.error is not None:
            raise self.error
        return self.result


class EventLoop:
    """A heap of tasks by the time at which they go on; on a tie in the order in which they were put there.

    Attributes
    ----------
    now : float
        Simulated seconds.
    free_at : dict of hashable to float
        Seconds until which each stream is busy; a stream that was never used is free from time 0.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.free_at: dict[Hashable, float] = {}
        self._heap: list[tuple[float, int, Task]] = []
        self._waiting: dict[int, Task] = {}
        self._order = itertools.count()

    def spawn(self, coroutine: Coroutine[Any, Any, Any], at: float | None = None) -> Task:
        """Have `coroutine` begin at `at` seconds, now if left out.

        Raises
        ------
        InvalidConfigError
            If that is in the past, or no time.
        """
        time = self.now if at is None else float(at)
        if not (isfinite(time) and time >= self.now):
            coroutine.close()
            raise InvalidConfigError(f"a coroutine cannot begin at {at!r} s: it is {self.now:g} s now")
        task = Task(coroutine)
        heappush(self._heap, (time, next(self._order), task))
        return task

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> Task:
        """Begin with `coroutine` at once, ahead of what else is to go on now; only while the loop runs."""
        task = Task(coroutine)
        self._step(task)
        return task

    def reserve(self, names: Sequence[Hashable], seconds: float, begin: float | None = None) -> float:
        """Keep streams busy with one piece of work, from when all are free (not before `begin`); return its end."""
        free_at = self.free_at
        start = self.now if begin is None else begin
        for name in names:
            free = free_at.get(name, 0.0)
            if free > start:
                start = free
        end = start + seconds
        for name in names:
            free_at[name] = end
        return end

    def run(self) -> None:
        """Go on until every task has ended.

        Raises
        ------
        Exception
            What a task raised that nobody was waiting for; the others are closed.
        RuntimeError
            If tasks wait for what never comes, such as each other.
        """
        heap, step = self._heap, self._step
        previous = _threads.running
        _threads.running = self
        try:
            while heap:
                self.now, _, task = heappop(heap)
                step(task)
            if self._waiting:
                waiting = ", ".join(sorted({task.name for task in self._waiting.values()}))
                raise RuntimeError(f"{len(self._waiting)} coroutines wait for what never comes: {waiting}")
        finally:
            self._close_all()
            _threads.running = previous

    def _close_all(self) -> None:
        """End the coroutines that are left; what they raise at that is logged, lest it hides why they are ended."""
        left = [*(task for _, _, task in self._heap), *self._waiting.values()]
        self._heap.clear()
        self._waiting.clear()
        for task in left:
            try:
                task.coroutine.close()
            except Exception:
                logger.exception("%s failed while it was closed", task.name)

    def _step(self, task: Task) -> None:
        """Run a task up to what it waits for next."""
        try:
            wanted = task.coroutine.send(None)
        except StopIteration as stop:
            task.result = stop.value
            task.done = True
            if task.waiting:
                task.give()
        except Exception as error:
            if not task.waiting:
                raise
            task.error = error
            task.give()
        else:
            if wanted.__class__ is float:
                heappush(self._heap, (wanted, next(self._order), task))
            else:
                # a signal, which wakes it when it is given
                wanted.waiting.append(task)
                self._waiting[id(task)] = task

    def resume(self, task: Task) -> None:
        """Have a task that waits for a signal go on now."""
        del self._waiting[id(task)]
        heappush(self._heap, (self.now, next(self._order), task))


class _Threads(threading.local):
    """The loops of a thread: the one that runs, and the one that gathers tasks for :func:`main_loop`."""

    running: EventLoop | None = None
    gathering: EventLoop | None = None


_threads = _Threads()


def current_loop() -> EventLoop:
    """Return the loop that runs the caller.

    Raises
    ------
    RuntimeError
        If no loop does.
    """
    loop = _threads.running
    if loop is None:
        raise RuntimeError("no event loop is running here; start one with run_event_loop(coroutine)")
    return loop


def run_event_loop(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run `coroutine`, and all that it starts, on a new loop from time 0; return its result.

    Raises
    ------
    Exception
        What the coroutine raised, or another one that nobody was waiting for.
    RuntimeError
        If the coroutine waits for something that never comes.
    """
    if not hasattr(coroutine, "send"):
        raise InvalidConfigError(f"run_event_loop runs a coroutine, got {coroutine!r}")
    loop = EventLoop()
    main = loop.spawn(coroutine)
    loop.run()
    if main.error is not None:
        raise main.error
    result: Result = main.result
    return result


def main_loop() -> None:
    """Run what :func:`timed_coroutine` was asked for outside of any loop, until nothing is left to do.

    Raises
    ------
    RuntimeError
        If a loop is running already: it does what is asked for inside it.
    """
    if _threads.running is not None:
        raise RuntimeError("a loop is running already; what is asked for inside it is done without main_loop()")
    loop, _threads.gathering = _threads.gathering, None
    if loop is not None:
        loop.run()


def clock() -> float:
    """Return the simulated time in seconds."""
    return current_loop().now


@types.coroutine
def go_on_at(time: float) -> Generator[float, None, None]:
    """Wait until `time`, a float that must not be past: :func:`sleep_until` without its checks, for hot paths."""
    yield time


@types.coroutine
def sleep_until(time: float) -> Generator[float, None, None]:
    """Wait until `time` in simulated seconds; not at all if that is past."""
    now = current_loop().now
    yield float(time) if time > now else now


@types.coroutine
def sleep(s: float) -> Generator[float, None, None]:
    """Wait for `s` simulated seconds.

    Raises
    ------
    InvalidConfigError
        If `s` is negative or no finite number.
    """
    yield current_loop().now + check_real(s, "the seconds to sleep", minimum=0.0)


@types.coroutine
def wait_stream(name: Hashable, s: float) -> Generator[float, None, float]:
    """Work for `s` seconds on a stream that does one thing after the other, in the order of asking.

    Parameters
    ----------
    name : hashable
        Of the stream; it comes into being when first named.
    s : float
        Seconds of work.

    Returns
    -------
    float
        Seconds on the loop's clock at which the work began.
    """
    return (yield from wait_multi_stream((name,), (s,)))


@types.coroutine
def wait_multi_stream(names: Sequence[Hashable], ss: Sequence[float]) -> Generator[float, None, float]:
    """Work on several streams at once, `ss[i]` seconds on `names[i]`; begins when all are free, ends with the last.

    Returns
    -------
    float
        Seconds on the loop's clock at which the work began.
    """
    if len(names) != len(ss) or not names:
        raise InvalidConfigError(f"need as many seconds as streams, at least one, got {len(ss)} and {len(names)}")
    loop = current_loop()
    begin = loop.now
    for name, s in zip(names, ss, strict=True):
        _check_work(name, s)
        begin = max(begin, loop.free_at.get(name, 0.0))
    yield max(loop.reserve((name,), float(s), begin) for name, s in zip(names, ss, strict=True))
    return begin


def _check_work(name: Hashable, s: float) -> None:
    check_real(s, f"the seconds of work on stream {name!r}", minimum=0.0)


def timed_coroutine(function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Task]:
    """Let calls of a coroutine function say when it begins.

    Returns
    -------
    callable
        Takes ``tstamp`` (seconds on the loop's clock) or ``delay`` (seconds from now) beside the arguments; without
        either it begins now. It returns at once a task that can be awaited. Outside of any loop, :func:`main_loop`
        runs what was asked for.
    """

    @wraps(function)
    def start(*args: Any, tstamp: float | None = None, delay: float | None = None, **kwargs: Any) -> Task:
        if tstamp is not None and delay is not None:
            raise InvalidConfigError(f"{function.__qualname__}: give tstamp or delay, not both")
        loop = _threads.running
        if loop is None:
            loop = _threads.gathering = _threads.gathering or EventLoop()
        at = tstamp if delay is None else loop.now + delay
        return loop.spawn(function(*args, **kwargs), at)

    return start
