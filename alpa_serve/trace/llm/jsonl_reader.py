"""Reading the Mooncake and Bailian traces: a JSON object a line."""

from __future__ import annotations

import itertools
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidTraceError
from alpa_serve.simulator.columns import MAX_TOKENS
from alpa_serve.trace.cells import TOKENS_HINT, BadCellError
from alpa_serve.trace.llm.builder import MAX_SPAN_S, TraceBuilder
from alpa_serve.trace.llm.units import SECONDS, unit_hint
from alpa_serve.trace.text_batches import text_stream

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from alpa_serve.trace.llm.trace import LLMTrace
    from alpa_serve.trace.time_window import TimeWindow

UNIT_OF_FORMAT = {"mooncake": "ms", "bailian": "s"}
MAX_SERVICE_RATE = 1000.0
"""Requests per second above which a trace of one of these services, of about 10, is taken to be in another unit."""

LINES_AT_ONCE = 1 << 15
ARRIVAL, INPUT, OUTPUT = "timestamp", "input_length", "output_length"


def read_jsonl(
    path: str | os.PathLike[str], format_name: str, window: TimeWindow, max_rows: int | None, name: str
) -> LLMTrace:
    """Read the requests of a Mooncake or Bailian file that are in a time window.

    Raises
    ------
    InvalidTraceError
        Naming file, line and key (as column) of what cannot be read.
    """
    unit = UNIT_OF_FORMAT[format_name]
    builder = TraceBuilder(window, max_rows, dated=False, max_rate=MAX_SERVICE_RATE)
    with text_stream(path) as stream:
        numbered = enumerate(stream, start=1)
        while not builder.is_full and (lines := list(itertools.islice(numbered, LINES_AT_ONCE))):
            rows = _rows(path, lines, unit)
            if rows:
                arrivals, inputs, outputs = map(np.array, zip(*rows, strict=True))
                tokens = {"input_tokens": inputs.astype(np.int32), "output_tokens": outputs.astype(np.int32)}
                builder.add(arrivals.astype(np.float64) * SECONDS[unit], tokens)
    return builder.build(path, name, column=ARRIVAL)


def _rows(path: object, lines: Iterable[tuple[int, str]], unit: str) -> list[tuple[float, int, int]]:
    rows = []
    for line, text in lines:
        if not text.strip():
            continue
        try:
            row = json.loads(text.encode("utf-8", "strict"))
        except UnicodeEncodeError:
            raise InvalidTraceError(f"{path}, line {line}: not UTF-8 text") from None
        except json.JSONDecodeError as error:
            raise InvalidTraceError(
                f"{path}, line {line}, column {error.colno}: not a line of JSON: {error.msg}"
            ) from None
        except (ValueError, RecursionError) as error:
            raise InvalidTraceError(f"{path}, line {line}: not a line of JSON: {error}") from None
        if not isinstance(row, dict):
            raise InvalidTraceError(f"{path}, line {line}: not a JSON object: {text.strip()[:80]}")
        try:
            rows.append((_arrival(row, unit), _tokens(row, INPUT), _tokens(row, OUTPUT)))
        except BadCellError as error:
            raise InvalidTraceError(f"{path}, line {line}, {error.message()}") from None
    return rows


def _arrival(row: dict[str, Any], unit: str) -> float:
    value = _number(row, ARRIVAL)
    if value < 0:
        raise BadCellError(0, ARRIVAL, "negative; a trace counts from 0", row[ARRIVAL])
    if value * SECONDS[unit] > MAX_SPAN_S:
        raise BadCellError(0, ARRIVAL, f"more than 10 years in {unit}", row[ARRIVAL], unit_hint(value, unit))
    if unit == "ms" and not value.is_integer():
        raise BadCellError(0, ARRIVAL, "not whole milliseconds", row[ARRIVAL], "it looks like seconds")
    return value


def _tokens(row: dict[str, Any], key: str) -> int:
    value = _number(row, key)
    if not (value.is_integer() and 0 <= value <= MAX_TOKENS):
        raise BadCellError(0, key, "not a number of tokens", row[key], TOKENS_HINT)
    return int(value)


def _number(row: dict[str, Any], key: str) -> float:
    if key not in row:
        raise BadCellError(0, key, "no such key", ", ".join(row)[:200], "these are there")
    value = row[key]
    number = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if not math.isfinite(number):
        raise BadCellError(0, key, "not a finite number", str(value)[:80])
    return number
