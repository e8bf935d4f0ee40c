"""Traces of LLM requests: the Azure LLM inference traces of 2023, built in as counts or read from their files.

Source: Azure Public Dataset, AzureLLMInferenceTrace_code.csv and _conv.csv of 2023-11-16 (CC-BY), described in P. Patel
et al., "Splitwise: Efficient generative LLM inference using phase splitting", ISCA 2024.
"""

from __future__ import annotations

import csv
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.errors import UnknownNameError
from alpa_serve.simulator.columns import MAX_TOKENS
from alpa_serve.simulator.trace_tokens import TRACE_TOKEN_COLUMNS, TokenPercentiles
from alpa_serve.simulator.trace_workload import DATE_START
from alpa_serve.trace.csv_table import check_column, read_text_table

if TYPE_CHECKING:
    import os

    import pandas as pd
    from numpy.typing import NDArray

BUILT_IN_TRACES = ("Conversation", "Coding")
"""Names of the built-in traces; lower case and "code" are accepted too."""

_COLUMN_OF_NAME = {"conversation": "conversation", "coding": "code", "code": "code"}
_FIRST_MINUTE = {"conversation": "2023-11-16 18:16", "code": "2023-11-16 18:17"}
_SHUFFLE_SEED = 0


def load_azure_llm_trace(name_or_path: str | os.PathLike[str]) -> pd.DataFrame:
    """Return a built-in trace, or read a file in the form of the Azure LLM inference traces.

    Parameters
    ----------
    name_or_path : str or path-like
        "Conversation", "Coding", or a CSV file with a column TIMESTAMP (and possibly ContextTokens, GeneratedTokens).

    Returns
    -------
    pandas.DataFrame
        Columns TIMESTAMP (datetime), ContextTokens and GeneratedTokens (int), those that the file has, ascending in
        time.

    Raises
    ------
    UnknownNameError
        If it is neither a built-in trace nor a file.
    InvalidTraceError
        Naming file, line and column of what cannot be read.

    Notes
    -----
    Real in the built-in traces: the number of requests per minute (timestamps rounded to the nearest minute), hence
    everything that :class:`~alpa_serve.simulator.workload.WorkloadFromTrace` makes of them; and the percentiles of
    the token counts. Not real: the seconds within a minute (spread evenly), and which request has which token counts
    (drawn from the percentiles in a fixed random order, prompt and output independent of each other).
    """
    column = _COLUMN_OF_NAME.get(str(name_or_path).lower())
    if column is not None:
        return _built_in(column)
    if not Path(name_or_path).is_file():
        raise UnknownNameError(
            f"unknown trace {str(name_or_path)!r}: neither a built-in trace ({', '.join(BUILT_IN_TRACES)}) nor a file"
        )
    return _read_csv(name_or_path)


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


def _built_in(column: str) -> pd.DataFrame:
    import pandas as pd

    counts = minute_counts(column)
    minute = np.repeat(np.arange(len(counts)), counts)
    place = np.arange(len(minute)) - np.repeat(np.cumsum(counts) - counts, counts)
    # strictly within half a minute of the full minute, so that rounding gives the minute back
    seconds = 60 * (minute + (place + 0.5) / np.repeat(counts, counts) - 0.5)
    frame = pd.DataFrame({"TIMESTAMP": pd.Timestamp(_FIRST_MINUTE[column]) + pd.to_timedelta(seconds, unit="s")})
    rng = np.random.default_rng(_SHUFFLE_SEED)
    input_ranks, output_ranks = (100 * (rng.permutation(len(frame)) + 0.5) / len(frame) for _ in TRACE_TOKEN_COLUMNS)
    tokens = token_percentiles(column).at(input_ranks, output_ranks)
    for name, counts in zip(TRACE_TOKEN_COLUMNS, tokens, strict=True):
        frame[name] = counts
    return frame


def _read_csv(path: str | os.PathLike[str]) -> pd.DataFrame:
    import pandas as pd

    raw = read_text_table(path, ["TIMESTAMP"])
    stamps = pd.to_datetime(raw["TIMESTAMP"], errors="coerce", format="ISO8601", utc=True).dt.tz_localize(None)
    # pandas also reads "now" and "2023"
    stamps = stamps.where(raw["TIMESTAMP"].str.match(DATE_START, na=False))
    check_column(
        path, raw, "TIMESTAMP", stamps.notna(), "not a date", "; ISO 8601 is read, such as 2023-11-16 18:17:03.97"
    )
    frame = pd.DataFrame({"TIMESTAMP": stamps})
    for name in TRACE_TOKEN_COLUMNS:
        if name in raw.columns:
            tokens = pd.to_numeric(raw[name], errors="coerce")
            valid = tokens.notna() & (tokens >= 0) & (tokens <= MAX_TOKENS) & (tokens % 1 == 0)
            check_column(path, raw, name, valid, "not a number of tokens")
            frame[name] = tokens.astype(np.int64)
    return frame.sort_values("TIMESTAMP", kind="stable", ignore_index=True)
