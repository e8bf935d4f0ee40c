"""Which running groups a new placement can keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from alpa_serve.device_layout import Shape
    from alpa_serve.profiling import ParallelConfig


class GroupSpec(NamedTuple):
    """A group that a placement wants.

    Attributes
    ----------
    config : tuple of int
        (dp, op, pp).
    shape : (int, int)
        Hosts, devices per host.
    members : tuple of str
        Names of its models.
    appended : (sequence, mapping)
        Arguments that are appended to those of the registration of each.
    """

    config: ParallelConfig
    shape: Shape
    members: tuple[str, ...]
    appended: tuple[Sequence[Any], Mapping[str, Any]] = ((), {})

    @property
    def num_devices(self) -> int:
        """Devices of the group."""
        return self.shape[0] * self.shape[1]


def kept_groups(
    running: Mapping[int, tuple[ParallelConfig | None, Shape | None, Collection[str]]],
    wanted: Sequence[GroupSpec],
) -> dict[int, int]:
    """Match wanted groups to running ones of the same config and shape, those with most models in common first.

    Parameters
    ----------
    running : mapping
        Per group: its config (None if it is not of a placement), its shape, its models.
    wanted : sequence of GroupSpec

    Returns
    -------
    dict of int to int
        Position in `wanted` -> running group; none twice.
    """
    pairs = sorted(
        (
            -len(set(spec.members) & set(models)),
            len(set(models) - set(spec.members)),
            position != group_id,
            position,
            group_id,
        )
        for position, spec in enumerate(wanted)
        for group_id, (config, shape, models) in running.items()
        if config == tuple(spec.config) and shape == tuple(spec.shape)
    )
    kept: dict[int, int] = {}
    taken: set[int] = set()
    for *_, position, group_id in pairs:
        if position not in kept and group_id not in taken:
            kept[position] = group_id
            taken.add(group_id)
    return kept
