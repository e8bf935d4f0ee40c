"""What a group has to say to a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from alpa_serve.errors import ServingError


class Reply(NamedTuple):
    """What a group has to say to a request.

    Attributes
    ----------
    answer : object
        What the model answered; of a stream, its next piece.
    error : ServingError or None
        Why there is no answer.
    queue_s : float
        Seconds that the request waited in the group before its replica began with it, where the model tells.
    """

    answer: Any
    error: ServingError | None = None
    queue_s: float = 0.0
