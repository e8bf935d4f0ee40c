"""Parts of a search as Ray tasks: in processes of this machine, or on a cluster."""

from __future__ import annotations

import logging
import pickle
import signal
import sys
import threading
import traceback
import uuid
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidConfigError, WorkerError
from alpa_serve.placement_policy.part_runner import BaseRunner, Part, Result, never_stopped
from alpa_serve.ray_connection import connect, first_line, import_ray
from alpa_serve.validation import check_int

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from alpa_serve.placement_policy.part_runner import Prepare, Work

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 4
"""How often a part is begun before the deaths of its workers are taken for the part's own fault."""

CANCEL_GRACE_S = 2.0
"""How long a cancelled part may take to notice, before its worker is killed."""


class RayRunner(BaseRunner[Part, Result]):
    """Runs parts as Ray tasks, each in a process that has one CPU.

    Work, `prepare` and problem are pickled once, put in the object store once, and unpickled once in every process,
    which keeps them for the parts to come (until it gets those of another runner). So a process works on arrays of its
    own, as writable as the caller's: the arrays that Ray maps from its object store are read-only, and numba would
    compile every kernel again for them. What need not travel is better made by `prepare`, on the spot.

    Parts, results and exceptions are pickled, too. `stopped` is always false: parts carry a deadline of their own.

    A part whose worker dies (killed, out of memory, its node lost) is done again. On Ctrl-C, or when a run ends early,
    parts are cancelled; a worker that does not notice within 2 s is killed.

    Parameters
    ----------
    work : callable
        (problem, part, stopped) -> result. Modules that it needs must be installed wherever workers run, in the same
        version.
    problem : object
    num_workers : int
        Most parts at the same time.
    address : str, optional
        Of a Ray cluster to join, as ``ray.init`` takes it: "host:port", "ray://host:port" or "auto". If left out, a
        Ray of `num_workers` CPUs is started on this machine. In a process that has Ray initialised already, that Ray
        is used, and left running by :meth:`close`.
    prepare : callable, optional
        problem -> what the work is given; called once in every worker process, not here.

    Raises
    ------
    InvalidConfigError
        If there is no worker to run on, or the work or the problem cannot be pickled.
    WorkerError
        If Ray is not installed, cannot be started, or the cluster cannot be joined.
    """

    def __init__(
        self,
        work: Work[Part, Result],
        problem: object,
        num_workers: int,
        address: str | None = None,
        *,
        prepare: Prepare | None = None,
    ) -> None:
        super().__init__()
        self._num_workers = check_int(num_workers, "num_workers", minimum=1)
        self._ray = import_ray()
        try:
            pickled = self._ray.cloudpickle.dumps((work, prepare, problem), pickle.HIGHEST_PROTOCOL)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            raise InvalidConfigError(
                f"the work and its problem must be picklable to reach worker processes: {error}"
            ) from error
        self._sigterm = signal.getsignal(signal.SIGTERM)
        self._owns_ray = connect(self._ray, self._num_workers, address)
        try:
            self._task = self._ray.remote(num_cpus=1, max_retries=0)(_run_part)
            # as an array, a worker reads it from the object store without a copy
            problem_ref = self._ray.put(np.frombuffer(pickled, np.uint8))
            self._origin: _Origin | None = _Origin(uuid.uuid4().hex, problem_ref, list(sys.path))
            num_cpus = self._ray.cluster_resources().get("CPU", 0)
        except BaseException:
            self.close()
            raise
        if num_cpus < self._num_workers:
            logger.warning("Ray has %g CPUs for %d workers: parts will wait for one", num_cpus, self._num_workers)

    def _results(self, parts: Sequence[Part]) -> Generator[tuple[int, Result], None, None]:
        pickled = [self._ray.cloudpickle.dumps(part, pickle.HIGHEST_PROTOCOL) for part in parts]
        attempts = [0] * len(parts)
        waiting = deque(range(len(parts)))
        running: dict[Any, int] = {}
        try:
            while waiting or running:
                self._check_ray_runs()
                while waiting and len(running) < self._num_workers:
                    position = waiting.popleft()
                    attempts[position] += 1
                    running[self._task.remote(self._origin, pickled[position])] = position
                self._ray.wait(list(running), num_returns=1)
                done, _ = self._ray.wait(list(running), num_returns=len(running), timeout=0)
                for ref in sorted(done, key=running.__getitem__):
                    position = running.pop(ref)
                    try:
                        yield position, self._result(ref)
                    except _WorkerDiedError as error:
                        if attempts[position] == MAX_ATTEMPTS:
                            raise WorkerError(
                                f"part {position} of {len(parts)} ({parts[position]!r:.200}) was begun {MAX_ATTEMPTS} "
                                f"times, and each time its worker died: {error}; does it need more memory than there "
                                "is?"
                            ) from error.__cause__
                        logger.warning("the worker of part %d died, which is done again: %s", position, error)
                        waiting.appendleft(position)
        finally:
            self._cancel(list(running))

    def _result(self, ref: Any) -> Result:
        """Return the result of a task that is done, or raise what its work raised."""
        errors = self._ray.exceptions
        deaths = (
            errors.WorkerCrashedError,
            errors.OutOfMemoryError,
            errors.NodeDiedError,
            errors.LocalRayletDiedError,
            errors.ObjectLostError,
        )
        try:
            outcome = self._ray.get(ref)
        except deaths as error:
            raise _WorkerDiedError(first_line(error)) from error
        except errors.RayTaskError as error:
            # the work's own exceptions come as outcomes
            if isinstance(error.cause, deaths):
                raise _WorkerDiedError(first_line(error.cause)) from error
            raise WorkerError(
                f"a worker process could not begin a part: {type(error.cause).__name__}: {error.cause}; are Python, "
                "alpa_serve and the modules of the work installed there in the same versions?"
            ) from error
        except errors.RayError as error:
            raise WorkerError(f"Ray failed to run a part: {first_line(error)}") from error
        failure, value = pickle.loads(outcome)
        if failure is not None:
            raise value from _RemoteTracebackError(failure)
        result: Result = value
        return result

    def _check_ray_runs(self) -> None:
        # Ray would start anew by itself
        if not self._ray.is_initialized():
            raise WorkerError("Ray was shut down while parts were running")

    def _cancel(self, refs: list[Any]) -> None:
        # a Ray of our own goes down with its workers when it is closed
        if not refs or not self._ray.is_initialized() or (self._closed and self._owns_ray):
            return
        for ref in refs:
            self._ray.cancel(ref)
        _, deaf = self._ray.wait(refs, num_returns=len(refs), timeout=CANCEL_GRACE_S)
        for ref in deaf:
            self._ray.cancel(ref, force=True)

    def close(self) -> None:
        """End the run, if there is one, and the Ray or the connection that this runner has started."""
        try:
            super().close()
        finally:
            self._origin = None
            if self._owns_ray:
                self._owns_ray = False
                self._ray.shutdown()
                # Ray has put a handler of its own in its place
                if threading.current_thread() is threading.main_thread() and self._sigterm is not None:
                    signal.signal(signal.SIGTERM, self._sigterm)


class _WorkerDiedError(Exception):
    """The process of a part died, which says nothing against the part."""


class _RemoteTracebackError(Exception):
    """The traceback of an exception in its worker process, as the cause of the exception here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


@dataclass(frozen=True)
class _Origin:
    """What tells a worker process of the runner that a part comes from; small, as it goes with every part.

    Attributes
    ----------
    key : str
        Of the runner.
    problem : ObjectRef
        Pickled (work, prepare, problem). Within another object, Ray does not fetch it before the worker asks for it.
    import_path : list of str
        Where the caller's process finds its modules.
    """

    key: str
    problem: Any
    import_path: list[str]


_PREPARED: dict[str, tuple[Work[Any, Any], Any]] = {}
"""In a worker process: work and prepared problem of the runner that the last part came from, by its key."""


def _prepared(origin: _Origin) -> tuple[Work[Any, Any], Any]:
    if origin.key not in _PREPARED:
        ray = import_ray()
        # frees the old problem before there is a new one
        _PREPARED.clear()
        sys.path += [path for path in origin.import_path if path not in sys.path]
        work, prepare, problem = pickle.loads(ray.get(origin.problem))
        _PREPARED[origin.key] = work, problem if prepare is None else prepare(problem)
    return _PREPARED[origin.key]


def _run_part(origin: _Origin, part: bytes) -> bytes:
    """Do one part, in a worker process.

    Returns
    -------
    bytes
        Pickled (None, result), or (traceback, exception) if the work raised one.
    """
    ray = import_ray()
    dumps = ray.cloudpickle.dumps
    try:
        work, problem = _prepared(origin)
        outcome: bytes = dumps((None, work(problem, pickle.loads(part), never_stopped)), pickle.HIGHEST_PROTOCOL)
    except ray.exceptions.RayError:
        raise
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        try:
            outcome = dumps((trace, error), pickle.HIGHEST_PROTOCOL)
            pickle.loads(outcome)
        except Exception:
            told = WorkerError(
                f"a part failed with {type(error).__qualname__}: {error} (an exception that cannot be pickled)"
            )
            outcome = dumps((trace, told), pickle.HIGHEST_PROTOCOL)
    return outcome
