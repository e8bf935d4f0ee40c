"""AlpaServe's module of HTTP helpers: what the runtime's server is made of, for programs that embed it."""

from __future__ import annotations

from alpa_serve.runtime.http.app import build_app
from alpa_serve.runtime.http.server import HttpServer
from alpa_serve.runtime.request import ServeRequest

__all__ = ["HttpServer", "ServeRequest", "build_app"]
