"""``python -m alpa_serve.run``: what it refuses before it starts anything, and how it serves and ends."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from functools import partial

import psutil
import pytest

from alpa_serve.placement import ModelPlacement
from alpa_serve.placement_json import to_json
from alpa_serve.profiles import csv_form
from alpa_serve.profiling import ParallelConfig, ProfilingResult
from alpa_serve.run import main

START_S = 90


@pytest.fixture
def placement_file(tmp_path):
    path = tmp_path / "placement.json"
    path.write_text(to_json(ModelPlacement([ParallelConfig(1, 1, 1)], [[0, 1]]), ["llama-2-7b", "other"]))
    return path


REFUSED = [
    (["--port", "70000"], "port must be at most 65535"),
    (["--root-path", "x"], "root_path must start with '/'"),
    (["--ssl-keyfile", "key.pem"], "TLS needs both"),
    (["--api-key-file", "absent.txt"], "absent.txt"),
    (["--placement", "absent.json"], "absent.json: cannot be read"),
    (["--profile", "a=llama-2-7b"], "go with --placement"),
    (["--backend", "a=http://127.0.0.1:1/v1"], "go with --placement"),
    (["--backend-api-key-file", "a=key"], "go with --placement"),
    (["--with-gpus"], "go with --placement"),
    (["--max-queue", "0"], "max_queue must be"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSED, ids=[" ".join(arguments) for arguments, _ in REFUSED])
def test_what_is_wrong_with_the_arguments_is_said_before_anything_starts(arguments, said, capsys):
    assert main(arguments) == 2
    assert said in capsys.readouterr().err


BACKEND = ["--backend", "other=http://127.0.0.1:1/v1"]
REFUSED_MODELS = [
    ([], "model 'other': unknown model 'other'"),
    (["--profile", "nobody=llama-2-7b"], "nobody"),
    (["--profile", "other"], "NAME="),
    (["--profile", "other=nothing"], "unknown model 'nothing'"),
    (["--profile", "other=gptj-6b", "--backend", "other=http://127.0.0.1:1"], "both a --profile and a --backend"),
    (["--backend", "other=ftp://127.0.0.1"], "http"),
    ([*BACKEND, "--backend-api-key-file", "other"], "NAME=FILE is wanted, got 'other'"),
    ([*BACKEND, "--backend-api-key-file", "other=absent.txt"], "absent.txt"),
    ([*BACKEND, "--backend-api-key-file", f"llama-2-7b={__file__}"], "unknown model with a --backend 'llama-2-7b'"),
    ([*BACKEND, "--backend-api-key-file", f"other={__file__}"], "api_key of model 'other' must be"),
    (["--profile", "other=gptj-6b", "--mem-budget", "1"], "mem_budget is 1.00 GiB"),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSED_MODELS)
def test_a_placement_whose_models_cannot_be_served_is_refused(placement_file, arguments, said, capsys):
    assert main(["--placement", str(placement_file), *arguments]) == 2
    assert said in capsys.readouterr().err


class DeployedError(Exception):
    pass


@pytest.fixture
def deployed(monkeypatch):
    """Return deployed(*arguments) -> the keyword arguments of the deployment, which is not begun."""
    import ray

    from alpa_serve import ray_connection
    from alpa_serve.runtime import deploy

    given = {}
    monkeypatch.delenv("ALPA_SERVE_API_KEY", raising=False)

    def note(*_, **options):
        given.update(options)
        raise DeployedError

    monkeypatch.setattr(deploy, "deploy", note)
    monkeypatch.setattr(ray_connection, "connect", lambda *_, **__: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(*arguments):
        with pytest.raises(DeployedError):
            main(list(arguments))
        return given

    return run


@pytest.mark.parametrize(("arguments", "with_gpus"), [([], False), (["--no-gpus"], False), (["--with-gpus"], True)])
def test_gpus_are_set_aside_only_where_that_is_asked_for(placement_file, deployed, arguments, with_gpus):
    assert deployed("--placement", str(placement_file), *BACKEND, *arguments)["with_gpus"] is with_gpus


def test_the_server_of_a_model_is_given_the_token_of_a_file(placement_file, deployed, tmp_path):
    path = tmp_path / "key"
    path.write_text("secret\n")
    given = deployed("--placement", str(placement_file), *BACKEND, "--backend-api-key-file", f"other={path}")
    model = given["model_defs"]["other"](ParallelConfig(1, 1, 1), (1, 1))
    assert model._api_key == "secret"
    # the token of the service itself is another one
    assert given["settings"].api_key is None


def test_the_name_of_the_controller_is_that_of_the_library(placement_file, deployed):
    from alpa_serve.controller import CONTROLLER_NAME

    assert deployed("--placement", str(placement_file), *BACKEND)["name"] == CONTROLLER_NAME == "controller"


@pytest.fixture
def slow_model(tmp_path):
    """Return the path of a profile of which a request takes two seconds."""
    profile = ProfilingResult("slow")
    profile.add_result(ParallelConfig(1, 1, 1), 1, [2.0], [1.0], [1.0])
    path = tmp_path / "slow.csv"
    csv_form.write_csv(profile, path)
    return path


@contextmanager
def serving(tmp_path, placement_file, slow_model):
    """Run the program, of which the model "other" takes two seconds; yield its process and its URL."""
    command = [sys.executable, "-m", "alpa_serve.run", "--port", "0", "--placement", placement_file]
    profiles = ["--profile", f"other=slow@{slow_model}"]
    environment = os.environ | {"ALPA_SERVE_API_KEY": "secret"}
    with subprocess.Popen(
        [*command, *profiles], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        watchdog = threading.Timer(START_S, server.kill)
        watchdog.start()
        try:
            line = server.stdout.readline()
            assert line.startswith("serving 2 models in 1 groups at http://127.0.0.1:"), line + server.stderr.read()
            yield server, line.split()[-1]
        finally:
            watchdog.cancel()
            server.kill()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)], ids=["SIGTERM", "SIGINT"]
)
def test_a_placement_is_served_until_a_signal_and_what_was_asked_before_is_answered(
    tmp_path, placement_file, slow_model, number
):
    with serving(tmp_path, placement_file, slow_model) as (server, url):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            post(url, {"model": "other"}, key="wrong")
        children = psutil.Process(server.pid).children(recursive=True)
        answers = []
        asking = threading.Thread(target=lambda: answers.append(post(url, {"model": "other", "idx": 7})))
        asking.start()
        time.sleep(0.5)
        server.send_signal(number)
        out, _ = server.communicate()
        asking.join()
    assert server.returncode == 0
    assert out.splitlines() == ["answering what was asked; once more to stop at once", "stopped"]
    assert [answer["idx"] for answer in answers] == [7]
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


@pytest.mark.slow
def test_a_signal_ends_the_service_while_its_controller_is_being_restarted(tmp_path, placement_file, slow_model):
    with serving(tmp_path, placement_file, slow_model) as (server, _):
        children = psutil.Process(server.pid).children(recursive=True)
        (controller,) = (child for child in children if "Controller" in "".join(child.cmdline()))
        controller.kill()
        server.send_signal(signal.SIGTERM)
        out, _ = server.communicate()
    assert server.returncode == 0
    assert out.splitlines()[-1] == "stopped"
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


@pytest.mark.slow
def test_a_second_signal_says_that_not_all_was_answered(tmp_path, placement_file, slow_model):
    with serving(tmp_path, placement_file, slow_model) as (server, url):
        children = psutil.Process(server.pid).children(recursive=True)
        asking = threading.Thread(target=partial(post_in_vain, url))
        asking.start()
        time.sleep(0.5)
        server.send_signal(signal.SIGINT)
        assert server.stdout.readline().startswith("answering what was asked")
        time.sleep(0.2)
        server.send_signal(signal.SIGINT)
        _, said = server.communicate()
        asking.join()
    assert server.returncode == 130
    assert "stopped before all that was asked was answered" in said
    assert "before the service was up" not in said
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def post_in_vain(url):
    with pytest.raises((ConnectionError, urllib.error.URLError)):
        post(url, {"model": "other"})


def post(url, fields, key="secret"):
    request = urllib.request.Request(
        url, json.dumps(fields).encode(), {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)
