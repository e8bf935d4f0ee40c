"""Malformed and hostile requests against a live deployment, while a well-behaved client is served.

``python benchmarks/hostile_requests.py`` sends ``--number`` requests: three quarters of the kinds of
``hostile_kinds.py``, the others made by schemathesis from the server's /openapi.json. Then it sends the same requests
once more, for the memory: what is loaded or cached once is there by then, and what grows with requests grows on. It
prints what came back by kind, and exits with 1 if

- a status is 500 or more, but for the 503 that tells a client to come back or that its SLO cannot be met;
- a request has not come to an end (an answer, or a closed connection) within 15 s;
- valid requests that were sent at once on one connection are not all answered;
- the well-behaved client did not get 200 each time, or waited for 10 s or more;
- fewer requests reached the server than were to be sent;
- the memory of a process of the service grew by 5 MiB or more in the second round.

``--quick`` is a short run for CI.
"""

import argparse
import asyncio
import random
import sys
import time
import warnings
from collections import Counter, defaultdict

import hypothesis
import psutil
import ray
import requests
import schemathesis
from hostile_kinds import KINDS, MAX_BODY_BYTES, MAX_HEADER_BYTES, VALID
from http_load import HOST, Client, post, raw_request
from schemathesis import GenerationMode

from alpa_serve.controller import EmulatedModel, ServerSettings, run_controller
from alpa_serve.profiling import ParallelConfig, ProfilingResult
from alpa_serve.ray_connection import connect
from alpa_serve.runtime.origin import NAMESPACE
from alpa_serve.util import GB

ONE_GPU = ParallelConfig(1, 1, 1)
# the limits of time are short, so that running into them does not take the run's whole time
SETTINGS = ServerSettings(
    max_body_bytes=MAX_BODY_BYTES, max_header_bytes=MAX_HEADER_BYTES, header_timeout_s=2.0, body_timeout_s=2.0
)

HANG_S = 15.0
GROWTH_BYTES = 5 << 20
VALID_WITHIN_S = 10.0
VALID_EVERY_S = 0.02
AT_A_TIME = 16
SCHEMATHESIS_SHARE = 0.25
UNSENT_SHARE = 0.05
"""Of the requests: schemathesis makes some that no client sends, and rounds their number down."""

ROUNDS = 2
DOCUMENTED_503 = (b"slo_rejected", b"overloaded", b"too_many_connections")

HANG, CLOSED, LEFT, UNSENT = "hang", "closed", "left", "unsent"
"""In place of a status: no end in time; the server closed the connection without an answer; the client left, or could
not send it."""


class Echo:
    """Answers with what was posted."""

    async def handle_request(self, request):
        return await request.json()


def start():
    """Return the controller of a service with an echo and a model that streams, each in its group."""
    profile = ProfilingResult("emulated")
    profile.add_result(ONE_GPU, 1, [0.02], [0.0], [GB])
    controller = run_controller(HOST, settings=SETTINGS)
    controller.register_model.remote("echo", Echo)
    controller.register_model.remote("emulated", EmulatedModel, [profile])
    for group_id, (name, arguments) in enumerate((("echo", []), ("emulated", [ONE_GPU]))):
        controller.create_mesh_group_manager.remote(group_id)
        controller.create_replica.remote(name, group_id, arguments)
    controller.sync()
    return controller


def processes(info):
    """Return the processes that requests reach, by what they are."""
    names = {"router": info["router_name"], **{f"group {i}": name for i, name in info["group_names"].items()}}
    return {what: psutil.Process(ray.get(ray.get_actor(name, NAMESPACE).ping.remote())) for what, name in names.items()}


# ---- one request -----------------------------------------------------------------------------------------------------


async def attack_once(port, attack):
    """Return the statuses that came back, or in their place how it ended, and the bytes."""
    try:
        return await asyncio.wait_for(_attack(port, attack), HANG_S)
    except asyncio.TimeoutError:
        return [HANG], b""


async def _attack(port, attack):
    reader, writer = await asyncio.open_connection(HOST, port)
    received = b""
    try:
        for i, piece in enumerate(attack.pieces):
            if i and attack.pause_s:
                await asyncio.sleep(attack.pause_s)
            writer.write(piece)
            await writer.drain()
        if attack.end == "abort":
            return [LEFT], b""
        if attack.end == "eof":
            writer.write_eof()
        while attack.num_answers or not is_complete(received):
            data = await reader.read(1 << 16)
            if not data:
                break
            received += data
            if attack.end == "first":
                return [LEFT], b""
    except ConnectionError:
        # the server was done before the client was; what it said may have gone with the connection
        pass
    finally:
        writer.transport.abort()
    return statuses_in(received) or [CLOSED], received


def is_complete(received):
    """Return whether the one answer is there, if it leaves the connection open."""
    head, found, body = received.partition(b"\r\n\r\n")
    head = head.lower()
    if not found or b"connection: close" in head or head.split(b" ")[1][:1] == b"1":
        return False
    if b"transfer-encoding: chunked" in head:
        return body.endswith(b"0\r\n\r\n")
    length = int(head.partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
    return len(body) == length


def statuses_in(received):
    return [int(part[1:4]) for part in received.split(b"HTTP/1.1")[1:] if part[1:4].isdigit()]


def is_bad(status, received):
    documented = status == 503 and any(code in received for code in DOCUMENTED_503)
    return isinstance(status, int) and status >= 500 and not documented


# ---- all of them -----------------------------------------------------------------------------------------------------


class Tally:
    """What came back in one round, by kind, and how a well-behaved client was served meanwhile."""

    def __init__(self):
        self.by_kind = defaultdict(Counter)
        self.bad = []
        self.num_sent = 0
        self.elapsed_s = self.valid_slowest_s = 0.0
        self.valid_statuses = Counter()

    def add(self, kind, statuses, received, what):
        self.num_sent += statuses != [UNSENT]
        self.by_kind[kind].update(statuses)
        for status in statuses:
            if status == HANG or is_bad(status, received):
                self.bad.append(f"{kind}: {status} for {what[:200]!r}: {received[-300:]!r}")

    def count(self, matches):
        return sum(count for counts in self.by_kind.values() for status, count in counts.items() if matches(status))


async def own_attacks(port, number, seed, tally):
    """Send `number` attacks of all kinds in turn, some at a time."""
    draw = random.Random(seed)
    attacks = [(KINDS[i % len(KINDS)].__name__, KINDS[i % len(KINDS)](draw)) for i in range(number)]
    free = asyncio.Semaphore(AT_A_TIME)

    async def send(kind, attack):
        async with free:
            statuses, received = await attack_once(port, attack)
        tally.add(kind, statuses, received, b"".join(attack.pieces))
        if attack.num_answers and statuses != [200] * attack.num_answers:
            tally.bad.append(f"{kind}: {statuses} for {attack.num_answers} valid requests")

    await asyncio.gather(*(send(kind, attack) for kind, attack in attacks))


def schemathesis_attacks(port, number, seed, tally):
    """Send about `number` requests that schemathesis makes of the server's description, valid ones and others."""
    schema = schemathesis.openapi.from_url(f"http://{HOST}:{port}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    with_body = [operation for operation in operations if operation.body]
    others = [operation for operation in operations if not operation.body]
    # what cannot be varied is asked once
    examples = max(1, (number - len(others)) // (2 * max(len(with_body), 1)))
    runs = [(operation, GenerationMode.POSITIVE, 1) for operation in others]
    runs += [
        (operation, mode, examples)
        for operation in with_body
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for operation, mode, num_examples in runs:
            vary(operation, mode, num_examples, port, seed, tally)


def vary(operation, mode, num_examples, port, seed, tally):
    """Send requests of one kind to one of the server's operations."""
    kind = f"schemathesis, {mode.name.lower()}"

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(operation.as_strategy(generation_mode=mode))
    def send(case):
        try:
            response = case.call(base_url=f"http://{HOST}:{port}", timeout=HANG_S)
        except requests.exceptions.Timeout:
            tally.add(kind, [HANG], b"", repr(case).encode())
        except (requests.exceptions.RequestException, ValueError):
            # the client itself refuses some of what schemathesis makes
            tally.add(kind, [UNSENT], b"", b"")
        else:
            tally.add(kind, [response.status_code], response.content, repr(case).encode())

    send()


async def valid_client(port, stop):
    """Post valid requests until told to stop; return the statuses and the longest wait."""
    client = Client(port)
    statuses, slowest = Counter(), 0.0
    request = post(VALID)
    while not stop.is_set():
        begin = time.perf_counter()
        try:
            answer = await asyncio.wait_for(client.ask(request), VALID_WITHIN_S)
            statuses[answer.status] += 1
        except asyncio.TimeoutError:
            statuses[HANG] += 1
        slowest = max(slowest, time.perf_counter() - begin)
        await asyncio.sleep(VALID_EVERY_S)
    client.close()
    return statuses, slowest


async def attack_all(port, number, seed, tally):
    """Send `number` requests while a well-behaved client is served."""
    begin = time.perf_counter()
    by_schemathesis = round(number * SCHEMATHESIS_SHARE)
    stop = asyncio.Event()
    valid = asyncio.create_task(valid_client(port, stop))
    await asyncio.gather(
        own_attacks(port, number - by_schemathesis, seed, tally),
        asyncio.to_thread(schemathesis_attacks, port, by_schemathesis, seed, tally),
    )
    stop.set()
    tally.valid_statuses, tally.valid_slowest_s = await valid
    tally.elapsed_s = time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run, for CI")
    parser.add_argument("--number", type=int, default=1000, help="of requests in each round")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    number = 200 if arguments.quick else arguments.number
    connect(ray, 2)
    try:
        controller = start()
        info = ray.get(controller.get_info.remote())
        port = info["port"]
        watched = processes(info)
        tallies, memory = [], [rss_of(watched)]
        for _ in range(ROUNDS):
            tally = Tally()
            asyncio.run(attack_all(port, number, arguments.seed, tally))
            tallies.append(tally)
            memory.append(rss_of(watched))
        health = asyncio.run(
            attack_once(port, KINDS[0](random.Random(0))._replace(pieces=[raw_request("GET", "/healthz")]))
        )
        ray.get(controller.shutdown.remote())
    finally:
        ray.shutdown()
    problems = [problem for tally in tallies for problem in report(tally, number)]
    problems += report_memory(memory)
    if health[0] != [200]:
        problems.append(f"/healthz is {health}")
    if problems:
        sys.exit("\n".join(problems))


def rss_of(watched):
    return {what: process.memory_info().rss for what, process in watched.items()}


def report(tally, number):
    """Print what came back to a round of `number` requests; return what must not have."""
    for kind, counts in tally.by_kind.items():
        said = ", ".join(
            f"{status}: {count}" for status, count in sorted(counts.items(), key=lambda item: str(item[0]))
        )
        print(f"{kind:<24}{counts.total():>6}   {said}")
    print(
        f"{'in all':<24}{tally.count(lambda status: True):>6}   to {tally.num_sent} attacks, in {tally.elapsed_s:.0f} s"
    )
    server_errors = tally.count(lambda status: isinstance(status, int) and status >= 500)
    print(f"500 and more: {server_errors}; hangs: {tally.count(lambda status: status == HANG)}")
    print(f"well-behaved client: {dict(tally.valid_statuses)}, slowest {tally.valid_slowest_s:.2f} s")
    problems = list(tally.bad)
    if tally.num_sent < (1.0 - UNSENT_SHARE) * number:
        problems.append(f"only {tally.num_sent} of {number} requests reached the server")
    if set(tally.valid_statuses) != {200} or tally.valid_slowest_s >= VALID_WITHIN_S:
        problems.append("the well-behaved client was not served")
    return problems


def report_memory(memory):
    """Print the memory of each process before and after each round; return those of which it grows on."""
    problems = []
    for what in memory[0]:
        print(f"memory of the {what}: {', then '.join(f'{rss[what] / 2**20:.1f} MiB' for rss in memory)}")
        grown = memory[-1][what] - memory[-2][what]
        if grown >= GROWTH_BYTES:
            problems.append(f"the {what} grew by {grown / 2**20:.1f} MiB in the last round")
    return problems


if __name__ == "__main__":
    main()
