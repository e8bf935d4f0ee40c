"""The process of a group on Ray, and the devices that are set aside for it."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, TaskCancelledError
from ray.util.placement_group import (
    get_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from alpa_serve.errors import GroupLostError, ModelFailedError, RequestTimeoutError
from alpa_serve.runtime.group_manager import GroupManager
from alpa_serve.runtime.origin import NAMESPACE
from alpa_serve.runtime.ray_calls import future_of
from alpa_serve.runtime.reply import Reply
from alpa_serve.runtime.routing_table import GroupDiedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from alpa_serve.device_layout import Shape
    from alpa_serve.runtime.origin import Origin
    from alpa_serve.runtime.request import ServeRequest
    from alpa_serve.scheduling import ServingRules

logger = logging.getLogger(__name__)

MAX_CONCURRENCY = 100_000
"""Requests that a process may have at the same time; the router's bound is lower, and Ray's default too low."""

CLOSE_TIMEOUT_S = 10.0
"""How long the models of a group may take to close before its process is ended."""

CPU_SHARE = 0.001
"""CPUs that a bundle without GPUs sets aside: Ray wants some resource in it, and emulated devices need none."""


def bundles_of(shape: Shape | None, num_gpus: float) -> list[dict[str, float]]:
    """Return what is set aside for a group: a bundle per host, with its share of the GPUs if there are any.

    Parameters
    ----------
    shape : (int, int) or None
        Hosts, devices per host; one host if it is None.
    num_gpus : float
        GPUs of Ray's, on all hosts together.
    """
    hosts = 1 if shape is None else shape[0]
    return [{"GPU": num_gpus / hosts} if num_gpus else {"CPU": CPU_SHARE} for _ in range(hosts)]


class GroupProcess:
    """Where the process of a group runs: its placement group, its actor, and a new actor where one died.

    Parameters
    ----------
    origin : Origin
        The controller that it belongs to.
    slot : int
        Of the devices, which stay the same when the process is restarted; no other group of the origin has it.
    shape : (int, int) or None
        Hosts, devices per host, where they are known.
    bundles : list of dict
        Resources to set aside per host.
    """

    def __init__(self, origin: Origin, slot: int, shape: Shape | None, bundles: list[dict[str, float]]) -> None:
        self.origin = origin
        self.shape = shape
        self.slot = slot
        self.bundles = bundles
        self.actor: Any = None

    @property
    def placement_group_name(self) -> str:
        """Name of the placement group in Ray."""
        return f"{self.origin.prefix}devices-{self.slot}"

    def actor_name(self, uid: int) -> str:
        """Return the name of the actor in Ray."""
        return f"{self.origin.prefix}group-{uid}"

    async def start(self, uid: int, group_id: int, rules: ServingRules, devices_timeout_s: float) -> None:
        """Set devices aside, unless they are already, and start a process on them; wait until it runs.

        Raises
        ------
        asyncio.TimeoutError
            If the devices are not free within `devices_timeout_s` seconds.
        """
        placement = await self._devices(devices_timeout_s)
        gpus = self.bundles[0].get("GPU", 0)
        options: dict[str, Any] = {"num_gpus": gpus} if gpus else {"num_cpus": self.bundles[0].get("CPU", 0)}
        options.setdefault("num_cpus", 0)
        actor = ray.remote(GroupManager).options(
            name=self.actor_name(uid),
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=0,
            max_concurrency=MAX_CONCURRENCY,
            # Ray would report every request to its head node, and the runtime has metrics of its own
            enable_task_events=False,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                placement_group=placement, placement_group_bundle_index=0
            ),
            **options,
        )
        self.actor = actor.remote(group_id, self.shape, rules, self.origin, sys.path)
        await self.actor.ping.remote()

    async def find(self, uid: int) -> bool:
        """Take up the process that runs already; return whether there is one, which may be busy, or just dying."""
        try:
            self.actor = await asyncio.to_thread(ray.get_actor, self.actor_name(uid), NAMESPACE)
        except ValueError:
            return False
        return True

    def kill(self) -> None:
        """End the process at once; its devices stay set aside."""
        if self.actor is not None:
            ray.kill(self.actor)
            self.actor = None

    async def release(self) -> None:
        """Have the replicas closed, end the process, and give its devices back."""
        if self.actor is not None:
            await _close(self.actor)
        self.kill()
        try:
            found = await asyncio.to_thread(get_placement_group, self.placement_group_name)
        except ValueError:
            return
        await asyncio.to_thread(remove_placement_group, found)

    async def _devices(self, timeout_s: float) -> Any:
        name = self.placement_group_name
        try:
            found = await asyncio.to_thread(get_placement_group, name)
        except ValueError:
            found = placement_group(
                self.bundles,
                strategy="STRICT_PACK" if len(self.bundles) == 1 else "STRICT_SPREAD",
                name=name,
                lifetime="detached",
            )
        await asyncio.wait_for(future_of(found.ready()), timeout_s)
        return found


async def _close(actor: Any) -> None:
    try:
        await asyncio.wait_for(future_of(actor.close.remote()), CLOSE_TIMEOUT_S)
    except asyncio.TimeoutError:
        logger.warning("the models of a group were not closed within %g s; its process is ended", CLOSE_TIMEOUT_S)
    except RayError:
        # they are gone with their process
        logger.info("the models of a group could not be closed", exc_info=True)


class RayGroup:
    """A group as the router reaches it."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self._handle = actor.handle_request
        self._stream = actor.stream_request.options(num_returns="streaming")

    def __reduce__(self) -> tuple[type[RayGroup], tuple[Any]]:
        return RayGroup, (self.actor,)

    async def handle(self, model: str, request: ServeRequest, timeout_s: float) -> Reply:
        """Have the replica of `model` answer (:class:`~alpa_serve.runtime.routing_table.Group`)."""
        return await _reply(self._handle.remote(model, request), model, timeout_s)

    async def stream(self, model: str, request: ServeRequest, timeout_s: float) -> AsyncIterator[Reply]:
        """Have it answer piece by piece."""
        pieces = self._stream.remote(model, request)
        has_ended = False
        try:
            while True:
                try:
                    ref = await asyncio.wait_for(pieces.__anext__(), timeout_s)
                except StopAsyncIteration:
                    has_ended = True
                    return
                except asyncio.TimeoutError:
                    raise _took_too_long(model) from None
                yield await _reply(ref, model, timeout_s)
        finally:
            if not has_ended:
                _cancel(pieces)


async def _reply(ref: Any, model: str, timeout_s: float) -> Reply:
    try:
        reply: Reply = await asyncio.wait_for(future_of(ref), timeout_s)
    except asyncio.TimeoutError:
        _cancel(ref)
        raise _took_too_long(model) from None
    except asyncio.CancelledError:
        _cancel(ref)
        raise
    except RayActorError as error:
        raise GroupDiedError from error
    except TaskCancelledError as error:
        raise GroupLostError(f"the request to model {model!r} was cancelled") from error
    except RayError as error:
        # what a model raises comes as a reply: this is an answer that cannot be sent
        logger.error("the answer of model %r did not arrive", model, exc_info=error)
        raise ModelFailedError(f"the answer of model {model!r} cannot be sent: {type(error).__name__}") from error
    return reply


def _took_too_long(model: str) -> RequestTimeoutError:
    return RequestTimeoutError(f"model {model!r} did not answer in time")


def _cancel(ref: Any) -> None:
    try:
        ray.cancel(ref)
    except (RayError, GetTimeoutError, ValueError, TypeError):
        logger.debug("a request could not be cancelled", exc_info=True)
