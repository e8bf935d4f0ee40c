"""What the controller tells the router: which models there are, and which groups serve them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from alpa_serve.runtime.reply import Reply
    from alpa_serve.runtime.request import ServeRequest
    from alpa_serve.scheduling import ReplicaTiming


class GroupDiedError(Exception):
    """The process of a group is gone; what it had not answered it never will."""


class Group(Protocol):
    """A group that answers requests."""

    async def handle(self, model: str, request: ServeRequest, timeout_s: float) -> Reply:
        """Have its replica of `model` answer.

        Raises
        ------
        GroupDiedError
            If the group dies before.
        RequestTimeoutError
            If that takes longer than `timeout_s` seconds.
        """
        ...

    def stream(self, model: str, request: ServeRequest, timeout_s: float) -> AsyncIterator[Reply]:
        """Have its replica of `model` answer piece by piece, each within `timeout_s` seconds of the one before."""
        ...


class GroupRoute(NamedTuple):
    """A group that requests may go to.

    Attributes
    ----------
    uid : int
        Of its process; a restarted group has another one. On a tie the lowest goes first.
    group_id : int
        Its number in the placement.
    group : Group
    timings : mapping of str to ReplicaTiming or None
        Of each model that it holds; None where requests in flight decide.
    num_restarts : int
        How often its process was started anew.
    is_leaving : bool
        Whether a new placement does without it, so that it goes once its requests are answered.
    """

    uid: int
    group_id: int
    group: Group
    timings: Mapping[str, ReplicaTiming | None]
    num_restarts: int = 0
    is_leaving: bool = False


class ModelRoute(NamedTuple):
    """A model that is registered.

    Attributes
    ----------
    name : str
    created : int
        Unix seconds of its registration.
    is_placed : bool
        Whether it is to have replicas, so that requests wait while none is up.
    """

    name: str
    created: int
    is_placed: bool


class RoutingTable(NamedTuple):
    """Where requests may go.

    Attributes
    ----------
    version : int
        Grows with every change.
    models : tuple of ModelRoute
        In the order of registration.
    groups : tuple of GroupRoute
        Those that are up, those that leave too.
    num_groups : int
        How many are to be up: without those that leave.
    """

    version: int
    models: tuple[ModelRoute, ...] = ()
    groups: tuple[GroupRoute, ...] = ()
    num_groups: int = 0
    is_starting: bool = False
