"""Calls of Ray actors from a coroutine: their futures, their errors, and whether an actor is alive."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import ray
import ray.cloudpickle
from ray.exceptions import RayError, RayTaskError

from alpa_serve.errors import ServingError

if TYPE_CHECKING:
    from collections.abc import Iterable

HUNG_AFTER_S = 60.0
"""How long a process may leave a question unanswered before it counts as dead: a model may keep it busy."""


def future_of(ref: Any) -> asyncio.Future[Any]:
    """Return the future of a Ray reference, on the running loop."""
    return asyncio.wrap_future(ref.future())


async def is_alive(actor: Any, timeout_s: float = HUNG_AFTER_S) -> bool:
    """Tell whether an actor with a method `ping` is alive: it answers within `timeout_s` seconds."""
    if actor is None:
        return False
    try:
        await asyncio.wait_for(future_of(actor.ping.remote()), timeout_s)
    except (RayError, asyncio.TimeoutError):
        return False
    return True


def cause_of(error: RayTaskError) -> Exception:
    """Return what was raised in another process."""
    cause = error.cause
    return cause if isinstance(cause, Exception) else ServingError(str(error))


def free_resources() -> dict[str, float]:
    """Return what the Ray cluster has free, by kind: CPU, GPU and others."""
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    return free


def node_resources() -> list[dict[str, float]]:
    """Return what each living node of the Ray cluster has in all, free or not, by kind."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


def extend_import_path(paths: Iterable[str]) -> None:
    """Find modules of a program where it finds them itself: Ray's processes search its folder only."""
    sys.path += [path for path in paths if path not in sys.path]


def pickled_by_value(value: object) -> bytes:
    """Return `value` pickled such that classes of a program's main module come along."""
    pickled: bytes = ray.cloudpickle.dumps(value)  # type: ignore[no-untyped-call]
    return pickled
