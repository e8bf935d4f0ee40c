"""Time and memory of reading large trace files.

``python benchmarks/trace_reading.py`` makes a file in the form of the Azure LLM traces of 2024 in a temporary folder,
and reads it in full and in windows, each in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROWS_AT_ONCE = 500_000
START = np.datetime64("2024-05-10T00:00:00", "us")
MAX_SECONDS_PER_ROW = 10 / 5_000_000
MAX_BYTES = 2**30

READ = """
import json, resource, sys, time
import alpa_serve.trace.llm, pandas, pyarrow.csv
path, arguments = sys.argv[1], json.loads(sys.argv[2])
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
imported, start = peak(), time.perf_counter()
trace = alpa_serve.trace.llm.load_llm_trace(path, **arguments)
print(json.dumps([len(trace), time.perf_counter() - start, peak(), imported]))
"""


def write_azure_2024(path, num_rows, rate=100.0, seed=0):
    """Write a file in the form of 2024: zoned dates whose fraction is absent where it is 0."""
    rng = np.random.default_rng(seed)
    at = 0
    with Path(path).open("w", encoding="ascii", newline="") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        while num_rows:
            count = min(num_rows, ROWS_AT_ONCE)
            arrivals_us = at + np.cumsum(rng.exponential(1e6 / rate, count)).astype(np.int64)
            arrivals_us[::1000] = arrivals_us[::1000] // 1_000_000 * 1_000_000
            arrivals_us = np.sort(arrivals_us)
            stamps = np.datetime_as_string(START + arrivals_us.astype("timedelta64[us]")).tolist()
            inputs, outputs = rng.integers(1, 8000, count).tolist(), rng.integers(1, 1000, count).tolist()
            file.writelines(
                f"{stamp.replace('T', ' ').removesuffix('.000000')}+00:00,{inputs[i]},{outputs[i]}\n"
                for i, stamp in enumerate(stamps)
            )
            at = int(arrivals_us[-1])
            num_rows -= count
    return at / 1e6


def measure(path, **arguments):
    """Return (requests, seconds, peak bytes, bytes after importing) of reading in a process of its own."""
    command = [sys.executable, "-c", READ, str(path), json.dumps(arguments)]
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--quick", action="store_true", help="a twentieth of the rows")
    options = parser.parse_args()
    num_rows = options.rows // 20 if options.quick else options.rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "azure_2024.csv"
        duration = write_azure_2024(path, num_rows)
        middle, end = (START + np.timedelta64(int(s), "s") for s in (duration / 2, duration / 2 + 600))
        jobs = {
            "in full": {},
            "10 minutes, by dates": {"start": str(middle), "end": str(end)},
            "10 minutes, by seconds": {"start": duration / 2, "end": duration / 2 + 600},
            "the first 10,000 requests": {"max_rows": 10_000},
        }
        print(
            f"{num_rows:,} rows, {path.stat().st_size / 2**20:.0f} MiB, {duration / 3600:.1f} h, {os.cpu_count()} cores"
        )
        print(f"{'':<28}{'requests':>12}{'seconds':>10}{'peak MiB':>10}{'of it imports':>15}")
        for what, arguments in jobs.items():
            number, seconds, peak, imported = measure(path, **arguments)
            print(f"{what:<28}{number:>12,}{seconds:>10.2f}{peak / 2**20:>10.0f}{imported / 2**20:>15.0f}")
        print(f"at most {num_rows * MAX_SECONDS_PER_ROW:g} s and {MAX_BYTES / 2**20:.0f} MiB are wanted")


if __name__ == "__main__":
    main()
