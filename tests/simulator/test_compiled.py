import os
import subprocess
import sys
from pathlib import Path

import alpa_serve

CODE = """
import numba

def no_cache(*args, cache=False, **kwargs):
    if cache:
        raise RuntimeError("cannot cache function: no locator available")
    return real(*args, **kwargs)

real, numba.njit = numba.njit, no_cache
from alpa_serve.placement import ModelPlacement
from alpa_serve.profiling import load_test_prof_result
from alpa_serve.simulator.controller import approximate_one_case_one_placement

run = approximate_one_case_one_placement(
    ModelPlacement([(1, 1, 1)], [[0]]), ["m"], [load_test_prof_result("test-2GB-100ms")], [0], [1.0], [0.0]
)
print(run.finish[0])
"""


def test_kernels_run_where_no_cache_can_be_written():
    root = str(Path(alpa_serve.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    # one stage of 100 ms with the pipeline penalty, and the fixed overhead
    assert abs(float(done.stdout) - (0.1 * 1.009 + 0.011)) < 1e-12
