"""Folders that describe a model, copied so that their path says what is in them."""

from __future__ import annotations

import hashlib
import tempfile
from functools import cache
from pathlib import Path

MODEL_FILES = ("config.json", "hf_quant_config.json")
"""What aiconfigurator reads of a model's folder."""


@cache
def _copies() -> tempfile.TemporaryDirectory[str]:
    """Return the folder of the copies, which goes with the process."""
    return tempfile.TemporaryDirectory(prefix="alpa_serve-")


def snapshot(folder: Path) -> Path:
    """Return a copy of what describes a model, in a folder named by its content.

    aiconfigurator remembers models by their path, and would go on with a config.json that has changed since.

    Parameters
    ----------
    folder : Path
        Holds a config.json.

    Returns
    -------
    Path
        The same for equal content; removed when the process ends.
    """
    contents = {name: (folder / name).read_bytes() for name in MODEL_FILES if (folder / name).is_file()}
    digest = hashlib.sha256(repr(sorted(contents.items())).encode()).hexdigest()
    copy = Path(_copies().name) / digest
    copy.mkdir(exist_ok=True)
    for name, content in contents.items():
        (copy / name).write_bytes(content)
    return copy
