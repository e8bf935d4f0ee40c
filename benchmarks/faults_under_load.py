"""Faults under load: what clients see while processes are killed, and while the placement changes.

``python benchmarks/faults_under_load.py`` serves emulated models at 70 % of what their groups can do, three times:

- ``group, controller``: at a quarter of the time a group's process is killed (SIGKILL), at half of it the controller.
- ``router``: at half of the time the process that listens is killed. What it was answering is lost with its
  connections; requests that find nobody listening were not sent, and try again.
- ``placement``: at 1/4, 1/2 and 3/4 of the time another placement is applied.

Clients count what they sent and what came back, the server's /metrics what it has answered, and the models write down
every request that they execute. It exits with 1 if a request has no answer but those of the killed router, if one was
lost or executed twice during a change of the placement, or if a killed process is not back within 10 s. ``--quick`` is
a short run for CI.
"""

import argparse
import asyncio
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import ray
from http_load import BROKEN, HOST, Client, arrivals, post, raw_request
from prometheus_client.parser import text_string_to_metric_families

from alpa_serve.controller import EmulatedModel, deploy
from alpa_serve.placement import ClusterEnv, ModelData, ModelPlacement
from alpa_serve.profiling import ParallelConfig, load_test_prof_result
from alpa_serve.ray_connection import connect
from alpa_serve.runtime.origin import NAMESPACE
from alpa_serve.util import GB

PROFILE = load_test_prof_result("alpa/bert-1.3b")
MODELS = ("m0", "m1", "m2", "m3")
CLUSTER = ClusterEnv(16, 16 * GB)
PP2, PP4, PP8 = (ParallelConfig(1, 1, stages) for stages in (2, 4, 8))
PLACEMENT = ModelPlacement([PP4, PP4, PP8], [[0, 1, 2], [1, 2, 3], [0, 1, 2, 3]])
OTHER_PLACEMENT = ModelPlacement([PP8, PP2, PP2, PP4], [[0, 1, 3], [0, 2], [1, 3], [0, 1, 2, 3]])

LOAD = 0.7
"""Share of the capacity that is asked for."""

BACK_WITHIN_S = 10.0


class RecordingModel(EmulatedModel):
    """Writes down every request before it is executed, in a file of its process."""

    def __init__(self, folder, *arguments):
        super().__init__(PROFILE, *arguments)
        self._record = Path(folder, f"{os.getpid()}.txt")

    async def handle_request(self, request):
        with self._record.open("a") as record:
            record.write(f"{request['idx']}\n")
        return await super().handle_request(request)


class Asked(NamedTuple):
    """A request as its client saw it; times in seconds of time.monotonic()."""

    idx: int
    sent: float
    done: float
    status: int | str


class Fault(NamedTuple):
    """What happens, when (share of the run), and the function that does it and returns the seconds that it took."""

    what: str
    at: float
    run: object


def capacity(placement):
    """Return the requests/s that the groups can do if each model gets as many: the least that a set of models gets.

    A group does one request per time of its slowest stage; a set of models can use the groups that hold one of them.
    """
    rates = [1 / max(PROFILE.stage_latency(config)) for config in placement.group_configs]
    sets = itertools.chain.from_iterable(
        itertools.combinations(range(len(MODELS)), size) for size in range(1, len(MODELS) + 1)
    )
    return min(
        sum(rate for rate, held in zip(rates, placement.group_models, strict=True) if set(held) & set(models))
        * len(MODELS)
        / len(models)
        for models in sets
    )


# ---- faults ----------------------------------------------------------------------------------------------------------


def info_of(deployment):
    return ray.get(deployment.controller.get_info.remote(), timeout=BACK_WITHIN_S * 3)


def until_true(condition):
    """Return the seconds until `condition` holds; infinity if it does not in time."""
    begin = time.monotonic()
    while time.monotonic() - begin < BACK_WITHIN_S * 3:
        if condition():
            return time.monotonic() - begin
        time.sleep(0.02)
    return float("inf")


def pid_of(actor_name):
    """Return the number of a process of the service; None if it cannot be reached."""
    try:
        return ray.get(ray.get_actor(actor_name, NAMESPACE).ping.remote(), timeout=BACK_WITHIN_S)
    except (ValueError, ray.exceptions.RayError):
        return None


def kill_group(deployment, folder):
    """Kill the group that can do the most; return the seconds until it is up and a request was given to it."""
    killed = info_of(deployment)["group_names"][2]
    os.kill(pid_of(killed), signal.SIGKILL)

    def is_back():
        info = info_of(deployment)
        name = info["group_names"][2]
        if name == killed or info["group_states"][2] != "up":
            return False
        return (folder / f"{pid_of(name)}.txt").exists()

    return until_true(is_back)


def kill_controller(deployment, folder):
    """Kill the controller; return the seconds until its successor answers."""
    killed = info_of(deployment)["pid"]
    os.kill(killed, signal.SIGKILL)
    return until_true(lambda: info_of(deployment)["pid"] != killed)


def kill_router(deployment, folder):
    """Kill the process that listens; return the seconds until its successor answers a request."""
    info = info_of(deployment)
    os.kill(pid_of(info["router_name"]), signal.SIGKILL)
    # the socket may outlive the process by a moment
    time.sleep(0.05)
    probe = post({"model": MODELS[0], "idx": -1})

    async def is_answered():
        client = Client(info["port"])
        answer = await client.ask(probe, connect_timeout_s=0.0)
        client.close()
        return answer.status == 200

    return until_true(lambda: asyncio.run(is_answered()))


def change_placement(deployment, folder):
    """Apply the placement that is not served at the moment; return the seconds that it took."""
    begin = time.monotonic()
    deployment.apply_placement(OTHER_PLACEMENT if deployment.placement == PLACEMENT else PLACEMENT)
    return time.monotonic() - begin


# ---- load ------------------------------------------------------------------------------------------------------------


async def replay(client, rate, seconds, faults):
    """Ask for `seconds`, have the faults happen meanwhile; return what was asked, and the seconds of each fault."""
    begin = time.monotonic()
    asked = []

    async def ask(idx):
        sent = time.monotonic()
        answer = await client.ask(post({"model": MODELS[idx % len(MODELS)], "idx": idx}))
        status = answer.status
        if status == 200 and json.loads(answer.body)["idx"] != idx:
            status = "answer of another"
        asked.append(Asked(idx, sent, time.monotonic(), status))

    async def happen(fault):
        await asyncio.sleep(begin + fault.at * seconds - time.monotonic())
        return await asyncio.to_thread(fault.run)

    happening = [asyncio.create_task(happen(fault)) for fault in faults]
    tasks = []
    async for idx in arrivals(rate, seconds):
        tasks.append(asyncio.create_task(ask(idx)))
    await asyncio.gather(*tasks)
    return len(tasks), asked, await asyncio.gather(*happening)


async def counted_by_server(client):
    """Return the server's counts of requests by outcome."""
    counts = Counter()
    page = (await client.ask(raw_request("GET", "/metrics"))).body.decode()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == "alpa_serve_requests_total":
                counts[sample.labels["outcome"]] += int(sample.value)
    return counts


def executed(folder):
    """Return how often each request was executed."""
    return Counter(int(line) for path in folder.iterdir() for line in path.read_text().splitlines())


def run(title, faults, rate, seconds, may_break=False, may_repeat=False):
    """Serve, replay and print; return what was not as it should be."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        datas = [ModelData(model, 1e9, 1.0, 1.0, PROFILE) for model in MODELS]
        defs = {model: lambda *args, folder=name: RecordingModel(folder, *args) for model in MODELS}
        with deploy(PLACEMENT, datas, CLUSTER, host=HOST, model_defs=defs) as deployment:

            async def load():
                client = Client(info_of(deployment)["port"])
                bound = [fault._replace(run=lambda f=fault: f.run(deployment, folder)) for fault in faults]
                result = await replay(client, rate, seconds, bound)
                counts = await counted_by_server(client)
                client.close()
                return *result, counts

            num_sent, asked, took, counts = asyncio.run(load())
        times = executed(folder)
    times.pop(-1, None)
    return report(title, faults, took, num_sent, asked, counts, times, may_break, may_repeat)


def report(title, faults, took, num_sent, asked, counts, times, may_break, may_repeat):
    statuses = Counter(request.status for request in asked)
    answered = sorted(request.done for request in asked if request.status == 200)
    gap = max(after - before for before, after in itertools.pairwise(answered))
    slowest = max(request.done - request.sent for request in asked)
    lost = [request.idx for request in asked if request.status == 200 and not times[request.idx]]
    repeated = sum(count > 1 for count in times.values())
    print(f"\n{title}")
    print(f"  sent                                {num_sent:>8}")
    for status, count in sorted(statuses.items(), key=str):
        print(f"  client: {status!s:<28}{count:>8}")
    for outcome, count in sorted(counts.items()):
        print(f"  server: {outcome:<28}{count:>8}{'  (by the new router)' if may_break else ''}")
    print(f"  executed, and more than once        {len(times):>8} {repeated:>8}")
    for fault, seconds in zip(faults, took, strict=True):
        print(f"  {fault.what:<36}{seconds:>8.2f} s")
    print(f"  longest time without an answer      {gap:>8.2f} s")
    print(f"  slowest request                     {slowest:>8.2f} s", flush=True)
    problems = []
    if len(asked) != num_sent or set(statuses) - {200, *([BROKEN] if may_break else [])}:
        problems.append(f"{num_sent - statuses[200]} of {num_sent} requests have no answer")
    if not may_break and counts["answered"] != statuses[200]:
        problems.append(f"the server counted {counts['answered']} answers, the clients {statuses[200]}")
    if lost or (repeated and not may_repeat):
        problems.append(f"{len(lost)} answers without execution, {repeated} requests executed more than once")
    if max(took) > BACK_WITHIN_S:
        problems.append(f"not back within {BACK_WITHIN_S:g} s")
    return [f"{title}: {problem}" for problem in problems]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a short run, for CI")
    parser.add_argument("--seconds", type=float, default=60.0, help="of load, per run")
    arguments = parser.parse_args()
    seconds = 12.0 if arguments.quick else arguments.seconds
    connect(ray, 2)
    total = min(capacity(PLACEMENT), capacity(OTHER_PLACEMENT))
    rate = LOAD * total
    print(
        f"{len(MODELS)} models of {PROFILE.model_name}; capacity {total:.1f} requests/s, asked {rate:.1f}, "
        f"{seconds:g} s per run",
        flush=True,
    )
    back = "until it serves again"
    try:
        problems = [
            *run(
                "group, controller",
                [
                    Fault(f"group killed: {back}", 0.25, kill_group),
                    Fault(f"controller killed: {back}", 0.5, kill_controller),
                ],
                rate,
                seconds,
                # what a group was executing when it died is executed by another
                may_repeat=True,
            ),
            *run("router", [Fault(f"router killed: {back}", 0.5, kill_router)], rate, seconds, may_break=True),
            *run(
                "placement",
                [Fault("placement changed", share, change_placement) for share in (0.25, 0.5, 0.75)],
                rate,
                seconds,
            ),
        ]
    finally:
        ray.shutdown()
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
