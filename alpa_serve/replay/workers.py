"""Dealing a workload out to processes that send it, and putting together what they measured.

The processes have nothing else to do than to send: what the caller does meanwhile makes no request late.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidWorkloadError, ReplayInterrupted, WorkerError
from alpa_serve.replay.client import Part, PartOutcome, PartProgress, SendSettings, send_part
from alpa_serve.replay.endpoint import Endpoint
from alpa_serve.replay.results import ReplayProgress, ReplayResult
from alpa_serve.simulator.columnar_workload import Workload
from alpa_serve.validation import check_int, check_real

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess
    from types import FrameType

START_DELAY_S = 0.2
"""Seconds between the last process being ready and the begin of the replay, for word of it to reach all."""

STOP_TIMEOUT_S = 30.0
"""Seconds that processes have to hand over what they measured when the replay is stopped."""

POLL_INTERVAL_S = 0.2
"""Seconds after which Ctrl-C is looked for."""

GARBAGE_THRESHOLDS = (100_000, 50, 1000)
"""When processes look for garbage (:func:`gc.set_threshold`): by Python's own, they look through all requests in flight
so often that with a thousand of these every hundredth request is sent tens of milliseconds late."""

_READY = "ready"


def replay_workload(
    workload: Workload,
    url: str,
    *,
    api_key: str | None = None,
    ca_file: str | os.PathLike[str] | None = None,
    insecure: bool = False,
    timeout_s: float = 600.0,
    num_processes: int = 1,
    time_scale: float = 1.0,
    retries: int = 0,
    from_schedule: bool = False,
    on_progress: Callable[[ReplayProgress], None] | None = None,
) -> ReplayResult:
    """Send a workload to a running server, each request when it is due, and measure what becomes of it.

    The load is open: requests do not wait for the answers to others. Each is a ``POST`` of a JSON object with model,
    slo, submit_time and idx, and input_tokens, output_tokens and input where the workload has them.

    Parameters
    ----------
    workload : Workload
        Its arrivals count from the begin of the replay, in seconds.
    url : str
        ``http://host:port/``, with the root path of the server if it has one.
    api_key, ca_file, insecure
        As :class:`~alpa_serve.replay.endpoint.Endpoint` takes them.
    timeout_s : float
        Seconds that a request waits for its answer.
    num_processes : int
        Processes to send from, each of which takes every so-many-th request. They are started by "spawn": a script must
        call this under ``if __name__ == "__main__":``.
    time_scale : float
        Factor on the arrivals, > 0; 2 halves the rate. SLOs stay what they are.
    retries : int
        How often a request is sent again whose connection could not be made, or was reset before anything of its answer
        came.
    from_schedule : bool
        Whether latency, for the server's admission too (``submit_time``), counts from when a request was due. By
        default it counts from when it was really sent, as AlpaServe has it, and how late that was is a figure of its
        own.
    on_progress : callable, optional
        Called with a ReplayProgress several times a second.

    Returns
    -------
    ReplayResult

    Raises
    ------
    InvalidConfigError
        If an argument is out of range.
    InvalidWorkloadError
        If it is no workload, or what a request asks is no JSON.
    WorkerError
        If a process dies: there is no result in part.
    ReplayInterrupted
        After Ctrl-C, with what was measured so far.
    """
    endpoint = Endpoint(url=url, api_key=api_key, ca_file=ca_file, insecure=insecure)
    settings = SendSettings(
        endpoint=endpoint,
        timeout_s=check_real(timeout_s, "timeout_s", minimum=0.0, exclusive=True),
        retries=check_int(retries, "retries", minimum=0),
        from_schedule=from_schedule,
    )
    check_int(num_processes, "num_processes", minimum=1)
    check_real(time_scale, "time_scale", minimum=0.0, exclusive=True)
    if not isinstance(workload, Workload):
        raise InvalidWorkloadError(f"the workload must be a Workload, got {type(workload).__name__}")
    _check_data(workload)
    parts = _parts(workload, time_scale, min(num_processes, len(workload)))
    team = _Team(parts, settings, on_progress)
    with _ctrl_c_to(team):
        try:
            team.run()
        except KeyboardInterrupt:
            # before the replay began, or from on_progress
            team.stop()
        finally:
            team.end()
    result = _gather(workload, time_scale, parts, team.outcomes, from_schedule, team.stopped)
    if team.stopped:
        raise ReplayInterrupted(result=result)
    return result


@contextmanager
def _ctrl_c_to(team: _Team) -> Iterator[None]:
    """Have Ctrl-C stop the team where it can be stopped, and not break off the receiving of what was measured."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, team.on_ctrl_c)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _check_data(workload: Workload) -> None:
    if workload.data is None:
        return
    for position, item in enumerate(workload.data):
        try:
            json.dumps(item, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidWorkloadError(f"data of request {position} cannot be sent as JSON: {error}") from None


def _parts(workload: Workload, time_scale: float, number: int) -> list[Part]:
    idx = np.arange(len(workload))
    return [
        Part(
            idx=idx[first::number],
            due=part.arrivals * time_scale,
            model_ids=part.model_ids,
            model_names=part.model_names,
            slos=part.slos,
            input_tokens=part.input_tokens,
            output_tokens=part.output_tokens,
            data=part.data,
        )
        for first, part in enumerate(workload.split_round_robin(number) if number else [])
    ]


def _gather(
    workload: Workload,
    time_scale: float,
    parts: list[Part],
    outcomes: list[PartOutcome | None],
    from_schedule: bool,
    stopped: bool,
) -> ReplayResult:
    whole = PartOutcome.unsent(len(workload))
    failures: Counter[str] = Counter()
    for part, outcome in zip(parts, outcomes, strict=True):
        # there is none of a process that was stopped before the replay began
        if outcome is not None:
            for name in ("sent", "finish", "status", "http_status", "retries"):
                getattr(whole, name)[part.idx] = getattr(outcome, name)
            failures.update(outcome.failures)
    return ReplayResult(
        arrivals=workload.arrivals * time_scale,
        sent=whole.sent,
        finish=whole.finish,
        status=whole.status,
        http_status=whole.http_status,
        retries=whole.retries,
        slos=workload.slos.copy(),
        model_ids=workload.model_ids.copy(),
        model_names=workload.model_names,
        from_schedule=from_schedule,
        stopped=stopped,
        failures=dict(failures.most_common()),
    )


class _Team:
    """Processes that send a part each.

    Attributes
    ----------
    outcomes : list of PartOutcome or None
        By part; None while a process has not handed its own over.
    stopped : bool
        Whether the replay is to stop, or was stopped, before it is done.
    """

    def __init__(
        self, parts: list[Part], settings: SendSettings, on_progress: Callable[[ReplayProgress], None] | None
    ) -> None:
        self.outcomes: list[PartOutcome | None] = [None] * len(parts)
        self._parts = parts
        self._settings = settings
        self._on_progress = on_progress
        self._progress = [PartProgress()] * len(parts)
        self._processes: list[SpawnProcess] = []
        self._connections: list[Connection] = []
        self._begun = False
        self.stopped = False

    def on_ctrl_c(self, signal_number: int, frame: FrameType | None) -> None:
        """Note that the replay is to stop; raise KeyboardInterrupt before it began, or if this is the second time."""
        if self.stopped or not self._begun:
            raise KeyboardInterrupt
        self.stopped = True

    def run(self) -> None:
        """Start the processes, have them begin at the same moment, and collect what they measured."""
        context = multiprocessing.get_context("spawn")
        for number in range(len(self._parts)):
            ours, theirs = context.Pipe()
            self._connections.append(ours)
            process = context.Process(target=_work, args=(theirs,), name=f"replay-{number}", daemon=True)
            process.start()
            self._processes.append(process)
            # the process alone holds its end, so that its death is seen
            theirs.close()
        for number, part in enumerate(self._parts):
            self._send(number, (part, self._settings))
        for number in range(len(self._parts)):
            self._receive(number)
        start = time.time() + START_DELAY_S
        self._begun = True
        for number in range(len(self._parts)):
            self._send(number, start)
        while not (self._is_done() or self.stopped):
            self._receive_ready()
            self._report()
        if self.stopped:
            self.stop()

    def stop(self) -> None:
        """Have the processes stop sending and waiting, and collect what they measured; nothing if none began."""
        self.stopped = True
        if not self._begun:
            return
        for connection in self._missing():
            # one that is done may be gone, and what it measured is in the pipe
            with suppress(OSError):
                connection.send(None)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while not self._is_done():
            self._receive_ready()
            if time.monotonic() > deadline:
                raise WorkerError(f"processes of the replay did not stop within {STOP_TIMEOUT_S:g} s")

    def end(self) -> None:
        """Leave no process and no pipe behind."""
        for connection in self._connections:
            connection.close()
        for process, outcome in zip(self._processes, self.outcomes, strict=False):
            if outcome is None:
                process.kill()
            process.join()
            process.close()

    def _is_done(self) -> bool:
        return not any(outcome is None for outcome in self.outcomes)

    def _missing(self) -> dict[Any, int]:
        """Return the connections of processes that have not handed over what they measured, with their numbers."""
        return {self._connections[number]: number for number, outcome in enumerate(self.outcomes) if outcome is None}

    def _receive_ready(self) -> None:
        """Receive from the processes that have something to say, after a short wait for one that has."""
        missing = self._missing()
        for connection in wait(list(missing), POLL_INTERVAL_S):
            number = missing[connection]
            message = self._receive(number)
            if isinstance(message, PartOutcome):
                self.outcomes[number] = message
            else:
                self._progress[number] = message

    def _report(self) -> None:
        if self._on_progress is None:
            return
        sent = sum(part.sent for part in self._progress)
        self._on_progress(
            ReplayProgress(
                total=sum(map(len, self._parts)),
                sent=sent,
                answered=sum(part.answered for part in self._progress),
                done=sum(part.done for part in self._progress),
                good=sum(part.good for part in self._progress),
                lateness_mean=sum(part.lateness_sum for part in self._progress) / max(sent, 1),
                lateness_max=max(part.lateness_max for part in self._progress),
            )
        )

    def _send(self, number: int, message: Any) -> None:
        try:
            self._connections[number].send(message)
        except OSError:
            raise self._death(number) from None

    def _receive(self, number: int) -> Any:
        try:
            return self._connections[number].recv()
        except (EOFError, OSError):
            raise self._death(number) from None

    def _death(self, number: int) -> WorkerError:
        process = self._processes[number]
        process.join(STOP_TIMEOUT_S)
        hint = "" if self._begun else '; a script must call replay_workload under if __name__ == "__main__":'
        return WorkerError(
            f"process {number + 1} of {len(self._parts)} that sends requests died (exit code {process.exitcode}){hint}"
        )


def _work(connection: Connection) -> None:
    """Send a part: what each process of a team does."""
    # Ctrl-C reaches the whole group of processes; the one that started this one tells it when to stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    allow_many_connections()
    # whoever started this process may be gone
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        part, settings = connection.recv()
        gc.freeze()
        gc.set_threshold(*GARBAGE_THRESHOLDS)
        connection.send(_READY)
        start = connection.recv()
        if start is None:
            connection.send(PartOutcome.unsent(len(part)))
        else:
            connection.send(asyncio.run(_send_until_stopped(connection, part, settings, start)))


async def _send_until_stopped(connection: Connection, part: Part, settings: SendSettings, start: float) -> PartOutcome:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def listen() -> None:
        with suppress(EOFError, OSError):
            connection.recv()
        # the loop may have ended, with all answers there
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=listen, daemon=True).start()
    return await send_part(part, settings, start, stop, connection.send)


def allow_many_connections() -> None:
    """Let this process open as many files as it may: a connection is one, and there is one per request in flight."""
    try:
        import resource
    except ImportError:
        # Windows has no such limit
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
