"""A request as models see it, and what the runtime reads of it."""

from __future__ import annotations

import math
import reprlib
import time
from collections.abc import Mapping
from typing import Any

from alpa_serve.errors import InvalidRequestError

ALPASERVE_ENDPOINT = ""
"""The endpoint of requests that come by AlpaServe's ``POST /`` or over Ray."""

COMPLETIONS, CHAT_COMPLETIONS = "completions", "chat/completions"
"""The endpoints of OpenAI's API that are forwarded to models."""

LONGEST_CONTEXT = 1 << 17
"""Tokens of prompt and answer that a request may have where they take time: more would keep its group for hours."""

LARGEST_TOKEN_COUNT = 10**9
"""Tokens that no request has."""

LONGEST_WAY_S = 3600.0
"""Seconds that a request may have been on its way. A ``"submit_time"`` before that is of another clock; as it is, it
would outweigh all others in the latencies that are summed up."""


class ServeRequest(dict[str, Any]):
    """The JSON object that was posted: a dict, of which ``await request.json()`` gives a plain copy.

    Attributes
    ----------
    endpoint : str
        Where it was posted: :data:`ALPASERVE_ENDPOINT`, :data:`COMPLETIONS` or :data:`CHAT_COMPLETIONS`.
    model : str
        Name of the model that is to answer.
    slo : float
        Seconds from `sent` within which the answer is wanted; infinity if the object has no ``"slo"``.
    sent : float
        When it was sent, in seconds of this machine's :func:`time.time`: ``"submit_time"``, but neither later than its
        coming in nor more than :data:`LONGEST_WAY_S` before, or else when it came in.
    input_tokens, output_tokens : int or None
        Length of the prompt and of the answer, where the object or the endpoint tells.
    queue_s : float
        Seconds that the request waited in its group before its replica began with it; set by models that know.
    """

    endpoint: str
    model: str
    slo: float
    sent: float
    input_tokens: int | None
    output_tokens: int | None
    queue_s: float = 0.0

    def __init__(
        self,
        fields: Mapping[str, Any],
        *,
        endpoint: str = ALPASERVE_ENDPOINT,
        model: str | None = None,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> None:
        """Check what the runtime reads.

        Parameters
        ----------
        fields : mapping
            The object.
        endpoint : str
        model : str, optional
            In place of ``fields["model"]``.
        input_tokens, output_tokens : int, optional
            Used where the object has none itself.

        Raises
        ------
        InvalidRequestError
            If it names no model, or a field that the runtime reads is not of its kind.
        """
        super().__init__(fields)
        now = time.time()
        name = self.get("model") if model is None else model
        if not isinstance(name, str) or not name:
            raise InvalidRequestError(f'"model" must be the name of a model, got {shown(name)}')
        self.endpoint = endpoint
        self.model = name
        slo = self._number("slo")
        if slo is not None and slo < 0:
            raise InvalidRequestError(f'"slo" must be seconds >= 0, got {slo:g}')
        self.slo = math.inf if slo is None else slo
        submitted = self._number("submit_time")
        # a clock that is ahead would grant the request more time than it has
        self.sent = now if submitted is None else min(max(submitted, now - LONGEST_WAY_S), now)
        self.input_tokens = self._tokens("input_tokens", input_tokens)
        self.output_tokens = self._tokens("output_tokens", output_tokens)

    async def json(self) -> dict[str, Any]:
        """Return the object that was posted."""
        return dict(self)

    def _number(self, key: str) -> float | None:
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidRequestError(f'"{key}" must be a number, got {shown(value)}')
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise InvalidRequestError(f'"{key}" must be a finite number, got {shown(value)}')
        return number

    def _tokens(self, key: str, default: int | None) -> int | None:
        value = self.get(key, default)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LARGEST_TOKEN_COUNT:
            raise InvalidRequestError(f'"{key}" must be a whole number of tokens >= 0, got {shown(value)}')
        return value


async def request_of(posted: Any) -> ServeRequest:
    """Return the request that is given over Ray.

    Parameters
    ----------
    posted : mapping, or object
        A mapping as it is posted over HTTP; an HTTP request (anything with ``await posted.json()``); or a request of
        the simulator's kind, with `model_name`, `slo`, `submit_time`, `idx` and `data`.

    Raises
    ------
    InvalidRequestError
        If it is none of these, or :class:`ServeRequest` refuses it.
    """
    if isinstance(posted, ServeRequest):
        return posted
    if hasattr(posted, "model_name"):
        fields = {key: getattr(posted, key, None) for key in _REQUEST_FIELDS}
        known = {key: value for key, value in fields.items() if value is not None}
        if known.get("slo") == math.inf:
            # which is how the simulator says that there is none
            del known["slo"]
        return ServeRequest({"model": posted.model_name, "input": getattr(posted, "data", None), **known})
    if not isinstance(posted, Mapping) and hasattr(posted, "json"):
        posted = await posted.json()
    if not isinstance(posted, Mapping):
        raise InvalidRequestError(f'a request is an object with a "model", got {shown(posted)}')
    return ServeRequest(posted)


_REQUEST_FIELDS = ("slo", "submit_time", "idx", "input_tokens", "output_tokens")


def too_long(model: str, input_tokens: int, output_tokens: int) -> str:
    """Return the message for a request of more than :data:`LONGEST_CONTEXT` tokens."""
    return (
        f"model {model!r} takes at most {LONGEST_CONTEXT} tokens of prompt and answer, got {input_tokens} and "
        f"{output_tokens}"
    )


def shown(value: object) -> str:
    """Return `value` as messages to clients show it: what they sent comes back to them, but not all of it."""
    try:
        text = _REPR.repr(value)
    except Exception:
        # Python writes no integers of very many digits; and objects that come over Ray may fail as they like
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


_REPR = reprlib.Repr()
"""Goes neither deep nor far: what is posted may be both."""
_REPR.maxstring = _REPR.maxother = 60
