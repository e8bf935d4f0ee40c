"""The forms in which LLM request traces are published, and telling them apart."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alpa_serve.errors import InvalidTraceError
from alpa_serve.trace.text_batches import first_line

if TYPE_CHECKING:
    import os

FUNCTIONS_HINT = "alpa_serve.trace.Trace(trace_name, trace_dir) reads Azure Functions traces"
JSON_FORMATS = ("mooncake", "bailian")
SERVEGEN = "servegen"
SERVEGEN_CELLS = 6


@dataclass(frozen=True)
class CsvForm:
    """A CSV file with a header.

    Attributes
    ----------
    arrival_s : str
        Column of the arrival.
    unit : str
        One of :data:`~alpa_serve.trace.llm.units.UNITS`.
    model : tuple of str
        Columns that name the model together.
    input_tokens, output_tokens, num_images : str or None
        Columns of counts.
    optional : tuple of str
        Columns that need not be there.
    duration : str or None
        Column of seconds; the request arrived so much earlier.
    must_be_one : str or None
        Column of a number that no other value but 1 is understood of.
    no_output_is_failure : bool
        Whether a request without output tokens failed.
    known_by : tuple of str
        Columns that tell the format from others.
    """

    arrival_s: str
    unit: str = "s"
    model: tuple[str, ...] = ()
    input_tokens: str | None = None
    output_tokens: str | None = None
    num_images: str | None = None
    optional: tuple[str, ...] = ()
    duration: str | None = None
    must_be_one: str | None = None
    no_output_is_failure: bool = False
    known_by: tuple[str, ...] = ()

    def columns(self) -> list[str]:
        """Return the columns that are read."""
        one = (self.arrival_s, self.input_tokens, self.output_tokens, self.num_images, self.duration, self.must_be_one)
        return list(dict.fromkeys(column for column in (*one, *self.model) if column is not None))


CSV_FORMS = {
    "azure_llm": CsvForm(
        "TIMESTAMP",
        "date",
        input_tokens="ContextTokens",
        output_tokens="GeneratedTokens",
        num_images="NumImages",
        optional=("ContextTokens", "GeneratedTokens", "NumImages"),
        known_by=("TIMESTAMP",),
    ),
    "burstgpt": CsvForm(
        "Timestamp",
        model=("Model",),
        input_tokens="Request tokens",
        output_tokens="Response tokens",
        no_output_is_failure=True,
        known_by=("Timestamp", "Request tokens", "Response tokens"),
    ),
    "vidur": CsvForm(
        "arrived_at",
        input_tokens="num_prefill_tokens",
        output_tokens="num_decode_tokens",
        known_by=("arrived_at", "num_prefill_tokens"),
    ),
    "splitwise": CsvForm(
        "arrival_timestamp",
        input_tokens="prompt_size",
        output_tokens="token_size",
        must_be_one="batch_size",
        optional=("batch_size",),
        known_by=("arrival_timestamp", "prompt_size"),
    ),
    "azure_functions_v2": CsvForm(
        "end_timestamp",
        model=("app", "func"),
        duration="duration",
        known_by=("app", "func", "end_timestamp"),
    ),
}
"""How each published CSV form names its columns."""

FORMATS = (*CSV_FORMS, *JSON_FORMATS, SERVEGEN, "csv")
"""Names of the formats; "csv" is any file with a header whose columns are named by the caller."""


def detect(path: str | os.PathLike[str]) -> str:
    """Return the format of a file, told from its first line.

    Raises
    ------
    InvalidTraceError
        If it is none of them; the message says what is.
    """
    number, line = first_line(path)
    if not line:
        raise InvalidTraceError(f"{path}: the file is empty")
    if line.startswith("{"):
        return _detect_json(path, number, line)
    try:
        cells = [cell.strip() for cell in next(csv.reader([line]))]
    except csv.Error as error:
        raise InvalidTraceError(f"{path}, line {number}: not a CSV file: {error}") from None
    for name, form in CSV_FORMS.items():
        if set(form.known_by) <= set(cells):
            return name
    if "HashFunction" in cells:
        raise InvalidTraceError(f"{path}: a day of AzureFunctions trace 1, not of an LLM trace; {FUNCTIONS_HINT}")
    if len(cells) == SERVEGEN_CELLS and all(_is_number(cell) for cell in cells[:2]):
        return SERVEGEN
    raise InvalidTraceError(
        f"{path}, line {number}: no known form of a trace; found the columns {', '.join(cells)[:200]}. Known are "
        f"{', '.join(FORMATS)}; name the columns of another CSV file with columns={{'arrival_s': ..., "
        "'input_tokens': ..., 'output_tokens': ...}"
    )


def _detect_json(path: str | os.PathLike[str], number: int, line: str) -> str:
    try:
        keys = json.loads(line).keys()
    except json.JSONDecodeError as error:
        raise InvalidTraceError(
            f"{path}, line {number}, column {error.colno}: not a line of JSON: {error.msg}"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidTraceError(f"{path}, line {number}: not a line of JSON: {error}") from None
    if {"timestamp", "input_length"} <= keys:
        return "bailian" if {"chat_id", "turn"} & keys else "mooncake"
    raise InvalidTraceError(
        f"{path}, line {number}: neither a Mooncake nor a Bailian trace, which have the keys timestamp, "
        f"input_length and output_length; found {', '.join(keys)[:200]}"
    )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def refuse_other_files(path: str | os.PathLike[str]) -> None:
    """Check that a path is a file, and none that holds an Azure Functions trace.

    Raises
    ------
    InvalidTraceError
        Saying what reads it.
    """
    if Path(path).is_dir():
        raise InvalidTraceError(f"{path}: a folder, not the file of an LLM trace; {FUNCTIONS_HINT}")
    if Path(path).suffix.lower() in (".pkl", ".pickle", ".npz", ".parquet"):
        raise InvalidTraceError(f"{path}: a table of functions, not the text file of an LLM trace; {FUNCTIONS_HINT}")
