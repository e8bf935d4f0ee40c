"""Profiles as a CSV table of our own, which :func:`write_csv` writes and people or other programs can.

One row per model, config, batch size and stage. All times in seconds, all memory in bytes:

============================  =============================================================================
model                         name of the model
latency_s                     seconds that a request (a batch) takes in this stage
weight_mem_bytes              weights on one device of the stage; the same for every batch size
op, pp                        tensor-parallel degree, number of stages
batch_size                    requests that run together
stage                         0 to pp - 1; each must be there
source, hardware, dtype       where the figures come from, on which device, type of the weights (optional)
dp                            data-parallel degree (optional, 1)
act_mem_bytes                 activations on one device of the stage (optional, empty: not measured)
kv_bytes_per_token            KV cache of a token on one device of the stage (optional, empty: not known)
prefill_s, decode_s_per_token L(n) = prefill_s + n * decode_s_per_token for n output tokens; the same for every
                              stage (optional, empty: not known)
prompt_tokens                 tokens of the prompts that these two were measured with (optional, empty: not known)
preprocess_cpu_s,             seconds on the host before and after the model runs; the same in every row of a model
postprocess_cpu_s             (optional, 0)
============================  =============================================================================

The order of rows and columns is free. Models with the same name but another source, hardware or dtype are profiles of
their own.
"""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

from alpa_serve.errors import InvalidProfileError
from alpa_serve.files import replacing
from alpa_serve.profiles.csv_rows import CsvRow, read_rows
from alpa_serve.profiles.prefill_decode import PrefillDecode
from alpa_serve.profiles.result import ORIGIN_FIELDS, ParallelConfig, ProfilingResult

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator

COLUMNS = (
    "model",
    "source",
    "hardware",
    "dtype",
    "dp",
    "op",
    "pp",
    "batch_size",
    "stage",
    "latency_s",
    "act_mem_bytes",
    "weight_mem_bytes",
    "kv_bytes_per_token",
    "prefill_s",
    "decode_s_per_token",
    "prompt_tokens",
    "preprocess_cpu_s",
    "postprocess_cpu_s",
)
"""All columns, in the order in which they are written."""

REQUIRED_COLUMNS = ("model", "op", "pp", "batch_size", "stage", "latency_s", "weight_mem_bytes")
"""Those that a table must have."""

_PREFILL_DECODE = ("prefill_s", "decode_s_per_token", "prompt_tokens")


class _Owner(NamedTuple):
    """What tells one profile from another."""

    model: str
    source: str
    hardware: str
    dtype: str


class _Measurement(NamedTuple):
    owner: _Owner
    config: ParallelConfig
    batch_size: int


def write_csv(results: ProfilingResult | Iterable[ProfilingResult], path: str | os.PathLike[str]) -> None:
    """Write profiles so that :func:`read_csv` gives the same figures back, to the last bit. Metadata is left out.

    Parameters
    ----------
    results : ProfilingResult or iterable of them
    path : path-like
        Replaced in one step if it exists.

    Raises
    ------
    InvalidProfileError
        If there is nothing to write, or something that would not come back: malformed figures, two profiles of the same
        model, source, hardware and dtype, text that begins or ends with blanks. The file is then not touched.
    OSError
        Naming the file, which is then as it was.
    """
    listed = [results] if isinstance(results, ProfilingResult) else list(results)
    owners = [_owner_of(result) for result in listed]
    if not listed:
        raise InvalidProfileError(f"{path}: no profile to write")
    for place, owner in enumerate(owners):
        if owner in owners[:place]:
            raise InvalidProfileError(f"{path}: more than one profile of {', '.join(filter(None, owner))}")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for result, owner in zip(listed, owners, strict=True):
        writer.writerows(_rows_of(result, owner))
    with replacing(path) as file:
        file.write(text.getvalue().encode())


def _owner_of(result: ProfilingResult) -> _Owner:
    owner = _Owner(result.model_name, *(getattr(result, name) for name in ORIGIN_FIELDS))
    for name, text in zip(("model_name", *ORIGIN_FIELDS), owner, strict=True):
        if text != text.strip() or "\0" in text or (name == "model_name" and not text):
            raise InvalidProfileError(f"profile of {result.model_name!r}: {name} {text!r} cannot be written as CSV")
    return owner


def _rows_of(result: ProfilingResult, owner: _Owner) -> Iterator[tuple[object, ...]]:
    if not any(data.latency for data in result.para_dict.values()):
        raise InvalidProfileError(f"profile of {result.model_name!r}: no measurement to write")
    for config, data in result.para_dict.items():
        for batch_size, latency in data.latency.items():
            # the checks of a measurement that comes in
            checked = ProfilingResult(result.model_name)
            figures = data.prefill_decode.get(batch_size)
            act_mem, kv = data.act_mem.get(batch_size, []), data.kv_bytes_per_token
            checked.add_result(
                config,
                batch_size,
                latency,
                act_mem,
                data.weight_mem,
                prefill_decode=figures,
                kv_bytes_per_token=kv,
            )
            known = _PREFILL_DECODE if figures else ()
            whole_request = [_written(getattr(figures, name)) if known else "" for name in _PREFILL_DECODE]
            host = [_written(result.preprocess_cpu), _written(result.postprocess_cpu)]
            for stage in range(config.pp):
                per_stage = [
                    _written(latency[stage]),
                    _written(act_mem[stage]),
                    _written(data.weight_mem[stage]),
                    "" if kv is None else _written(kv[stage]),
                ]
                yield (*owner, *config, batch_size, stage, *per_stage, *whole_request, *host)


def _written(number: float | None) -> str:
    if number is None or math.isnan(number):
        return ""
    return str(number) if isinstance(number, int) else repr(float(number))


def read_csv(path: str | os.PathLike[str]) -> list[ProfilingResult]:
    """Read the profiles in a file of the form above, in the order in which they begin there.

    Raises
    ------
    InvalidProfileError
        Naming the file, the line and the column of what is missing, malformed or said twice.
    FileNotFoundError
        If the file does not exist.
    """
    optional = [column for column in COLUMNS if column not in REQUIRED_COLUMNS]
    measurements: defaultdict[_Measurement, dict[int, CsvRow]] = defaultdict(dict)
    for row in read_rows(path, REQUIRED_COLUMNS, optional):
        owner = _Owner(row.text("model"), *(row.text(name, "") for name in ORIGIN_FIELDS))
        config = ParallelConfig(row.whole("dp", 1), row.whole("op"), row.whole("pp"))
        stages = measurements[_Measurement(owner, config, row.whole("batch_size"))]
        stage = _stage(row, config.pp)
        if stage in stages:
            raise InvalidProfileError(
                f"{row.column('stage')}: stage {stage} of {owner.model!r}, config {tuple(config)}, batch size "
                f"{row.whole('batch_size')} is on line {stages[stage].line} already"
            )
        stages[stage] = row
    results: dict[_Owner, ProfilingResult] = {}
    first_rows: dict[tuple[_Owner, ParallelConfig | None], list[CsvRow]] = {}
    for measurement, stages in measurements.items():
        owner, config, _ = measurement
        rows = _all_stages(measurement, stages, str(path))
        first = first_rows.setdefault((owner, config), rows)
        for now, before in zip(rows, first, strict=True):
            _check_same(now, before, ("weight_mem_bytes", "kv_bytes_per_token"))
        for row in rows[1:]:
            _check_same(row, rows[0], _PREFILL_DECODE)
        for row in rows:
            _check_same(row, first_rows.setdefault((owner, None), rows)[0], ("preprocess_cpu_s", "postprocess_cpu_s"))
        result = results.setdefault(owner, _empty_result(owner, rows[0]))
        _add(result, measurement, rows)
    return list(results.values())


def _stage(row: CsvRow, num_stages: int) -> int:
    text = row.text("stage")
    if not (text.isascii() and text.isdigit() and len(text) < 16 and int(text) < num_stages):
        raise InvalidProfileError(
            f"{row.column('stage')}: must be a whole number from 0 to {num_stages - 1} (pp - 1), got {text!r}"
        )
    return int(text)


def _all_stages(measurement: _Measurement, stages: dict[int, CsvRow], path: str) -> list[CsvRow]:
    owner, config, batch_size = measurement
    if len(stages) < config.pp:
        missing = next(stage for stage in range(config.pp) if stage not in stages)
        line = max(row.line for row in stages.values())
        raise InvalidProfileError(
            f"{path}, line {line}, column stage: this is the last row of {owner.model!r}, config {tuple(config)}, "
            f"batch size {batch_size}, which lacks stage {missing} of its {config.pp}"
        )
    return [stages[stage] for stage in range(config.pp)]


def _check_same(row: CsvRow, other: CsvRow, columns: Iterable[str]) -> None:
    for column in columns:
        here, there = row.known_real(column), other.known_real(column)
        if here != there and not (math.isnan(here) and math.isnan(there)):
            raise InvalidProfileError(
                f"{row.column(column)}: must be as on line {other.line}, {other.cells[column]!r}, got "
                f"{row.cells[column]!r}"
            )


def _empty_result(owner: _Owner, row: CsvRow) -> ProfilingResult:
    before, after = (
        0.0 if math.isnan(seconds := row.known_real(column)) else seconds
        for column in ("preprocess_cpu_s", "postprocess_cpu_s")
    )
    return ProfilingResult(
        owner.model,
        preprocess_cpu=before,
        postprocess_cpu=after,
        source=owner.source,
        hardware=owner.hardware,
        dtype=owner.dtype,
    )


def _add(result: ProfilingResult, measurement: _Measurement, rows: list[CsvRow]) -> None:
    per_token = [row.known_real("kv_bytes_per_token") for row in rows]
    unknown = [row for row, figure in zip(rows, per_token, strict=True) if math.isnan(figure)]
    if unknown and len(unknown) < len(rows):
        raise InvalidProfileError(f"{unknown[0].column('kv_bytes_per_token')}: empty, but other stages have a figure")
    result.add_result(
        measurement.config,
        measurement.batch_size,
        stage_latency=[row.real("latency_s") for row in rows],
        act_mem=[row.known_real("act_mem_bytes") for row in rows],
        weight_mem=[row.real("weight_mem_bytes") for row in rows],
        prefill_decode=_prefill_decode(rows[0]),
        kv_bytes_per_token=None if unknown else per_token,
    )


def _prefill_decode(row: CsvRow) -> PrefillDecode | None:
    prefill_s, decode_s = row.known_real("prefill_s"), row.known_real("decode_s_per_token")
    prompt_tokens = row.whole("prompt_tokens") if row.text("prompt_tokens", "") else None
    if math.isnan(prefill_s) and math.isnan(decode_s):
        if prompt_tokens is not None:
            raise InvalidProfileError(f"{row.column('prompt_tokens')}: given without prefill_s and decode_s_per_token")
        return None
    return PrefillDecode(row.real("prefill_s"), row.real("decode_s_per_token"), prompt_tokens)
