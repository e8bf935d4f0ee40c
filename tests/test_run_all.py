import subprocess
import sys
from pathlib import Path

import pytest

RUN_ALL = Path(__file__).with_name("run_all.py")
FILES = {
    "test_passes.py": "def test_one():\n    assert True\n",
    "test_fails.py": "def test_one():\n    assert False\n",
    "test_hangs.py": "import time\n\n\ndef test_one():\n    time.sleep(60)\n",
}


@pytest.fixture
def suite(tmp_path):
    """Return a function that runs a copy of the runner beside three small test files."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    runner = tmp_path / "run_all.py"
    runner.write_text(RUN_ALL.read_text(encoding="utf-8"), encoding="utf-8")

    def run(*arguments):
        done = subprocess.run([sys.executable, str(runner), *arguments], capture_output=True, text=True, cwd=tmp_path)
        ran = [line.removeprefix("==== ") for line in done.stdout.splitlines() if line.startswith("==== ")]
        return done, ran

    return run


def test_passing_files_give_exit_code_0(suite):
    done, ran = suite("--run-pattern", "passes")
    assert (done.returncode, ran) == (0, ["test_passes.py"])


def test_a_failing_file_gives_exit_code_1_and_is_named(suite):
    done, ran = suite("--skip-pattern", "hangs")
    assert (done.returncode, ran) == (1, ["test_fails.py", "test_passes.py"])
    assert "FAILED test_fails.py" in done.stdout


def test_a_file_over_the_time_limit_fails_and_is_named(suite):
    done, ran = suite("--run-pattern", "hangs", "--time-limit-per-file", "3")
    assert (done.returncode, ran) == (1, ["test_hangs.py"])
    assert "FAILED test_hangs.py: took longer than 3 s" in done.stdout


def test_the_order_can_be_reversed(suite):
    _, ran = suite("--skip-pattern", "hangs", "--order", "reverse_sorted")
    assert ran == ["test_passes.py", "test_fails.py"]


def test_a_pattern_that_matches_nothing_fails(suite):
    done, ran = suite("--run-pattern", "no such file")
    assert done.returncode == 1
    assert not ran
    assert "no test file matches" in done.stderr
