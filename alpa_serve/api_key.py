"""The bearer token of a server, which is given by a file or by the environment, never by an argument."""

from __future__ import annotations

import os
from pathlib import Path

from alpa_serve.errors import InvalidConfigError

API_KEY_VARIABLE = "ALPA_SERVE_API_KEY"
"""Environment variable of the bearer token; arguments can be read by every user of the machine."""


def read_api_key(path: Path | None) -> str | None:
    """Return the token of a file, or of the environment without one; None if there is none there.

    Raises
    ------
    InvalidConfigError
        If the file is empty, or no text.
    FileNotFoundError
        If there is no such file.
    """
    if path is None:
        return os.environ.get(API_KEY_VARIABLE) or None
    try:
        key = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise InvalidConfigError(f"{path}: a bearer token is a line of ASCII text") from None
    if not key:
        raise InvalidConfigError(f"{path}: the file with the bearer token is empty")
    return key
