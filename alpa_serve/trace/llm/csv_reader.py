"""Reading LLM traces from CSV files with a header, in a stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.trace.cells import check_cells, counts, dates, numbers
from alpa_serve.trace.csv_columns import NameCodes, read_columns, read_header
from alpa_serve.trace.llm.builder import MAX_SPAN_S, TraceBuilder
from alpa_serve.trace.llm.formats import CsvForm
from alpa_serve.trace.llm.units import SECONDS, UNIX_SECONDS, likely_unit, unit_hint

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from alpa_serve.trace.llm.trace import LLMTrace
    from alpa_serve.trace.time_window import TimeWindow


def read_csv(
    path: str | os.PathLike[str], form: CsvForm, window: TimeWindow, max_rows: int | None, name: str
) -> LLMTrace:
    """Read the requests of a file that are in a time window.

    Parameters
    ----------
    path : str or path-like
    form : CsvForm
        Which columns it has.
    window : TimeWindow
    max_rows : int or None
        Stop after so many.
    name : str
        Of the trace.

    Raises
    ------
    InvalidTraceError
        Naming file, line and column of what cannot be read.
    """
    header = read_header(path)
    columns = [column for column in form.columns() if column in header or column not in form.optional]
    dated = form.unit not in SECONDS
    origin = None
    while True:
        builder = TraceBuilder(window, max_rows, dated, origin)
        parser = _BatchParser(form)
        for parsed in read_columns(path, header, columns, parser.parse):
            builder.add(*parsed)
            if builder.is_full:
                break
        origin = builder.earlier_origin()
        if origin is None:
            return builder.build(path, name, parser.models.names, column=form.arrival_s)


class _BatchParser:
    """Makes columns of numbers from columns of text."""

    def __init__(self, form: CsvForm) -> None:
        self._form = form
        self.models = NameCodes(form.model)
        self._first_ns: int | None = None

    def parse(self, cells: dict[str, Any]) -> tuple[NDArray[Any], dict[str, NDArray[Any]], NDArray[np.bool_] | None]:
        """Return (arrivals, columns, which failed) of a batch."""
        form = self._form
        arrivals = self._arrivals(cells)
        columns: dict[str, NDArray[Any]] = {}
        for what in ("input_tokens", "output_tokens", "num_images"):
            column = getattr(form, what)
            if column in cells:
                columns[what] = counts(cells[column], column)
        if form.must_be_one in cells:
            ones = numbers(cells[form.must_be_one], form.must_be_one)
            check_cells(ones == 1, cells[form.must_be_one], form.must_be_one, "must be 1: a row is one request")
        if form.model:
            columns["model_codes"] = self.models.of(cells)
        return arrivals, columns, columns["output_tokens"] == 0 if form.no_output_is_failure else None

    def _arrivals(self, cells: dict[str, Any]) -> NDArray[Any]:
        form, text = self._form, cells[self._form.arrival_s]
        if form.unit not in SECONDS:
            return self._dates(text)
        given = numbers(text, form.arrival_s)
        check_cells(given >= 0, text, form.arrival_s, "negative; a trace counts from 0")
        seconds = given * SECONDS[form.unit]
        late = seconds > MAX_SPAN_S
        if late.any():
            hint = _naming_hint(float(given[np.argmax(late)]), form.unit)
            check_cells(~late, text, form.arrival_s, f"more than 10 years in {form.unit}", hint)
        if form.duration is not None:
            durations = numbers(cells[form.duration], form.duration)
            check_cells(durations >= 0, cells[form.duration], form.duration, "negative")
            late = durations > MAX_SPAN_S
            check_cells(~late, cells[form.duration], form.duration, "more than 10 years in s")
            seconds -= durations
        return seconds

    def _dates(self, text: Any) -> NDArray[np.int64]:
        column = self._form.arrival_s
        if self._form.unit == "date":
            stamps = dates(text, column)
        else:
            given = numbers(text, column)
            seconds = given * UNIX_SECONDS[self._form.unit]
            plausible = (seconds >= 0) & (seconds < 2**33)
            if not plausible.all():
                hint = _naming_hint(float(given[np.argmin(plausible)]), self._form.unit)
                check_cells(plausible, text, column, "no date from 1970 to 2242", hint)
            # the whole part by itself, for no digit to be lost
            ns_per_unit = round(UNIX_SECONDS[self._form.unit] * 1e9)
            fraction_ns = np.rint(given % 1 * ns_per_unit).astype(np.int64)
            stamps = np.floor(given).astype(np.int64) * ns_per_unit + fraction_ns
        if self._first_ns is None:
            self._first_ns = int(stamps[0])
        near = abs(stamps / 1e9 - self._first_ns / 1e9) <= MAX_SPAN_S
        check_cells(near, text, column, "more than 10 years from the first row")
        return stamps


def _naming_hint(value: float, unit: str) -> str:
    """Return what a time looks like and how to say so; "" if like nothing known."""
    hint = unit_hint(value, unit)
    return hint and f'{hint}: name it with columns={{"arrival_s": ...}}, unit="{likely_unit(value, unit)}"'
