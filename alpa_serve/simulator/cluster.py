"""Simulated devices: what a stage of a model occupies while it works."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from alpa_serve.device_layout import Shape, check_shape
from alpa_serve.errors import InvalidPlacementError

if TYPE_CHECKING:
    from collections.abc import Sequence

_numbers = itertools.count()


class GPU:
    """A device that does one thing after the other.

    Attributes
    ----------
    stream_name : str
        Of its stream in the event loop; no other device has it.
    """

    def __init__(self) -> None:
        self.stream_name = f"gpu{next(_numbers)}"

    def __repr__(self) -> str:
        return f"GPU({self.stream_name!r})"


class Mesh:
    """Devices that work together on a stage.

    Parameters
    ----------
    shape : (int, int)
        Hosts, devices per host.
    gpus : sequence of GPU, optional
        As many as the shape says; new ones if left out.
    """

    def __init__(self, shape: Shape, gpus: Sequence[GPU] | None = None) -> None:
        self.shape = check_shape(shape)
        size = self.shape[0] * self.shape[1]
        self.gpus = [GPU() for _ in range(size)] if gpus is None else list(gpus)
        if len(self.gpus) != size:
            raise InvalidPlacementError(f"a mesh of shape {self.shape} has {size} devices, got {len(self.gpus)}")

    @property
    def num_gpus(self) -> int:
        """Devices of the mesh."""
        return len(self.gpus)

    @property
    def stream_names(self) -> tuple[str, ...]:
        """Streams of the devices."""
        return tuple(gpu.stream_name for gpu in self.gpus)


class MeshGroup:
    """The meshes of a model's stages.

    Parameters
    ----------
    shapes : sequence of (int, int)
        Per stage: hosts, devices per host.
    gpus : sequence of GPU, optional
        Dealt out to the meshes in turn; new ones if left out.
    """

    def __init__(self, shapes: Sequence[Shape], gpus: Sequence[GPU] | None = None) -> None:
        self.meshes: list[Mesh] = []
        first = 0
        for shape in map(check_shape, shapes):
            size = shape[0] * shape[1]
            self.meshes.append(Mesh(shape, None if gpus is None else gpus[first : first + size]))
            first += size


class VirtualMesh:
    """The devices of a group, from which each of its models takes meshes for its stages.

    Parameters
    ----------
    shape : (int, int)
        Hosts, devices per host.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = check_shape(shape)
        self.gpus = Mesh(self.shape).gpus

    @property
    def num_gpus(self) -> int:
        """Devices of the mesh."""
        return len(self.gpus)

    def launch_mesh_group(self, submesh_shapes: Sequence[Shape]) -> MeshGroup:
        """Return meshes of these shapes; those of another model are made of the same devices.

        Raises
        ------
        InvalidPlacementError
            If there are too few devices.
        """
        shapes = [check_shape(shape) for shape in submesh_shapes]
        needed = sum(hosts * devices for hosts, devices in shapes)
        if needed > self.num_gpus:
            raise InvalidPlacementError(
                f"submeshes {shapes} need {needed} devices; the mesh {self.shape} has {self.num_gpus}"
            )
        return MeshGroup(shapes, self.gpus)
