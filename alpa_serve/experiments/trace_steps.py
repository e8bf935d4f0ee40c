"""The load of an experiment in steps of 30 s, by the name of its trace: the same for every script and command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.export.maveriq_commands import SEED
from alpa_serve.simulator.trace_workload import STEP_S, WorkloadFromTrace
from alpa_serve.trace.llm import POISSON, POISSON_DURATION_S, load_llm_trace

if TYPE_CHECKING:
    from numpy.typing import NDArray


def step_process(trace: str, scale_rate: float, seed: int = SEED) -> WorkloadFromTrace:
    """Return the arrival process of a trace.

    Parameters
    ----------
    trace : str
        Name or file, as :func:`~alpa_serve.trace.llm.load_llm_trace` takes it: a minute of the trace is a step, and
        the trace is played twice. But "poisson" is played in its own time, once: a step has the requests of 30 s.
    scale_rate : float
        Factor on the requests per minute, > 0.
    seed : int
        Of the Poisson counts.

    Raises
    ------
    UnknownNameError, InvalidTraceError, InvalidConfigError
        If the trace is not known or cannot be read, or the factor is out of range.
    """
    if trace.lower() != POISSON:
        return WorkloadFromTrace(scale_rate, load_llm_trace(trace))
    requests = load_llm_trace(POISSON, scale=scale_rate, seed=seed)
    num_steps = int(POISSON_DURATION_S / STEP_S)
    steps = (requests.arrival_s // STEP_S).astype(np.int64)
    return WorkloadFromTrace.from_step_counts(np.bincount(steps, minlength=num_steps))


def trace_step_counts(trace: str, scale_rate: float, seed: int = SEED) -> NDArray[np.int64]:
    """Return the requests of each step, shape (num_steps,), of a trace that is played once.

    Parameters and errors are those of :func:`step_process`.
    """
    process = step_process(trace, scale_rate, seed)
    return process.step_counts[: len(process.minute_counts)]
