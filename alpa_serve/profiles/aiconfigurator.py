"""Profiles of today's models on today's GPUs, from the kernel measurements in NVIDIA's aiconfigurator-core.

The package is an optional extra: ``pip install "alpa_serve[aiconfigurator]"``. It holds what the kernels of vLLM,
SGLang and TensorRT-LLM take on H100, H200, B200, A100, L40S and other GPUs, and puts a model's time together from them;
it needs neither a GPU nor the network.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import logging
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpa_serve.errors import InvalidConfigError, InvalidProfileError, UnknownNameError
from alpa_serve.profiles.model_folder import snapshot
from alpa_serve.profiles.prefill_decode import PrefillDecode
from alpa_serve.profiles.result import ParallelConfig, ProfilingResult, check_parallel_config
from alpa_serve.validation import check_int, check_known

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

INSTALL = 'pip install "alpa_serve[aiconfigurator]"'

DEFAULT_CONFIGS = tuple(ParallelConfig(1, op, pp) for op in (1, 2, 4, 8) for pp in (1, 2, 4, 8) if op * pp <= 16)
"""The configs that :func:`load` asks for when none are named."""

_QUANT_MODES = {
    "gemm_quant_mode": "GEMMQuantMode",
    "moe_quant_mode": "MoEQuantMode",
    "kvcache_quant_mode": "KVCacheQuantMode",
    "fmha_quant_mode": "FMHAQuantMode",
}
# the memory estimate is asked for its parts alone, so there must be room for any model
_AMPLE_MEMORY = 2**44
_MS = 1e-3

_logger = logging.getLogger(__name__)
# a handle of each (system, backend, version): while one lives, the package keeps its tables loaded
_handles: dict[tuple[str, str, str], Any] = {}


@dataclass(frozen=True)
class _Shape:
    """A model on a system, as the package is asked about it."""

    model: str
    system: str
    backend: str
    version: str
    expert_parallel: bool
    quant_modes: dict[str, str]

    def arguments(self, config: ParallelConfig) -> dict[str, Any]:
        # dense models have no experts, and are told nothing by these
        experts = (1, config.op) if self.expert_parallel else (config.op, 1)
        sizes = dict(zip(("moe_tp_size", "moe_ep_size"), experts, strict=True))
        return {"tp_size": config.op, "pp_size": config.pp, **sizes, **self.quant_modes}


@dataclass
class _StageTimes:
    """Seconds of each stage of a pipeline, prefill and all decode steps after it."""

    prefill: list[float]
    decode: list[float]


def _package(module: str = "") -> Any:
    try:
        return importlib.import_module(f"aiconfigurator_core{module}")
    except ImportError as error:
        raise InvalidConfigError(
            f"profiles of aiconfigurator need the package aiconfigurator-core, which cannot be imported ({error}): "
            f"{INSTALL}"
        ) from None


class _Quieting:
    """The package's logger, quiet as long as any thread asks for it."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("aiconfigurator_core")
        self._lock = threading.Lock()
        self._askers = 0
        self._level = logging.NOTSET

    def enter(self) -> None:
        with self._lock:
            if not self._askers:
                self._level = self._logger.level
                self._logger.setLevel(logging.CRITICAL)
            self._askers += 1

    def leave(self) -> None:
        with self._lock:
            self._askers -= 1
            if not self._askers:
                self._logger.setLevel(self._level)


_quieting = _Quieting()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the package's remarks on single tables; what goes wrong comes as an error."""
    _quieting.enter()
    try:
        yield
    finally:
        _quieting.leave()


@cache
def _databases() -> dict[str, dict[str, list[str]]]:
    with _quiet():
        found = _package(".sdk.perf_database").get_supported_databases()
    return {system: {name: list(versions) for name, versions in found[system].items()} for system in sorted(found)}


def model_names() -> list[str]:
    """List the models that are known without a folder of their own, alphabetically.

    Raises
    ------
    InvalidConfigError
        If the extra is not installed.
    """
    return sorted(_package(".sdk.common").DefaultHFModels)


def systems() -> dict[str, list[str]]:
    """Return the GPU systems, each with the backends that were measured on it.

    Raises
    ------
    InvalidConfigError
        If the extra is not installed.
    """
    return {system: sorted(backends) for system, backends in _databases().items()}


def load(
    model: str | os.PathLike[str],
    system: str = "h100_sxm",
    backend: str = "vllm",
    *,
    input_tokens: int = 512,
    output_tokens: int = 20,
    batch_sizes: Sequence[int] = (1, 2, 4, 8, 16),
    configs: Sequence[tuple[int, int, int]] | None = None,
    backend_version: str = "current",
    expert_parallel: bool = False,
    gemm_quant_mode: str | None = None,
    moe_quant_mode: str | None = None,
    kvcache_quant_mode: str | None = None,
    fmha_quant_mode: str | None = None,
) -> ProfilingResult:
    """Return the profile of a model on a GPU system under a serving backend.

    The stage latency is that of a request (a batch of them) with `input_tokens` and `output_tokens`. Prefill and decode
    time, for prompts of `input_tokens`, give the same sum. The weights on a device are the mean over the stages;
    activations are those of a batch's prompts, on each device. KV cache per token is there for each stage. What a
    process takes on a device beside its models (``runtime_overhead_bytes``, ``comm_overhead_bytes``) is in the metadata
    only: it occurs once a device, not once a model, so leave room for it in the memory budget.

    Parameters
    ----------
    model : str or path-like
        One of :func:`model_names`, as "Qwen/Qwen3-32B", or a folder with a config.json. Nothing is downloaded.
    system, backend : str
        As :func:`systems` lists them: "h100_sxm", "a100_sxm", ...; "vllm", "sglang", "trtllm".
    input_tokens, output_tokens : int
        Tokens >= 1 of the prompt and >= 2 of the answer that are timed.
    batch_sizes : sequence of int
        Each >= 1.
    configs : sequence of ParallelConfig or None
        (1, op, pp) each, all of which must be possible; None takes those of :data:`DEFAULT_CONFIGS` that are (the log
        says at level INFO which are not, and why).
    backend_version : str
        "current", "previous", "next" or a version that was measured.
    expert_parallel : bool
        Whether the devices of a stage share out whole experts, not slices of each; of models with experts.
    gemm_quant_mode, moe_quant_mode, kvcache_quant_mode, fmha_quant_mode : str or None
        Number types in the package's names; None leaves what the model's own config says.

    Raises
    ------
    InvalidConfigError
        If the extra is not installed, or an argument is out of its range.
    UnknownNameError
        Listing the models, systems, backends, versions or number types that there are.
    InvalidProfileError
        If a config is malformed; if the package cannot time the model on any, or on one that was named; with the
        reasons; if the config.json of a folder is no JSON; with line and column.

    Notes
    -----
    Embeddings belong to the first stage, logits to the last, transfers between stages to the one that sends; the rest
    is split evenly, also where the layers do not divide. The package interpolates its measurements, so a time may seem
    to fall with the batch size; the running maximum over batch sizes is taken, of prefill and of decode. Neither can a
    first token take less than a further one.
    """
    shape = _Shape(
        _check_model(model),
        *_check_system(system, backend, backend_version),
        expert_parallel,
        _check_quant_modes(
            gemm_quant_mode=gemm_quant_mode,
            moe_quant_mode=moe_quant_mode,
            kvcache_quant_mode=kvcache_quant_mode,
            fmha_quant_mode=fmha_quant_mode,
        ),
    )
    check_int(input_tokens, "input_tokens", minimum=1)
    check_int(output_tokens, "output_tokens", minimum=2)
    sizes = sorted({check_int(size, "batch size", minimum=1) for size in batch_sizes})
    if not sizes:
        raise InvalidConfigError("batch_sizes must name at least one batch size")
    asked = DEFAULT_CONFIGS if configs is None else [check_parallel_config(config, "configs") for config in configs]
    for config in asked:
        if config.dp != 1:
            raise InvalidProfileError(f"configs: the data-parallel degree dp must be 1, got {tuple(config)}")
    result = ProfilingResult(
        str(model),
        source=f"aiconfigurator-core {importlib.metadata.version('aiconfigurator-core')}, {backend} {shape.version}",
        hardware=system,
    )
    reasons: dict[str, list[ParallelConfig]] = {}
    with _quiet():
        for config in asked:
            try:
                result.dtype = _add(result, shape, config, sizes, input_tokens, output_tokens)
            # the package says in many ways (AssertionError, KeyError, RuntimeError ...) what it cannot do
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                where = f"{model} on {system} under {backend}"
                if configs is not None:
                    raise InvalidProfileError(f"{where}, config {tuple(config)}: {reason}") from error
                reasons.setdefault(reason, []).append(config)
                _logger.info("%s leaves out config %s: %s", where, tuple(config), reason)
    if not result.para_dict:
        listed = [f"config {', '.join(map(str, map(tuple, left_out)))}: {why}" for why, left_out in reasons.items()]
        raise InvalidProfileError(
            f"aiconfigurator cannot time {model} on {system} under {backend} {shape.version}: "
            + ("; ".join(listed) or "no config was asked for")
        )
    return result


def _check_model(model: str | os.PathLike[str]) -> str:
    """Return how the package is told the model; one that it would look for in the network is refused."""
    if model in model_names():
        return str(model)
    path = Path(model) / "config.json"
    if path.is_file():
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise InvalidProfileError(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}") from None
        except UnicodeDecodeError as error:
            raise InvalidProfileError(f"{path}: not a text file: {error}") from None
        return str(snapshot(path.parent))
    if Path(model).is_dir():
        raise InvalidConfigError(f"folder {model}: there is no config.json in it, which tells what the model is")
    try:
        return check_known(model, model_names(), "model of aiconfigurator")
    except UnknownNameError as error:
        raise UnknownNameError(f"{error}; or give a folder with the model's config.json") from None


def _check_system(system: str, backend: str, version: str) -> tuple[str, str, str]:
    backends = _databases()[check_known(system, _databases(), "system of aiconfigurator")]
    check_known(backend, sorted(backends), f"backend on {system}")
    slots = _package(".sdk.perf_database").get_version_slots(system, backend)
    known = {
        **{name: found for name, found in slots.items() if found},
        **{name: name for name in slots.values() if name},
    }
    return system, backend, known[check_known(version, known, f"version of {backend} on {system}")]


def _check_quant_modes(**modes: str | None) -> dict[str, str]:
    common = _package(".sdk.common")
    return {
        name: check_known(mode, getattr(common, _QUANT_MODES[name]).__members__, name)
        for name, mode in modes.items()
        if mode is not None
    }


def _add(
    result: ProfilingResult,
    shape: _Shape,
    config: ParallelConfig,
    batch_sizes: list[int],
    input_tokens: int,
    output_tokens: int,
) -> str:
    """Add a config at all batch sizes, or nothing if there is one that cannot be timed; return the weights' type."""
    dtype, num_layers = _model_facts(shape, config)
    if config.pp > num_layers:
        raise InvalidConfigError(f"{num_layers} layers do not fill {config.pp} stages")
    handle = _package(".sdk").EngineHandle.compile(
        shape.model, shape.system, shape.backend, backend_version=shape.version, **shape.arguments(config)
    )
    _handles[shape.system, shape.backend, shape.version] = handle
    steps = output_tokens - 1
    slowest: _StageTimes | None = None
    measured = ProfilingResult(result.model_name)
    for batch_size in batch_sizes:
        rows = handle.run_static_per_op(batch_size=batch_size, isl=input_tokens, osl=output_tokens)
        prefill, decode = (_stage_seconds(part, config.pp) for part in rows)
        if slowest is not None:
            decode = _at_least(decode, sum(slowest.decode))
        prefill = _at_least(prefill, max(sum(slowest.prefill) if slowest else 0.0, sum(decode) / steps))
        slowest = _StageTimes(prefill, decode)
        memory = _memory(shape, config, batch_size * input_tokens, batch_size)
        parts = memory["memory_breakdown"]
        decode_s = sum(decode) / steps
        measured.add_result(
            config,
            batch_size,
            stage_latency=[first + further for first, further in zip(prefill, decode, strict=True)],
            act_mem=[float(parts["activations_bytes"])] * config.pp,
            weight_mem=[float(parts["weights_bytes"])] * config.pp,
            metadata={name: parts[name] for name in ("runtime_overhead_bytes", "comm_overhead_bytes")},
            prefill_decode=PrefillDecode(max(sum(prefill) - decode_s, 0.0), decode_s, input_tokens),
            kv_bytes_per_token=[memory["kv_size_per_token_bytes"] / config.pp] * config.pp,
        )
    result.para_dict.update(measured.para_dict)
    return dtype


def _model_facts(shape: _Shape, config: ParallelConfig) -> tuple[str, int]:
    """Return the type of the weights, with that of the experts where it is another, and the number of layers."""
    arguments = {"attention_dp_size": 1, **shape.arguments(config)}
    model_config = _package(".sdk.config_builders").build_model_config(**arguments)
    # fills in what the model's own config says
    _package(".sdk.models").get_model(shape.model, model_config, shape.backend)
    facts = _package(".sdk.utils").get_model_config_from_model_path(shape.model)
    dtype = str(model_config.gemm_quant_mode.name)
    if facts["num_experts"] and model_config.moe_quant_mode.name != dtype:
        dtype += f", experts {model_config.moe_quant_mode.name}"
    return dtype, int(facts["layers"])


def _stage_seconds(rows: Sequence[tuple[Any, ...]], num_stages: int) -> list[float]:
    """Deal the operations of a whole pipeline, rows (name, milliseconds, ...), to its stages."""
    stages = [0.0] * num_stages
    for name, milliseconds, *_ in rows:
        operation = str(name).partition("_")[2]
        if operation.startswith("embedding"):
            owners = range(1)
        elif operation.startswith("logits"):
            owners = range(num_stages - 1, num_stages)
        elif operation.startswith("p2p"):
            owners = range(max(num_stages - 1, 1))
        else:
            owners = range(num_stages)
        for stage in owners:
            stages[stage] += milliseconds * _MS / len(owners)
    return stages


def _at_least(stages: list[float], total: float) -> list[float]:
    """Return the stages, stretched alike if they take less than `total` together."""
    taken = sum(stages)
    return stages if taken >= total else [seconds * total / taken for seconds in stages]


def _memory(shape: _Shape, config: ParallelConfig, num_tokens: int, batch_size: int) -> dict[str, Any]:
    estimate: dict[str, Any] = _package(".sdk").estimate_kv_cache(
        shape.model,
        shape.system,
        shape.backend,
        shape.version,
        max_num_tokens=num_tokens,
        max_batch_size=batch_size,
        memory_fraction_kind="of_free" if shape.backend == "trtllm" else "of_total",
        memory_fraction_value=0.9,
        gpu_memory_capacity_bytes_override=_AMPLE_MEMORY,
        **shape.arguments(config),
    )
    return estimate
