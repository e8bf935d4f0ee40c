"""What the HTTP server needs of the runtime behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from alpa_serve.runtime.request import ServeRequest


class ModelCard(NamedTuple):
    """What ``/v1/models`` says of a model.

    Attributes
    ----------
    name : str
    created : int
        Unix seconds of its registration.
    """

    name: str
    created: int


class Health(NamedTuple):
    """What ``/healthz`` says.

    Attributes
    ----------
    status : {"starting", "ok", "degraded", "unavailable", "draining"}
        Whether a placement is still to come, all groups serve, some are down, all are, or nothing new is taken.
    groups_up, groups : int
        Those that are to be up; groups that are leaving count in neither.
    """

    status: str
    groups_up: int
    groups: int


class Dispatcher(Protocol):
    """Has requests answered.

    Both ways to answer raise, before the first item of a stream, a :class:`~alpa_serve.errors.ServingError` of the kind
    that tells the client what happened; :class:`~alpa_serve.errors.RequestRejectedError` where the SLO cannot be met.
    """

    async def answer(self, request: ServeRequest) -> Any:
        """Return what the model answers: anything that JSON has."""
        ...

    def stream(self, request: ServeRequest) -> AsyncIterator[Any]:
        """Yield what the model answers piece by piece; the answer as one piece if the model does not stream."""
        ...

    def model_cards(self) -> list[ModelCard]:
        """Return the models that are registered, in the order of registration."""
        ...

    def health(self) -> Health:
        """Return whether requests are served."""
        ...

    def count_error(self, status: int) -> None:
        """Note an answer of this HTTP status, 400 or more."""
        ...

    def metrics(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        ...
