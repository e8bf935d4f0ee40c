"""What a model costs on a parallel configuration: the words in which every profile is given.

AlpaServe users know these classes from :mod:`alpa_serve.profiling`, which re-exports them; their pickles name that
module, so the classes say that they live there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from alpa_serve.errors import InvalidProfileError
from alpa_serve.validation import check_int, check_real

if TYPE_CHECKING:
    from collections.abc import Sequence


class ParallelConfig(NamedTuple):
    """How a model is split over the devices of a group.

    Attributes
    ----------
    dp : int
        Data-parallel degree; 1 everywhere in this package.
    op : int
        Tensor-parallel (intra-operator) degree.
    pp : int
        Number of pipeline stages.
    """

    dp: int
    op: int
    pp: int

    @property
    def num_devices(self) -> int:
        """Devices that a group of this configuration occupies."""
        return self.dp * self.op * self.pp


def check_parallel_config(config: object, where: str) -> ParallelConfig:
    """Return `config` (a ParallelConfig or any three whole numbers) as a ParallelConfig.

    Raises
    ------
    InvalidProfileError
        If it is not three whole numbers >= 1.
    """
    if not isinstance(config, (tuple, list)) or len(config) != 3:
        raise InvalidProfileError(f"{where}: a parallel config is (dp, op, pp), got {config!r}")
    return ParallelConfig(
        *(
            check_int(degree, f"{where}: {name} of {tuple(config)}", minimum=1, error=InvalidProfileError)
            for name, degree in zip(ParallelConfig._fields, config, strict=True)
        )
    )


@dataclass
class LatencyMemData:
    """Latency and memory of one model on one parallel configuration.

    Attributes
    ----------
    latency : dict of int to list of float
        Batch size -> seconds per pipeline stage, length pp.
    act_mem : dict of int to list of float
        Batch size -> activation bytes per pipeline stage, length pp; NaN where not measured.
    weight_mem : list of float
        Weight bytes on one device of each stage, length pp.
    metadata : object
        Anything the profiler noted.
    """

    latency: dict[int, list[float]] = field(default_factory=dict)
    act_mem: dict[int, list[float]] = field(default_factory=dict)
    weight_mem: list[float] = field(default_factory=list)
    metadata: Any = None

    def add_result(
        self,
        batch_size: int,
        latency: Sequence[float],
        act_mem: Sequence[float],
        weight_mem: Sequence[float],
        metadata: Any = None,
    ) -> None:
        """Keep this measurement unless a faster one (smaller slowest stage) is there for `batch_size`.

        Parameters
        ----------
        batch_size : int
        latency : sequence of float
            Seconds per stage.
        act_mem : sequence of float
            Activation bytes per stage.
        weight_mem : sequence of float
            Weight bytes on one device of each stage.
        metadata : object
            Anything the profiler noted.
        """
        known = self.latency.get(batch_size)
        if known is None or max(latency) < max(known):
            self.latency[batch_size] = list(latency)
            self.act_mem[batch_size] = list(act_mem)
            self.weight_mem = list(weight_mem)
            self.metadata = metadata


@dataclass
class ProfilingResult:
    """The profile of one model: its figures for every parallel configuration that was measured.

    Attributes
    ----------
    model_name : str
    para_dict : dict of ParallelConfig to LatencyMemData
    preprocess_cpu, postprocess_cpu : float
        Seconds on the host before and after the model runs.
    """

    model_name: str
    para_dict: dict[ParallelConfig, LatencyMemData] = field(default_factory=dict)
    preprocess_cpu: float = 0.0
    postprocess_cpu: float = 0.0

    def add_result(
        self,
        parallel_config: ParallelConfig,
        batch_size: int,
        stage_latency: Sequence[float],
        act_mem: Sequence[float],
        weight_mem: Sequence[float],
        metadata: Any = None,
    ) -> None:
        """Add one measurement; per batch size the one with the smaller slowest stage stays.

        Parameters
        ----------
        parallel_config : ParallelConfig
        batch_size : int
        stage_latency : sequence of float, length pp
            Seconds per stage.
        act_mem, weight_mem : sequence of float, length pp
            Bytes per stage: activations, and weights on one device of the stage.
        metadata : object
            Anything the profiler noted.

        Raises
        ------
        InvalidProfileError
            If a list has not one figure per stage, or a figure is negative or not a number.
        """
        where = f"profile of {self.model_name!r}"
        config = check_parallel_config(parallel_config, where)
        where = f"{where}, config {tuple(config)}"
        check_int(batch_size, f"{where}: batch size", minimum=1, error=InvalidProfileError)
        where = f"{where}, batch size {batch_size}"
        _check_stages(stage_latency, config.pp, f"{where}: latency")
        _check_stages(act_mem, config.pp, f"{where}: activation memory", may_be_unknown=True)
        _check_stages(weight_mem, config.pp, f"{where}: weight memory")
        data = self.para_dict.setdefault(config, LatencyMemData())
        data.add_result(batch_size, stage_latency, act_mem, weight_mem, metadata)

    def stage_latency(self, config: ParallelConfig, batch_size: int = 1) -> list[float]:
        """Return the seconds per stage, checked, on `config` at `batch_size`.

        Raises
        ------
        InvalidProfileError
            If the profile lacks the config or the batch size, or its figures are malformed.
        """
        config = ParallelConfig(*config)
        where = f"profile of {self.model_name!r}, config {tuple(config)}"
        data = self.para_dict.get(config)
        if data is None:
            raise InvalidProfileError(f"{where}: not profiled; profiled: {sorted(map(tuple, self.para_dict))}")
        if batch_size not in data.latency:
            raise InvalidProfileError(f"{where}: no batch size {batch_size}; profiled: {sorted(data.latency)}")
        return _check_stages(data.latency[batch_size], config.pp, f"{where}, batch size {batch_size}: latency")

    def weight_bytes(self, config: ParallelConfig) -> float:
        """Return the weight bytes on the fullest device of a group of this `config`.

        Raises
        ------
        InvalidProfileError
            If the profile lacks the config or its figures are malformed.
        """
        config = ParallelConfig(*config)
        where = f"profile of {self.model_name!r}, config {tuple(config)}"
        data = self.para_dict.get(config)
        if data is None:
            raise InvalidProfileError(f"{where}: not profiled; profiled: {sorted(map(tuple, self.para_dict))}")
        return max(_check_stages(data.weight_mem, config.pp, f"{where}: weight memory"))


def _check_stages(figures: object, num_stages: int, where: str, *, may_be_unknown: bool = False) -> list[float]:
    """Return `figures` as `num_stages` floats >= 0 (or NaN if they may be unknown), or say what is wrong with them."""
    try:
        listed = list(figures)  # type: ignore[call-overload]
    except TypeError:
        raise InvalidProfileError(f"{where} must list one figure per stage, got {figures!r}") from None
    if len(listed) != num_stages:
        raise InvalidProfileError(f"{where} must list {num_stages} figures, one per stage, got {len(listed)}")
    return [
        figure
        if may_be_unknown and isinstance(figure, float) and math.isnan(figure)
        else check_real(figure, where, minimum=0.0, error=InvalidProfileError)
        for figure in listed
    ]


# where AlpaServe's pickles say that they are
for _class in (ParallelConfig, LatencyMemData, ProfilingResult):
    _class.__module__ = "alpa_serve.profiling"
