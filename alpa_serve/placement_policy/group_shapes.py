"""The groups that together are worth most on a cluster: knapsacks of devices, nodes respected."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Counts = tuple[int, ...]
"""Groups of each kind."""

_MAX_FILLINGS, _MAX_TRIED = 5000, 100_000
"""Ways to fill a node that are listed, and that are looked at for it."""


@dataclass(frozen=True)
class Shapes:
    """The ways to cut a cluster into groups of some kinds.

    Attributes
    ----------
    sizes : tuple of int
        Devices of a group of each kind: at most those of a node, or of several whole nodes.
    num_devices, num_devices_per_node : int
        The last node may have fewer.
    """

    sizes: tuple[int, ...]
    num_devices: int
    num_devices_per_node: int

    @property
    def _nodes(self) -> tuple[int, int]:
        """Whole nodes, and the devices of the last one if that has fewer."""
        return divmod(self.num_devices, self.num_devices_per_node)

    def best(self, values: Sequence[float]) -> tuple[float, Counts]:
        """Return the highest total value of groups, and a shape that has it.

        Parameters
        ----------
        values : sequence of float
            Value >= 0 of a group of each kind.

        Notes
        -----
        Exact: a node is filled with groups that lie within one, and, so filled, is one more way to use a node beside
        the groups that take several. Only values are added up; where their sums are exact in floating point, so is it.
        """
        per_node = self.num_devices_per_node
        nodes, rest = self._nodes
        within = [(values[kind], size, kind) for kind, size in enumerate(self.sizes) if size <= per_node]
        best, last = _knapsack(within, per_node if nodes else rest)
        wide = [(values[kind], size // per_node, kind) for kind, size in enumerate(self.sizes) if size > per_node]
        filled = len(self.sizes)
        best_nodes, last_node = _knapsack([*wide, (best[per_node], 1, filled)] if nodes else wide, nodes)
        counts = [0] * (filled + 1)
        _count(counts, last_node, nodes, 1)
        _count(counts, last, per_node, counts[filled])
        _count(counts, last, rest, 1)
        return best_nodes[nodes] + best[rest], tuple(counts[:filled])

    def descending(self, values: Sequence[float]) -> Iterator[tuple[float, Counts]]:
        """Yield (value, shape) for the shapes with room for no further group, the highest value first.

        Yields nothing if there are too many ways to fill a node.
        """
        per_node = self.num_devices_per_node
        nodes, rest = self._nodes
        within = [kind for kind, size in enumerate(self.sizes) if size <= per_node]
        wide = [kind for kind, size in enumerate(self.sizes) if size > per_node]
        node_sizes = [size // per_node for size in self.sizes]
        bases = _fillings(node_sizes, wide, nodes, full=False)
        of_node = _fillings(self.sizes, within, per_node, full=True)
        of_rest = _fillings(self.sizes, within, rest, full=True)
        if bases is None or of_node is None or of_rest is None:
            return

        def value(counts: Counts) -> float:
            return sum(count * values[kind] for kind, count in enumerate(counts))

        of_node.sort(key=value, reverse=True)
        of_rest.sort(key=value, reverse=True)
        # an entry: the groups of several nodes, and which filling the last node and each other node has
        heap: list[tuple[float, Counts, tuple[int, ...]]] = []
        seen = set()

        def push(base: Counts, chosen: tuple[int, ...]) -> None:
            if (base, chosen) not in seen:
                seen.add((base, chosen))
                total = value(base) + value(of_rest[chosen[0]]) + sum(value(of_node[k]) for k in chosen[1:])
                heapq.heappush(heap, (-total, base, chosen))

        for base in bases:
            free = nodes - sum(count * node_sizes[kind] for kind, count in enumerate(base))
            push(base, (0,) * (1 + free))
        while heap:
            negative, base, chosen = heapq.heappop(heap)
            parts = [base, of_rest[chosen[0]], *(of_node[k] for k in chosen[1:])]
            yield -negative, tuple(map(sum, zip(*parts, strict=True)))
            for place, choice in enumerate(chosen):
                listed = of_rest if place == 0 else of_node
                # nodes are alike: their fillings in one order only
                ordered = place == 0 or place == len(chosen) - 1 or choice < chosen[place + 1]
                if choice + 1 < len(listed) and ordered:
                    push(base, (*chosen[:place], choice + 1, *chosen[place + 1 :]))


def _knapsack(items: Sequence[tuple[float, int, int]], space: int) -> tuple[list[float], list[tuple[int, int]]]:
    """Return per space the highest value of items (value, size, name), and (size, name) of one; a gap is (1, -1)."""
    best, last = [0.0] * (space + 1), [(1, -1)] * (space + 1)
    for filled in range(1, space + 1):
        best[filled] = best[filled - 1]
        for value, size, name in items:
            if size <= filled and best[filled - size] + value > best[filled]:
                best[filled], last[filled] = best[filled - size] + value, (size, name)
    return best, last


def _count(counts: list[int], last: Sequence[tuple[int, int]], space: int, times: int) -> None:
    """Add to `counts` the items that fill `space` best."""
    while times and space > 0:
        size, name = last[space]
        if name >= 0:
            counts[name] += times
        space -= size


def _fillings(sizes: Sequence[int], kinds: Sequence[int], space: int, *, full: bool) -> list[Counts] | None:
    """List the multisets of `kinds` within `space`, if `full` without those that leave room; None if too many."""
    found: list[Counts] = []
    tried = 0
    smallest = min((sizes[kind] for kind in kinds), default=space + 1)

    def extend(position: int, counts: list[int], left: int) -> bool:
        nonlocal tried
        if position == len(kinds):
            tried += 1
            if not full or left < smallest:
                found.append(tuple(counts))
            return len(found) <= _MAX_FILLINGS and tried <= _MAX_TRIED
        kind = kinds[position]
        for count in range(left // sizes[kind] + 1):
            counts[kind] = count
            if not extend(position + 1, counts, left - count * sizes[kind]):
                return False
        counts[kind] = 0
        return True

    return found if extend(0, [0] * len(sizes), space) else None
