"""The CSV of single measurements that MaverIQ's profiler writes, from which the shipped tables were made.

One row per model, config, precision, output length and batch size: ``Model, TP, PP, PP_Map, DTYPE, INT8_KV_Cache,
Output_Lenght, Batch_Size, Latency, Memory-Pre-Run, Memory-After-Run``; seconds, and GiB over all devices together.
``Output_Lenght`` is how MaverIQ spells it; ``Output_Length`` is read as well.

``PP_Map`` is read as the number of layers on each stage ("[40, 40]", "40,40" or "40-40"), and a stage then has its
share of latency and memory by its layers; an empty cell, "None" or "-" stands for an even split.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from alpa_serve.errors import InvalidConfigError, InvalidProfileError
from alpa_serve.profiles import maveriq
from alpa_serve.profiles.csv_rows import CsvRow, read_rows
from alpa_serve.profiles.prefill_decode import PrefillDecode
from alpa_serve.profiles.result import LARGEST_DEVICE, ParallelConfig, ProfilingResult
from alpa_serve.util import GB
from alpa_serve.validation import check_int, check_known

if TYPE_CHECKING:
    import os

LENGTH_COLUMNS = ("Output_Lenght", "Output_Length")
"""The two spellings of the column of output tokens."""

COLUMNS = (
    "Model",
    "TP",
    "PP",
    "PP_Map",
    "DTYPE",
    "INT8_KV_Cache",
    "Batch_Size",
    "Latency",
    "Memory-Pre-Run",
    "Memory-After-Run",
)
"""The other columns, each of which must be there."""

_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_EVEN = ("", "none", "nan", "-")
_LAYERS = re.compile(r"[0-9]+(\s*[,;\s-]\s*[0-9]+)*")


_MEMORY_NOISE = 0.01
"""Share by which the memory after a run may seem less than before it."""

_LARGEST_GIB = LARGEST_DEVICE / GB
"""GiB on a device above which the unit is wrong."""


class _Case(NamedTuple):
    """What the output length is varied on."""

    config: ParallelConfig
    layers: tuple[int, ...]
    batch_size: int


class _Run(NamedTuple):
    row: CsvRow
    latency_s: float
    weight_gib: float
    memory_gib: float


class _Fitted(NamedTuple):
    latency_s: float
    weight_gib: float
    memory_gib: float
    prefill_decode: PrefillDecode | None


def read(path: str | os.PathLike[str]) -> dict[maveriq.Variant, list[CsvRow]]:
    """Return the rows of a file by model and precision, all of them checked.

    Raises
    ------
    InvalidProfileError
        Naming the file, the line and the column of what is missing or malformed.
    FileNotFoundError
        If the file does not exist.
    """
    rows: defaultdict[maveriq.Variant, list[CsvRow]] = defaultdict(list)
    for row in read_rows(path, COLUMNS, LENGTH_COLUMNS):
        _case(row), _output_tokens(row), _run(row)
        truth = row.text("INT8_KV_Cache").lower()
        if truth not in _TRUTH:
            raise InvalidProfileError(f"{row.column('INT8_KV_Cache')}: must be True or False, got {truth!r}")
        rows[maveriq.Variant(row.text("Model"), row.text("DTYPE"), _TRUTH[truth])].append(row)
    return dict(rows)


def load(
    path: str | os.PathLike[str],
    model: str,
    dtype: str = "float16",
    int8_kv_cache: bool = False,
    *,
    output_tokens: int = maveriq.OUTPUT_TOKENS,
    prompt_tokens: int | None = None,
    hardware: str = "",
) -> ProfilingResult:
    """Return the profile of a model in such a file.

    Where a config was measured with several output lengths, a least-squares line through them gives prefill and
    decode time; an intercept (prefill) below 0 is read as 0. The stage latency is what was measured at
    `output_tokens`, else the line there. The weight memory is ``Memory-After-Run`` (weights and run-time buffers, the
    largest of all output lengths) at the smallest batch size, and what larger ones take beyond it is activation
    memory. The metadata has ``Memory-Pre-Run`` as ``weight_gib_total``. Of several ``PP_Map`` of a config, the one
    whose slowest stage is fastest at the smallest batch size is kept.

    Parameters
    ----------
    path : path-like
    model, dtype, int8_kv_cache
        As the file has them.
    output_tokens : int
        Output tokens >= 1 of the request whose latency is the stage latency.
    prompt_tokens : int or None
        Tokens >= 1 of the measured prompts, which the file does not tell; None if not known.
    hardware : str
        The device measured on, which the file does not tell.

    Raises
    ------
    InvalidProfileError
        Naming the file, the line and the column of what is malformed, measured twice, or not enough for a latency at
        `output_tokens`.
    UnknownNameError
        Listing the models of the file.
    InvalidConfigError
        If an argument is out of range, or the model is not in the file with this dtype and KV cache.
    FileNotFoundError
        If the file does not exist.
    """
    check_int(output_tokens, "output_tokens", minimum=1)
    if prompt_tokens is not None:
        check_int(prompt_tokens, "prompt_tokens", minimum=1)
    table = read(path)
    check_known(model, dict.fromkeys(variant.model for variant in table), f"model of {path}")
    variant = maveriq.Variant(model, dtype, int8_kv_cache)
    if variant not in table:
        there = ", ".join(f"{v.dtype} with int8_kv_cache={v.int8_kv_cache}" for v in table if v.model == model)
        raise InvalidConfigError(
            f"{path}: {model} was not measured in {dtype} with int8_kv_cache={int8_kv_cache}; it was in: {there}"
        )
    by_map: defaultdict[ParallelConfig, defaultdict[tuple[int, ...], dict[int, _Fitted]]]
    by_map = defaultdict(lambda: defaultdict(dict))
    for case, runs in _runs_by_length(table[variant]).items():
        by_map[case.config][case.layers][case.batch_size] = _fit(runs, output_tokens, prompt_tokens)
    result = ProfilingResult(
        model,
        source=f"MaverIQ's raw measurements, {path}{', int8 KV cache' if int8_kv_cache else ''}",
        hardware=hardware,
        dtype=dtype,
    )
    for config, maps in by_map.items():
        layers = min(maps, key=lambda layers: _slowest_stage_s(config, layers, maps[layers]))
        _add(result, config, layers, maps[layers])
    return result


def _runs_by_length(rows: list[CsvRow]) -> dict[_Case, dict[int, _Run]]:
    cases: defaultdict[_Case, dict[int, _Run]] = defaultdict(dict)
    for row in rows:
        runs, tokens = cases[_case(row)], _output_tokens(row)
        if tokens in runs:
            raise InvalidProfileError(
                f"{row.where}: measured on line {runs[tokens].row.line} already: the same model, config, precision, "
                f"batch size and {tokens} output tokens"
            )
        runs[tokens] = _run(row)
    return cases


def _case(row: CsvRow) -> _Case:
    config = ParallelConfig(1, row.whole("TP"), row.whole("PP"))
    text = row.cells["PP_Map"].strip("[]() ")
    if text.lower() in _EVEN:
        layers: tuple[int, ...] = ()
    else:
        layers = tuple(map(int, re.findall(r"[0-9]{1,6}", text))) if _LAYERS.fullmatch(text) else ()
        if len(layers) != config.pp or min(layers) < 1:
            raise InvalidProfileError(
                f"{row.column('PP_Map')}: must be empty or the layers >= 1 of each of {config.pp} stages, as in "
                f"'[40, 40]', got {row.cells['PP_Map']!r}"
            )
    return _Case(config, layers, row.whole("Batch_Size"))


def _output_tokens(row: CsvRow) -> int:
    spelt = [name for name in LENGTH_COLUMNS if name in row.cells]
    if len(spelt) != 1:
        raise InvalidProfileError(f"{row.path}: needs one column {' or '.join(LENGTH_COLUMNS)}, found {len(spelt)}")
    return row.whole(spelt[0])


def _run(row: CsvRow) -> _Run:
    run = _Run(row, row.real("Latency"), row.real("Memory-Pre-Run"), row.real("Memory-After-Run"))
    for column, figure in (("Latency", run.latency_s), ("Memory-After-Run", run.memory_gib)):
        if not figure:
            raise InvalidProfileError(f"{row.column(column)}: must be > 0")
    loaded_gib = row.real("Memory-Pre-Run")
    if run.memory_gib < loaded_gib * (1 - _MEMORY_NOISE):
        raise InvalidProfileError(
            f"{row.column('Memory-After-Run')}: {run.memory_gib:g} GiB is less than the {loaded_gib:g} GiB of "
            "Memory-Pre-Run, which it includes"
        )
    if run.memory_gib > _LARGEST_GIB * row.whole("TP") * row.whole("PP"):
        raise InvalidProfileError(
            f"{row.column('Memory-After-Run')}: {run.memory_gib:g} GiB are more than the devices of any such config "
            "have; is it in MiB?"
        )
    return run


def _fit(runs: dict[int, _Run], output_tokens: int, prompt_tokens: int | None) -> _Fitted:
    """Return the latency at `output_tokens` and, of several lengths, the line L(n) = prefill + n * decode."""
    last = max(runs.values(), key=lambda run: run.row.line)
    figures = None
    if len(runs) > 1:
        mean_n = sum(runs) / len(runs)
        mean_s = sum(run.latency_s for run in runs.values()) / len(runs)
        slope = sum((n - mean_n) * (run.latency_s - mean_s) for n, run in runs.items())
        slope /= sum((n - mean_n) ** 2 for n in runs)
        if slope < 0:
            raise InvalidProfileError(
                f"{last.row.column('Latency')}: over its {len(runs)} output lengths the latency of this config falls "
                f"by {-slope:g} s per output token; it must not"
            )
        figures = PrefillDecode(max(mean_s - slope * mean_n, 0.0), slope, prompt_tokens)
    if output_tokens in runs:
        latency_s = runs[output_tokens].latency_s
    elif figures is not None:
        latency_s = figures.prefill_s + output_tokens * figures.decode_s_per_token
    else:
        raise InvalidProfileError(
            f"{last.row.where}: this config was measured with {next(iter(runs))} output tokens only, which gives no "
            f"latency at output_tokens={output_tokens}; measure two lengths, or ask for the one that was"
        )
    return _Fitted(
        latency_s,
        max(run.weight_gib for run in runs.values()),
        max(run.memory_gib for run in runs.values()),
        figures,
    )


def _shares(config: ParallelConfig, layers: tuple[int, ...]) -> list[float]:
    """Return the share of each stage, sum 1."""
    return [count / sum(layers) for count in layers] if layers else [1 / config.pp] * config.pp


def _slowest_stage_s(
    config: ParallelConfig, layers: tuple[int, ...], by_batch_size: dict[int, _Fitted]
) -> tuple[int, float]:
    smallest = min(by_batch_size)
    return smallest, by_batch_size[smallest].latency_s * max(_shares(config, layers))


def _add(
    result: ProfilingResult, config: ParallelConfig, layers: tuple[int, ...], by_batch_size: dict[int, _Fitted]
) -> None:
    shares = _shares(config, layers)
    single = by_batch_size[min(by_batch_size)]
    for batch_size, fitted in sorted(by_batch_size.items()):
        # memory is measured apart for every size, so noise can put more requests below fewer
        extra_gib = max(fitted.memory_gib - single.memory_gib, 0.0)
        result.add_result(
            config,
            batch_size,
            stage_latency=[fitted.latency_s * share for share in shares],
            act_mem=[extra_gib * GB * share / config.op for share in shares],
            weight_mem=[single.memory_gib * GB * share / config.op for share in shares],
            metadata={"weight_gib_total": single.weight_gib},
            prefill_decode=fitted.prefill_decode,
        )
