"""A model that a server with OpenAI's API answers for: vLLM, SGLang or TensorRT-LLM."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from alpa_serve.errors import (
    GroupLostError,
    InvalidConfigError,
    InvalidProfileError,
    InvalidRequestError,
    ModelFailedError,
    OverloadedError,
    RequestTimeoutError,
    ServingError,
)
from alpa_serve.profiles.result import check_parallel_config
from alpa_serve.profiling import ProfilingResult
from alpa_serve.runtime.models.sse import event_data
from alpa_serve.runtime.request import ALPASERVE_ENDPOINT, CHAT_COMPLETIONS, COMPLETIONS
from alpa_serve.scheduling import replica_timing
from alpa_serve.validation import check_real

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import aiohttp

    from alpa_serve.profiling import ParallelConfig
    from alpa_serve.runtime.request import ServeRequest
    from alpa_serve.scheduling import ReplicaTiming, ServingRules

LARGEST_ANSWER_BYTES = 64 << 20
"""Longest answer that is read in one piece."""

LONGEST_MESSAGE = 200
"""Characters of a server's error message that are passed on."""

MOST_CONNECTIONS = 1024
"""Connections of a model to its server; requests beyond them wait."""

# clients know the model by another name than the server, whose own is not for them
_BEHIND = "the server behind the model"
_LARGEST_ERROR_BYTES = 64 << 10
_CONNECT_TIMEOUT_S = 10.0
# uvicorn, which these servers run on, closes a connection after 5 s without a request
_KEEP_ALIVE_S = 4.0
_RUNTIME_KEYS = frozenset(("slo", "submit_time", "input_tokens", "output_tokens", "idx"))
# the server refuses the runtime, not the client: a wrong key, model name or path
_MISCONFIGURED = (401, 403, 404, 405)


class OpenAICompatibleModel:
    """A replica for which a server with OpenAI's API answers, which has the GPUs.

    Requests go to the server's ``/completions`` and ``/chat/completions``; an object of AlpaServe's ``POST /`` to the
    one whose field it has, ``"prompt"`` or ``"messages"``. ``"model"`` is the server's name of it there, and in answers
    the name that was asked for.

    Parameters
    ----------
    base_url : str
        Of the server's API, such as ``http://127.0.0.1:8000/v1``.
    model : str
        Its name there.
    parallel_config : ParallelConfig, optional
        How the server runs it; placing a model gives it.
    virtual_mesh : object, optional
        Taken because placing a model gives it; the server has devices of its own.
    api_key : str, optional
        Bearer token for the server.
    timeout_s : float
        Seconds within which the whole answer, or the next piece of a stream, must have come.
    profiling_result : ProfilingResult, optional
        Profile on `parallel_config`; with it the model is scheduled by its times.

    Raises
    ------
    InvalidConfigError
        If `base_url` is no http or https URL, or another argument is not of its kind.
    InvalidProfileError
        If the profile lacks the config.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        parallel_config: ParallelConfig | None = None,
        virtual_mesh: object = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        profiling_result: ProfilingResult | None = None,
    ) -> None:
        self.base_url = _checked_url(base_url)
        if not isinstance(model, str) or not model:
            raise InvalidConfigError(f"model must be the name of a model on {self.base_url}, got {model!r}")
        self.model = model
        if api_key is not None and not (isinstance(api_key, str) and api_key.isascii() and api_key.isprintable()):
            raise InvalidConfigError(f"api_key of model {model!r} must be printable ASCII text")
        self._api_key = api_key
        self.timeout_s = check_real(timeout_s, f"timeout_s (s) of model {model!r}", minimum=0.0, exclusive=True)
        self.parallel_config = (
            None if parallel_config is None else check_parallel_config(parallel_config, f"replica of {model!r}")
        )
        if not isinstance(profiling_result, ProfilingResult | None):
            raise InvalidProfileError(f"profile of {model!r} must be a ProfilingResult, got {profiling_result!r}")
        self.profiling_result = profiling_result
        if profiling_result is not None and self.parallel_config is not None:
            profiling_result.stage_latency(self.parallel_config)
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"OpenAICompatibleModel({self.base_url!r}, {self.model!r})"

    def timing(self, rules: ServingRules) -> ReplicaTiming | None:
        """Return its profiled times under `rules`; None without profile or config."""
        if self.profiling_result is None or self.parallel_config is None:
            return None
        return replica_timing(self.profiling_result, self.parallel_config, rules)

    async def handle_request(self, request: ServeRequest) -> dict[str, Any]:
        """Return the server's answer.

        Raises
        ------
        InvalidRequestError
            If the request has neither prompt nor messages, or the server refuses it (4xx).
        OverloadedError
            If the server takes no request now (429, 503).
        RequestTimeoutError
            If the answer does not come in time.
        ModelFailedError
            If the server fails, refuses the runtime (401, 403, 404, 405) or answers something else.
        GroupLostError
            If it cannot be reached, or breaks off: another replica may do better.
        """
        endpoint, body = _forwarded(request, self.model)
        answer = await self._answer_of(endpoint, body)
        return _renamed(answer, request.model)

    async def stream_request(self, request: ServeRequest) -> AsyncIterator[dict[str, Any]]:
        """Yield the chunks that the server streams; closing the iterator ends the request there too.

        Raises
        ------
        InvalidRequestError, OverloadedError, RequestTimeoutError, ModelFailedError, GroupLostError
            As ``handle_request`` does; the last two also between chunks.
        """
        endpoint, body = _forwarded(request, self.model, stream=True)
        async with self._posted(endpoint, body, stream=True) as response:
            if response.content_type != "text/event-stream":
                raise self._failure(f"answered {response.content_type} to a request for a stream")
            async for data in event_data(response.content.iter_any()):
                if data == b"[DONE]":
                    return
                chunk = self._parsed(data)
                if chunk.get("error"):
                    raise self._failure(f"failed: {_message_of(chunk)}")
                yield _renamed(chunk, request.model)
            raise self._failure("ended its stream without [DONE]")

    async def warmup(self) -> float | None:
        """Have the server complete a short prompt.

        Returns
        -------
        float or None
            Seconds that it took by those that the profile says for as many tokens; None if the profile has no prefill
            and decode times, or the server does not count its tokens: a profiled latency alone is that of prompts and
            answers whose length is not known.
        """
        started = time.perf_counter()
        answer = await self._answer_of(COMPLETIONS, {"model": self.model, "prompt": "Hello", "max_tokens": 16})
        measured_s = time.perf_counter() - started
        if self.profiling_result is None or self.parallel_config is None:
            return None
        known = self.profiling_result.para_dict[self.parallel_config].prefill_decode.get(1)
        usage = answer.get("usage")
        if known is None or not isinstance(usage, dict):
            return None
        prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not (isinstance(prompt, int) and isinstance(completion, int) and prompt >= 0 and completion >= 0):
            return None
        profiled_s = known.service_s(prompt, completion)
        return measured_s / profiled_s if profiled_s > 0 else None

    async def close(self) -> None:
        """Close the connections to the server."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _answer_of(self, endpoint: str, body: Mapping[str, Any]) -> dict[str, Any]:
        async with self._posted(endpoint, body) as response:
            content = await _read(response, LARGEST_ANSWER_BYTES)
            if content is None:
                raise self._failure(f"sent an answer of more than {LARGEST_ANSWER_BYTES} bytes")
            return self._parsed(content)

    @asynccontextmanager
    async def _posted(
        self, endpoint: str, body: Mapping[str, Any], *, stream: bool = False
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Post `body`; what goes wrong with that or with reading the answer comes out as a ServingError."""
        import aiohttp

        try:
            data = json.dumps(body, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError):
            raise InvalidRequestError(f"model {self.model!r} takes JSON objects only") from None
        timeout = aiohttp.ClientTimeout(
            total=None if stream else self.timeout_s, sock_connect=_CONNECT_TIMEOUT_S, sock_read=self.timeout_s
        )
        try:
            # a redirect is not followed: it would take the request, and the key, to somebody else
            async with self._open_session().post(
                f"{self.base_url}/{endpoint}", data=data, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise await self._refusal(response)
                yield response
        # on Python 3.10 this is not the built-in TimeoutError
        except asyncio.TimeoutError:
            raise RequestTimeoutError(f"{_BEHIND} did not answer in time (timeout_s={self.timeout_s:g})") from None
        except (aiohttp.ClientError, OSError) as error:
            raise GroupLostError(f"{_BEHIND} cannot be reached or broke off ({type(error).__name__})") from error

    def _open_session(self) -> aiohttp.ClientSession:
        """Return the session; it belongs to the event loop that runs at the first request."""
        import aiohttp

        if self._session is None:
            # answers are not compressed: their size is known before they are in memory
            headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
            if self._api_key is not None:
                headers["Authorization"] = f"Bearer {self._api_key}"
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MOST_CONNECTIONS, keepalive_timeout=_KEEP_ALIVE_S),
                # one client's cookies are not the next one's
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=headers,
                auto_decompress=False,
            )
        return self._session

    async def _refusal(self, response: aiohttp.ClientResponse) -> ServingError:
        """Return the error that says what the status of an answer means."""
        status = response.status
        content = await _read(response, _LARGEST_ERROR_BYTES)
        try:
            message = _message_of(self._parsed(content or b""))
        except ModelFailedError:
            message = response.reason or "no message"
        if status in (429, 503):
            return OverloadedError(f"{_BEHIND} takes no request now: {_short(message)}")
        if 400 <= status < 500 and status not in _MISCONFIGURED:
            return InvalidRequestError(_short(message))
        return self._failure(f"answered {status}: {_short(message)}")

    def _parsed(self, content: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise self._failure("did not answer with a JSON object")
        return answer

    def _failure(self, what: str) -> ModelFailedError:
        return ModelFailedError(f"{_BEHIND} {what}")


def _checked_url(base_url: object) -> str:
    """Return the URL without a slash at its end, if it is one that a request can go to."""
    wanted = "base_url must be an http or https URL such as http://127.0.0.1:8000/v1"
    if not isinstance(base_url, str) or not base_url.isprintable() or " " in base_url:
        raise InvalidConfigError(f"{wanted}, got {base_url!r}")
    try:
        parts = urlsplit(base_url)
        is_complete = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_complete = False
    if not is_complete or parts.query or parts.fragment:
        raise InvalidConfigError(f"{wanted}, got {base_url!r}")
    if parts.username is not None or parts.password is not None:
        # not shown: messages are logged
        raise InvalidConfigError(f"{wanted}; give its key as api_key, not in the URL")
    return base_url.rstrip("/")


def _forwarded(request: ServeRequest, model: str, *, stream: bool = False) -> tuple[str, dict[str, Any]]:
    """Return the endpoint and the object that a request goes to the server as."""
    endpoint = request.endpoint
    if endpoint == ALPASERVE_ENDPOINT:
        if "messages" in request:
            endpoint = CHAT_COMPLETIONS
        elif "prompt" in request:
            endpoint = COMPLETIONS
        else:
            raise InvalidRequestError(f'model {request.model!r} needs "prompt" or "messages"')
    dropped = _RUNTIME_KEYS if stream else _RUNTIME_KEYS | {"stream", "stream_options"}
    body = {key: value for key, value in request.items() if key not in dropped} | {"model": model}
    return endpoint, body | {"stream": True} if stream else body


def _renamed(answer: dict[str, Any], model: str) -> dict[str, Any]:
    """Return the answer in the name of the model that was asked for."""
    return answer | {"model": model} if "model" in answer else answer


async def _read(response: aiohttp.ClientResponse, largest: int) -> bytes | None:
    """Return the whole answer, or None if it is larger than `largest` bytes."""
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > largest:
            return None
    return bytes(content)


def _message_of(answer: Mapping[str, Any]) -> str:
    """Return the message of an error object: OpenAI's, or as vLLM's older versions and FastAPI have it."""
    error = answer.get("error") or answer
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or "no message"
    return _short(error)


def _short(message: object) -> str:
    """Return a message in one line that is not too long for a client."""
    line = " ".join(str(message).split())
    return line if len(line) <= LONGEST_MESSAGE else f"{line[: LONGEST_MESSAGE - 3]}..."
