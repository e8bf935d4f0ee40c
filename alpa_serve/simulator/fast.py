"""The fast simulator: one pass over the requests in the order of their arrivals, compiled.

It runs the functions of :mod:`alpa_serve.scheduling.stage_clocks`, the same as the event-driven simulator's scheduler,
for whatever :class:`~alpa_serve.scheduling.ServingRules` say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from alpa_serve.errors import InvalidConfigError
from alpa_serve.scheduling import ALPASERVE, MAVERIQ, stage_clocks
from alpa_serve.scheduling.scheduler import dispatch_draws
from alpa_serve.simulator.compiled import compiled, inlined
from alpa_serve.simulator.fast_batched import simulate_batched

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.problem import ReplicaTable, RequestTable

Seconds = TypeVar("Seconds", float, "NDArray[np.float64]")

_NO_STALLS = np.empty((0, 2))


_ROUNDING = 1.5 * 2.0**28
"""Adding and subtracting this rounds a double to a multiple of 2^-24."""


def rounded_seconds(seconds: Seconds) -> Seconds:
    """Round to a multiple of 2^-24 s (60 ns), below 10^8 s.

    Sums of such figures are exact up to 5 * 10^8 s, so they do not depend on the order of summation.
    """
    return (seconds + _ROUNDING) - _ROUNDING


@dataclass(frozen=True)
class RequestOutcomes:
    """How each request fared, arrays of shape (n,).

    Attributes
    ----------
    finish : ndarray of float64
        Seconds; the arrival for a request that was not served.
    good : ndarray of bool
        Whether it met its SLO.
    group : ndarray of int32
        The group it was sent to; -1 if none holds its model.
    start : ndarray of float64
        Seconds: when its group began with it; the arrival for a request that was not served.
    served : ndarray of bool
    work : ndarray of float64
        Seconds that it took on all stages together; 0 for a request that was not served.

    Notes
    -----
    The last three are of length 0 unless they were asked for.
    """

    finish: NDArray[np.float64]
    good: NDArray[np.bool_]
    group: NDArray[np.int32]
    start: NDArray[np.float64]
    served: NDArray[np.bool_]
    work: NDArray[np.float64]

    @classmethod
    def empty(cls) -> RequestOutcomes:
        """Return the outcomes of no request."""
        return cls(
            np.empty(0),
            np.empty(0, np.bool_),
            np.empty(0, np.int32),
            np.empty(0),
            np.empty(0, np.bool_),
            np.empty(0),
        )


@dataclass(frozen=True)
class Counts:
    """What a simulation adds up to.

    Attributes
    ----------
    model_num_good : ndarray of int64, shape (num_models,)
        Requests that met their SLO.
    model_latency : ndarray of float64, shape (num_models,)
        Seconds over all served requests, each rounded by :func:`rounded_seconds`; one that was not served adds 0.
    group_num_requests : ndarray of int64, shape (num_groups,)
        Requests sent to each group.
    """

    model_num_good: NDArray[np.int64]
    model_latency: NDArray[np.float64]
    group_num_requests: NDArray[np.int64]


def simulate_counts(requests: RequestTable, replicas: ReplicaTable, draws: NDArray[np.float64] | None = None) -> Counts:
    """Simulate by the rules that `replicas` was made with, and only count, without figures per request.

    Parameters
    ----------
    requests : RequestTable
    replicas : ReplicaTable
    draws : ndarray of float64, shape (n,), optional
        As of :func:`simulate_requests`.
    """
    return _run(requests, replicas, RequestOutcomes.empty(), draws=draws)


def simulate_requests(
    requests: RequestTable,
    replicas: ReplicaTable,
    batch_sizes: tuple[int, ...] | None = None,
    stalls: NDArray[np.float64] | None = None,
    draws: NDArray[np.float64] | None = None,
    since: float = 0.0,
    detailed: bool = False,
) -> tuple[RequestOutcomes, Counts]:
    """Simulate by the rules that `replicas` was made with, and return how each request fared.

    Parameters
    ----------
    requests : RequestTable
    replicas : ReplicaTable
    batch_sizes : tuple of int, optional
        Ascending from 1, those of ``replicas.latency``; simulate batching with them, by rules that pass
        :func:`check_batching`, without stalls and details. One request at a time if left out.
    stalls : ndarray of float64, shape (num_stalls, 2), optional
        Start and end in seconds of periods, ascending and apart, during which nothing begins.
    draws : ndarray of float64, shape (n,), optional
        By which requests choose their replica at random; those of the rules' seed if left out.
    since : float
        Seconds from which on the groups are there, idle; not after the first arrival.
    detailed : bool
        Return `start`, `served` and `work` too; not with batching.
    """
    n = len(requests)
    outcomes = replace(
        RequestOutcomes.empty(),
        finish=requests.arrivals.copy(),
        good=np.zeros(n, np.bool_),
        group=np.full(n, -1, np.int32),
    )
    if detailed:
        outcomes = replace(outcomes, start=requests.arrivals.copy(), served=np.zeros(n, np.bool_), work=np.zeros(n))
    if batch_sizes is not None and (detailed or stalls is not None):
        raise InvalidConfigError("batching is simulated without stalls, start, served and work")
    if batch_sizes is None:
        return outcomes, _run(requests, replicas, outcomes, stalls, draws, since)
    simulate_batched(
        requests.arrivals,
        requests.model_ids,
        requests.slos,
        replicas.model_start,
        replicas.group,
        replicas.num_stages,
        replicas.latency,
        replicas.num_groups,
        np.array(batch_sizes, dtype=np.int64),
        replicas.rules.fixed_overhead_s,
        outcomes.finish,
        outcomes.good,
        outcomes.group,
    )
    num_models = len(requests.model_num_requests)
    known = requests.model_ids >= 0
    return outcomes, Counts(
        np.bincount(requests.model_ids[known & outcomes.good], minlength=num_models),
        np.bincount(
            requests.model_ids[known],
            weights=rounded_seconds(outcomes.finish - requests.arrivals)[known],
            minlength=num_models,
        ).astype(np.float64),
        np.bincount(outcomes.group[outcomes.group >= 0], minlength=replicas.num_groups),
    )


def check_batching(rules: ServingRules) -> None:
    """Check that requests can be batched under `rules`.

    Raises
    ------
    InvalidConfigError
        Naming the rule that batching does not know.
    """
    for name in ("execution", "queueing", "dispatch", "admission", "service", *_NO_BATCHING_WITH):
        value, known = getattr(rules, name), getattr(ALPASERVE, name)
        if value != known:
            raise InvalidConfigError(f"batching is simulated with {name}={known!r} only, got {value!r}")


_NO_BATCHING_WITH = ("dispatch_interval_s", "request_overhead_s", "idle_penalty_s")


def _run(
    requests: RequestTable,
    replicas: ReplicaTable,
    outcomes: RequestOutcomes,
    stalls: NDArray[np.float64] | None = None,
    draws: NDArray[np.float64] | None = None,
    since: float = 0.0,
) -> Counts:
    rules = replicas.rules
    num_models = len(requests.model_num_requests)
    counts = Counts(np.zeros(num_models, np.int64), np.zeros(num_models), np.zeros(replicas.num_groups, np.int64))
    if rules.dispatch == "least_loaded":
        draws = np.empty(0)
    elif draws is None:
        draws = dispatch_draws(rules, len(requests))
    kind = RuleKind.of(rules, has_stalls=stalls is not None and len(stalls) > 0)
    _kernel(kind if kind in _SPECIALISED else None)(
        requests.arrivals,
        requests.model_ids,
        requests.slos,
        requests.input_tokens,
        requests.output_tokens,
        replicas.model_start,
        replicas.group,
        replicas.num_stages,
        replicas.latency,
        replicas.token_rates,
        draws,
        kind,
        rules.fixed_overhead_s,
        rules.dispatch_interval_s,
        rules.idle_after_s,
        rules.idle_penalty_s,
        since,
        _NO_STALLS if stalls is None else stalls,
        counts.model_num_good,
        counts.model_latency,
        counts.group_num_requests,
        outcomes.finish,
        outcomes.good,
        outcomes.group,
        outcomes.start,
        outcomes.served,
        outcomes.work,
    )
    return counts


_choose_replica = compiled(stage_clocks.choose_replica)
_ready_at = compiled(stage_clocks.ready_at)
_begin_in_queue = compiled(stage_clocks.begin_in_queue)
_after_stalls = compiled(stage_clocks.after_stalls)
_run_stages = compiled(stage_clocks.run_stages)
_commit = compiled(stage_clocks.commit)
_rounded_seconds = inlined(rounded_seconds)


class RuleKind(NamedTuple):
    """Which branches of the kernel some rules take."""

    exclusive: bool
    one_queue: bool
    at_random: bool
    admits_all: bool
    by_tokens: bool
    has_delays: bool

    @classmethod
    def of(cls, rules: ServingRules, has_stalls: bool = False) -> RuleKind:
        """Return the kind of `rules`."""
        return cls(
            exclusive=rules.execution == "exclusive",
            one_queue=rules.queueing == "global_fifo",
            at_random=rules.dispatch == "random",
            admits_all=rules.admission == "all",
            by_tokens=rules.service == "tokens",
            has_delays=rules.dispatch_interval_s > 0 or rules.idle_penalty_s > 0 or has_stalls,
        )


_SPECIALISED = (RuleKind.of(ALPASERVE), RuleKind.of(MAVERIQ))
"""Kinds that have machine code of their own, in which branches not taken cost nothing; the others share one."""


@cache
def _kernel(fixed: RuleKind | None) -> Callable[..., None]:
    """Return the kernel, for rules of the kind `fixed` only if that is given.

    What it closes over is constant in the machine code.
    """
    is_fixed = fixed is not None
    f_exclusive, f_one_queue, f_at_random, f_admits_all, f_by_tokens, f_has_delays = fixed or (False,) * 6

    def simulate(
        arrivals: NDArray[np.float64],
        model_ids: NDArray[np.int32],
        slos: NDArray[np.float64],
        input_tokens: NDArray[np.int64],
        output_tokens: NDArray[np.int64],
        model_start: NDArray[np.int64],
        replica_group: NDArray[np.int64],
        replica_stages: NDArray[np.int64],
        replica_latency: NDArray[np.float64],
        token_rates: NDArray[np.float64],
        draws: NDArray[np.float64],
        kind: RuleKind,
        overhead: float,
        dispatch_interval: float,
        idle_after: float,
        idle_penalty: float,
        since: float,
        stalls: NDArray[np.float64],
        model_num_good: NDArray[np.int64],
        model_latency: NDArray[np.float64],
        group_num_requests: NDArray[np.int64],
        finish: NDArray[np.float64],
        good: NDArray[np.bool_],
        group: NDArray[np.int32],
        start: NDArray[np.float64],
        served: NDArray[np.bool_],
        work: NDArray[np.float64],
    ) -> None:
        """Serve the requests one after the other, adding to the counts and to the figures that are not empty."""
        exclusive = f_exclusive if is_fixed else kind.exclusive
        one_queue = f_one_queue if is_fixed else kind.one_queue
        at_random = f_at_random if is_fixed else kind.at_random
        admits_all = f_admits_all if is_fixed else kind.admits_all
        by_tokens = f_by_tokens if is_fixed else kind.by_tokens
        has_delays = f_has_delays if is_fixed else kind.has_delays
        record = len(finish) > 0
        record_all = len(start) > 0
        num_groups = len(group_num_requests)
        max_stages = replica_latency.shape[2]
        clocks = np.full((num_groups, max_stages), since)
        busy_until = np.full(num_groups, since)
        last_begin = np.full(num_groups, since)
        ends = np.empty(max_stages)
        stall_starts = stalls[:, 0]
        stall_ends = stalls[:, 1]
        for i in range(len(arrivals)):
            model = model_ids[i]
            if model < 0:
                continue
            first, past = model_start[model], model_start[model + 1]
            if first == past:
                continue
            draw = draws[i] if at_random else -1.0
            replica = _choose_replica(busy_until, replica_group, first, past, draw)
            chosen = replica_group[replica]
            num_stages = replica_stages[replica]
            arrival = arrivals[i]
            queue = 0 if one_queue else chosen
            free_at = busy_until[chosen] if exclusive else clocks[chosen, 0]
            extra = 0.0
            if by_tokens:
                further = max(output_tokens[i] - 1, 0)
                extra = token_rates[replica, 0] * input_tokens[i] + token_rates[replica, 1] * further
            begin = _ready_at(arrival, free_at)
            if one_queue or has_delays:
                begin = _begin_in_queue(begin, last_begin[queue], dispatch_interval)
            if has_delays:
                begin = _after_stalls(begin, stall_starts, stall_ends)
                if begin - busy_until[chosen] > idle_after:
                    extra += idle_penalty
            end = _run_stages(begin, clocks[chosen], replica_latency[replica, 0], num_stages, extra, ends)
            latency = end + overhead - arrival
            group_num_requests[chosen] += 1
            met = latency <= slos[i]
            if met or admits_all:
                if met:
                    model_num_good[model] += 1
                _commit(clocks[chosen], ends, num_stages, exclusive)
                busy_until[chosen] = end
                if one_queue or has_delays:
                    last_begin[queue] = begin
                model_latency[model] += _rounded_seconds(latency)
            if record:
                group[i] = chosen
                good[i] = met
                if met or admits_all:
                    finish[i] = end + overhead
                    if record_all:
                        start[i] = begin
                        served[i] = True
                        for k in range(num_stages):
                            work[i] += replica_latency[replica, 0, k] + extra

    # machine code is kept on disk under this name: none may serve another kind
    variant = "any" if fixed is None else "".join(str(int(flag)) for flag in fixed)
    simulate.__qualname__ = f"simulate_{variant}"
    return compiled(simulate)
