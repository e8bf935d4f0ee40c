"""Requests and replies as Ray carries them: bytes, which it takes as they are.

Ray's own way with objects handles functions, classes and arrays of any kind, and takes several times as long for the
plain values that a request and its answer mostly are.
"""

from __future__ import annotations

import pickle
from typing import Any

from alpa_serve.runtime.ray_calls import pickled_by_value


def pack(value: object) -> bytes:
    """Return `value` as bytes for another process of the runtime.

    Raises
    ------
    Exception
        Whatever its parts raise if they cannot be pickled.
    """
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, AttributeError, TypeError):
        # a class of the program's main module, which the other process does not have
        return pickled_by_value(value)


def unpack(packed: bytes) -> Any:
    """Return what was packed.

    Raises
    ------
    Exception
        Whatever its parts raise if they cannot be made.
    """
    return pickle.loads(packed)
