"""How long a function trace takes to read and to replay: synthetic data of the size of the public v2 trace.

``python benchmarks/function_replay.py`` makes 2 million invocations of 400 functions over 14 days (gamma distributed
gaps, cv 2), writes them as the raw file, and prints a table: reading the raw file, loading what was made of it, and
replaying all of it for 32 models, with the requests that come out and the peak memory so far. The
last lines time the fits alone beside those of scipy.stats, of which a sample is timed. ``--quick`` takes 20,000
invocations, only to show that it runs.
"""

import argparse
import resource
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

from alpa_serve.simulator.arrivals import GammaProcess
from alpa_serve.trace import Trace, preprocess_azure_v2_trace
from alpa_serve.trace.functions.fits import fit_gamma_shapes, interval_gaps
from alpa_serve.trace.functions.raw_files import V2_FILE

DAYS, CV, INTERVAL_S, NUM_MODELS, SEED = 14, 2.0, 600, 32, 1
NUM_FUNCTIONS = 400
NUM_INVOCATIONS, QUICK_INVOCATIONS = 2_000_000, 20_000
SCIPY_SAMPLE = 300


def write_raw(folder, num_invocations):
    """Write a raw v2 file; return the number of its rows."""
    random = np.random.default_rng(SEED)
    seconds = DAYS * 86400
    shares = random.pareto(1.2, NUM_FUNCTIONS) + 0.05
    rates = num_invocations / seconds * shares / shares.sum()
    times, functions = [], []
    for function, rate in enumerate(rates):
        arrivals = GammaProcess(rate, CV).generate_arrivals(0, seconds, SEED + function)
        times.append(arrivals)
        functions.append(np.full(len(arrivals), function))
    arrival, function = np.concatenate(times), np.concatenate(functions)
    end = arrival + random.exponential(1.0, len(arrival))
    rows = [
        f"app{f % 119:064d},func{f:064d},{e:.9f},{e - a:.9f}\n"
        for f, a, e in zip(function[np.argsort(end)], np.sort(arrival), np.sort(end), strict=True)
    ]
    with (folder / V2_FILE).open("w", encoding="utf-8") as file:
        file.write("app,func,end_timestamp,duration\n")
        file.writelines(rows)
    return len(rows)


def timed(label, run, result=lambda value: ""):
    """Print a line of the table and return what `run` returns."""
    start = time.perf_counter()
    value = run()
    seconds = time.perf_counter() - start
    # KiB, except on macOS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"{label:<34}{seconds:>10.3f}{peak / 2**20:>10.0f}  {result(value)}", flush=True)
    return value


def scipy_fits(arrivals, edges):
    """Fit gamma distributions by scipy.stats to the first intervals; return how many."""
    from scipy import stats

    ends = np.searchsorted(arrivals, edges[: SCIPY_SAMPLE + 1])
    gaps = [np.diff(arrivals[low:high]) + 1e-6 for low, high in pairwise(ends)]
    return sum(len(stats.gamma.fit(own, floc=0)) == 3 for own in gaps if len(own) > 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few invocations, only to show that it runs")
    quick = parser.parse_args().quick
    models = [f"m{i}" for i in range(NUM_MODELS)]
    print(f"{'':<34}{'seconds':>10}{'peak MiB':>10}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        invocations = QUICK_INVOCATIONS if quick else NUM_INVOCATIONS
        timed("write the raw file", lambda: write_raw(folder, invocations), lambda rows: f"{rows} invocations")
        path = timed("read it: preprocess_azure_v2_trace", lambda: preprocess_azure_v2_trace(folder))
        trace = timed("load: Trace", lambda: Trace("azure_v2", path), lambda trace: f"{len(trace.trace)} functions")
    for distribution in ("vanilla", "exponential", "gamma"):
        timed(
            f"replay: {distribution}",
            lambda distribution=distribution: trace.replay(
                models, arrival_distribution=distribution, interval_seconds=INTERVAL_S, seed=SEED
            ),
            lambda replays: f"{sum(map(len, replays.values()))} requests",
        )
    arrivals = trace.replay_vanilla(["all"])["all"].arrivals
    edges = np.arange(0, DAYS * 86400 + 1, INTERVAL_S, dtype=np.float64)
    timed(
        "gamma fits of all intervals",
        lambda: fit_gamma_shapes(interval_gaps(arrivals, edges)),
        lambda shapes: f"{np.isfinite(shapes).sum()} intervals",
    )
    timed("by scipy.stats, the first ones", lambda: scipy_fits(arrivals, edges), lambda count: f"{count} intervals")


if __name__ == "__main__":
    main()
