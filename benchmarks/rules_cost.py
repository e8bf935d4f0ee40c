"""What serving rules cost the compiled simulator: AlpaServe's rules against a loop that knows no rules.

``python benchmarks/rules_cost.py`` prints, for several placements of 64 models under 1,000,000 requests, the median
times of both in one run, alternating, and their ratio; then the time under MaverIQ's rules and under a kind of rules
that has no machine code of its own. The loop is the least that AlpaServe's semantics need, so the ratio is highest
where a request costs least: one replica, one stage, ten nanoseconds.
"""

import argparse
import os
import statistics
import sys
import time
from dataclasses import replace
from functools import partial

import numba
import numpy as np

from alpa_serve.profiles import maveriq
from alpa_serve.profiling import ParallelConfig
from alpa_serve.scheduling import ALPASERVE, MAVERIQ
from alpa_serve.simulator.fast import simulate_counts
from alpa_serve.simulator.problem import ModelTable, ReplicaTable, RequestTable
from alpa_serve.simulator.workload import GammaProcess, Workload

NUM_MODELS = 64
PROFILES = ("llama-2-7b", "llama-2-13b", "falcon-7b", "gptj-6b")
# config, groups, models on each
PLACEMENTS = (((1, 1, 1), 64, 1), ((1, 1, 2), 32, 4), ((1, 1, 4), 16, 16), ((1, 1, 8), 8, 64))
RULES = {
    "alpaserve": ALPASERVE,
    "maveriq": MAVERIQ,
    "other": replace(ALPASERVE, execution="exclusive", admission="all"),
}


@numba.njit(nogil=True)
def without_rules(
    arrivals, model_ids, slos, model_start, replica_group, replica_stages, replica_latency, overhead, counts, outcomes
):
    """Serve as AlpaServe does: least loaded group, pipelined stages, requests dropped that would be late.

    It does what the simulator did before there were rules: it counts, and writes figures per request where the arrays
    of `outcomes` are not empty.
    """
    model_num_good, model_latency, group_num_requests = counts
    finish, good, group = outcomes
    record = len(finish) > 0
    max_stages = replica_latency.shape[2]
    clocks = np.zeros((len(group_num_requests), max_stages))
    last_clock = np.zeros(len(group_num_requests))
    ends = np.empty(max_stages)
    for i in range(len(arrivals)):
        model = model_ids[i]
        if model < 0 or model_start[model] == model_start[model + 1]:
            continue
        replica = model_start[model]
        for other in range(replica + 1, model_start[model + 1]):
            if last_clock[replica_group[other]] < last_clock[replica_group[replica]]:
                replica = other
        chosen = replica_group[replica]
        num_stages = replica_stages[replica]
        end = arrivals[i]
        for k in range(num_stages):
            end = max(end, clocks[chosen, k]) + replica_latency[replica, 0, k]
            ends[k] = end
        latency = end + overhead - arrivals[i]
        met = latency <= slos[i]
        group_num_requests[chosen] += 1
        if met:
            clocks[chosen, :num_stages] = ends[:num_stages]
            last_clock[chosen] = end
            model_num_good[model] += 1
            model_latency[model] += latency
        if record:
            group[i] = chosen
            good[i] = met
            if met:
                finish[i] = end + overhead


def problem(num_requests):
    """Return the requests, with token counts, and the profiles of the models."""
    rate = 3.6
    duration = num_requests / (rate * NUM_MODELS)
    names = [f"m{i}" for i in range(NUM_MODELS)]
    workload = Workload.merge(
        *(
            GammaProcess(rate, 4).generate_workload(
                name, 0, duration, slo=1.0, seed=i, input_tokens=100, output_tokens=20
            )
            for i, name in enumerate(names)
        )
    )
    profiles = {name: maveriq.load(name) for name in PROFILES}
    return names, [profiles[PROFILES[i % len(PROFILES)]] for i in range(NUM_MODELS)], workload


def seconds(action):
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--requests", type=int, default=1_000_000)
    options = parser.parse_args()
    names, profiles, workload = problem(options.requests)
    requests = RequestTable.of_workload(workload, names)
    tables = {kind: ModelTable(names, profiles, rules=rules) for kind, rules in RULES.items()}
    print(f"Python {sys.version.split()[0]}, NumPy {np.__version__}, {os.cpu_count()} cores, {len(workload)} requests")
    print(
        f"{'groups':<16} {'no rules':>10} {'alpaserve':>10} {'ratio':>7} {'maveriq':>10} {'other':>10}   (ms, medians)"
    )
    rng = np.random.default_rng(0)
    for config, num_groups, per_group in PLACEMENTS:
        members = [sorted(rng.choice(NUM_MODELS, per_group, replace=False).tolist()) for _ in range(num_groups)]
        configs = [ParallelConfig(*config)] * num_groups
        replicas = {kind: ReplicaTable.of_groups(table, configs, members) for kind, table in tables.items()}

        def reference(replicas=replicas["alpaserve"], num_groups=num_groups):
            counts = np.zeros(NUM_MODELS, np.int64), np.zeros(NUM_MODELS), np.zeros(num_groups, np.int64)
            columns = requests.arrivals, requests.model_ids, requests.slos
            table = replicas.model_start, replicas.group, replicas.num_stages, replicas.latency
            nothing = np.empty(0), np.empty(0, np.bool_), np.empty(0, np.int32)
            without_rules(*columns, *table, ALPASERVE.fixed_overhead_s, counts, nothing)
            return counts

        actions = {"no rules": reference}
        for kind in RULES:
            actions[kind] = partial(simulate_counts, requests, replicas[kind])
        # the reference is only worth comparing with if it does the same; this compiles, too
        assert reference()[0].tolist() == actions["alpaserve"]().model_num_good.tolist()
        times = {name: [] for name in actions}
        for _ in range(options.repeats + 1):
            for name, action in actions.items():
                times[name].append(1000 * seconds(action))
        plain, alpaserve, maveriq_, other = (statistics.median(values[1:]) for values in times.values())
        shape = f"{num_groups} x {config}"
        print(f"{shape:<16} {plain:10.1f} {alpaserve:10.1f} {alpaserve / plain:7.2f} {maveriq_:10.1f} {other:10.1f}")


if __name__ == "__main__":
    main()
