"""Traces of function invocations, replayed as requests for models."""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidConfigError
from alpa_serve.trace.functions.fits import estimate_exponential, estimate_gamma, estimate_pareto
from alpa_serve.trace.functions.raw_files import open_trace
from alpa_serve.trace.functions.replay import TraceReplay
from alpa_serve.trace.functions.replay_settings import ReplaySettings
from alpa_serve.trace.functions.table import MINUTES_PER_DAY, TRACE_NAMES, FunctionTable
from alpa_serve.validation import check_known

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

MAPPING_STRATEGIES = ("stripe", "round_robin")
_MAX_HOUR, _MAX_MINUTE = 24, 60


class Trace:
    """A trace of the Azure Functions data set.

    Parameters
    ----------
    trace_name : {"azure_v1", "azure_v2"}
        v1 has invocations per minute (2019), v2 the time of each (2021); both cover 14 days.
    trace_dir : path-like
        A file that `preprocess_azure_v1_trace` or `preprocess_azure_v2_trace` has made, a pickle of AlpaServe's, or
        the folder with the raw public files (whose first use writes such a file beside them).
    key : {"unique", "func"}
        What names a function when raw files are read; see `preprocess_azure_v1_trace`.

    Attributes
    ----------
    trace : FunctionTable
        Function name -> int32 invocations per minute (v1) or ascending seconds (v2).

    Raises
    ------
    UnknownNameError
        If there is no such trace or key; the message lists those that there are.
    InvalidTraceError
        Naming file, line and column of what cannot be read.
    """

    def __init__(self, trace_name: str, trace_dir: str | os.PathLike[str], *, key: str = "unique") -> None:
        self.trace_name = check_known(trace_name, TRACE_NAMES, "trace")
        self.trace_dir = trace_dir
        self.trace: FunctionTable = open_trace(self.trace_name, trace_dir, key)

    @property
    def function_names(self) -> list[str]:
        """Names of all functions, in the order of the file."""
        return list(self.trace.names)

    @staticmethod
    def timestr_to_dhm(time_str: str) -> tuple[int, int, int]:
        """Return (day, hour, minute) of "day.hour.minute".

        Raises
        ------
        InvalidConfigError
            If it is not of that form, the hour is beyond 24 or the minute beyond 60.
        """
        found = re.fullmatch(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})", time_str) if isinstance(time_str, str) else None
        if found is not None:
            day, hour, minute = (int(number) for number in found.groups())
            if hour <= _MAX_HOUR and minute <= _MAX_MINUTE:
                return day, hour, minute
        raise InvalidConfigError(
            f"a time in a trace is 'day.hour.minute' with hours up to {_MAX_HOUR} and minutes up to {_MAX_MINUTE}, "
            f"such as '0.9.30'; got {time_str!r}"
        )

    def _minutes(self, start_time: str, end_time: str) -> tuple[int, int]:
        start, end = (
            day * MINUTES_PER_DAY + hour * 60 + minute
            for day, hour, minute in map(self.timestr_to_dhm, (start_time, end_time))
        )
        if not start < end <= self.trace.num_minutes:
            raise InvalidConfigError(
                f"the slice from {start_time} to {end_time} must lie within the "
                f"{self.trace.num_minutes / MINUTES_PER_DAY:g} days of the trace and end after it starts"
            )
        return start, end

    def slice(self, start_time: str = "0.0.0", end_time: str = "13.23.60") -> FunctionTable:
        """Return the functions with invocations in [start_time, end_time), and those invocations.

        Parameters
        ----------
        start_time, end_time : str
            "day.hour.minute" from the start of the trace.

        Returns
        -------
        FunctionTable
            A mapping: name -> int32 invocations per minute of the slice (v1), or seconds from the start of the trace
            (v2).

        Raises
        ------
        InvalidConfigError
            If the slice is empty or reaches beyond the trace.
        """
        return self.trace.window(*self._minutes(start_time, end_time))

    def minute_counts(self, start_time: str = "0.0.0", end_time: str | None = None) -> NDArray[np.int64]:
        """Return the invocations of all functions per minute of the slice.

        Parameters
        ----------
        start_time : str
            "day.hour.minute" from the start of the trace.
        end_time : str, optional
            The same; the end of the trace if left out, however many days it has.

        Returns
        -------
        ndarray of int64, shape (minutes,)

        Raises
        ------
        InvalidConfigError
            If the slice is empty or reaches beyond the trace.
        """
        if end_time is None:
            days, minutes = divmod(self.trace.num_minutes, MINUTES_PER_DAY)
            end_time = f"{days}.{minutes // 60}.{minutes % 60}"
        part = self.slice(start_time, end_time)
        counts: NDArray[np.int64] = part.binned(np.zeros(len(part), dtype=np.int64), 1, 1)[0]
        return counts

    def map_model(
        self, models: Sequence[str], function_names: Sequence[str], strategy: str = "stripe"
    ) -> OrderedDict[str, str]:
        """Deal functions to models.

        Parameters
        ----------
        models : sequence of str
            m names, all different.
        function_names : sequence of str
            n names.
        strategy : {"stripe", "round_robin"}
            Function i goes to model i % m ("stripe"), or to model m * i // n ("round_robin": neighbours stay together,
            as AlpaServe has it under this name).

        Returns
        -------
        OrderedDict of str to str
            Function -> model.
        """
        model_of_function = _deal(models, len(function_names), strategy)
        return OrderedDict(zip(function_names, (models[i] for i in model_of_function), strict=True))

    def replay(
        self,
        models: Sequence[str],
        model_mapping_strategy: str = "stripe",
        start_time: str = "0.0.0",
        end_time: str = "13.23.60",
        arrival_distribution: str = "exponential",
        interval_seconds: float = 600,
        rate_scale_factor: float = 1.0,
        cv_scale_factor: float = 1.0,
        time_scale_factor: float = 1.0,
        replication_factor: int = 1,
        seed: int = 0,
    ) -> OrderedDict[str, TraceReplay]:
        """Draw requests for models that follow a slice of the trace.

        Functions that are invoked in the slice are dealt to the models; the invocations of a model's functions are
        its requests. Each interval has an arrival process of its own, from the number of invocations (v1) or fitted
        to the gaps between them (v2); "vanilla" takes the invocations as they are (v2).

        Parameters
        ----------
        models : sequence of str
            Names, all different.
        model_mapping_strategy : {"stripe", "round_robin"}
            See `map_model`.
        start_time, end_time : str
            "day.hour.minute" from the start of the trace.
        arrival_distribution : {"exponential", "gamma", "vanilla", "pareto"}
            v1 has the first two.
        interval_seconds : float
            Length of an interval, > 0; a multiple of 60 in v1. A last interval that is shorter counts as a whole one.
        rate_scale_factor : float
            Factor on the requests per second of exponential and gamma intervals, > 0.
        cv_scale_factor : float
            Factor on the cv of gamma intervals (1 in v1), > 0.
        time_scale_factor : float
            How much faster v2 invocations are played ("vanilla" only), > 0.
        replication_factor : int
            Requests an invocation ("vanilla" only), >= 1.
        seed : int
            The first interval with a process draws with it, each further one with the next number.

        Returns
        -------
        OrderedDict of str to TraceReplay
            One per model, in the order of `models`; a model without functions has no arrivals.

        Raises
        ------
        InvalidConfigError, UnknownNameError
            If an argument is out of range or does not fit the trace or the distribution.
        InvalidWorkloadError
            If the processes would make more requests than can be held in memory, naming the busiest interval; as
            "pareto" does where all that an interval has is two invocations at almost the same time.

        Notes
        -----
        The fits are AlpaServe's, gaps and all: to each gap 1e-6 s are added. Rate and cv of gamma distributed gaps
        come out right where few of them are shorter than that, as with a cv up to about 2.
        """
        start, end = self._minutes(start_time, end_time)
        settings = ReplaySettings(
            trace_name=self.trace_name,
            start_time=start_time,
            end_time=end_time,
            start_seconds=start * 60,
            end_seconds=end * 60,
            arrival_distribution=arrival_distribution,
            interval_seconds=interval_seconds,
            rate_scale_factor=rate_scale_factor,
            cv_scale_factor=cv_scale_factor,
            time_scale_factor=time_scale_factor,
            replication_factor=replication_factor,
        )
        part = self.trace.window(start, end)
        model_of_function = _deal(models, len(part), model_mapping_strategy)
        if part.counts is not None:
            per_bin = part.binned(model_of_function, len(models), int(interval_seconds) // 60)
            processes = [settings.processes_of_counts(counts) for counts in per_bin]
            arrivals = settings.draw(processes, seed)
        else:
            merged = part.merged(model_of_function, len(models))
            if arrival_distribution == "vanilla":
                arrivals = [settings.play(times) for times in merged]
            else:
                arrivals = settings.draw([settings.fitted_processes(times) for times in merged], seed)
        return OrderedDict(
            (model, settings.replay(model, times)) for model, times in zip(models, arrivals, strict=True)
        )

    def replay_vanilla(
        self,
        models: Sequence[str],
        model_mapping_strategy: str = "stripe",
        start_time: str = "0.0.0",
        end_time: str = "13.23.60",
    ) -> OrderedDict[str, TraceReplay]:
        """Replay the invocations of a v2 slice as they are: `replay` with "vanilla"."""
        return self.replay(models, model_mapping_strategy, start_time, end_time, "vanilla")

    def report_stats(self) -> dict[str, Any]:
        """Log what the trace holds, and return it.

        Returns
        -------
        dict
            trace, num_functions, num_invocations, num_days, rate (invocations/s of all functions), and the share of
            all invocations that the busiest 1 % and 10 % of the functions have (rounded up to whole functions), as
            share_top_1_percent and share_top_10_percent.
        """
        busiest = np.sort(self.trace.invocations_by_function())[::-1]
        total = int(busiest.sum())
        stats: dict[str, Any] = {
            "trace": self.trace_name,
            "num_functions": len(busiest),
            "num_invocations": total,
            "num_days": self.trace.num_minutes / MINUTES_PER_DAY,
            "rate": total / (self.trace.num_minutes * 60),
        }
        for percent in (1, 10):
            top = busiest[: -(-len(busiest) * percent // 100)]
            stats[f"share_top_{percent}_percent"] = float(top.sum() / max(total, 1))
        logger.info("%s", ", ".join(f"{name} {value}" for name, value in stats.items()))
        return stats

    estimate_exponential = staticmethod(estimate_exponential)
    estimate_gamma = staticmethod(estimate_gamma)
    estimate_pareto = staticmethod(estimate_pareto)


def _deal(models: Sequence[str], num_functions: int, strategy: str) -> NDArray[np.int64]:
    """Return the model of each function, an index into `models`, shape (num_functions,)."""
    if isinstance(models, str) or not len(models) or not all(isinstance(model, str) for model in models):
        raise InvalidConfigError(f"models must be a list of one name or more, got {models!r}")
    if len(set(models)) != len(models):
        raise InvalidConfigError(f"the models of a replay must differ, got {', '.join(models)}")
    positions = np.arange(num_functions, dtype=np.int64)
    if check_known(strategy, MAPPING_STRATEGIES, "model mapping strategy") == "stripe":
        return positions % len(models)
    return len(models) * positions // max(num_functions, 1)
