"""What a model costs on a parallel configuration: the words in which every profile is given.

AlpaServe users know these classes from :mod:`alpa_serve.profiling`, which re-exports them; their pickles name that
module, so the classes say that they live there.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from alpa_serve.errors import InvalidProfileError
from alpa_serve.profiles.prefill_decode import PrefillDecode
from alpa_serve.validation import check_int, check_real

if TYPE_CHECKING:
    from collections.abc import Sequence


UNITS = {"latency": "s", "memory": "bytes", "kv_bytes_per_token": "bytes/token"}
"""Units of every figure in a profile, whatever its source measured in."""

LARGEST_DEVICE = 2.0**40
"""Bytes of memory that no device has; more is taken to be in another unit."""

ORIGIN_FIELDS = ("source", "hardware", "dtype")
"""What a :class:`ProfilingResult` knows of where its figures come from."""


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
    prefill_decode : dict of int to PrefillDecode
        Batch size -> prefill and decode time, where they are known.
    kv_bytes_per_token : list of float or None
        Bytes of KV cache that a token takes on one device of each stage, length pp; None if not known.
    """

    latency: dict[int, list[float]] = field(default_factory=dict)
    act_mem: dict[int, list[float]] = field(default_factory=dict)
    weight_mem: list[float] = field(default_factory=list)
    metadata: Any = None
    prefill_decode: dict[int, PrefillDecode] = field(default_factory=dict, kw_only=True)
    kv_bytes_per_token: list[float] | None = field(default=None, kw_only=True)

    def __getstate__(self) -> dict[str, Any]:
        # AlpaServe has no class for these figures: a pickle holds them as tuples, and nothing where there are none
        state = dict(vars(self))
        figures = state.pop("prefill_decode")
        if figures:
            state["prefill_decode"] = {batch_size: astuple(known) for batch_size, known in figures.items()}
        if state["kv_bytes_per_token"] is None:
            del state["kv_bytes_per_token"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.kv_bytes_per_token = state.get("kv_bytes_per_token")
        figures = state.get("prefill_decode", {})
        self.prefill_decode = {batch_size: PrefillDecode(*known) for batch_size, known in figures.items()}

    def add_result(
        self,
        batch_size: int,
        latency: Sequence[float],
        act_mem: Sequence[float],
        weight_mem: Sequence[float],
        metadata: Any = None,
        *,
        prefill_decode: PrefillDecode | None = None,
        kv_bytes_per_token: Sequence[float] | None = None,
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
        prefill_decode : PrefillDecode or None
            Prefill and decode time of the same measurement, if known.
        kv_bytes_per_token : sequence of float or None
            Bytes of KV cache per token on one device of each stage, if known; kept whichever measurement is faster.
        """
        if kv_bytes_per_token is not None:
            self.kv_bytes_per_token = list(kv_bytes_per_token)
        known = self.latency.get(batch_size)
        if known is None or max(latency) < max(known):
            self.latency[batch_size] = list(latency)
            self.act_mem[batch_size] = list(act_mem)
            self.weight_mem = list(weight_mem)
            self.metadata = metadata
            # those of a slower measurement would contradict the latency
            self.prefill_decode.pop(batch_size, None)
            if prefill_decode is not None:
                self.prefill_decode[batch_size] = prefill_decode


@dataclass
class ProfilingResult:
    """The profile of one model: its figures for every parallel configuration that was measured.

    Attributes
    ----------
    model_name : str
    para_dict : dict of ParallelConfig to LatencyMemData
    preprocess_cpu, postprocess_cpu : float
        Seconds on the host before and after the model runs.
    source, hardware, dtype : str
        Where the figures come from, on which device they hold, and the type of the weights; "" where not known.
    """

    model_name: str
    para_dict: dict[ParallelConfig, LatencyMemData] = field(default_factory=dict)
    preprocess_cpu: float = 0.0
    postprocess_cpu: float = 0.0
    source: str = field(default="", kw_only=True)
    hardware: str = field(default="", kw_only=True)
    dtype: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        for name in ORIGIN_FIELDS:
            if not isinstance(getattr(self, name), str):
                raise InvalidProfileError(
                    f"profile of {self.model_name!r}: {name} must be text, got {getattr(self, name)!r}"
                )

    def __getstate__(self) -> dict[str, Any]:
        # as AlpaServe writes it where nothing more is known
        return {name: value for name, value in vars(self).items() if value != "" or name not in ORIGIN_FIELDS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(dict.fromkeys(ORIGIN_FIELDS, "") | state)

    @property
    def units(self) -> dict[str, str]:
        """The units of the figures, the same for every source."""
        return dict(UNITS)

    def add_result(
        self,
        parallel_config: ParallelConfig,
        batch_size: int,
        stage_latency: Sequence[float],
        act_mem: Sequence[float],
        weight_mem: Sequence[float],
        metadata: Any = None,
        *,
        prefill_decode: PrefillDecode | None = None,
        kv_bytes_per_token: Sequence[float] | None = None,
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
        prefill_decode : PrefillDecode or None
            Prefill and decode time of the same measurement, if known.
        kv_bytes_per_token : sequence of float, length pp, or None
            Bytes of KV cache per token on one device of each stage, if known.

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
        if not isinstance(prefill_decode, PrefillDecode | None):
            raise InvalidProfileError(f"{where}: prefill_decode must be a PrefillDecode, got {prefill_decode!r}")
        if kv_bytes_per_token is not None:
            _check_stages(kv_bytes_per_token, config.pp, f"{where}: KV cache per token")
        data = self.para_dict.setdefault(config, LatencyMemData())
        data.add_result(
            batch_size,
            stage_latency,
            act_mem,
            weight_mem,
            metadata,
            prefill_decode=prefill_decode,
            kv_bytes_per_token=kv_bytes_per_token,
        )

    def stage_latency(self, config: ParallelConfig, batch_size: int = 1) -> list[float]:
        """Return the seconds per stage, checked, on `config` at `batch_size`.

        Raises
        ------
        InvalidProfileError
            If the profile lacks the config or the batch size, or its figures are malformed.
        """
        config, data, where = self._profiled(config)
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
        config, data, where = self._profiled(config)
        return max(_check_stages(data.weight_mem, config.pp, f"{where}: weight memory"))

    def memory_bytes(self, config: ParallelConfig, concurrent_tokens: int = 0) -> float:
        """Return the bytes of weights and KV cache on the fullest device of a group of this `config`.

        Parameters
        ----------
        config : ParallelConfig
        concurrent_tokens : int
            Tokens >= 0, of prompts and answers, whose keys and values are held at the same time.

        Raises
        ------
        InvalidProfileError
            If the profile lacks the config or, for tokens, the KV cache per token on it, or figures are malformed.
        """
        if not concurrent_tokens:
            return self.weight_bytes(config)
        config, data, where = self._profiled(config)
        if data.kv_bytes_per_token is None:
            raise InvalidProfileError(
                f"{where}: no KV cache per token, which concurrent_tokens={concurrent_tokens} needs; give the profile "
                "kv_bytes_per_token, or leave concurrent_tokens at 0"
            )
        weights = _check_stages(data.weight_mem, config.pp, f"{where}: weight memory")
        per_token = _check_stages(data.kv_bytes_per_token, config.pp, f"{where}: KV cache per token")
        return max(held + concurrent_tokens * each for held, each in zip(weights, per_token, strict=True))

    def prefill_decode(self, config: ParallelConfig, batch_size: int = 1) -> PrefillDecode:
        """Return the prefill and decode time on `config` at `batch_size`.

        Raises
        ------
        InvalidProfileError
            If the profile lacks the config, or has no such times for it at this batch size.
        """
        _, data, where = self._profiled(config)
        if batch_size not in data.prefill_decode:
            there = (
                f"there are some for batch sizes {sorted(data.prefill_decode)}"
                if data.prefill_decode
                else "there is the stage latency only; alpa_serve.profiles.load gives them with those of MaverIQ and "
                "aiconfigurator"
            )
            raise InvalidProfileError(
                f"{where}, batch size {batch_size}: no prefill and decode times, which service='tokens' needs; {there}"
            )
        return data.prefill_decode[batch_size]

    def _profiled(self, config: ParallelConfig) -> tuple[ParallelConfig, LatencyMemData, str]:
        """Return the config, its figures and how messages call them; say what is profiled if it is not."""
        config = ParallelConfig(*config)
        where = f"profile of {self.model_name!r}, config {tuple(config)}"
        data = self.para_dict.get(config)
        if data is None:
            raise InvalidProfileError(f"{where}: not profiled; profiled: {sorted(map(tuple, self.para_dict))}")
        return config, data, where


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
