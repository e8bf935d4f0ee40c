"""The server that is asked: its address, how to prove who asks, and which models it has."""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp

from alpa_serve.errors import InvalidConfigError, ModelNotFoundError, ServingError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

CHECK_TIMEOUT_S = 30.0
"""Seconds that a server has to say which models it has."""

KEEP_ALIVE_S = 4.0
"""Seconds that an idle connection is kept: servers close theirs after 5 s or more, and a request that is sent just then
would be lost."""

DNS_CACHE_S = 600
"""Seconds that the address of the server is kept: looking it up takes a thread, which makes requests late."""

LARGEST_HEADER_BYTES = 64 << 10
"""Longest line and longest header of an answer."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where requests go.

    Attributes
    ----------
    url : str
        ``http://host:port/`` or ``https://...``, with the root path of the server if it has one.
    api_key : str or None
        Sent as bearer token.
    ca_file : str, path-like or None
        Certificates (PEM) to trust in place of the system's.
    insecure : bool
        Whether to take any certificate.

    Raises
    ------
    InvalidConfigError
        If one of them is not what it should be.
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    ca_file: str | os.PathLike[str] | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except (ValueError, TypeError, AttributeError):
            usable = False
        if not usable:
            raise InvalidConfigError(f"url must be http://host:port or https://host:port, got {self.url!r}")
        if "@" in parts.netloc:
            raise InvalidConfigError("url must have no user or password in it; give a token as api_key")
        if parts.query or parts.fragment:
            raise InvalidConfigError(f"url must end with the root path of the server, got {self.url!r}")
        key = self.api_key
        if key is not None and not (isinstance(key, str) and key and key.isascii() and key.isprintable()):
            raise InvalidConfigError("api_key must be a line of printable ASCII text that is not empty")
        if self.ca_file is not None and self.insecure:
            raise InvalidConfigError("either a ca_file is trusted or, insecure, any certificate; got both")
        self._tls()

    @property
    def models_url(self) -> str:
        """Where the server lists its models."""
        return f"{self.url.rstrip('/')}/v1/models"

    def session(self, timeout_s: float) -> aiohttp.ClientSession:
        """Return a client for any number of connections, which are kept; to be called while an event loop runs.

        Parameters
        ----------
        timeout_s : float
            Seconds from sending within which an answer must have come in full.
        """
        headers = {"Content-Type": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, ssl=self._tls(), keepalive_timeout=KEEP_ALIVE_S, ttl_dns_cache=DNS_CACHE_S
            ),
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=None),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=LARGEST_HEADER_BYTES,
            max_field_size=LARGEST_HEADER_BYTES,
        )

    def _tls(self) -> ssl.SSLContext | bool:
        if self.insecure:
            return False
        if self.ca_file is None:
            return True
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise InvalidConfigError(f"{self.ca_file}: no certificates can be read: {error}") from None

    def check_models(self, names: Iterable[str], timeout_s: float = CHECK_TIMEOUT_S) -> None:
        """Ask the server for its models; not to be called while an event loop runs.

        Parameters
        ----------
        names : iterable of str
            Models that it must have.
        timeout_s : float
            Seconds that it has to answer.

        Raises
        ------
        ModelNotFoundError
            Naming the models that it lacks, and those that it has.
        ServingError
            If it cannot be reached, wants another token, or answers something else than a list of models.
        """
        served = asyncio.run(self._models(timeout_s))
        missing = [name for name in names if name not in served]
        if missing:
            raise ModelNotFoundError(
                f"{self.url} has no model {', '.join(map(repr, missing))}; it has: {', '.join(served) or 'none'}"
            )

    async def _models(self, timeout_s: float) -> list[str]:
        try:
            async with (
                self.session(timeout_s) as session,
                session.get(self.models_url, allow_redirects=False) as response,
            ):
                body = await response.read()
        except asyncio.TimeoutError:
            raise ServingError(f"{self.url} cannot be reached: no answer within {timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ServingError(f"{self.url} cannot be reached: {error}") from None
        if response.status in (401, 403):
            given = "no token was given" if self.api_key is None else "the one that was given is not its own"
            raise ServingError(f"{self.url} wants a token (HTTP {response.status}), and {given}")
        try:
            models = [model["id"] for model in json.loads(body)["data"]] if response.status == 200 else None
        except (ValueError, KeyError, TypeError):
            models = None
        if models is None:
            raise ServingError(
                f"{self.models_url} gives no list of models (HTTP {response.status}); is the root path part of the url?"
            )
        return models
