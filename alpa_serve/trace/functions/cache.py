"""Files with a whole function trace: our own .npz, and the pickles that AlpaServe makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidTraceError
from alpa_serve.files import replacing
from alpa_serve.trace.functions.pickles import read_pickle
from alpa_serve.trace.functions.table import TRACE_MINUTES, FunctionTable

if TYPE_CHECKING:
    import os

FORMAT = "alpa_serve function trace 1"
_ARRAYS = {"format": "u1", "names": "u1", "num_minutes": "i8", "offsets": "i8"}
_COUNTS = {"at": "i2", "counts": "i4"}
_SECONDS = {"at": "f8"}


def load_trace(path: str | os.PathLike[str]) -> FunctionTable:
    """Load a function trace from a file.

    Parameters
    ----------
    path : path-like
        What `preprocess_azure_v1_trace` or `preprocess_azure_v2_trace` has written, or a pickle of AlpaServe's; told
        from the content. A pickle is read without running anything that is in it.

    Returns
    -------
    FunctionTable
        A mapping: function name -> int32 invocations per minute (azure_v1) or ascending seconds (azure_v2).

    Raises
    ------
    InvalidTraceError
        Naming the file and what is wrong with it.
    """
    file = Path(path)
    try:
        with file.open("rb") as opened:
            start = opened.read(4)
    except OSError as error:
        raise InvalidTraceError(f"{file}: cannot be read: {error}") from None
    return _read_npz(file) if start == b"PK\x03\x04" else read_pickle(file)


def save_trace(table: FunctionTable, path: str | os.PathLike[str]) -> Path:
    """Write a function trace to an .npz file, replacing an older one in one step.

    Returns
    -------
    Path
        Of the file: `path`, exactly as given.

    Raises
    ------
    OSError
        Naming the file, which is then as it was.
    """
    arrays: dict[str, Any] = {
        "format": _bytes(FORMAT),
        "names": _bytes(json.dumps(table.names)),
        "num_minutes": np.array([table.num_minutes], dtype=np.int64),
        "offsets": table.offsets.astype(np.int64, copy=False),
        "at": table.at,
    }
    if table.counts is not None:
        arrays["counts"] = table.counts
    with replacing(path) as file:
        np.savez(file, **arrays)
    return Path(path)


def _bytes(text: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _read_npz(path: Path) -> FunctionTable:
    try:
        with np.load(path, allow_pickle=False) as opened:
            arrays = {name: opened[name] for name in opened.files}
    except Exception as error:
        # a damaged archive can make the machinery fail in any way
        raise InvalidTraceError(f"{path}: the file is damaged: {error}") from None
    expected = _ARRAYS | (_COUNTS if "counts" in arrays else _SECONDS)
    # what is no array comes out as bytes
    found = {name: (array.ndim, array.dtype.str[1:]) for name, array in arrays.items() if isinstance(array, np.ndarray)}
    if found != {name: (1, code) for name, code in expected.items()} or len(found) < len(arrays):
        raise InvalidTraceError(f"{path}: not a file that preprocess_azure_v1_trace or _v2_trace has written")
    try:
        if arrays["format"].tobytes().decode() != FORMAT:
            raise InvalidTraceError(f"{path}: of another format than {FORMAT!r}; make it anew from the raw files")
        names = json.loads(arrays["names"].tobytes())
        (num_minutes,) = arrays["num_minutes"].tolist()
    except ValueError as error:
        raise InvalidTraceError(f"{path}: the file is damaged: {error}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InvalidTraceError(f"{path}: the file is damaged: names of functions must be text")
    if not 0 < num_minutes <= TRACE_MINUTES:
        raise InvalidTraceError(f"{path}: the file is damaged: {num_minutes} minutes")
    try:
        return FunctionTable(names, arrays["offsets"], arrays["at"], arrays.get("counts"), num_minutes)
    except InvalidTraceError as error:
        raise InvalidTraceError(f"{path}: {error}") from None
