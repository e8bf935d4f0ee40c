"""The runtime against Ray Serve: an echo model behind each, on the same Ray, asked by the same client.

``python benchmarks/against_ray_serve.py`` deploys both once and has them under load in turn, one at a time, in several
rounds; the figures are medians over the rounds. ``--quick`` is a short run for CI. It exits with 1 if the runtime
answers fewer requests a second than Ray Serve, or has the higher median latency, in any row.

Ray Serve is set as its documentation recommends for throughput: RAY_SERVE_THROUGHPUT_OPTIMIZED=1 (user code and router
in the event loop of their process, gRPC between proxy and replica, buffered logs), no access log, a replica with
``max_ongoing_requests`` far above the load and an async handler that returns a Response. It is asked through its proxy,
as the runtime is asked through its router; with ``--haproxy`` it is asked through HAProxy instead, a program in C that
speaks HTTP to the replica. The runtime has nothing of that kind, and that run decides nothing.
"""

import argparse
import asyncio
import os
import platform
import socket
import statistics
import sys

import uvloop
from http_load import HOST, closed_loop, open_loop, post

CONCURRENCIES = (1, 8, 32, 100)
OPEN_SHARE = 0.6
"""Rate of the open loop, of the lower one of the two throughputs that both reach."""

REQUEST = {"model": "echo", "input": [0.1, 0.2, 0.3], "text": "the quick brown fox"}


class Echo:
    """Answers with what was posted."""

    async def handle_request(self, request):
        return await request.json()


def start_runtime():
    """Return the port, and what ends it."""
    import ray

    from alpa_serve.controller import run_controller

    controller = run_controller(HOST)
    controller.register_model.remote("echo", Echo)
    controller.create_mesh_group_manager.remote(0)
    controller.create_replica.remote("echo", 0)
    controller.sync()
    return ray.get(controller.get_info.remote())["port"], lambda: ray.get(controller.shutdown.remote())


def start_ray_serve():
    """Return the port, and what ends it."""
    from ray import serve
    from starlette.responses import JSONResponse

    class ServeEcho:
        async def __call__(self, request):
            return JSONResponse(await request.json())

    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    serve.start(http_options={"host": HOST, "port": port}, logging_config=quiet)
    deployment = serve.deployment(
        ServeEcho, max_ongoing_requests=10_000, num_replicas=1, ray_actor_options={"num_cpus": 1}, logging_config=quiet
    )
    serve.run(deployment.bind(), route_prefix="/")
    return port, serve.shutdown


class Comparison:
    """Samples of both, by row."""

    def __init__(self, ports, rounds, seconds):
        self._ports = ports
        self._rounds = rounds
        self._seconds = seconds
        self.failures = 0

    async def measure(self, load):
        """Return the medians of each server's (requests/s, median ms, p99 ms) under ``load(port, seconds)``."""
        figures = {name: [] for name in self._ports}
        for i in range(self._rounds):
            # whoever goes first in one round goes last in the next
            for name in list(self._ports)[:: 1 if i % 2 == 0 else -1]:
                sample = await load(self._ports[name], self._seconds)
                self.failures += sample.statuses.total() - sample.statuses[200]
                figures[name].append((sample.rate, sample.milliseconds(0.5), sample.milliseconds(0.99)))
        return {
            name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in figures.items()
        }


async def compare(ports, rounds, seconds, warm_up_s):
    """Print the table; return whether the runtime is nowhere behind."""
    comparison = Comparison(ports, rounds, seconds)
    request = post(REQUEST)
    for port in ports.values():
        await closed_loop(port, request, 32, warm_up_s)
    print(f"{'':<26}{'requests/s':>20}{'':>8}{'median ms':>18}{'':>8}{'p99 ms':>18}")
    print(f"{'':<26}" + f"{'runtime':>10}{'Serve':>10}{'ratio':>8}" + 2 * f"{'runtime':>9}{'Serve':>9}{'ratio':>8}")
    peaks = dict.fromkeys(ports, 0.0)
    is_ahead = True
    for concurrency in CONCURRENCIES:
        figures = await comparison.measure(lambda port, s, c=concurrency: closed_loop(port, request, c, s))
        is_ahead &= print_row(f"closed loop, {concurrency} at a time", figures)
        peaks = {name: max(peaks[name], figures[name][0]) for name in ports}
    rate = OPEN_SHARE * min(peaks.values())
    figures = await comparison.measure(lambda port, s: open_loop(port, request, rate, s))
    is_ahead &= print_row(f"open loop, {rate:.0f} a second", figures, is_open=True)
    print(f"requests without status 200: {comparison.failures}")
    return is_ahead and comparison.failures == 0


def print_row(what, figures, is_open=False):
    """Print a row; return whether the runtime is not behind in it. What comes of an open loop is what went in."""
    ours, theirs = figures["runtime"], figures["Ray Serve"]
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    print(
        f"{what:<26}{ours[0]:>10.0f}{theirs[0]:>10.0f}{ratios[0]:>8.2f}"
        f"{ours[1]:>9.2f}{theirs[1]:>9.2f}{ratios[1]:>8.2f}{ours[2]:>9.2f}{theirs[2]:>9.2f}{ratios[2]:>8.2f}",
        flush=True,
    )
    return (is_open or ratios[0] >= 1) and ratios[1] <= 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run, for CI")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of load, per row, round and server")
    parser.add_argument("--haproxy", action="store_true", help="ask Ray Serve through HAProxy; decides nothing")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 3, 1.0
    # read when ray.serve is imported, in this process and in those of Ray, which inherit it
    os.environ["RAY_SERVE_THROUGHPUT_OPTIMIZED"] = "1"
    for switch in ("ENABLE_HA_PROXY", "ENABLE_DIRECT_INGRESS"):
        # without HAProxy, direct ingress only costs time
        os.environ[f"RAY_SERVE_{switch}"] = str(int(arguments.haproxy))
    import ray

    from alpa_serve.ray_connection import connect

    connect(ray, 2)
    ends = []
    try:
        ports = {}
        for name, start in (("runtime", start_runtime), ("Ray Serve", start_ray_serve)):
            ports[name], end = start()
            ends.append(end)
        print(
            f"Python {platform.python_version()}, Ray {ray.__version__}, {os.cpu_count()} cores; medians of "
            f"{arguments.rounds} rounds of {arguments.seconds:g} s",
            flush=True,
        )
        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        is_ahead = asyncio.run(compare(ports, arguments.rounds, arguments.seconds, min(arguments.seconds, 3.0)))
    finally:
        for end in ends:
            end()
        ray.shutdown()
    if not is_ahead and not arguments.haproxy:
        sys.exit("the runtime is behind Ray Serve, or a request failed")


if __name__ == "__main__":
    main()
