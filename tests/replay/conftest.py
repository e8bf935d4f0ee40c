"""A small server that keeps what it is sent and answers as it is told."""

import asyncio
import json
import threading
from collections import Counter

import aiohttp.web
import pytest

from alpa_serve.placement import ModelPlacement
from alpa_serve.placement_json import to_json


class FakeServer:
    """Serves in a thread of its own.

    What it does with a request follows from what the request asks ("input"): a number of seconds to take, "reject",
    "busy", "fail", "text", "hang", or "drop" (the connection); without input it answers at once.

    Attributes
    ----------
    url : str
    models : list of str
    api_key : str or None
    bodies : list of dict
        The requests, as they came.
    headers : list of mapping
    drops : int
        How many further requests lose their connection, whatever they ask.
    """

    def __init__(self, tls=None):
        self._tls = tls
        self.models, self.api_key, self.drops = ["m0", "m1"], None, 0
        self.bodies, self.headers = [], []
        self.hung = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,))
        self._thread.start()
        assert started.wait(30)

    def _serve(self, started):
        self._loop.run_until_complete(self._run(started))
        self._loop.close()

    async def _run(self, started):
        app = aiohttp.web.Application()
        app.add_routes([aiohttp.web.get("/v1/models", self._list), aiohttp.web.post("/", self._answer)])
        runner = aiohttp.web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}/"
        self._end = asyncio.Event()
        started.set()
        await self._end.wait()
        self.hung.set()
        await runner.cleanup()

    def close(self):
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _refused(self, request):
        if self.api_key is not None and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return aiohttp.web.json_response({"error": "no token"}, status=401)
        return None

    async def _list(self, request):
        models = [{"id": name, "object": "model"} for name in self.models]
        return self._refused(request) or aiohttp.web.json_response({"object": "list", "data": models})

    async def _answer(self, request):
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(request.headers)
        asked = body.get("input")
        if self.drops > 0 or asked == "drop":
            self.drops -= 1
            request.transport.abort()
        elif asked == "hang":
            await self.hung.wait()
        elif isinstance(asked, float):
            await asyncio.sleep(asked)
        elif asked == "text":
            return aiohttp.web.Response(text="hello")
        elif asked == "busy":
            return aiohttp.web.json_response({"error": "busy"}, status=503)
        elif asked == "fail":
            return aiohttp.web.Response(text="\x1b[31mbroken", status=500)
        elif body["model"] == "m_missing":
            return aiohttp.web.json_response({"error": "no such model"}, status=404)
        return self._refused(request) or aiohttp.web.json_response({"rejected": True} if asked == "reject" else {})

    def count(self, key):
        return Counter(json.dumps(body.get(key)) for body in self.bodies)


@pytest.fixture
def fake_server():
    """Return fake_server(tls=None) -> a FakeServer that has m0 and m1, over TLS if a context is given."""
    started = []

    def start(tls=None):
        started.append(FakeServer(tls))
        return started[-1]

    yield start
    for fake in started:
        fake.close()


@pytest.fixture
def server(fake_server):
    """Return a FakeServer that has m0 and m1."""
    return fake_server()


@pytest.fixture
def placement_file(tmp_path):
    """Return a file with a placement of m0 and m1 on a device each."""
    path = tmp_path / "placement.json"
    path.write_text(to_json(ModelPlacement([(1, 1, 1), (1, 1, 1)], [[0], [1]]), ["m0", "m1"]), encoding="utf-8")
    return path
