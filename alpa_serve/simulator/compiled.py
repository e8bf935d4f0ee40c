"""Compiling the simulator's kernels, with a cache on disk where there is one."""

from __future__ import annotations

import zlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numba

if TYPE_CHECKING:
    from collections.abc import Callable

Kernel = TypeVar("Kernel", bound="Callable[..., Any]")

_SOURCES = ("scheduling", "simulator", "placement_policy")
"""Folders of the package with functions that are compiled, or compiled into others."""


def compiled(kernel: Kernel) -> Kernel:
    """Compile `kernel` when it is first called, without holding the interpreter's lock while it runs.

    The machine code is kept beside the package, or in the user's cache folder (or ``NUMBA_CACHE_DIR``), under a name
    that changes with the sources: numba notices when the file of a kernel changes, but not that of a function which it
    calls. Where no folder can be written it is compiled anew in every process.
    """
    kernel.__qualname__ = f"{kernel.__qualname__}_{_sources_digest()}"
    jitted: Any
    try:
        jitted = numba.njit(cache=True, nogil=True)(kernel)
    except RuntimeError:
        jitted = numba.njit(nogil=True)(kernel)
    return cast("Kernel", jitted)


def inlined(kernel: Kernel) -> Kernel:
    """Compile a small `kernel` into each kernel that calls it.

    A call of compiled code passes every array as seven numbers; in an innermost loop that costs more than the work.
    """
    return cast("Kernel", numba.njit(inline="always", nogil=True)(kernel))


@cache
def _sources_digest() -> str:
    package = Path(__file__).parents[1]
    digest = 0
    for folder in _SOURCES:
        for path in sorted((package / folder).glob("*.py")):
            digest = zlib.crc32(path.read_bytes(), digest)
    return f"{digest:08x}"
