"""What the runtime asks of a model: to handle requests, and whatever else it can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from alpa_serve.errors import InvalidConfigError
from alpa_serve.scheduling import ReplicaTiming
from alpa_serve.scheduling.timing import declared_timing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from alpa_serve.runtime.models.emulated_devices import EmulatedDevices
    from alpa_serve.runtime.request import ServeRequest
    from alpa_serve.scheduling import ServingRules


@runtime_checkable
class Model(Protocol):
    """What every model must be; the other protocols here are optional, and a model may follow any of them."""

    async def handle_request(self, request: ServeRequest) -> Any:
        """Return the answer, anything that JSON has, or NumPy arrays.

        For the endpoints of OpenAI's API that is either a dict with ``"text"`` and, if it likes, ``"usage"`` and
        ``"finish_reason"``, or the complete object that OpenAI's API answers.

        Raises
        ------
        InvalidRequestError
            If the request is not what the model takes.
        RequestRejectedError
            If its SLO cannot be met.
        """
        ...


@runtime_checkable
class StreamingModel(Protocol):
    """A model that can answer piece by piece; the answer of another is sent as one piece."""

    def stream_request(self, request: ServeRequest) -> AsyncIterator[Any]:
        """Yield the answer: text as it grows, or complete chunks of OpenAI's API as dicts.

        It raises what ``handle_request`` raises, before the first piece. It is closed early if the client goes.
        """
        ...


@runtime_checkable
class LatencyModel(Protocol):
    """A model that says how long it takes, as AlpaServe's models do, and is scheduled by it.

    The controller's ``warmup`` measures it with a few requests of nothing but ``"model"``, unless it is a
    :class:`WarmedModel` too.
    """

    def get_latency_dict(self) -> Mapping[int, Sequence[float]]:
        """Return batch size -> seconds per stage; requests are admitted by batch size 1."""
        ...


@runtime_checkable
class TimedModel(Protocol):
    """A model that says how long it takes under given rules; this goes before ``get_latency_dict``."""

    def timing(self, rules: ServingRules) -> ReplicaTiming | None:
        """Return the times, which may depend on tokens, or None if they are not known.

        A model whose times are not known is dispatched by its requests in flight.
        """
        ...


@runtime_checkable
class PlacedModel(Protocol):
    """A model that runs on the emulated devices of its group, which it shares with the others there."""

    def place_on(self, devices: EmulatedDevices) -> None:
        """Run on `devices` from now on; called once, before the first request."""
        ...


@runtime_checkable
class WarmedModel(Protocol):
    """A model that can tell how its times compare to its profile."""

    async def warmup(self) -> float | None:
        """Handle one dummy request while there is no other.

        Returns
        -------
        float or None
            Seconds that it took by seconds that the profile says: the latency scale. None without a profile.
        """
        ...


@runtime_checkable
class ClosableModel(Protocol):
    """A model that holds something to be released when its replica goes."""

    async def close(self) -> None:
        """Release it; there are no requests any more."""
        ...


def replica_timing_of(model: object, name: str, rules: ServingRules) -> ReplicaTiming | None:
    """Return how long a replica of a model takes, by what it says itself; None if it does not.

    Parameters
    ----------
    model : object
        The replica.
    name : str
        Name of the model, for messages.
    rules : ServingRules
        For models with ``timing``; the figures of ``get_latency_dict`` are taken as they are.

    Raises
    ------
    InvalidConfigError
        If ``timing`` returns something else, or ``get_latency_dict`` has no batch size 1 or figures that are not
        numbers >= 0.
    """
    if isinstance(model, TimedModel):
        timing: object = model.timing(rules)
        if not isinstance(timing, ReplicaTiming | None):
            raise InvalidConfigError(f"model {name!r}: timing() must return a ReplicaTiming or None, got {timing!r}")
        return timing
    if isinstance(model, LatencyModel):
        return declared_timing(name, model.get_latency_dict())
    return None
