"""Run every test file in a process of its own, by pytest.

``python tests/run_all.py [--run-pattern TEXT] [--skip-pattern TEXT] [--order sorted|random|reverse_sorted]
[--time-limit-per-file SECONDS]``; exits with 0 if all files passed.
"""

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parent
NO_TESTS_COLLECTED = 5


def select(files, run_pattern, skip_pattern, order, seed=None):
    """Return the files to run, in order; patterns are regular expressions searched in the path below tests/."""
    names = sorted(
        file
        for file in files
        if (run_pattern is None or re.search(run_pattern, file))
        and (skip_pattern is None or not re.search(skip_pattern, file))
    )
    if order == "reverse_sorted":
        names.reverse()
    elif order == "random":
        random.Random(seed).shuffle(names)
    return names


def run_file(path, time_limit):
    """Run one file and return what went wrong, or None."""
    # a session of its own, so that what the tests start ends with them
    process = subprocess.Popen([sys.executable, "-m", "pytest", "-q", str(path)], start_new_session=True)
    try:
        code = process.wait(timeout=time_limit)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            return f"took longer than {time_limit:g} s"
        raise
    return None if code in (0, NO_TESTS_COLLECTED) else f"exit code {code}"


def pattern(text):
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"not a regular expression: {error}") from None
    return text


def main(argv=None, tests=TESTS):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-pattern", type=pattern, help="only files whose path matches")
    parser.add_argument("--skip-pattern", type=pattern, help="no files whose path matches")
    parser.add_argument("--order", choices=["sorted", "random", "reverse_sorted"], default="sorted")
    parser.add_argument("--time-limit-per-file", type=float, default=1000, metavar="SECONDS")
    options = parser.parse_args(argv)
    files = [path.relative_to(tests).as_posix() for path in tests.rglob("test_*.py")]
    names = select(files, options.run_pattern, options.skip_pattern, options.order)
    if not names:
        print("no test file matches", file=sys.stderr)
        return 1
    failures = {}
    start = time.monotonic()
    for name in names:
        print(f"==== {name}", flush=True)
        problem = run_file(tests / name, options.time_limit_per_file)
        if problem is not None:
            failures[name] = problem
    print(f"\n{len(names) - len(failures)} of {len(names)} test files passed in {time.monotonic() - start:.0f} s")
    for name, problem in failures.items():
        print(f"FAILED {name}: {problem}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
