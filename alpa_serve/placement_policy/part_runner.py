"""Who runs the parts of a search: the interface, and threads of this process.

A search may go in rounds of independent *parts*. A part is whatever the search describes it by (a seed, a start, a
budget), and what comes of it depends on the problem and the part only, so it does not matter who runs it, in which
order and beside what. :class:`LocalRunner` has threads run the parts, :class:`~.ray_runner.RayRunner` processes, on
this machine or a cluster.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from alpa_serve.errors import WorkerError
from alpa_serve.validation import check_int

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence
    from concurrent.futures import Future
    from types import TracebackType

Part = TypeVar("Part")
Result = TypeVar("Result")
Part_contra = TypeVar("Part_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)
Self = TypeVar("Self")

Stopped = Callable[[], bool]
"""Asked by a running part now and then; once it is true, the part returns what it has."""

Work = Callable[[Any, Part, Stopped], Result]
"""What is done to a part: (problem, part, stopped) -> result. Parts run at the same time on one problem, so the work
must not change it, except under a lock."""

Prepare = Callable[[Any], Any]
"""Makes of the problem what the work is given; called once in every process that runs parts."""


NUM_THREADS = 2
"""Threads of one process; more contend for the interpreter between the kernels."""


class PartRunner(Protocol[Part_contra, Result_co]):
    """Runs parts of a search; used as a context manager, or closed by hand."""

    def run(self, parts: Sequence[Part_contra]) -> Iterator[tuple[int, Result_co]]:
        """Run the parts and yield (position of the part, its result) as they complete.

        The parts start with the first result asked for. A run that is not finished ends with the next one. When the
        iterator is closed, the runner is closed or an exception ends it, nothing goes on running.

        Parameters
        ----------
        parts : sequence
            May be empty.

        Raises
        ------
        Exception
            What the work raised on a part, in its own type; if several parts failed, that of the first by position.
            Parts that are running are stopped before, and their results dropped.
        KeyboardInterrupt
            After the parts that are running have been stopped.
        WorkerError
            If the runner is closed, or its processes fail.
        """

    def close(self) -> None:
        """End the run, if there is one, and give back threads and processes; may be called again."""

    def __enter__(self: Self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class BaseRunner(ABC, Generic[Part, Result]):
    """What runners have in common: one run at a time, which ends when the next one starts or the runner is closed."""

    def __init__(self) -> None:
        self._current: Generator[tuple[int, Result], None, None] | None = None
        self._closed = False

    @abstractmethod
    def _results(self, parts: Sequence[Part]) -> Generator[tuple[int, Result], None, None]:
        """Run the parts; leaves nothing running when it ends, however it does."""

    def run(self, parts: Sequence[Part]) -> Iterator[tuple[int, Result]]:
        """Run the parts and yield (position, result) as they complete (see :class:`PartRunner`)."""
        if self._closed:
            raise WorkerError("this runner is closed; make a new one to run more parts")
        self._end_run()
        self._current = self._results(list(parts))
        return self._current

    def close(self) -> None:
        """End the run, if there is one; may be called again."""
        self._closed = True
        self._end_run()

    def _end_run(self) -> None:
        if self._current is not None:
            self._current.close()
            self._current = None

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class LocalRunner(BaseRunner[Part, Result]):
    """Runs parts in threads of this process, which helps as far as the work releases the GIL.

    With one thread, or one part, the part runs in the calling thread: `stopped` stays false there, and Ctrl-C raises
    KeyboardInterrupt within the work. With more, Ctrl-C makes `stopped` true, what the running parts then return is
    still yielded, and KeyboardInterrupt is raised after that: an anytime search loses nothing. A second Ctrl-C does
    not wait for results.

    Parameters
    ----------
    work : callable
        (problem, part, stopped) -> result.
    problem : object
    num_threads : int
        Most parts at the same time.
    prepare : callable, optional
        problem -> what the work is given; called here and once.

    Raises
    ------
    InvalidConfigError
        If there is no thread to run on.
    """

    def __init__(
        self,
        work: Work[Part, Result],
        problem: object,
        num_threads: int = NUM_THREADS,
        *,
        prepare: Prepare | None = None,
    ) -> None:
        super().__init__()
        self._num_threads = check_int(num_threads, "num_threads", minimum=1)
        self._work = work
        self._problem = problem if prepare is None else prepare(problem)

    def _results(self, parts: Sequence[Part]) -> Generator[tuple[int, Result], None, None]:
        num_threads = min(self._num_threads, len(parts))
        if num_threads <= 1:
            for position, part in enumerate(parts):
                yield position, self._work(self._problem, part, never_stopped)
            return
        stop = threading.Event()
        pool = ThreadPoolExecutor(num_threads, thread_name_prefix="alpa_serve-part")
        try:
            yield from _as_completed(
                {pool.submit(self._work, self._problem, part, stop.is_set): i for i, part in enumerate(parts)}, stop
            )
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def never_stopped() -> bool:
    """Return False: what a part is given as `stopped` that nobody can stop from outside."""
    return False


def _as_completed(
    positions: dict[Future[Result], int], stop: threading.Event
) -> Generator[tuple[int, Result], None, None]:
    """Yield (position, result) of futures as they complete; on an exception or Ctrl-C, stop the others first."""
    pending = set(positions)
    interrupt: KeyboardInterrupt | None = None
    while pending:
        try:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
        except KeyboardInterrupt as error:
            if interrupt is not None:
                raise
            interrupt = error
            pending = _stop(pending, stop)
            continue
        failed = [future for future in done if future.exception() is not None]
        if failed and interrupt is None:
            done, pending = wait(_stop(pending, stop))
            failed += [future for future in done if future.exception() is not None]
            # raises
            min(failed, key=positions.__getitem__).result()
        for future in sorted(done.difference(failed), key=positions.__getitem__):
            yield positions[future], future.result()
    if interrupt is not None:
        raise interrupt


def _stop(pending: set[Future[Result]], stop: threading.Event) -> set[Future[Result]]:
    """Tell running parts to stop and drop those that have not started; return those that are running."""
    stop.set()
    return {future for future in pending if not future.cancel()}
