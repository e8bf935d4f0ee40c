"""Times of the core: import, main job, both simulators, workload generation and the classic search.

``python benchmarks/core_speed.py`` prints a table of medians. Each figure comes from processes or calls of its own in
one run of this script; the machine may be shared, so compare medians, not single runs.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
from problems import search_problem

from alpa_serve.placement_policy import ModelParallelismSearch, ModelPlacement
from alpa_serve.profiling import ParallelConfig, ProfilingResult
from alpa_serve.simulator.controller import approximate_one_case, simulate_one_case
from alpa_serve.simulator.executable import Executable
from alpa_serve.simulator.workload import GammaProcess, Workload
from alpa_serve.util import GB, ServingCase

MAIN_JOB = Path(__file__).parents[1] / "tests" / "serve" / "test_placement_policy_dummy.py"


def median_seconds(action, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def run_process(*arguments, **environment):
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env={**os.environ, **environment})


def main_job_first_time():
    """Run the main job with an empty compilation cache."""
    with tempfile.TemporaryDirectory() as cache:
        run_process(str(MAIN_JOB), NUMBA_CACHE_DIR=cache)


def import_seconds():
    """Return the cumulative import time that the interpreter reports."""
    report = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import alpa_serve.placement_policy"],
        check=True,
        capture_output=True,
        text=True,
    ).stderr
    lines = [line.split("|") for line in report.splitlines() if "alpa_serve" in line]
    # the package itself and the subpackage are the two outermost imports
    outermost = [int(cells[1]) for cells in lines if cells[2].startswith(" alpa_serve")]
    return sum(outermost) / 1e6


def pipeline_case(num_requests, num_stages, models_per_group):
    """Return a case of 8 models on 8 pipelines, each of which holds some of them in turn."""
    config = ParallelConfig(1, 1, num_stages)
    names = [f"m{i}" for i in range(8)]
    duration = num_requests / (8 * 25)
    workload = Workload.merge(
        *(GammaProcess(25, 2).generate_workload(name, 0, duration, slo=0.5, seed=i) for i, name in enumerate(names))
    )[:num_requests]

    def register_models(controller):
        for name in names:
            profile = ProfilingResult(name)
            profile.add_result(config, 1, [0.03] * num_stages, [0.0] * num_stages, [GB] * num_stages)
            controller.register_model.remote(name, partial(Executable, profile))

    members = [sorted((first + k) % 8 for k in range(models_per_group)) for first in range(8)]
    placement = ModelPlacement([config] * 8, members)
    return ServingCase(register_models, lambda: workload, lambda controller: placement)


def generate_and_merge(num_requests):
    duration = num_requests / (64 * 4)
    return Workload.merge(
        *(GammaProcess(4, 4).generate_workload(f"m{i}", 0, duration, slo=1.0, seed=i) for i in range(64))
    )


def bytes_per_request(num_requests):
    """Return the peak memory of generating and merging, per request."""
    tracemalloc.start()
    workload = generate_and_merge(num_requests)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / len(workload)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    case = pipeline_case(1_000_000, num_stages=4, models_per_group=8)
    num_events = 200_000
    event_case = pipeline_case(num_events, num_stages=2, models_per_group=2)
    datas, cluster, workload = search_problem(64, 100_000)
    policy = ModelParallelismSearch(max_pp=8, max_op=4)
    approximate_one_case(case, fast_stats=True)
    policy.solve_placement(datas, cluster, workload)
    rows = [
        ("import alpa_serve.placement_policy", statistics.median(import_seconds() for _ in range(repeats)), 1.0),
        ("main job, first time", median_seconds(main_job_first_time, 3), 8.0),
        ("main job, after", median_seconds(lambda: run_process(str(MAIN_JOB)), repeats), 3.0),
        (
            "approximate_one_case, 1,000,000 requests, fast_stats",
            median_seconds(lambda: approximate_one_case(case, fast_stats=True), repeats),
            0.1,
        ),
        (
            "approximate_one_case, 1,000,000 requests, full",
            median_seconds(lambda: approximate_one_case(case), repeats),
            0.5,
        ),
        (
            f"simulate_one_case, {num_events:,} requests, two stages (at least 50,000 requests/s)",
            median_seconds(lambda: simulate_one_case(event_case), repeats),
            num_events / 50_000,
        ),
        (
            "generate and merge 64 Gamma workloads, 1,000,000 requests",
            median_seconds(lambda: generate_and_merge(1_000_000), repeats),
            0.5,
        ),
        (
            f"ModelParallelismSearch, 64 models, 64 devices, {len(workload)} requests",
            median_seconds(lambda: policy.solve_placement(datas, cluster, workload), repeats),
            1.0,
        ),
    ]
    print(f"Python {sys.version.split()[0]}, NumPy {np.__version__}, {os.cpu_count()} cores, medians")
    for what, seconds, limit in rows:
        print(f"{what:<75} {seconds:8.3f} s   (at most {limit:g} s)")
    print(f"{'peak memory of generate and merge':<75} {bytes_per_request(1_000_000):8.1f} B/request   (at most 100)")


if __name__ == "__main__":
    main()
