"""Clients that mean harm, on raw sockets: each must end in an error of theirs or a closed connection."""

import asyncio
import json
import re
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
import uvloop

from alpa_serve.runtime.http import connections

HEADER_LIMIT, BODY_LIMIT = 4096, 10_000
BODY = b'{"model": "echo"}'
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
GOOD = POST + LENGTH + b"\r\n" + BODY
LAST = POST + LENGTH + b"Connection: close\r\n\r\n" + BODY

MALFORMED = {
    "nothing": b"",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10,
    "NULs": b"\0" * 1000,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "unknown version": b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
    "unknown method": b"STEAL / HTTP/1.1\r\nHost: a\r\n\r\n",
    "truncated line": b"POST / HT",
    "truncated head": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Le",
    "truncated body": POST + LENGTH + b"\r\n" + BODY[:5],
    "truncated chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nff\r\nabc",
    "length and chunks": POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GOOD,
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n0\r\n\r\n" + GOOD,
    "two lengths": POST + LENGTH + b"Content-Length: 3\r\n\r\n" + BODY,
    "same length twice": POST + LENGTH + LENGTH + b"\r\n" + BODY,
    "negative length": POST + b"Content-Length: -1\r\n\r\n" + BODY,
    "signed length": POST + b"Content-Length: +17\r\n\r\n" + BODY,
    "length list": POST + b"Content-Length: 17, 17\r\n\r\n" + BODY,
    "length in words": POST + b"Content-Length: ten\r\n\r\n" + BODY,
    "huge length": POST + b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY,
    "large length": POST + b"Content-Length: 9999999999\r\n\r\n" + BODY,
    "huge chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n" + BODY,
    "large chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nfffffff\r\n" + b"x" * (2 * BODY_LIMIT),
    "negative chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + BODY,
    "chunk in words": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + BODY,
    "chunk without end": POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nabcdef\r\n0\r\n\r\n",
    "chunk extension without end": POST + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 100_000,
    "not chunked at last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + BODY,
    "folded header": POST + b"X: a\r\n b\r\n" + b"\r\n",
    "bare LF": b"POST / HTTP/1.1\nHost: a\n\n",
    "bare CR": POST + b"X: a\rContent-Length: 3\r\n\r\nabc",
    "space before colon": POST + b"Content-Length : 17\r\n\r\n" + BODY,
    "NUL in name": POST + b"X\0Y: a\r\n\r\n",
    "NUL in value": POST + b"X: a\0b\r\n\r\n",
    "space in path": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "path in Latin-1": b"GET /\xe4 HTTP/1.1\r\nHost: a\r\n\r\n",
    "no path": b"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n",
    "CONNECT": b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "OPTIONS *": b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "absolute URL": b"GET http://b/none HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "percent path": b"GET /%2e%2e/%00%ff%0d%0a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "broken percent": b"GET /%zz% HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "absurd Expect": POST + b"Expect: miracles\r\nContent-Length: 2\r\n\r\n[]",
    "Expect and too much": POST + b"Expect: 100-continue\r\nContent-Length: 20000\r\n\r\n",
    "long line": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "long header": POST + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
    "long name": POST + b"a" * 100_000 + b": x\r\n\r\n",
    "many headers": POST + b"a: b\r\n" * 10_000 + b"\r\n",
    "head without end": POST + b"X: " + b"a" * 1_000_000,
    "blank lines without end": b"\r\n" * 100_000,
    "long body": POST + b"Connection: close\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000,
    "upgrade with a body": POST + b"Connection: upgrade\r\nUpgrade: h2c\r\n" + LENGTH + b"\r\n" + BODY,
    "websocket": POST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
}
# such as are right, or are made right, and may be answered
HARMLESS = {
    "Expect": POST + b"Expect: 100-continue\r\nConnection: close\r\n" + LENGTH + b"\r\n" + BODY,
    "blank lines first": b"\r\n\r\n" + LAST,
    "HTTP/1.0": b"POST / HTTP/1.0\r\n" + LENGTH + b"\r\n" + BODY,
    "pipeline": GOOD * 20 + LAST,
    "chunks": POST
    + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n11;x=y\r\n"
    + BODY
    + b"\r\n0\r\nT: x\r\n\r\n",
}


@pytest.fixture(scope="module", params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def running(serving, request):
    limits = {
        "max_header_bytes": HEADER_LIMIT,
        "max_body_bytes": BODY_LIMIT,
        "header_timeout_s": 0.3,
        "body_timeout_s": 0.3,
    }
    with pytest.MonkeyPatch.context() as patch, serving(loop_factory=request.param, **limits) as server:
        patch.setattr(connections, "LINGER_S", 0.3)
        yield server


def statuses(received):
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d\d\d) ", received) if status != b"100"]


def assert_is_the_clients_fault(received):
    assert all(400 <= status < 500 for status in statuses(received)), received[:500]
    assert b"Traceback" not in received
    if received:
        head, _, body = received.rpartition(b"\r\n\r\n")
        assert b"content-type: application/json" in head
        assert b"x-content-type-options: nosniff" in head
        assert set(json.loads(body)["error"]) == {"message", "type", "code"}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_request_ends_in_a_4xx_or_a_closed_connection(running, name):
    assert_is_the_clients_fault(running.converse(MALFORMED[name]))
    assert not running.dispatcher.requests


@pytest.mark.parametrize("name", HARMLESS)
def test_odd_but_proper_request_is_answered(running, name):
    received = running.converse(HARMLESS[name])
    assert set(statuses(received)) == {200}
    assert len(statuses(received)) == (21 if name == "pipeline" else 1)
    running.dispatcher.requests.clear()


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("nothing", None),
        ("no HTTP", 400),
        ("truncated line", 408),
        ("truncated head", 408),
        ("truncated body", 408),
        ("truncated chunk", 408),
        ("length and chunks", 400),
        ("two lengths", 400),
        ("folded header", 400),
        ("upgrade with a body", 400),
        ("large length", 413),
        ("long body", 413),
        ("large chunk", 413),
        ("Expect and too much", 413),
        ("long line", 431),
        ("long header", 431),
        ("many headers", 431),
        ("head without end", 431),
    ],
)
def test_client_is_told_what_was_wrong(running, name, status):
    assert statuses(running.converse(MALFORMED[name])) == ([] if status is None else [status])


def test_head_in_one_piece_is_measured_as_one_in_many(running):
    head = POST + b"X: " + b"a" * HEADER_LIMIT + b"\r\n\r\n"
    assert statuses(running.converse(head)) == [431]
    assert statuses(running.converse(*(head[i : i + 100] for i in range(0, len(head), 100)))) == [431]


@pytest.mark.parametrize("start", [b"", POST, POST + b"Content-Length: 1000\r\n\r\n", b"\r\n"])
def test_client_that_sends_a_byte_now_and_then_is_cut_off(running, start):
    began = time.monotonic()
    with running.connect() as client:
        client.settimeout(0.1)
        received = b""
        try:
            client.sendall(start)
            while time.monotonic() < began + 20:
                client.sendall(b"\n" if start == b"\r\n" else b"a")
                try:
                    chunk = client.recv(1000)
                except TimeoutError:
                    continue
                if not chunk:
                    break
                received += chunk
        except ConnectionError:
            pass
    assert time.monotonic() < began + 20
    assert set(statuses(received)) <= {408, 400}


def test_next_head_on_a_kept_connection_has_its_time_too(running):
    assert statuses(running.converse(GOOD, b"POST / HT")) == [200, 408]


def test_kept_connection_may_be_idle_for_longer_than_a_head_may_take(running):
    with running.connect() as client:
        client.sendall(GOOD)
        assert client.recv(1000)
        time.sleep(0.6)
        client.sendall(LAST)
        received = b""
        while chunk := client.recv(1000):
            received += chunk
        assert statuses(received)[-1:] == [200]
    running.dispatcher.requests.clear()


def test_upgrade_that_is_not_needed_is_passed_over(running):
    received = running.converse(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert statuses(received) == [200]


def test_answer_that_is_due_is_not_lost_for_what_follows(serving):
    async def slow(request):
        await asyncio.sleep(0.6)
        return "slow"

    body = b'{"model": "slow"}'
    with serving({"slow": slow}, header_timeout_s=0.2, body_timeout_s=0.2) as server:
        received = server.converse(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"\r\nPOST / HT")
        assert statuses(received) == [200, 408]


def test_refused_body_may_come_to_its_end_and_the_connection_be_used_again(running):
    with running.connect() as client:
        client.sendall(b"POST /none HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
        received = client.recv(1000)
        client.sendall(b"x" * 100_000 + LAST)
        while chunk := client.recv(1000):
            received += chunk
    assert statuses(received) == [404, 200]
    running.dispatcher.requests.clear()


def test_server_serves_and_holds_no_more_memory_after_hostile_clients(running, http):
    """Let 8 clients at once send all that is malformed, three times; 4 MiB is a tenth of what they send."""
    running.converse(LAST)
    cases = [data for name, data in MALFORMED.items() if name != "nothing" and "truncated" not in name]
    tracemalloc.start()
    try:
        with ThreadPoolExecutor(8) as clients:
            list(clients.map(running.converse, cases))
            before, _ = tracemalloc.get_traced_memory()
            for received in clients.map(running.converse, cases * 3):
                assert_is_the_clients_fault(received)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 4 << 20
    assert http.post(running.url, content=BODY).status_code == 200
    running.dispatcher.requests.clear()
