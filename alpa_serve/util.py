"""Constants and small helpers that every other module may use."""

from __future__ import annotations

import logging
import sys
from collections import namedtuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alpa_serve.errors import InvalidConfigError
from alpa_serve.validation import check_int

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

GB = 1 << 30
"""Bytes in a GiB, the unit of every memory figure here."""

eps = 1e-6
"""Added to denominators where AlpaServe adds it."""

inf = 1e100
"""AlpaServe's stand-in for infinity."""

batchsize_config = [1, 2, 4, 8, 16]
"""Batch sizes that the batched simulation chooses from, ascending."""

ServingCase = namedtuple("ServingCase", ("register_models", "generate_workload", "placement_policy"))
"""Three callables: ``register_models(controller)``, ``generate_workload() -> Workload`` and
``placement_policy(controller) -> placement``."""


def build_logger(name: str = "alpa_serve") -> logging.Logger:
    """Return the logger `name`, showing messages from level INFO up on standard error.

    Calling it again adds no second handler.
    """
    logger = logging.getLogger(name)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
        logger.addHandler(handler)
    return logger


class _RecordedMethod:
    """A remote method of an actor that remembers the references its calls returned."""

    def __init__(self, method: Any, pending: list[Any]) -> None:
        self._method = method
        self._pending = pending

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call the actor's method remotely and remember the call for ``sync``."""
        reference = self._method.remote(*args, **kwargs)
        self._pending.append(reference)
        return reference


def add_sync_method(actor: Any, method_names: Sequence[str]) -> None:
    """Give a Ray `actor` handle a ``sync()`` that waits for every earlier call of `method_names`.

    Parameters
    ----------
    actor : ray.actor.ActorHandle
        Changed in place: the named methods are wrapped, ``sync`` is added.
    method_names : sequence of str
        Names of methods called as ``actor.name.remote(...)``.

    Notes
    -----
    ``sync()`` waits for all of them, then raises the first error among them; they are not waited for again.
    """
    pending: list[Any] = []
    for name in method_names:
        setattr(actor, name, _RecordedMethod(getattr(actor, name), pending))

    def sync() -> None:
        import ray

        waiting = pending.copy()
        pending.clear()
        errors = []
        for reference in waiting:
            try:
                ray.get(reference)
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]

    actor.sync = sync


def write_tsv(
    heads: Sequence[str], values: Sequence[Any], filename: str | os.PathLike[str], print_line: bool = True
) -> None:
    r"""Append `values` as one tab-separated line to `filename`.

    Parameters
    ----------
    heads : sequence of str
        Names of the values; shown on standard output if `print_line`, not written to the file.
    values : sequence
        Written with ``str``; must not contain tabs or line breaks.
    filename : path-like
        Created if absent.
    print_line : bool
        Whether to show the line on standard output.

    Raises
    ------
    InvalidConfigError
        If `heads` and `values` differ in length or a value would break the line.
    """
    if len(heads) != len(values):
        raise InvalidConfigError(f"write_tsv: {len(heads)} heads but {len(values)} values")
    cells = [str(value) for value in values]
    for head, cell in zip(heads, cells, strict=True):
        if any(mark in cell for mark in "\t\r\n"):
            raise InvalidConfigError(f"write_tsv: the value of {head!r} contains a tab or line break: {cell!r}")
    with Path(filename).open("a", encoding="utf-8") as file:
        file.write("\t".join(cells) + "\n")
    if print_line:
        sys.stdout.write("  ".join(f"{head}: {cell}" for head, cell in zip(heads, cells, strict=True)) + "\n")


def to_str_round(x: Any, decimal: int = 6) -> str:
    """Write `x` with `decimal` places for every float in it, containers included.

    Raises
    ------
    ValueError
        If `x` is of a type that it does not know how to write.
    """
    if x is None or isinstance(x, (str, bool, int, np.bool_, np.integer)):
        return str(x)
    if isinstance(x, (float, np.floating)):
        return f"{x:.{decimal}f}"
    if isinstance(x, (list, tuple, np.ndarray)):
        return "[" + ", ".join(to_str_round(y, decimal) for y in x) + "]"
    if isinstance(x, dict):
        return "{" + ", ".join(f"{k}: {to_str_round(v, decimal)}" for k, v in x.items()) + "}"
    raise ValueError(f"to_str_round cannot write a {type(x).__name__}: {x!r}")


def get_factors(n: int) -> list[int]:
    """Return the divisors of `n` >= 1, ascending."""
    n = check_int(n, "n", minimum=1)
    small = [i for i in range(1, int(n**0.5) + 1) if n % i == 0]
    return sorted({*small, *(n // i for i in small)})


def get2tok(n: int) -> list[int]:
    """Return the powers of two up to `n` >= 0, ascending."""
    return [1 << k for k in range(check_int(n, "n", minimum=0).bit_length())]


def decompose2tok(n: int) -> list[int]:
    """Return the distinct powers of two that sum to `n` >= 0, ascending."""
    return [power for power in get2tok(n) if n & power]


def get_partitions(n: int, k: int) -> list[list[int]]:
    """List the ways to deal `n` devices to `k` >= 1 clusters, each at least one.

    A part ``i`` is dealt while ``n`` devices remain only if ``i <= n % 8``, ``(n - i) % 8 == 0`` or ``n % 8 == 0``,
    so that nodes of eight are not torn apart needlessly.

    Returns
    -------
    list of list of int
        Each of length `k` with sum `n`; the last element is the part that was dealt first.
    """
    check_int(k, "k", minimum=1)
    if check_int(n, "n", minimum=0) < k:
        return []
    if k == 1:
        return [[n]]
    return [
        [*rest, part]
        for part in range(1, n - k + 2)
        if part <= n % 8 or (n - part) % 8 == 0 or n % 8 == 0
        for rest in get_partitions(n - part, k - 1)
    ]
