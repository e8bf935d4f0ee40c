import subprocess
import sys

import pytest


def run(module, *arguments):
    command = [sys.executable, "-m", f"alpa_serve.experiments.{module}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["command_lists", "published", "vidur_accuracy"])
def test_a_script_runs_as_a_module(module):
    shown = run(module, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith(f"usage: {module}.py")


@pytest.mark.parametrize(
    ("module", "arguments"),
    [("command_lists", ["--configs", "absent"]), ("vidur_accuracy", ["compare", "absent", "absent"])],
)
def test_a_script_that_runs_as_a_module_ends_with_its_exit_code(module, arguments):
    refused = run(module, *arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "absent" in refused.stderr
