"""Writing traces in the forms of others, in one step: a file is there in full or not at all."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidTraceError
from alpa_serve.files import replacing
from alpa_serve.trace.time_window import whole_ns

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from alpa_serve.trace.llm.trace import LLMTrace

ROWS_AT_ONCE = 1 << 18
_NS_PER_TICK = 100
_STAMP_CHARACTERS = len("2023-11-16 18:17:03.9799600")


def write_azure(trace: LLMTrace, path: str | os.PathLike[str]) -> None:
    """Write the form of the Azure LLM inference traces of 2023; NumImages is added if it is known."""
    import pyarrow as pa
    import pyarrow.compute as pc

    inputs, outputs = trace.require_tokens()
    names = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
    if trace.num_images is not None:
        names.insert(1, "NumImages")
    with _table(trace, path, names) as write:
        for rows in _parts(trace):
            ns = whole_ns(trace.arrival_s[rows], trace.start_ns or 0)
            ticks = (ns + _NS_PER_TICK // 2) // _NS_PER_TICK * _NS_PER_TICK
            text = pc.strftime(pa.array(ticks.view("datetime64[ns]")), "%Y-%m-%d %H:%M:%S")
            columns = [pc.utf8_slice_codeunits(text, 0, _STAMP_CHARACTERS), inputs[rows], outputs[rows]]
            if trace.num_images is not None:
                columns.insert(1, trace.num_images[rows])
            write(columns)


def check_for_vidur(trace: LLMTrace) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return (input tokens, output tokens) of a trace that Vidur can replay.

    Raises
    ------
    InvalidTraceError
        If there is no request, or one without input or output tokens, which Vidur would change on its own.
    """
    if not len(trace):
        raise InvalidTraceError(f"{trace.name}: there is no request for Vidur to simulate")
    inputs, outputs = trace.require_tokens()
    for what, tokens in (("input", inputs), ("output", outputs)):
        if not tokens.all():
            raise InvalidTraceError(
                f"{trace.name}: request {np.argmin(tokens)} has 0 {what} tokens; Vidur needs at least one of each"
            )
    return inputs, outputs


def write_vidur(trace: LLMTrace, path: str | os.PathLike[str]) -> None:
    """Write the form that Vidur replays: arrived_at in seconds, num_prefill_tokens, num_decode_tokens."""
    inputs, outputs = check_for_vidur(trace)
    with _table(trace, path, ["arrived_at", "num_prefill_tokens", "num_decode_tokens"]) as write:
        for rows in _parts(trace):
            write([trace.arrival_s[rows], inputs[rows], outputs[rows]])


def _parts(trace: LLMTrace) -> Iterator[slice]:
    return (slice(at, at + ROWS_AT_ONCE) for at in range(0, len(trace), ROWS_AT_ONCE))


@contextmanager
def _table(trace: LLMTrace, path: str | os.PathLike[str], names: list[str]) -> Iterator[Any]:
    """Open a CSV file with a header; gives a function that writes columns, and replaces `path` at the end."""
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    if not len(trace):
        raise InvalidTraceError(f"{trace.name}: no request to write to {path}")
    compression = "gzip" if Path(path).suffix.lower() == ".gz" else None
    options = pa_csv.WriteOptions(include_header=False, quoting_style="none")
    with replacing(path) as file, pa.output_stream(file, compression=compression) as stream:
        stream.write((",".join(names) + "\n").encode())

        def write(columns: list[Any]) -> None:
            pa_csv.write_csv(pa.table(columns, names=names), stream, options)

        yield write
