"""Compiling the simulator's kernels, with a cache on disk where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import numba

if TYPE_CHECKING:
    from collections.abc import Callable

Kernel = TypeVar("Kernel", bound="Callable[..., Any]")


def compiled(kernel: Kernel) -> Kernel:
    """Compile `kernel` when it is first called, without holding the interpreter's lock while it runs.

    The machine code is kept beside the package, or in the user's cache folder (or ``NUMBA_CACHE_DIR``); where no folder
    can be written it is compiled anew in every process.
    """
    jitted: Any
    try:
        jitted = numba.njit(cache=True, nogil=True)(kernel)
    except RuntimeError:
        jitted = numba.njit(nogil=True)(kernel)
    return cast("Kernel", jitted)
