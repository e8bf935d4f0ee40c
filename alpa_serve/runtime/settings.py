"""Where the runtime listens, and the limits that it keeps."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from alpa_serve.errors import InvalidConfigError
from alpa_serve.validation import check_int, check_real

LOCALHOST = "127.0.0.1"

CONTROLLER_NAME = "controller"
"""Name of the controller's actor in Ray, if no other is given."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Where the runtime listens, and the limits that it keeps.

    Attributes
    ----------
    host : str
        Address to listen on; this machine only by default.
    port : int or None
        None for any free one.
    root_path : str
        Path under which all routes are.
    ssl_keyfile, ssl_certfile : str or None
        Files of the private key and the certificate, for TLS; both or none.
    api_key : str or None
        If given, every request but ``/healthz`` must bring it as bearer token.
    max_body_bytes, max_header_bytes : int
        Longest request body (413 beyond) and request head (431).
    header_timeout_s, body_timeout_s : float
        Seconds within which the head, and then the body of a request must have come (408).
    max_connections : int
        Connections at the same time; more are answered 503.
    request_timeout_s : float
        Seconds within which a request must have its answer, or the next piece of it (504); also those that a group or a
        replica that leaves has to answer what it has been given.
    max_queue : int
        Requests that a group may have at the same time, running or waiting (503 if all that could serve are full).
    retry_after_s : float
        Seconds that a client is told to wait before it tries again.
    max_attempts : int
        How often a request is given to a group before the deaths of groups count as its failure.
    recovery_timeout_s : float
        Seconds that a request waits for a group to serve it while there is none up: it is being restarted, or placed.
    drain_timeout_s : float
        Seconds that requests have to finish when the runtime is shut down. Those of a group or a replica that leaves
        while it goes on have `request_timeout_s`.
    devices_timeout_s : float
        Seconds that the Ray cluster may take to set the devices of a group aside.

    Raises
    ------
    InvalidConfigError
        Naming the setting that is out of range, or the file that is missing.
    """

    host: str = LOCALHOST
    port: int | None = None
    root_path: str = "/"
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    api_key: str | None = field(default=None, repr=False)
    max_body_bytes: int = 4 << 20
    max_header_bytes: int = 64 << 10
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    max_connections: int = 10_000
    request_timeout_s: float = 600.0
    max_queue: int = 1000
    retry_after_s: float = 1.0
    max_attempts: int = 3
    recovery_timeout_s: float = 20.0
    drain_timeout_s: float = 30.0
    devices_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if not isinstance(self.host, str) or not self.host:
            raise InvalidConfigError(f"host must be an address or a name, got {self.host!r}")
        if self.port is not None:
            check_int(self.port, "port", minimum=0)
            if self.port > 65535:
                raise InvalidConfigError(f"port must be at most 65535, got {self.port}")
        if not isinstance(self.root_path, str) or not self.root_path.startswith("/"):
            raise InvalidConfigError(f"root_path must start with '/', got {self.root_path!r}")
        if (self.ssl_keyfile is None) != (self.ssl_certfile is None):
            raise InvalidConfigError("TLS needs both ssl_keyfile and ssl_certfile")
        for name in ("ssl_keyfile", "ssl_certfile"):
            path = getattr(self, name)
            if path is not None and not (isinstance(path, (str, PathLike)) and Path(path).is_file()):
                raise InvalidConfigError(f"{name}: there is no file {path!r}")
        if self.api_key is not None and not (
            isinstance(self.api_key, str) and self.api_key and all("!" <= char <= "~" for char in self.api_key)
        ):
            # the key itself is not to be seen in a log
            raise InvalidConfigError("api_key must be printable ASCII without blanks or line ends, and not empty")
        for name in ("max_body_bytes", "max_header_bytes", "max_connections", "max_queue", "max_attempts"):
            check_int(getattr(self, name), name, minimum=1)
        for name in ("header_timeout_s", "body_timeout_s", "request_timeout_s"):
            check_real(getattr(self, name), f"{name} (s)", minimum=0.0, exclusive=True)
        for name in ("retry_after_s", "recovery_timeout_s", "drain_timeout_s", "devices_timeout_s"):
            check_real(getattr(self, name), f"{name} (s)", minimum=0.0)

    @property
    def scheme(self) -> str:
        """``http`` or ``https``."""
        return "http" if self.ssl_keyfile is None else "https"

    def url(self, port: int) -> str:
        """Return where clients of this machine reach the routes; it ends with a slash.

        Parameters
        ----------
        port : int
            On which it is listened, where :attr:`port` leaves it open.
        """
        # an address that stands for all of the machine's is none to connect to
        host = {"0.0.0.0": LOCALHOST, "::": "::1"}.get(self.host, self.host)
        shown = f"[{host}]" if ":" in host else host
        return f"{self.scheme}://{shown}:{port}{self.root_path.rstrip('/')}/"
