"""Load over HTTP that the benchmarks of the runtime share: keep-alive connections, closed and open loops.

The client is one process, and spends little on a request, so that on a small machine the server gets the most of it.
"""

import asyncio
import json
import random
import time
from collections import Counter
from typing import NamedTuple

import numpy as np

HOST = "127.0.0.1"
BROKEN = "broken"
"""In place of the status of a request whose connection broke before it was answered."""

RECONNECT_S = 0.02


class Answer(NamedTuple):
    """What came back: a status, or BROKEN; and the body."""

    status: int | str
    body: bytes


class Sample(NamedTuple):
    """Requests that were answered, in the order of their answers."""

    latencies_s: np.ndarray
    statuses: Counter
    elapsed_s: float

    @property
    def rate(self):
        """Answers per second."""
        return len(self.latencies_s) / self.elapsed_s

    def milliseconds(self, quantile):
        return float(np.quantile(self.latencies_s, quantile)) * 1e3


def post(fields, path="/"):
    """Return the bytes of a request that posts the object `fields`."""
    return raw_request("POST", path, json.dumps(fields).encode())


def raw_request(method, path, body=b"", headers=()):
    lines = [f"{method} {path} HTTP/1.1", f"Host: {HOST}", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Connection(asyncio.Protocol):
    """A keep-alive connection with one request at a time."""

    def __init__(self):
        self.is_open = True
        self._received = b""
        self._answered = None

    def connection_made(self, transport):
        self._transport = transport

    def connection_lost(self, error):
        self.is_open = False
        self._answer(Answer(BROKEN, b""))

    def data_received(self, data):
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        first, *lines = head.lower().split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines)
        if headers.get(b"transfer-encoding") == b"chunked":
            raise ValueError("an answer in chunks: these benchmarks ask for none")
        length = int(headers.get(b"content-length", 0))
        if len(body) >= length:
            self._received = body[length:]
            self._answer(Answer(int(first.split()[1]), body[:length]))

    async def ask(self, request):
        """Return the answer to the bytes `request`."""
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answered

    def close(self):
        self._transport.close()

    def _answer(self, answer):
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(answer)


class Client:
    """Connections to one port: as many as there are requests at a time, kept for the next ones."""

    def __init__(self, port):
        self._port = port
        self._idle = []

    async def ask(self, request, connect_timeout_s=30.0):
        """Return the answer to the bytes `request`; while nobody listens, try again, for nothing was sent yet."""
        until = time.monotonic() + connect_timeout_s
        while True:
            connection = await self._connection()
            if connection is not None:
                break
            if time.monotonic() > until:
                return Answer(BROKEN, b"")
            await asyncio.sleep(RECONNECT_S)
        answer = await connection.ask(request)
        self._idle.append(connection)
        return answer

    async def _connection(self):
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        try:
            return (await asyncio.get_running_loop().create_connection(Connection, HOST, self._port))[1]
        except OSError:
            return None

    def close(self):
        for connection in self._idle:
            connection.close()


async def closed_loop(port, request, concurrency, seconds):
    """Return what `concurrency` users see who send `request` again as soon as it is answered."""
    client = Client(port)
    latencies, statuses = [], Counter()
    begin = time.perf_counter()
    until = begin + seconds

    async def user():
        while (sent := time.perf_counter()) < until:
            statuses[(await client.ask(request)).status] += 1
            latencies.append(time.perf_counter() - sent)

    await asyncio.gather(*(user() for _ in range(concurrency)))
    client.close()
    return Sample(np.array(latencies), statuses, time.perf_counter() - begin)


async def open_loop(port, request, rate, seconds, seed=0):
    """Return what users see who arrive at random, `rate` a second, whether those before have their answers or not."""
    client = Client(port)
    latencies, statuses = [], Counter()

    async def user():
        sent = time.perf_counter()
        statuses[(await client.ask(request)).status] += 1
        latencies.append(time.perf_counter() - sent)

    begin = time.perf_counter()
    tasks = []
    async for _ in arrivals(rate, seconds, seed):
        tasks.append(asyncio.create_task(user()))
    await asyncio.gather(*tasks)
    client.close()
    return Sample(np.array(latencies), statuses, time.perf_counter() - begin)


async def arrivals(rate, seconds, seed=0):
    """Yield the numbers from 0 at the times of a Poisson process, for `seconds` from now on."""
    draw = random.Random(seed)
    begin = time.perf_counter()
    due, idx = draw.expovariate(rate), 0
    while due < seconds:
        early = begin + due - time.perf_counter()
        if early > 0:
            await asyncio.sleep(early)
        yield idx
        due += draw.expovariate(rate)
        idx += 1
