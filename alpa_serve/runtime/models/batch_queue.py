"""The queues of a group whose models are served in batches."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from alpa_serve.errors import InvalidConfigError, InvalidPlacementError
from alpa_serve.scheduling.batching import largest_batch
from alpa_serve.scheduling.stage_clocks import commit, run_stages

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping

    from alpa_serve.scheduling import ReplicaTiming, ServingRules


@dataclass(frozen=True, eq=False)
class Waiting:
    """A request in its queue.

    Attributes
    ----------
    arrival : float
        Seconds when it came to the group.
    sent, slo : float
        Seconds when it was sent, and from then to its deadline; infinity for none.
    input_tokens, output_tokens : int
    tag : object
        Whatever the caller knows it by.
    """

    arrival: float
    sent: float = 0.0
    slo: float = math.inf
    input_tokens: int = 0
    output_tokens: int = 1
    tag: Any = None


class Batch(NamedTuple):
    """What was taken from a queue.

    Attributes
    ----------
    begin, end : float
        Seconds when the first stage begins with it and the last is done with it.
    taken, dropped : list of Waiting
        The requests that it serves, and those before them that were too late; a batch may serve none.
    """

    begin: float
    end: float
    taken: list[Waiting]
    dropped: list[Waiting]


@dataclass(eq=False)
class _Queue:
    sizes: list[int]
    timings: list[ReplicaTiming]
    # each with the number of its arrival in the group
    requests: deque[tuple[int, Waiting]] = field(default_factory=deque)
    is_leaving: bool = False

    def latencies(self, by_tokens: bool) -> list[tuple[float, ...]]:
        """Return the seconds on each stage of the batches of each size that the queue fills.

        By tokens, a batch takes as long as its longest prompt and its longest answer.
        """
        if not by_tokens:
            return [timing.latency for timing in self.timings]
        rows = []
        longest_input = longest_output = position = 0
        for size, timing in zip(self.sizes, self.timings, strict=True):
            if size > len(self.requests):
                break
            while position < size:
                request = self.requests[position][1]
                longest_input = max(longest_input, request.input_tokens)
                longest_output = max(longest_output, request.output_tokens)
                position += 1
            extra = timing.token_seconds(longest_input, longest_output)
            rows.append(tuple(latency + extra for latency in timing.latency))
        return rows


class BatchQueues:
    """A queue per model of a group, from which batches are taken whenever the first stage is idle.

    It reads no clock: time is what is passed in, and never goes back.

    Parameters
    ----------
    rules : ServingRules

    Raises
    ------
    InvalidConfigError
        If the rules have delays that batching does not know.
    """

    def __init__(self, rules: ServingRules) -> None:
        for name in ("dispatch_interval_s", "idle_penalty_s"):
            if getattr(rules, name) > 0:
                raise InvalidConfigError(
                    f"batches know no {name}, got {getattr(rules, name):g} s; set it to 0, or enable_batching=False"
                )
        self.rules = rules
        self._queues: dict[Hashable, _Queue] = {}
        self._clocks: list[float] = []
        self._num_arrived = 0

    def add_model(self, model: Hashable, timings: Mapping[int, ReplicaTiming]) -> None:
        """Add a queue; `timings` has the times of each batch size, 1 among them."""
        if model in self._queues:
            raise InvalidPlacementError(f"the group has a replica of {model!r} already")
        sizes = sorted(timings)
        self._queues[model] = _Queue(sizes, [timings[size] for size in sizes])
        num_stages = len(timings[1].latency)
        # a stage that no model had so far was never busy
        self._clocks.extend([-math.inf] * (num_stages - len(self._clocks)))

    def remove_model(self, model: Hashable) -> None:
        """Remove a queue; requests that wait in it are served first."""
        queue = self._queues.get(model)
        if queue is None or queue.is_leaving:
            raise InvalidPlacementError(f"the group has no replica of {model!r}")
        queue.is_leaving = True
        self._forget_if_done(model)

    def join(self, model: Hashable, request: Waiting) -> None:
        """Put a request at the end of its queue; batches that are due by its arrival must have been taken."""
        queue = self._queues.get(model)
        if queue is None or queue.is_leaving:
            raise InvalidPlacementError(f"the group has no replica of {model!r}")
        queue.requests.append((self._num_arrived, request))
        self._num_arrived += 1

    def leave(self, model: Hashable, request: Waiting) -> None:
        """Take a request out of its queue, if it is still there."""
        queue = self._queues.get(model)
        if queue is not None:
            queue.requests = deque(entry for entry in queue.requests if entry[1] is not request)
            self._forget_if_done(model)

    def next_at(self) -> float | None:
        """Return when the next batch is to be taken; None if no request waits."""
        model = self._oldest()
        return None if model is None else self._due(model)

    def take(self, until: float) -> Iterator[Batch]:
        """Take all batches that are due until then, one after the other."""
        while (model := self._oldest()) is not None and (now := self._due(model)) <= until:
            yield self._take_of(model, now)
            self._forget_if_done(model)

    def _oldest(self) -> Hashable | None:
        """Return the model whose oldest request is the oldest."""
        heads = [(queue.requests[0][0], model) for model, queue in self._queues.items() if queue.requests]
        return min(heads, key=lambda head: head[0])[1] if heads else None

    def _due(self, model: Hashable) -> float:
        return max(self._clocks[0], self._queues[model].requests[0][1].arrival)

    def _take_of(self, model: Hashable, now: float) -> Batch:
        queue, clocks, rules = self._queues[model], self._clocks, self.rules
        num_stages = len(queue.timings[0].latency)
        begin = now + rules.fixed_overhead_s
        dropped: list[Waiting] = []
        while queue.requests:
            head = queue.requests[0][1]
            slo = math.inf if rules.admission == "all" else head.slo
            latencies = queue.latencies(rules.service == "tokens")
            chosen = largest_batch(
                begin, clocks, latencies, num_stages, queue.sizes, len(queue.requests), head.sent, slo
            )
            if chosen >= 0:
                ends = [0.0] * num_stages
                end = run_stages(begin, clocks, latencies[chosen], num_stages, 0.0, ends)
                commit(clocks, ends, num_stages, rules.execution == "exclusive")
                taken = [queue.requests.popleft()[1] for _ in range(queue.sizes[chosen])]
                return Batch(begin, end, taken, dropped)
            dropped.append(queue.requests.popleft()[1])
        return Batch(begin, begin, [], dropped)

    def _forget_if_done(self, model: Hashable) -> None:
        queue = self._queues[model]
        if queue.is_leaving and not queue.requests:
            del self._queues[model]
