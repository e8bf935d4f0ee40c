"""Separating models by speed: slow ones would hold up fast ones in a shared group."""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.errors import InvalidConfigError
from alpa_serve.placement import ClusterEnv
from alpa_serve.util import get_partitions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from alpa_serve.placement import ModelData

LATENCY_TOLERANCE = 0.38
"""Models whose latency differs from that of a cluster's first model by less than this share are in that cluster."""

MAX_PARTITIONS = 100
"""Device partitions are thinned until they are fewer."""

MAX_LISTED = 20_000
"""Where there are more ways to deal the devices, only those near the wanted shares are listed."""

THRESHOLD_STEP = 0.02
"""By how much the thinning tightens its threshold at a time."""

Separation = list[tuple[list[int], ClusterEnv]]
"""Model ids and the devices that they have to themselves, one pair per cluster of models."""


def single_device_latency(data: ModelData) -> float:
    """Return the seconds that a request takes on the fewest devices that the model is profiled on."""
    profile = data.profiling_result
    if not profile.para_dict:
        raise InvalidConfigError(f"model {data.name!r} has an empty profile")
    config = min(profile.para_dict, key=lambda config: (config[0] * config[1] * config[2], config))
    return sum(profile.stage_latency(config))


def cluster_by_latency(model_datas: Sequence[ModelData]) -> list[list[int]]:
    """Put each model into the first cluster whose first model is about as fast; model ids per cluster."""
    clusters: list[list[int]] = []
    for model_id, data in enumerate(model_datas):
        latency = single_device_latency(data)
        for cluster in clusters:
            reference = single_device_latency(model_datas[cluster[0]])
            if abs(latency - reference) < LATENCY_TOLERANCE * reference:
                cluster.append(model_id)
                break
        else:
            clusters.append([model_id])
    return clusters


def separations(model_datas: Sequence[ModelData], cluster_env: ClusterEnv) -> list[Separation]:
    """List the ways to give each latency cluster of the models its own devices.

    Where there are many, those remain whose shares of throughput (devices / latency) are closest to the shares of the
    rates.
    """
    clusters = cluster_by_latency(model_datas)
    num_devices = cluster_env.num_devices
    if num_devices < len(clusters):
        return []
    rates = np.array([sum(model_datas[m].rate for m in cluster) for cluster in clusters])
    latencies = np.array([single_device_latency(model_datas[cluster[0]]) for cluster in clusters])
    wanted = rates / rates.sum() if rates.sum() > 0 else np.full(len(clusters), 1 / len(clusters))
    if math.comb(num_devices - 1, len(clusters) - 1) <= MAX_LISTED:
        partitions = np.array(get_partitions(num_devices, len(clusters)), dtype=np.int64)
    else:
        partitions = _partitions_near(wanted * latencies / (wanted * latencies).sum() * num_devices, num_devices)
    throughput = partitions / latencies
    distance = np.abs(throughput / throughput.sum(axis=1, keepdims=True) - wanted).max(axis=1)
    for threshold in np.arange(1.0, 0.0, -THRESHOLD_STEP):
        if len(partitions) < MAX_PARTITIONS:
            break
        close = distance < threshold
        if not close.any():
            break
        partitions, distance = partitions[close], distance[close]
    if len(partitions) >= MAX_PARTITIONS:
        # no threshold thins further without losing all: the closest ones, in their order
        partitions = partitions[np.sort(np.argsort(distance, kind="stable")[: MAX_PARTITIONS - 1])]
    return [
        [
            (list(cluster), ClusterEnv(int(size), cluster_env.mem_budget, cluster_env.num_devices_per_node))
            for cluster, size in zip(clusters, sizes, strict=True)
        ]
        for sizes in partitions
    ]


def _partitions_near(ideal: NDArray[np.float64], num_devices: int) -> NDArray[np.int64]:
    """List ways to deal the devices in which every part is within a few devices of `ideal`.

    The width grows until at least MAX_PARTITIONS ways are found.
    """

    def deal(parts: tuple[int, ...], rest: int, width: float) -> Iterator[tuple[int, ...]]:
        num_left = len(ideal) - len(parts)
        if num_left == 0:
            if rest == 0:
                yield parts
            return
        low = max(1, math.ceil(ideal[len(parts)] - width))
        high = min(rest - num_left + 1, math.floor(ideal[len(parts)] + width))
        # the parts after this one must be able to take what it leaves
        low = max(low, rest - sum(math.floor(share + width) for share in ideal[len(parts) + 1 :]))
        for part in range(low, high + 1):
            yield from deal((*parts, part), rest - part, width)

    width = 1.0
    found: list[tuple[int, ...]] = []
    while len(found) < MAX_PARTITIONS and width <= num_devices:
        found = list(islice(deal((), num_devices, width), MAX_LISTED))
        width += 1.0
    return np.array(found, dtype=np.int64)
