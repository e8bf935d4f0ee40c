"""A model that takes its profiled time on simulated devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alpa_serve.device_layout import check_shape
from alpa_serve.errors import InvalidProfileError
from alpa_serve.profiles.result import check_parallel_config
from alpa_serve.profiling import ProfilingResult
from alpa_serve.simulator.cluster import VirtualMesh
from alpa_serve.simulator.event_loop import current_loop, sleep_until

if TYPE_CHECKING:
    from alpa_serve.device_layout import Shape
    from alpa_serve.profiling import ParallelConfig


class Executable:
    """A replica whose stages occupy their devices for the profiled latency, one request after the other.

    Parameters
    ----------
    profiling_result : ProfilingResult
    parallel_config : ParallelConfig
    virtual_mesh : VirtualMesh or (int, int)
        The devices of its group; a shape (hosts, devices per host) makes new ones.

    Attributes
    ----------
    stage_streams : list of tuple of str, length pp
        Streams of each stage's devices.

    Raises
    ------
    InvalidProfileError
        If the profile lacks the config.
    InvalidPlacementError
        If the devices do not suffice.
    """

    def __init__(
        self,
        profiling_result: ProfilingResult,
        parallel_config: ParallelConfig,
        virtual_mesh: VirtualMesh | Shape,
    ) -> None:
        if not isinstance(profiling_result, ProfilingResult):
            raise InvalidProfileError(f"an Executable needs a ProfilingResult, got {profiling_result!r}")
        self.profiling_result = profiling_result
        self.parallel_config = check_parallel_config(parallel_config, f"replica of {profiling_result.model_name!r}")
        self.stage_latency = profiling_result.stage_latency(self.parallel_config)
        self.stage_streams: list[tuple[str, ...]] = []
        self.place_on(virtual_mesh if isinstance(virtual_mesh, VirtualMesh) else VirtualMesh(virtual_mesh))

    def place_on(self, virtual_mesh: VirtualMesh) -> None:
        """Run on the devices of `virtual_mesh` from now on: every stage on its own `op` devices."""
        self.virtual_mesh = virtual_mesh
        op, per_host = self.parallel_config.op, virtual_mesh.shape[1]
        submesh = check_shape((1, op) if op <= per_host else (-(-op // per_host), per_host))
        meshes = virtual_mesh.launch_mesh_group([submesh] * self.parallel_config.pp).meshes
        self.stage_streams = [mesh.stream_names for mesh in meshes]

    def get_latency_dict(self) -> dict[int, list[float]]:
        """Return batch size -> seconds per stage."""
        data = self.profiling_result.para_dict[self.parallel_config]
        return {size: self.profiling_result.stage_latency(self.parallel_config, size) for size in data.latency}

    async def handle_request(self, request: Any) -> None:
        """Occupy the devices of each stage in turn."""
        loop = current_loop()
        for streams, seconds in zip(self.stage_streams, self.stage_latency, strict=True):
            await sleep_until(loop.reserve(streams, seconds))
