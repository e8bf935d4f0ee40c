"""Dispatch and admission for a set of groups, one request at a time, on a clock that is passed in."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from alpa_serve.errors import InvalidPlacementError
from alpa_serve.scheduling.rules import check_rules
from alpa_serve.scheduling.stage_clocks import begin_in_queue, choose_replica, commit, ready_at, run_stages

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterator, Sequence

    from numpy.typing import NDArray

    from alpa_serve.scheduling.rules import ServingRules
    from alpa_serve.scheduling.timing import ReplicaTiming

_DRAWS_AT_ONCE = 1024


class Assignment(NamedTuple):
    """What the scheduler decided for a request.

    Attributes
    ----------
    group_id : int
        The group that it is for.
    admitted : bool
        Whether it is served; if not, the clocks are as if it had never come.
    begin, end : float
        Seconds: when its group is to begin and to be done with it, or would have been.
    stage_latency : tuple of float
        Seconds that it takes on each stage.
    """

    group_id: int
    admitted: bool
    begin: float
    end: float
    stage_latency: tuple[float, ...]


def dispatch_draws(rules: ServingRules, count: int) -> NDArray[np.float64]:
    """Return the draws by which requests 0 to `count` - 1 choose their replica at random, shape (count,)."""
    return np.random.default_rng(rules.seed).random(count)


def _endless_draws(rules: ServingRules, num_earlier: int) -> Iterator[float]:
    """Yield the numbers of :func:`dispatch_draws` one by one, but for the first `num_earlier`, without end."""
    generator = np.random.default_rng(rules.seed)
    generator.random(num_earlier)
    while True:
        yield from generator.random(_DRAWS_AT_ONCE).tolist()


class _Replica(NamedTuple):
    group_id: int
    timing: ReplicaTiming


class Scheduler:
    """Decides, request by request, which group serves it, when, and whether it is served at all.

    It keeps the clocks of all groups by what it decided, so it must see the requests in the order in which they are
    to be served; one thread at a time may use it.

    Parameters
    ----------
    rules : ServingRules
    num_earlier : int
        Requests that were placed before by another scheduler, whose draws for random dispatch are used up.
    since : float
        Seconds from which on its groups are there, idle.
    """

    def __init__(self, rules: ServingRules, num_earlier: int = 0, since: float = 0.0) -> None:
        self.rules = check_rules(rules)
        self._since = since
        self._exclusive = rules.execution == "exclusive"
        self._one_queue = rules.queueing == "global_fifo"
        self._draws = _endless_draws(rules, num_earlier) if rules.dispatch == "random" else None
        self._admits_all = rules.admission == "all"
        self._by_tokens = rules.service == "tokens"
        self._clocks: dict[int, list[float]] = {}
        self._busy_until: dict[int, float] = {}
        self._last_begin: dict[int, float] = {}
        self._replicas: dict[Hashable, list[_Replica]] = {}
        self._groups_of: dict[Hashable, list[int]] = {}

    def add_group(self, group_id: int, since: float | None = None) -> None:
        """Add a group without replicas, idle from `since` seconds on (if left out, from when the others are there)."""
        if group_id in self._clocks:
            raise InvalidPlacementError(f"group {group_id} exists already")
        start = self._since if since is None else since
        self._clocks[group_id] = []
        self._busy_until[group_id] = start
        self._last_begin.setdefault(self._queue_of(group_id), start)

    def _queue_of(self, group_id: int) -> int:
        return 0 if self._one_queue else group_id

    def add_replica(self, model: Hashable, group_id: int, timing: ReplicaTiming) -> None:
        """Add a replica of `model` to a group; it has as many stages as `timing`.

        Raises
        ------
        InvalidPlacementError
            If there is no such group, or it has the model already.
        """
        if group_id not in self._clocks:
            raise InvalidPlacementError(f"replica of {model!r}: no group {group_id}; groups: {sorted(self._clocks)}")
        if group_id in self._groups_of.get(model, ()):
            raise InvalidPlacementError(f"group {group_id} has a replica of {model!r} already")
        clocks = self._clocks[group_id]
        # a stage that no replica had so far was never busy
        clocks.extend([self._since] * (len(timing.latency) - len(clocks)))
        replicas = self._replicas.setdefault(model, [])
        replicas.append(_Replica(group_id, timing))
        # dispatch prefers the lowest group on a tie, whatever the order of registration
        replicas.sort(key=lambda replica: replica.group_id)
        self._groups_of[model] = [replica.group_id for replica in replicas]

    def remove_replica(self, model: Hashable, group_id: int) -> None:
        """Remove the replica of `model` from a group; work that was placed on it keeps the group busy all the same.

        Raises
        ------
        InvalidPlacementError
            If the group has no replica of the model.
        """
        if group_id not in self._groups_of.get(model, ()):
            raise InvalidPlacementError(f"group {group_id} has no replica of {model!r}")
        kept = [replica for replica in self._replicas[model] if replica.group_id != group_id]
        if kept:
            self._replicas[model] = kept
            self._groups_of[model] = [replica.group_id for replica in kept]
        else:
            del self._replicas[model], self._groups_of[model]

    def remove_group(self, group_id: int) -> None:
        """Remove a group and the replicas on it.

        Raises
        ------
        InvalidPlacementError
            If there is no such group.
        """
        if group_id not in self._clocks:
            raise InvalidPlacementError(f"no group {group_id}; groups: {sorted(self._clocks)}")
        for model in [model for model, groups in self._groups_of.items() if group_id in groups]:
            self.remove_replica(model, group_id)
        del self._clocks[group_id], self._busy_until[group_id]
        if not self._one_queue:
            # a group that comes back under this number begins anew; the one queue belongs to all groups
            self._last_begin.pop(group_id, None)

    def give_back(self, assignment: Assignment, now: float) -> None:
        """Free the stages of a group for what was placed on them and will not be served: it failed.

        What was placed after it is taken to be done so much earlier. Without effect if the group is gone.

        Parameters
        ----------
        assignment : Assignment
            One that was admitted.
        now : float
            Seconds: no stage is free before.
        """
        clocks = self._clocks.get(assignment.group_id)
        if clocks is None:
            return
        seconds = assignment.stage_latency
        if self._exclusive:
            seconds = (sum(seconds),) * len(seconds)
        for k, unused in enumerate(seconds):
            clocks[k] = max(min(clocks[k], now), clocks[k] - unused)
        until = self._busy_until[assignment.group_id]
        self._busy_until[assignment.group_id] = max(min(until, now), until - seconds[-1])

    def set_idle(self, group_id: int, now: float) -> None:
        """Take note that a group has nothing to do any more, however long it was to be busy."""
        clocks = self._clocks.get(group_id)
        if clocks is None:
            return
        clocks[:] = [min(clock, now) for clock in clocks]
        self._busy_until[group_id] = min(self._busy_until[group_id], now)
        if not self._one_queue:
            self._last_begin[group_id] = min(self._last_begin[group_id], now)

    def groups_of(self, model: Hashable) -> Sequence[int]:
        """Return the groups that have a replica of `model`, ascending."""
        return self._groups_of.get(model, ())

    def place(
        self,
        model: Hashable,
        now: float,
        slo: float,
        input_tokens: int = 0,
        output_tokens: int = 1,
        sent: float | None = None,
        excluded: Collection[int] = (),
    ) -> Assignment | None:
        """Decide about one request.

        Parameters
        ----------
        model : hashable
        now : float
            Seconds on the caller's clock: the request cannot begin before.
        slo : float
            Seconds from `sent` to the end, `fixed_overhead_s` included; infinity for none.
        input_tokens, output_tokens : int
            Of use under token service only.
        sent : float, optional
            Seconds: when the request was sent; now if left out.
        excluded : collection of int
            Groups that it must not go to.

        Returns
        -------
        Assignment or None
            None if no group has the model, or all that have it are excluded.
        """
        rules = self.rules
        # drawn for every request, so that a draw belongs to a position in the order of requests
        draw = next(self._draws) if self._draws is not None else -1.0
        groups = self._groups_of.get(model)
        if groups is None:
            return None
        replicas = self._replicas[model]
        if excluded:
            replicas = [replica for replica in replicas if replica.group_id not in excluded]
            groups = [replica.group_id for replica in replicas]
            if not groups:
                return None
        position = 0
        if len(groups) > 1:
            position = choose_replica(self._busy_until, groups, 0, len(groups), draw)
        group_id, timing = replicas[position]
        clocks = self._clocks[group_id]
        num_stages = len(timing.latency)
        busy_until = self._busy_until[group_id]
        queue = self._queue_of(group_id)
        ready = ready_at(now, busy_until if self._exclusive else clocks[0])
        begin = begin_in_queue(ready, self._last_begin[queue], rules.dispatch_interval_s)
        extra = 0.0
        if self._by_tokens:
            extra = timing.token_seconds(input_tokens, output_tokens)
        if begin - busy_until > rules.idle_after_s:
            extra += rules.idle_penalty_s
        ends = [0.0] * num_stages
        end = run_stages(begin, clocks, timing.latency, num_stages, extra, ends)
        admitted = self._admits_all or end + rules.fixed_overhead_s - (now if sent is None else sent) <= slo
        if admitted:
            commit(clocks, ends, num_stages, self._exclusive)
            # a replica of fewer stages may be done before work that was admitted earlier
            self._busy_until[group_id] = max(busy_until, end)
            self._last_begin[queue] = begin
        stage_latency = tuple([latency + extra for latency in timing.latency]) if extra else timing.latency
        return Assignment(group_id, admitted, begin, end, stage_latency)
