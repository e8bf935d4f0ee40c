"""MaverIQ's measurements of six LLMs on RTX A6000 GPUs (TensorRT-LLM), shipped in ``data``.

``maveriq_a6000_profiles.csv`` has one row per model, precision and parallel config at batch size 1: a least-squares
line through the latencies of 10 to 200 output tokens (``prefill_s``, ``decode_s_per_token``), the measured latency of
20 tokens, and the memory of all devices together. ``maveriq_a6000_batch_profiles.csv`` has such lines, through 50 to
200 output tokens, and the memory for two of the models at batch sizes 1 to 64.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources
from typing import NamedTuple

from alpa_serve.errors import InvalidConfigError
from alpa_serve.profiles.prefill_decode import PrefillDecode
from alpa_serve.profiles.result import ParallelConfig, ProfilingResult
from alpa_serve.util import GB
from alpa_serve.validation import check_known

PUBLISHED_SPEEDUP = 5
"""The published AlpaServe experiments divided MaverIQ's measured latencies by this; nothing justifies it."""

OUTPUT_TOKENS = 20
"""Output tokens of the request whose latency is the stage latency of these profiles (``latency_20_tokens_s``)."""

PROMPT_TOKENS = 923
"""Tokens of the longest prompts that MaverIQ profiled batch size 1 with; the prompts at other sizes are not known."""

SOURCE = "MaverIQ's measurements (TensorRT-LLM)"
HARDWARE = "RTX A6000"

_MAIN_TABLE = "maveriq_a6000_profiles.csv"
_BATCH_TABLE = "maveriq_a6000_batch_profiles.csv"


class Variant(NamedTuple):
    """A model in one precision; its parts are the arguments of :func:`load`.

    Attributes
    ----------
    model : str
    dtype : str
        Of the weights: float16, int8, int4 or int4_gptq.
    int8_kv_cache : bool
        Whether the KV cache is int8, not float16.
    """

    model: str
    dtype: str
    int8_kv_cache: bool


@cache
def _rows(table: str) -> tuple[dict[str, str], ...]:
    text = resources.files("alpa_serve.profiles").joinpath("data", table).read_text("utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def _variant(row: dict[str, str]) -> Variant:
    return Variant(row["model"], row["dtype"], row["int8_kv_cache"] == "true")


def _rows_of(variant: Variant, table: str) -> list[tuple[ParallelConfig, dict[str, str]]]:
    """Return the rows of a table that measure `variant`, each with its config."""
    return [
        (ParallelConfig(1, int(row["op"]), int(row["pp"])), row) for row in _rows(table) if _variant(row) == variant
    ]


def _memory(row: dict[str, str], config: ParallelConfig) -> float:
    """Return the bytes on each device."""
    return float(row["memory_gib_total"]) * GB / config.num_devices


def _add_evenly(
    result: ProfilingResult,
    config: ParallelConfig,
    batch_size: int,
    latency_s: float,
    weight_mem: float,
    act_mem: float = 0.0,
    metadata: dict[str, float] | None = None,
    prefill_decode: PrefillDecode | None = None,
) -> None:
    """Add a measurement of which every stage has the same share: seconds of all stages, bytes on each device."""
    result.add_result(
        config,
        batch_size,
        stage_latency=[latency_s / config.pp] * config.pp,
        act_mem=[act_mem] * config.pp,
        weight_mem=[weight_mem] * config.pp,
        metadata=metadata,
        prefill_decode=prefill_decode,
    )


def model_names() -> list[str]:
    """List the profiled models, in the table's order."""
    return list(dict.fromkeys(row["model"] for row in _rows(_MAIN_TABLE)))


def variants(model: str | None = None) -> list[Variant]:
    """List what :func:`load` knows, of one model or of all, in the table's order.

    Raises
    ------
    UnknownNameError
        A ValueError that lists the known models.
    """
    if model is not None:
        check_known(model, model_names(), "model")
    known = dict.fromkeys(map(_variant, _rows(_MAIN_TABLE)))
    return [variant for variant in known if model in (None, variant.model)]


def load(model: str, dtype: str = "float16", int8_kv_cache: bool = False) -> ProfilingResult:
    """Return MaverIQ's figures of a model as they were measured.

    The stage latency is that of a request of 20 output tokens, split evenly over the stages. The weight memory is
    what a device must hold at batch size 1, weights and run-time buffers; the metadata has the weights alone as
    ``weight_gib_total`` (GiB, all devices together). Prefill and decode time are there for every batch size.

    Parameters
    ----------
    model : str
        llama-2-7b, llama-2-13b, llama-2-70b, falcon-7b, falcon-40b or gptj-6b.
    dtype : str
        Of the weights: float16, int8, int4 or int4_gptq, where the model was measured so (:func:`variants`).
    int8_kv_cache : bool
        Take the measurements with an int8 KV cache, not float16.

    Raises
    ------
    UnknownNameError
        A ValueError that lists the known models, or the dtypes of the model.
    InvalidConfigError
        If the model was not measured with this dtype and KV cache; lists with which it was.

    Notes
    -----
    Batch sizes 8 to 64 (gptj-6b and falcon-40b, float16 KV cache) come from a second table, whose prompts are not
    known but must have been shorter: its own latencies at batch size 1, not used here, are 0.23 to 0.83 of the first
    table's. So a batch of 8 can seem faster than a single request. Its lines start at 50 output tokens, and an
    intercept (prefill) that they put below 0 is read as 0. The stage latency is its line at 20 output tokens, the
    activation memory is how much more memory it gives than at batch size 1.
    """
    variant = _check_variant(model, dtype, int8_kv_cache)
    source = f"{SOURCE}, int8 KV cache" if int8_kv_cache else SOURCE
    result = ProfilingResult(variant.model, source=source, hardware=HARDWARE, dtype=variant.dtype)
    for config, row in _rows_of(variant, _MAIN_TABLE):
        _add_evenly(
            result,
            config,
            1,
            float(row["latency_20_tokens_s"]),
            _memory(row, config),
            metadata={"weight_gib_total": float(row["weight_gib_total"])},
            prefill_decode=PrefillDecode(float(row["prefill_s"]), float(row["decode_s_per_token"]), PROMPT_TOKENS),
        )
    _add_batch_table(result, variant)
    return result


def _check_variant(model: str, dtype: str, int8_kv_cache: bool) -> Variant:
    of_model = variants(check_known(model, model_names(), "model"))
    check_known(dtype, dict.fromkeys(variant.dtype for variant in of_model), f"dtype of {model}")
    if not isinstance(int8_kv_cache, bool):
        raise InvalidConfigError(f"int8_kv_cache must be True or False, got {int8_kv_cache!r}")
    variant = Variant(model, dtype, int8_kv_cache)
    if variant not in of_model:
        there = ", ".join(f"{known.dtype} with int8_kv_cache={known.int8_kv_cache}" for known in of_model)
        raise InvalidConfigError(
            f"{model} was not measured in {dtype} with int8_kv_cache={int8_kv_cache}; it was in: {there}"
        )
    return variant


def _add_batch_table(result: ProfilingResult, variant: Variant) -> None:
    rows = _rows_of(variant, _BATCH_TABLE)
    single = {config: _memory(row, config) for config, row in rows if int(row["batch_size"]) == 1}
    for config, row in rows:
        batch_size = int(row["batch_size"])
        data = result.para_dict.get(config)
        # batch size 1 has the first table's measurements, and a config is profiled only with them
        if data is None or batch_size == 1:
            continue
        figures = PrefillDecode(max(float(row["prefill_s"]), 0.0), float(row["decode_s_per_token"]), None)
        # prompts are not known, so their length changes nothing
        _add_evenly(
            result,
            config,
            batch_size,
            figures.service_s(input_tokens=0, output_tokens=OUTPUT_TOKENS),
            data.weight_mem[0],
            _memory(row, config) - single[config],
            data.metadata,
            figures,
        )


def load_test_prof_result_v2(name: str) -> ProfilingResult:
    """Return MaverIQ's figures of a model in the form that the published AlpaServe experiments used.

    float16 weights and KV cache. The latency of 20 output tokens is divided by five and split evenly over the
    stages; the memory of all devices (weights and run-time buffers) is split evenly over the devices.

    Parameters
    ----------
    name : str
        llama-2-7b, llama-2-13b, llama-2-70b, falcon-7b, falcon-40b or gptj-6b.

    Raises
    ------
    UnknownNameError
        A ValueError that lists the known models.

    Notes
    -----
    The division by five makes every model five times faster than it was measured to be. It is kept here, and only
    here, so that published results can be compared with; :func:`load` gives the measured figures.
    """
    variant = _check_variant(name, "float16", False)
    source = f"{SOURCE}, latency / {PUBLISHED_SPEEDUP} as published"
    result = ProfilingResult(variant.model, source=source, hardware=HARDWARE, dtype=variant.dtype)
    for config, row in _rows_of(variant, _MAIN_TABLE):
        _add_evenly(result, config, 1, float(row["latency_20_tokens_s"]) / PUBLISHED_SPEEDUP, _memory(row, config))
    return result
