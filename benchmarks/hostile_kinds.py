"""Malformed and hostile HTTP requests, by kind: what ``hostile_requests.py`` sends.

Each kind is a function of a random generator that returns an attack. Whatever a kind says, the server may answer as it
likes but with an error of its own, and must come to an end with it.
"""

import json
import string
from typing import NamedTuple

from http_load import raw_request

CLOSE = "Connection: close"
MAX_BODY_BYTES = 1 << 20
MAX_HEADER_BYTES = 16 << 10
PATHS = ("/", "/v1/completions", "/v1/chat/completions")
VALID = {"model": "echo", "input": 1}
STREAM = {"model": "emulated", "prompt": "hello", "max_tokens": 2000, "stream": True}


HUGE = (
    *("1e999", "-1e999", "1e308", "-1e308", "5e-324", "1e-999", "9" * 400, "9" * 5000, "NaN", "Infinity", "-Infinity"),
    *("9007199254740993", "18446744073709551616", "0" * 5000, "1." + "0" * 5000, "-0", "1e", "0x10", "1_000"),
)


class Attack(NamedTuple):
    """What is sent, and how that ends.

    Attributes
    ----------
    pieces : list of bytes
    pause_s : float
        Before each piece but the first.
    end : str
        "wait" for the answer; "eof": send no more, and wait; "abort": reset the connection; "first": reset it when the
        first bytes of the answer are here.
    num_answers : int or None
        As many requests of it are valid and must be answered 200, and then the connection is closed.
    """

    pieces: list
    pause_s: float = 0.0
    end: str = "wait"
    num_answers: int | None = None


def whole(request, end="wait"):
    return Attack([request], end=end)


def posted(body, draw, path=None, headers=()):
    return whole(raw_request("POST", path or draw.choice(PATHS), body, [*headers, CLOSE]))


def head(*lines, body=b""):
    return (
        b"\r\n".join(line if isinstance(line, bytes) else line.encode("latin-1") for line in lines) + b"\r\n\r\n" + body
    )


def oversized_body(draw):
    size = MAX_BODY_BYTES + draw.randrange(1, MAX_BODY_BYTES)
    announced = head("POST / HTTP/1.1", "Host: h", f"Content-Length: {size}", CLOSE)
    chunk = b"%x\r\n" % (1 << 16) + b"x" * (1 << 16) + b"\r\n"
    return draw.choice(
        [
            posted(b'{"model": "' + b"x" * size, draw),
            whole(announced),
            whole(head("POST / HTTP/1.1", "Host: h", "Content-Length: " + "9" * draw.randrange(10, 60), CLOSE)),
            Attack(
                [head("POST / HTTP/1.1", "Host: h", "Transfer-Encoding: chunked", CLOSE), *[chunk] * 20, b"0\r\n\r\n"]
            ),
        ]
    )


def oversized_head(draw):
    size = MAX_HEADER_BYTES + draw.randrange(1, MAX_HEADER_BYTES * 4)
    return draw.choice(
        [
            whole(head("GET / HTTP/1.1", "Host: h", f"X-Long: {'x' * size}", CLOSE)),
            whole(head("GET / HTTP/1.1", "Host: h", *(f"X-{i}: y" for i in range(size // 6)), CLOSE)),
            whole(head(f"GET /{'x' * size} HTTP/1.1", "Host: h", CLOSE)),
            whole(head("GET / HTTP/1.1", "Host: h", f"{'X' * size}: y", CLOSE)),
            Attack([b"GET / HTTP/1.1\r\n", *[b"X-More: " + b"x" * 1000 + b"\r\n"] * (size // 1000 + 1)]),
            whole(b"\r\n" * size),
        ]
    )


def slow_head(draw):
    request = raw_request("POST", "/", json.dumps(VALID).encode(), [CLOSE])
    return Attack([request[i : i + 1] for i in range(20)], pause_s=0.2)


def slow_body(draw):
    request = raw_request("POST", draw.choice(PATHS), b" " * 1000, [CLOSE])
    return Attack([request[:-990], *(request[-990 + i : -989 + i] for i in range(20))], pause_s=0.2)


def truncated(draw):
    request = raw_request("POST", draw.choice(PATHS), json.dumps(VALID).encode(), [CLOSE])
    chunked = head("POST / HTTP/1.1", "Host: h", "Transfer-Encoding: chunked", body=b"10\r\n{")
    cut = draw.randrange(1, len(request))
    return draw.choice(
        [
            whole(request[:cut], end="eof"),
            whole(request[:cut], end="abort"),
            whole(request[:cut]),
            whole(request, end="abort"),
            whole(chunked, end="eof"),
            whole(chunked),
        ]
    )


def header_tricks(draw):
    body = json.dumps(VALID).encode()
    length = f"Content-Length: {len(body)}"
    tricks = [
        [length, "Content-Length: 3"],
        [length, "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: gzip"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding : chunked"],
        ["Transfer-Encoding: xchunked", length],
        ["Content-Length: -1"],
        [f"Content-Length: +{len(body)}"],
        ["Content-Length: 0x10"],
        ["Content-Length: 1 2"],
        ["Content-Length:"],
        [length, "X-Folded: a\r\n b"],
        [length, "X-Null: a\0b"],
        [length, "X-Bare: a\nX-Next: b"],
        [length, "X Space: a"],
        [length, ": empty"],
        [length, "X-High: \xff\xfe"],
        [length, "Host: other"],
        [length, "Expect: 100-continue"],
        [length, "Expect: something else"],
        [length, "Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: AAAA", "Sec-WebSocket-Version: 13"],
        [length, "Connection: upgrade", "Upgrade: h2c", "HTTP2-Settings: AAAA"],
        [length, "Content-Encoding: gzip"],
        [length, "Content-Type: text/plain; charset=utf-16"],
        [length, "Authorization: Bearer \xff"],
        [length, "Authorization: Basic " + "=" * 1000],
        [length, "X-Forwarded-For: " + "1.1.1.1," * 1000],
        [length, "Range: bytes=0-,0-,0-"],
    ]
    return whole(
        head("POST / HTTP/1.1", "Host: h", *draw.choice(tricks), CLOSE, body=body), end=draw.choice(["wait", "eof"])
    )


def request_lines(draw):
    first = draw.choice(
        [
            "GET /",
            "GET / HTTP/9.9",
            "GET / HTTP/1.0",
            "GET  /  HTTP/1.1",
            " GET / HTTP/1.1",
            "BREW / HTTP/1.1",
            "CONNECT example.invalid:443 HTTP/1.1",
            "TRACE / HTTP/1.1",
            "OPTIONS * HTTP/1.1",
            "DELETE /v1/models/echo HTTP/1.1",
            "GET http://example.invalid/ HTTP/1.1",
            "GET /../../etc/passwd HTTP/1.1",
            "GET /v1/models/%2e%2e%2f%00%ff HTTP/1.1",
            "GET /%zz HTTP/1.1",
            "GET /?model=%ff%fe HTTP/1.1",
            "GET /\xff\xfe HTTP/1.1",
            "POST /?model=a&model=b HTTP/1.1",
            "POST /?" + "&".join("a=b" for _ in range(1000)) + " HTTP/1.1",
            "PRI * HTTP/2.0\r\n\r\nSM",
            "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            "HTTP/1.1 200 OK",
            "",
        ]
    )
    return whole(head(first, "Host: h", CLOSE), end=draw.choice(["wait", "eof"]))


def garbage(draw):
    return whole(draw.randbytes(draw.randrange(1, 5000)), end=draw.choice(["wait", "eof", "abort"]))


def deep_json(draw):
    depth = draw.choice([99, 101, 1000, 100_000])
    opened, closed = draw.choice([("[", "]"), ('{"a":', "}")])
    inner = draw.choice([opened * depth + "1" + closed * depth, opened * depth])
    return posted(f'{{"model": "echo", "input": {inner}}}'.encode(), draw)


def wrong_types(draw):
    values = [None, True, False, 0, -1, 1.5, "", "x", [], [1], {}, {"a": 1}, "9" * 50, -(10**30)]
    keys = [
        *("model", "slo", "submit_time", "input_tokens", "output_tokens", "idx", "stream", "prompt", "messages", "n"),
        *("max_tokens", "stop", "temperature", "stream_options", "logprobs", "user", "tools", "max_completion_tokens"),
    ]
    fields = {"model": draw.choice(["echo", "emulated"]), "prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    for key in draw.sample(keys, draw.randrange(1, 4)):
        fields[key] = draw.choice(values)
    if draw.random() < 0.2:
        fields["messages"] = [draw.choice(values), {"role": draw.choice(values), "content": draw.choice(values)}]
    body = fields if draw.random() < 0.9 else draw.choice(values)
    return posted(json.dumps(body).encode(), draw)


def huge_numbers(draw):
    key = draw.choice(
        ["slo", "submit_time", "input_tokens", "output_tokens", "max_tokens", "n", "input", "temperature"]
    )
    number = draw.choice(HUGE)
    model = draw.choice(["echo", "emulated"])
    return posted(f'{{"model": "{model}", "prompt": "x", "{key}": {number}}}'.encode(), draw)


def unicode_text(draw):
    model = draw.choice(["echo", "emulated"])
    return draw.choice(
        [
            posted(b'{"model": "echo", "input": "\\ud800"}', draw),
            posted(b'{"model": "\\udfff\\ud800"}', draw),
            posted(b'{"model": "\\u0000"}', draw),
            posted(b'{"model": "echo", "input": "\xff\xfe"}', draw),
            posted(b'\xef\xbb\xbf{"model": "echo"}', draw),
            posted('{"model": "echo"}'.encode("utf-16"), draw),
            posted('{"model": "echo"}'.encode("utf-32"), draw),
            posted(b'{"model": "echo", "input": "\xc0\xaf\xed\xa0\x80"}', draw),
            posted(json.dumps({"model": model, "prompt": "\u202e\U0001f600\u0301" * 20_000}).encode(), draw),
            posted(json.dumps({"model": "\u202eohce\U0001f600"}, ensure_ascii=False).encode(), draw),
            posted(b'{"model": "echo", "model": "echo"}', draw),
            posted(b'{"model": "echo", "input": "\x00\x1f"}', draw),
            posted(b"", draw),
            posted(b"{}{}", draw),
        ]
    )


def pipelining(draw):
    valid = raw_request("POST", "/", json.dumps(VALID).encode())
    last = raw_request("POST", "/", json.dumps(VALID).encode(), [CLOSE])
    number = draw.randrange(2, 50)
    return draw.choice(
        [
            Attack([valid * number + last], num_answers=number + 1),
            whole(valid * 10 + draw.randbytes(50), end="eof"),
            whole(valid * 200, end="abort"),
            whole(valid * 3 + last[: len(last) // 2], end="eof"),
            Attack([raw_request("GET", "/metrics") * 20 + last], num_answers=21),
        ]
    )


def unknown_models(draw):
    name = "".join(draw.choices(string.printable, k=draw.choice([1, 20, 10_000])))
    fields = {
        "model": name,
        "prompt": "x",
        "messages": [{"role": "user", "content": "x"}],
        "stream": draw.random() < 0.5,
    }
    return posted(json.dumps(fields).encode(), draw)


def closed_early(draw):
    fields = {**STREAM, "stream": draw.random() < 0.5}
    request = raw_request("POST", "/v1/completions", json.dumps(fields).encode())
    return whole(request, end=draw.choice(["first", "first", "abort", "eof"]))


KINDS = (
    *(oversized_body, oversized_head, slow_head, slow_body, truncated, header_tricks, request_lines, garbage),
    *(deep_json, wrong_types, huge_numbers, unicode_text, pipelining, unknown_models, closed_early),
)
