"""How the classic search scales: ModelParallelismSearch(max_pp=8, max_op=4) for n models on n devices.

``python benchmarks/search_scaling.py`` prints, for each size of device memory, a table beside AlpaServe's seconds, the
exponent of the growth with n (seconds ~ n^exponent, least squares on logarithms) at a fixed number of requests and at
one that grows with n, and the time and peak memory of the largest size. ``--memory 24 80`` adds devices of 80 GiB,
which hold many models each; ``--max-models`` leaves out what would take too long; ``--quick`` only shows that it runs.

Every figure comes from a process of its own, which compiles the kernels on a small problem first; workload generation
is not counted, compiling the problem into arrays is. The machine may be shared: seconds are medians.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache

MAX_PP, MAX_OP = 8, 4
MEMORY_GIB = 24

ALPASERVE_SECONDS = {(64, 100_000): 3.3, (64, 1_000_000): 14.5, (128, 300_000): 22.0, (256, 300_000): 179.0}
"""(models, requests) -> seconds of AlpaServe's own search with devices of 24 GiB, on two cores."""

SPEEDUP_GOAL = {(256, 300_000): 100}
EXPONENT_GOAL = 1.4
LARGEST_GOAL = "60 s and 4 GiB"


@dataclass(frozen=True)
class Sizes:
    """What is measured: (models, requests) beside AlpaServe, models for the exponent, and the largest of all."""

    compared: tuple[tuple[int, int], ...]
    growth: tuple[int, ...]
    fixed_requests: int
    requests_per_model: int
    largest: tuple[int, int]


FULL = Sizes(tuple(ALPASERVE_SECONDS), (64, 128, 256, 512), 300_000, 1_200, (1024, 1_000_000))
QUICK = Sizes(((8, 2_000), (16, 2_000)), (4, 8, 16), 2_000, 200, (16, 5_000))


def run_one(num_models, num_requests, memory_gib, repeats):
    """Measure one size in this process."""
    from problems import search_problem

    from alpa_serve.placement_policy import ModelParallelismSearch, PlacementEvaluator

    policy = ModelParallelismSearch(max_pp=MAX_PP, max_op=MAX_OP)
    policy.solve_placement(*search_problem(4, 500, memory_gib))
    problem = search_problem(num_models, num_requests, memory_gib)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        placement, _ = policy.solve_placement(*problem)
        seconds.append(time.perf_counter() - start)
    # KiB, except on macOS; read before the placement is evaluated
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "seconds": statistics.median(seconds),
        "slowest": max(seconds),
        "num_requests": len(problem[2]),
        "attainment": PlacementEvaluator(*problem).evaluate(placement).goodput,
        "peak_gib": peak / 2**30,
    }


@cache
def measured(num_models, num_requests, memory_gib, repeats):
    """Measure one size in a process of its own."""
    # the peak of a process starts at that of its parent, so this one does not load the package
    arguments = ["--one", *map(str, (num_models, num_requests, memory_gib)), "--repeats", str(repeats)]
    run = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(run.stdout)


def exponent(points):
    """Return the slope of log(seconds) over log(n), by least squares."""
    n, seconds = ([math.log(value) for value in column] for column in zip(*points, strict=True))
    return statistics.linear_regression(n, seconds).slope


def has_goals(memory_gib, options):
    return memory_gib == MEMORY_GIB and not options.quick


def said(goal, applies):
    return f"   ({goal})" if applies else ""


def print_compared(sizes, memory_gib, options):
    print(f"{'models':>7} {'requests':>10} {'AlpaServe s':>12} {'s':>9} {'slowest':>9} {'ratio':>8} {'attains':>8}")
    for num_models, num_requests in sizes.compared:
        if num_models > options.max_models:
            continue
        ours = measured(num_models, num_requests, memory_gib, options.repeats)
        theirs = ALPASERVE_SECONDS.get((num_models, num_requests)) if memory_gib == MEMORY_GIB else None
        goal = SPEEDUP_GOAL.get((num_models, num_requests))
        print(
            f"{num_models:>7} {ours['num_requests']:>10,} {'-' if theirs is None else f'{theirs:.1f}':>12} "
            f"{ours['seconds']:>9.3f} {ours['slowest']:>9.3f} "
            f"{'-' if theirs is None else format(theirs / ours['seconds'], '.1f'):>8} {ours['attainment']:>8.4f}"
            + said(f"ratio at least {goal}", goal and has_goals(memory_gib, options)),
            flush=True,
        )


def print_growth(sizes, memory_gib, options):
    models = [n for n in sizes.growth if n <= options.max_models]
    if len(models) < 2:
        print("\nno growth: --max-models leaves less than two sizes")
        return
    series = {
        f"{sizes.fixed_requests:,} requests": [sizes.fixed_requests] * len(models),
        f"{sizes.requests_per_model:,} requests per model": [sizes.requests_per_model * n for n in models],
    }
    print(f"\n{'seconds at n =':<28}" + "".join(f"{n:>10}" for n in models) + f"{'exponent':>10}")
    for name, requests in series.items():
        found = [measured(n, count, memory_gib, options.repeats) for n, count in zip(models, requests, strict=True)]
        seconds = [one["seconds"] for one in found]
        slope = exponent(zip(models, seconds, strict=True))
        print(
            f"{name:<28}"
            + "".join(f"{one:>10.3f}" for one in seconds)
            + f"{slope:>10.2f}"
            + said(f"at most {EXPONENT_GOAL}", has_goals(memory_gib, options)),
            flush=True,
        )


def print_largest(sizes, memory_gib, options):
    num_models, num_requests = sizes.largest
    if num_models <= options.max_models:
        found = measured(num_models, num_requests, memory_gib, 1)
        print(
            f"\n{num_models} models, {found['num_requests']:,} requests: {found['seconds']:.2f} s, peak memory "
            f"{found['peak_gib']:.2f} GiB, attains {found['attainment']:.4f}"
            + said(f"at most {LARGEST_GOAL}", has_goals(memory_gib, options)),
            flush=True,
        )


def number(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {value}")
    return value


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=number, default=3, help="runs of which the median is taken")
    parser.add_argument("--memory", type=number, nargs="+", default=[MEMORY_GIB], metavar="GIB", help="per device")
    parser.add_argument("--max-models", type=number, default=math.inf, metavar="N", help="leave out larger sizes")
    parser.add_argument("--quick", action="store_true", help="small sizes, which say nothing about speed")
    parser.add_argument("--one", type=number, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        print(json.dumps(run_one(*options.one, options.repeats)))
        return
    sizes = QUICK if options.quick else FULL
    print(
        f"ModelParallelismSearch(max_pp={MAX_PP}, max_op={MAX_OP}), Python {sys.version.split()[0]}, "
        f"{os.cpu_count()} cores, medians of {options.repeats}"
    )
    for memory_gib in options.memory:
        print(f"\nn models on n devices of {memory_gib} GiB")
        print_compared(sizes, memory_gib, options)
        print_growth(sizes, memory_gib, options)
        print_largest(sizes, memory_gib, options)


if __name__ == "__main__":
    main()
