"""The groups that together are worth most on a cluster: knapsacks of devices, nodes respected."""

from __future__ import annotations


def best_shape(
    values: list[float], sizes: list[int], num_devices: int, num_devices_per_node: int
) -> tuple[float, list[int]]:
    """Return the highest total value of groups that fit a cluster, and how many groups of each kind have it.

    Parameters
    ----------
    values : list of float
        Value >= 0 of a group of each kind.
    sizes : list of int
        Devices of a group of each kind: at most those of a node, or of several whole nodes.
    num_devices, num_devices_per_node : int
        The last node may have fewer.

    Notes
    -----
    Exact: a node is filled with groups that lie within one, and takes part, so filled, beside the groups that take whole
    nodes. The value is that of sums of the values given; where these are exact in floating point, so is it.
    """
    per_node = num_devices_per_node
    nodes, rest = divmod(num_devices, per_node)
    within = [kind for kind, size in enumerate(sizes) if size <= per_node]
    wide = [kind for kind, size in enumerate(sizes) if size > per_node]
    best, last = _knapsack([(values[kind], sizes[kind]) for kind in within], per_node if nodes else rest)
    items = [(values[kind], sizes[kind] // per_node) for kind in wide]
    if nodes:
        items.append((best[per_node], 1))
    best_nodes, last_node = _knapsack(items, nodes)
    counts = [0] * len(sizes)
    num_filled = 0
    for item in _items_of(last_node, items, nodes):
        if item == len(wide):
            num_filled += 1
        else:
            counts[wide[item]] += 1
    for space, nodes_alike in ((per_node, num_filled), (rest, 1)):
        if nodes_alike:
            for item in _items_of(last, [(values[kind], sizes[kind]) for kind in within], space):
                counts[within[item]] += nodes_alike
    return best_nodes[nodes] + best[rest], counts


def _knapsack(items: list[tuple[float, int]], space: int) -> tuple[list[float], list[int]]:
    """Return per space the highest value of items (value, size), and one of them; -1 if a unit is left empty."""
    best, last = [0.0] * (space + 1), [-1] * (space + 1)
    for filled in range(1, space + 1):
        best[filled] = best[filled - 1]
        for item, (value, size) in enumerate(items):
            if size <= filled and best[filled - size] + value > best[filled]:
                best[filled], last[filled] = best[filled - size] + value, item
    return best, last


def _items_of(last: list[int], items: list[tuple[float, int]], space: int) -> list[int]:
    """Return the items that fill `space` best."""
    chosen = []
    while space > 0:
        item = last[space]
        if item < 0:
            space -= 1
        else:
            chosen.append(item)
            space -= items[item][1]
    return chosen
