"""The built-in traces: the Azure LLM inference traces of 2023 as counts and percentiles, and MaverIQ's stepped Poisson.

Source of the counts: Azure Public Dataset, AzureLLMInferenceTrace_code.csv and _conv.csv of 2023-11-16 (CC-BY),
described in P. Patel et al., "Splitwise: Efficient generative LLM inference using phase splitting", ISCA 2024.
"""

from __future__ import annotations

import csv
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.errors import InvalidTraceError, UnknownNameError
from alpa_serve.simulator.arrivals import check_expected_count
from alpa_serve.simulator.trace_tokens import TRACE_TOKEN_COLUMNS, TokenPercentiles
from alpa_serve.trace.llm.trace import LLMTrace
from alpa_serve.validation import check_real

if TYPE_CHECKING:
    from numpy.typing import NDArray

BUILT_IN_TRACES = ("Conversation", "Coding")
"""Names of the built-in recorded traces; lower case and "code" are accepted too."""

POISSON = "poisson"
"""Name of the built-in trace that is not recorded but drawn."""

STAGE_S = 120.0
NUM_STAGES = 15
HIGH_STAGE = 2.5
"""Rate of every second stage of the stepped Poisson trace, relative to the others."""

POISSON_DURATION_S = STAGE_S * NUM_STAGES
"""Seconds that the stepped Poisson trace takes."""

BASE_RATE = 1 / 0.2
"""Requests per second of its other stages at scale 1."""

_COLUMN_OF_NAME = {"conversation": "conversation", "coding": "code", "code": "code"}
_FIRST_MINUTE = {"conversation": "2023-11-16T18:16", "code": "2023-11-16T18:17"}
_SHUFFLE_SEED = 0
_POISSON_STREAM = 0x706F69


def is_built_in(name: object) -> bool:
    """Tell whether this names a recorded built-in trace."""
    return str(name).lower() in _COLUMN_OF_NAME


def recorded(name: str) -> LLMTrace:
    """Return a recorded built-in trace.

    Raises
    ------
    UnknownNameError
        If there is no such built-in trace; the message lists those that there are.
    """
    column = _known_column(name)
    counts = minute_counts(column)
    minute = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(minute)) - np.repeat(np.cumsum(counts) - counts, counts)
    # strictly within half a minute of the full minute, so that rounding gives the minute back
    seconds = 60 * (minute + (place + 0.5) / np.repeat(counts, counts) - 0.5)
    ns = np.datetime64(_FIRST_MINUTE[column], "ns").astype(np.int64) + np.rint(seconds * 1e9).astype(np.int64)
    rng = np.random.default_rng(_SHUFFLE_SEED)
    input_ranks, output_ranks = (100 * (rng.permutation(len(ns)) + 0.5) / len(ns) for _ in TRACE_TOKEN_COLUMNS)
    inputs, outputs = token_percentiles(column).at(input_ranks, output_ranks)
    title = "Conversation" if column == "conversation" else "Coding"
    return LLMTrace((ns - ns[0]) / 1e9, input_tokens=inputs, output_tokens=outputs, start_ns=int(ns[0]), name=title)


def stepped_poisson(scale: float, seed: int) -> LLMTrace:
    """Return MaverIQ's stepped Poisson trace: half an hour of 2-minute stages, by turns at a rate and at 2.5 times it.

    Parameters
    ----------
    scale : float
        > 0; the lower rate is scale / 0.2 requests per second.
    seed : int
        Equal seeds give equal arrivals.
    """
    rate = check_real(scale, "scale", minimum=0.0, exclusive=True) * BASE_RATE
    check_expected_count(rate * HIGH_STAGE * STAGE_S * NUM_STAGES, f"scale {scale:g}")
    rng = np.random.default_rng([_POISSON_STREAM, seed])
    stages = []
    for stage in range(NUM_STAGES):
        expected = rate * STAGE_S * (HIGH_STAGE if stage % 2 else 1.0)
        stages.append(STAGE_S * (stage + np.sort(rng.random(rng.poisson(expected)))))
    arrivals = np.concatenate(stages)
    if not len(arrivals):
        raise InvalidTraceError(f"the poisson trace has no request at scale {scale:g}")
    return LLMTrace(arrivals, name=POISSON)


def minute_counts(name: str) -> NDArray[np.int64]:
    """Return the requests per minute of a built-in trace, shape (minutes,)."""
    column = _known_column(name)
    cells = [row[column] for row in _table("azure_llm_2023_per_minute.csv")]
    return np.array([int(cell) for cell in cells if cell], dtype=np.int64)


def token_percentiles(name: str) -> TokenPercentiles:
    """Return how long prompts and answers of a built-in trace are, from the 0th to the 100th percentile.

    Raises
    ------
    UnknownNameError
        If there is no such built-in trace; the message lists those that there are.
    """
    column = _known_column(name)
    rows = _table("azure_llm_2023_token_percentiles.csv")
    context, generated = ([float(row[f"{column}_{kind}_tokens"]) for row in rows] for kind in ("context", "generated"))
    return TokenPercentiles(context, generated)


def _known_column(name: str) -> str:
    column = _COLUMN_OF_NAME.get(str(name).lower())
    if column is None:
        raise UnknownNameError(f"unknown trace {name!r}; known: {', '.join(BUILT_IN_TRACES)}")
    return column


def _table(file_name: str) -> list[dict[str, str]]:
    text = resources.files("alpa_serve.trace").joinpath("data", file_name).read_text("utf-8")
    return [row for row in csv.DictReader(text.splitlines()) if next(iter(row.values())).isdigit()]
