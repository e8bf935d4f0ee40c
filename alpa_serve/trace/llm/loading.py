"""Loading a trace of LLM requests: a built-in one, or a file of any form in which the field publishes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from alpa_serve.errors import InvalidConfigError, UnknownNameError
from alpa_serve.trace.llm.built_in import (
    BUILT_IN_TRACES,
    POISSON,
    is_built_in,
    recorded,
    stepped_poisson,
)
from alpa_serve.trace.llm.csv_reader import read_csv
from alpa_serve.trace.llm.formats import (
    CSV_FORMS,
    FORMATS,
    JSON_FORMATS,
    SERVEGEN,
    CsvForm,
    detect,
    refuse_other_files,
)
from alpa_serve.trace.llm.jsonl_reader import read_jsonl
from alpa_serve.trace.llm.servegen import read_servegen
from alpa_serve.trace.llm.trace import LLMTrace
from alpa_serve.trace.llm.units import UNITS
from alpa_serve.trace.time_window import TimeWindow
from alpa_serve.validation import check_int, check_known

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import pandas as pd

    from alpa_serve.trace.time_window import Moment

COLUMNS = ("arrival_s", "model", "input_tokens", "output_tokens", "num_images")
"""What columns of a CSV file can be named for."""


def load_llm_trace(
    name_or_path: str | os.PathLike[str],
    format: str | None = None,
    start: Moment = None,
    end: Moment = None,
    max_rows: int | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    unit: str | None = None,
    scale: float | None = None,
    seed: int = 0,
) -> LLMTrace:
    """Return a built-in trace, or read a file of one of the published forms.

    Files may be compressed (name ending in .gz, .bz2, .xz, .zst or .lz4). They are read in a stream: memory is
    taken for the requests that are kept, 16 bytes each, and some 100 MB.

    Parameters
    ----------
    name_or_path : str or path-like
        "Conversation", "Coding" (the Azure LLM inference traces of 2023; what is real in them is said at
        :func:`load_azure_llm_trace`), "poisson" (MaverIQ's stages of 120 s for 30 minutes, by turns at scale / 0.2
        requests/s and 2.5 times that; no tokens), or a file.
    format : str, optional
        One of `FORMATS`; told from the first line of the file if left out.

        - "azure_llm": TIMESTAMP (dates), ContextTokens, GeneratedTokens, NumImages: Azure 2023, 2024, and 2025 (LMM).
        - "burstgpt": requests without response failed; they are left out and counted.
        - "mooncake" (ms), "bailian" (s): a JSON object a line.
        - "servegen": windows of rate and cv, from which arrivals are drawn; no tokens.
        - "vidur", "splitwise".
        - "azure_functions_v2": arrival = end - duration; the model is "app/func"; no tokens.
        - "csv": what `columns` says.
    start, end : float, str, datetime or numpy.datetime64, optional
        Read requests from `start` up to, and without, `end` only: seconds on the axis of the trace, or a date (UTC
        where it names no zone) if the file has dates.
    max_rows : int, optional
        Stop at so many requests, in the order of the file; what is behind is not looked at.
    columns : mapping of str, optional
        The column in the file for "arrival_s", "model", "input_tokens", "output_tokens", "num_images". With
        "arrival_s" it describes any CSV file with a header; without, it adds to what the format has.
    unit : {"s", "ms", "us", "ns", "date", "unix_s", "unix_ms", "unix_us", "unix_ns"}, optional
        Of the column that `columns` names for "arrival_s": of a clock of the trace ("s" if left out), dates in ISO
        8601, or since 1970 (to the microsecond).
    scale : float, optional
        Of "poisson" only; 1 if left out.
    seed : int
        For what is drawn: "poisson" and "servegen". Equal seeds give equal traces.

    Returns
    -------
    LLMTrace
        In the order of arrival (ties: of the file). With dates, seconds count from the earliest request of the file
        (of what was read of it, with `max_rows`); otherwise they are those of the file.

    Raises
    ------
    UnknownNameError
        If it is neither a built-in trace nor a file, or the format is not known.
    InvalidConfigError
        If an argument is out of range or does not go with the trace.
    InvalidTraceError
        Naming file, line and column of what cannot be read; nothing is returned of a file that is bad in a part that
        was read.
    """
    window = TimeWindow(start, end)
    if max_rows is not None:
        check_int(max_rows, "max_rows", minimum=1)
    check_int(seed, "seed", minimum=0)
    # the built-in traces are of that form; a file of the same name is read where a form is named
    built_in = columns is None and (format is None or (format == "azure_llm" and not Path(name_or_path).exists()))
    if built_in and str(name_or_path).lower() == POISSON:
        return _first(stepped_poisson(1.0 if scale is None else scale, seed).slice(start, end), max_rows)
    if scale is not None:
        raise InvalidConfigError(f"scale is for the trace {POISSON!r} only; use scale_rate({scale!r}) on the trace")
    if built_in and is_built_in(name_or_path):
        return _first(recorded(str(name_or_path)).slice(start, end), max_rows)
    path = name_or_path
    if format is not None:
        check_known(format, FORMATS, "format")
    if not Path(path).exists():
        raise _unknown(path)
    refuse_other_files(path)
    name = Path(path).name
    form = _custom_form(format, columns, unit)
    if form is None:
        known = detect(path) if format is None else format
        if known == SERVEGEN or known in JSON_FORMATS:
            if columns:
                raise InvalidConfigError(f"a trace of format {known!r} has no columns to be named")
            if known == SERVEGEN:
                return read_servegen(path, window, max_rows, seed, name)
            return read_jsonl(path, known, window, max_rows, name)
        form = _with_columns(CSV_FORMS[known], columns or {})
    return read_csv(path, form, window, max_rows, name)


def load_azure_llm_trace(name_or_path: str | os.PathLike[str]) -> pd.DataFrame:
    """Return a built-in trace, or read a file in the form of the Azure LLM inference traces, as a table.

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
    if is_built_in(name_or_path):
        return recorded(str(name_or_path)).to_frame()
    if not Path(name_or_path).is_file():
        raise _unknown(name_or_path)
    return load_llm_trace(name_or_path, "azure_llm").to_frame()


def _unknown(name: object) -> UnknownNameError:
    return UnknownNameError(
        f"unknown trace {str(name)!r}: neither a built-in trace ({', '.join(BUILT_IN_TRACES)}, {POISSON}) nor a file"
    )


def _first(trace: LLMTrace, max_rows: int | None) -> LLMTrace:
    return trace if max_rows is None else trace.head(max_rows)


def _custom_form(format_name: str | None, columns: Mapping[str, str] | None, unit: str | None) -> CsvForm | None:
    """Return the form that a caller describes; None if it is a published one."""
    columns = columns or {}
    for what, column in columns.items():
        check_known(what, COLUMNS, "entry of columns")
        if not isinstance(column, str):
            raise InvalidConfigError(f"columns[{what!r}] must be the name of a column, got {column!r}")
    described = "arrival_s" in columns
    if described and format_name in (None, "csv"):
        form = CsvForm(columns["arrival_s"], check_known("s" if unit is None else unit, UNITS, "unit"))
        return _with_columns(form, columns)
    if described or format_name == "csv":
        raise InvalidConfigError(
            f"columns['arrival_s'] goes with format \"csv\" (or none), and that with it; got format {format_name!r}"
        )
    if unit is not None:
        raise InvalidConfigError(f"unit ({unit!r}) is that of columns['arrival_s'], which is not given")
    return None


def _with_columns(form: CsvForm, columns: Mapping[str, str]) -> CsvForm:
    """Return a form that also, or instead, has these columns; they must be in the file then."""
    changes = {what: (column,) if what == "model" else column for what, column in columns.items()}
    return replace(form, **changes, optional=tuple(set(form.optional) - set(columns.values())))  # type: ignore[arg-type]
