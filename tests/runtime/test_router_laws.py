"""What holds of the router whatever requests come and whatever becomes of the groups."""

import asyncio
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime_fakes import Bench, FakeGroup, now, run_virtually, settle, wait_until

from alpa_serve.errors import GroupLostError, ModelNotFoundError, RequestRejectedError, ServingError
from alpa_serve.profiles.prefill_decode import PrefillDecode
from alpa_serve.runtime.request import ServeRequest
from alpa_serve.scheduling import ReplicaTiming, Scheduler, ServingRules
from alpa_serve.scheduling.timing import replica_timing
from alpa_serve.simulator.fast import simulate_requests
from alpa_serve.simulator.problem import ModelTable, ReplicaTable, RequestTable

# the fixture holds no state between examples
quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Decision:
    """What the router did with each request of a workload."""

    def __init__(self, count):
        self.group = [-1] * count
        self.admitted = [False] * count
        self.begin = [None] * count


async def decide(problem, rules, timings, tokens):
    """Return what a router decides about the requests of a problem, each at its time."""
    bench = Bench(rules)
    names = [f"m{i}" for i in range(len(problem.profiles))]
    for uid, of_group in enumerate(timings):
        bench.add(uid, FakeGroup(uid), of_group)
    held = {name for of_group in timings for name in of_group}
    bench.publish(names, placed=held)
    decision = Decision(len(problem.arrivals))

    # which group refused a request only its course tells
    observe = bench.router._observe

    def observed(course, *args):
        if course.route is not None:
            decision.group[course.request["idx"]] = course.route.uid
        observe(course, *args)

    bench.router._observe = observed

    async def ask(idx):
        slo = problem.slos[idx]
        fields = {
            "model": "unknown" if problem.model_ids[idx] < 0 else names[problem.model_ids[idx]],
            "idx": idx,
            "slo": None if np.isinf(slo) else float(slo),
            "input_tokens": int(tokens[0][idx]),
            "output_tokens": int(tokens[1][idx]),
        }
        (result,) = await asyncio.gather(bench.router.answer(ServeRequest(fields)), return_exceptions=True)
        if fields["model"] not in names:
            assert isinstance(result, ModelNotFoundError)
        elif fields["model"] not in held:
            assert isinstance(result, GroupLostError)
        elif not isinstance(result, RequestRejectedError):
            assert result == decision.group[idx]
            decision.admitted[idx] = True

    tasks = []
    for idx, arrival in enumerate(problem.arrivals.tolist()):
        await wait_until(arrival)
        tasks.append(asyncio.create_task(ask(idx)))
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    for uid in bench.routes:
        for at, request in bench.routes[uid].group.begun:
            assert decision.group[request["idx"]] == uid
            decision.begin[request["idx"]] = at
    bench.check_empty()
    return decision


@quick
@given(data=st.data())
def test_the_router_decides_as_the_scheduler_and_the_simulator(data, monkeypatch, simulator_problems, serving_rules):
    rules = data.draw(serving_rules)
    problem = data.draw(simulator_problems)
    for profile in problem.profiles:
        for config, known in profile.para_dict.items():
            seconds = sum(known.latency[1])
            known.prefill_decode[1] = PrefillDecode(seconds / 4, seconds / 8 / config.op, 100)
    placement = problem.placement
    if rules.dispatch == "random":
        # the router draws for those requests only that have a choice
        placed = [model_id in placement.placed_models() for model_id in problem.model_ids.tolist()]
        problem = problem._replace(
            **{name: getattr(problem, name)[placed] for name in ("model_ids", "slos", "arrivals")}
        )
    count = len(problem.arrivals)
    rng = np.random.default_rng(count)
    tokens = 10 * rng.integers(0, 9, count), rng.integers(0, 9, count)
    timings = [
        {f"m{i}": replica_timing(problem.profiles[i], config, rules) for i in members}
        for config, members in zip(placement.group_configs, placement.group_models, strict=True)
    ]

    decision = run_virtually(monkeypatch, decide, problem, rules, timings, tokens)

    scheduler = Scheduler(rules)
    for group_id, of_group in enumerate(timings):
        scheduler.add_group(group_id)
        for name, timing in of_group.items():
            scheduler.add_replica(name, group_id, timing)
    columns = zip(problem.model_ids, problem.arrivals.tolist(), problem.slos, *tokens, strict=True)
    for idx, (model_id, arrival, slo, inputs, outputs) in enumerate(columns):
        assignment = scheduler.place(f"m{model_id}", arrival, slo, int(inputs), int(outputs))
        if assignment is None:
            assert (decision.group[idx], decision.admitted[idx]) == (-1, False)
            continue
        assert (decision.group[idx], decision.admitted[idx]) == assignment[:2]
        if assignment.admitted:
            is_held_back = rules.queueing == "global_fifo" or rules.dispatch_interval_s > 0
            assert decision.begin[idx] == pytest.approx(assignment.begin if is_held_back else arrival, abs=1e-9)

    models = ModelTable([f"m{i}" for i in range(len(problem.profiles))], problem.profiles, rules=rules)
    outcomes, counts = simulate_requests(
        RequestTable.of_arrays(
            problem.arrivals,
            problem.model_ids,
            problem.slos,
            len(models),
            input_tokens=tokens[0],
            output_tokens=tokens[1],
        ),
        ReplicaTable.of_placement(models, placement),
        detailed=True,
    )
    assert decision.group == outcomes.group.tolist()
    assert decision.admitted == outcomes.served.tolist()
    assert [decision.group.count(g) for g in range(len(timings))] == counts.group_num_requests.tolist()


RULES = [
    ServingRules(),
    ServingRules(dispatch="random", admission="all"),
    ServingRules(queueing="global_fifo", execution="exclusive", dispatch_interval_s=0.01),
]


async def live_through(seed, rules, limits):
    """Have requests come and be cancelled while groups come, change, leave and die; check what became of them."""
    rng = np.random.default_rng(seed)
    bench = Bench(rules, **limits)
    models = ["a", "b", "c"]
    groups = []
    ends = Counter()
    tasks = []

    def timing():
        return (
            ReplicaTiming(tuple(rng.choice([0.0, 0.1, 0.3], rng.integers(1, 3)).tolist()))
            if rng.random() < 0.6
            else None
        )

    def add_group():
        uid = len(groups)
        num_absent = int(rng.choice([0, 0, 1, 5]))
        groups.append(
            FakeGroup(uid, float(rng.choice([0.0, 0.1, 0.5, 3.0])), int(rng.integers(0, 4)), None, num_absent)
        )
        members = rng.choice(models, rng.integers(0, 4), replace=False).tolist()
        bench.add(uid, groups[-1], {name: timing() for name in members}, group_id=uid % 3)

    async def ask(is_stream):
        fields = {"model": str(rng.choice([*models, "unknown"], p=[0.4, 0.3, 0.2, 0.1])), "idx": len(tasks)}
        if rng.random() < 0.3:
            fields["slo"] = float(rng.choice([0.0, 0.5, 5.0]))
        request = ServeRequest(fields)
        try:
            if is_stream:
                async for _ in bench.router.stream(request):
                    pass
            else:
                await bench.router.answer(request)
        except asyncio.CancelledError:
            ends["cancelled"] += 1
            raise
        except ServingError as error:
            ends[type(error).__name__] += 1
        else:
            ends["answered"] += 1

    for _ in range(80):
        await wait_until(now() + float(rng.choice([0.0, 0.0, 0.05, 0.4])))
        event = rng.choice(
            ["ask", "cancel", "add", "remove", "change", "die", "old table"], p=[0.6, 0.1, 0.1, 0.04, 0.05, 0.1, 0.01]
        )
        if event == "ask":
            tasks.append(asyncio.create_task(ask(rng.random() < 0.4)))
            # else a task that is cancelled does not even begin
            await asyncio.sleep(0)
        elif event == "cancel" and tasks:
            tasks[rng.integers(len(tasks))].cancel()
        elif event == "add":
            add_group()
            bench.publish(models)
        elif event == "old table" and bench.version:
            bench.version -= 1
            bench.publish([])
        elif bench.routes:
            uid = int(rng.choice(list(bench.routes)))
            if event == "remove":
                del bench.routes[uid]
            elif event == "die":
                # the router may find out before the controller, or after
                groups[uid].die()
                if rng.random() < 0.5:
                    del bench.routes[uid]
            elif event == "change":
                bench.routes[uid] = bench.routes[uid]._replace(timings={name: timing() for name in models})
            if rng.random() < 0.7:
                bench.publish(models)
        in_flight = bench.router.in_flight
        assert all(in_flight.of_group(uid) <= limits["max_queue"] for uid in range(len(groups)))
        assert 0 <= bench.router._num_waiting <= limits["max_queue"]
    await asyncio.gather(*tasks, return_exceptions=True)

    assert all(task.cancelled() or task.exception() is None for task in tasks)
    # each ended once, and is counted once
    assert sum(ends.values()) == len(tasks) == bench.metric("requests_total")
    for outcome, name in (("answered", "answered"), ("cancelled", "cancelled"), ("rejected", "RequestRejectedError")):
        assert bench.metric("requests_total", outcome=outcome) == ends[name]
    answered = Counter(request["idx"] for group in groups for request in group.answered)
    # one that was cancelled may have been answered by its group at the same time
    assert ends["answered"] <= len(answered) <= ends["answered"] + ends["cancelled"]
    assert set(answered.values()) <= {1}
    assert all(group.num_open == 0 for group in groups)
    assert bench.metric("in_flight") == 0
    bench.check_empty()
    await settle()
    return ends


@quick
@given(
    seed=st.integers(0, 2**32 - 1),
    rules=st.sampled_from(RULES),
    max_queue=st.sampled_from([1, 3, 100]),
    max_attempts=st.integers(1, 3),
)
def test_every_request_ends_once_whatever_becomes_of_the_groups(monkeypatch, seed, rules, max_queue, max_attempts):
    limits = {
        "max_queue": max_queue,
        "max_attempts": max_attempts,
        "recovery_timeout_s": 1.0,
        "request_timeout_s": 2.0,
    }
    run_virtually(monkeypatch, live_through, seed, replace(rules, seed=seed % 7), limits)


def test_those_lives_see_every_kind_of_end(monkeypatch):
    limits = {"max_queue": 3, "max_attempts": 2, "recovery_timeout_s": 1.0, "request_timeout_s": 2.0}
    ends = sum((run_virtually(monkeypatch, live_through, seed, RULES[0], limits) for seed in range(30)), Counter())
    kinds = ["InvalidRequestError", "ModelNotFoundError", "OverloadedError", "GroupLostError", "RequestTimeoutError"]
    for kind in ("answered", "cancelled", "RequestRejectedError", *kinds[1:]):
        assert ends[kind] > 3, ends
