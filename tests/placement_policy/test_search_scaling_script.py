import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "search_scaling.py"


def benchmark(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_quick_prints_a_table_an_exponent_and_the_largest_size_for_each_memory_size():
    result = benchmark("--quick", "--repeats", "1", "--memory", "24", "40", "--max-models", "8")
    assert (result.returncode, result.stderr) == (0, "")
    _, small, large = result.stdout.split("n models on n devices of ")
    for text, gib in ((small, 24), (large, 40)):
        assert text.startswith(f"{gib} GiB\n")
        assert re.search(r"\n +8 +1,999 +- +\d+\.\d{3} +\d+\.\d{3} +- +0\.\d{4}\n", text)
        assert re.search(r"\n200 requests per model +\d+\.\d{3} +\d+\.\d{3} +-?\d\.\d\d\n", text)
        assert "16 models" not in text


def test_sizes_that_are_none_are_refused():
    assert "must be a whole number >= 1, got 0" in benchmark("--memory", "0").stderr
