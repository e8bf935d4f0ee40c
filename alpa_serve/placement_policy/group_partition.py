"""Shapes of groups: the ways to cut a cluster's devices into groups, before any model is placed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpa_serve.profiling import ParallelConfig
from alpa_serve.util import decompose2tok, get2tok, get_factors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alpa_serve.placement import ClusterEnv


def configs_of_size(size: int, max_pp: int, max_op: int) -> list[ParallelConfig]:
    """List the configs (1, op, pp) with op * pp = `size`, op <= `max_op`, pp <= `max_pp`, fewest stages first."""
    return [ParallelConfig(1, size // pp, pp) for pp in get_factors(size) if pp <= max_pp and size // pp <= max_op]


def even_shapes(cluster_env: ClusterEnv, max_pp: int, max_op: int) -> list[list[ParallelConfig]]:
    """List the shapes of equal groups whose size divides the number of devices and that fit the nodes."""
    num_devices = cluster_env.num_devices
    return [
        [config] * (num_devices // size)
        for size in get_factors(num_devices)
        if cluster_env.can_hold([size] * (num_devices // size))
        for config in configs_of_size(size, max_pp, max_op)
    ]


def uneven_shapes(cluster_env: ClusterEnv, max_pp: int, max_op: int) -> list[list[ParallelConfig]]:
    """List the shapes of equal groups of a power of two devices, what is left over being pipelines.

    The devices left over are split into powers of two s, each a pipeline (1, 1, s). Shapes that would tear a node are
    left out.
    """
    num_devices = cluster_env.num_devices
    shapes = []
    for size in get2tok(num_devices):
        num_groups, left_over = divmod(num_devices, size)
        rest = decompose2tok(left_over)
        if cluster_env.can_hold([size] * num_groups + rest):
            rest_configs = [ParallelConfig(1, 1, stages) for stages in rest]
            shapes += [[config] * num_groups + rest_configs for config in configs_of_size(size, max_pp, max_op)]
    return shapes


def equal_groups(cluster_env: ClusterEnv, config: ParallelConfig) -> list[ParallelConfig]:
    """Return as many groups of `config` as fit the cluster without tearing a node."""
    size, per_node = config.num_devices, cluster_env.num_devices_per_node
    nodes, rest = divmod(cluster_env.num_devices, per_node)
    number = nodes // (size // per_node) if size > per_node else nodes * (per_node // size) + rest // size
    return [config] * number


def pipelines(cluster_env: ClusterEnv, num_stages: int, *, remainder: bool) -> list[ParallelConfig]:
    """Return as many pipelines (1, 1, `num_stages`) as the devices allow.

    With `remainder`, the devices left over are split into powers of two, each a pipeline of its own.
    """
    num_groups, rest = divmod(cluster_env.num_devices, num_stages)
    left_over = decompose2tok(rest) if remainder else []
    return [ParallelConfig(1, 1, num_stages)] * num_groups + [ParallelConfig(1, 1, size) for size in left_over]


def all_configs(shapes: Sequence[Sequence[ParallelConfig]]) -> set[ParallelConfig]:
    """Return the configs that occur in some shape."""
    return {config for shape in shapes for config in shape}
