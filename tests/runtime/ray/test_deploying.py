"""From a placement to a service that real clients ask over real sockets."""

import subprocess

import openai
import pytest
import requests
from models_for_tests import BrokenModel, RecordingModel

from alpa_serve.errors import InfeasiblePlacementError, InvalidConfigError, InvalidPlacementError, ServingError
from alpa_serve.placement import ClusterEnv, ModelData, ModelPlacementWithReplacement
from alpa_serve.placement_json import to_json
from alpa_serve.profiling import load_test_prof_result
from alpa_serve.runtime.deploy import deploy
from alpa_serve.runtime.launching import run_controller
from alpa_serve.runtime.settings import ServerSettings
from alpa_serve.util import GB


def post(url, **fields):
    return requests.post(url, json=fields, timeout=30)


def test_a_placement_is_served_at_its_profiled_pace(local_ray, placement_of):
    profile = load_test_prof_result("alpa/bert-1.3b")
    datas = [ModelData(f"m{i}", 1.0, 1.0, 1.0, profile) for i in range(2)]
    with deploy(placement_of((1, [0]), (2, [0, 1])), datas, ClusterEnv(4, 8 * GB)) as served:
        info = local_ray.get(served.controller.get_info.remote())
        assert info["models"] == {"m0": [0, 1], "m1": [1]}
        assert info["groups"] == {0: ["m0"], 1: ["m0", "m1"]}
        answer = post(served.url, model="m1", idx=7).json()
        assert (answer["model"], answer["idx"]) == ("m1", 7)
        assert answer["latency_s"] == pytest.approx(0.103, abs=1e-6)
        assert post(served.url, model="m1", slo=0.05).json() == {"rejected": True}
        assert post(served.url, model="m1", slo=5).json()["model"] == "m1"
        assert post(served.url, model="m2").status_code == 404


def test_a_file_with_a_placement_is_served_too(serve, placement_of, tmp_path):
    placement = placement_of((2, [0, 2]))
    path = tmp_path / "placement.json"
    path.write_text(to_json(placement, ["a", "b", "c"]))
    deployed, service = serve(str(path))
    assert deployed.placement == placement
    assert service.info["groups"] == {0: ["a", "c"]}
    assert post(deployed.url, model="c").status_code == 200
    # registered, but in no group
    assert post(deployed.url, model="b").status_code == 503


def test_the_placements_of_a_schedule_take_over_from_one_another(serve, placement_of):
    first, second = placement_of((1, [0])), placement_of((1, [0, 1]))
    schedule = ModelPlacementWithReplacement([0.0, 0.2], [first, second])
    deployed, service = serve(schedule)
    assert service.info["groups"] == {0: ["a"]}
    deployed.follow(schedule)
    assert deployed.placement == second
    assert service.info["groups"] == {0: ["a", "b"]}


def test_a_warm_up_measures_emulated_models_at_their_profile(serve, placement_of):
    deployed, service = serve(placement_of((1, [0]), (2, [0, 1])))
    scales = deployed.warmup()
    assert {name: sorted(by_group) for name, by_group in scales.items()} == {"a": [0, 1], "b": [1], "c": []}
    measured = [scale for by_group in scales.values() for scale in by_group.values()]
    assert measured == pytest.approx([1.0] * 3)
    assert service.info["latency_scales"] == scales


def test_the_client_of_openai_lists_completes_and_streams(serve, placement_of):
    deployed, _ = serve(placement_of((1, [0, 1])))
    with openai.OpenAI(base_url=f"{deployed.url}v1", api_key="any", max_retries=0, timeout=30) as client:
        assert [model.id for model in client.models.list()] == ["a", "b", "c"]
        whole = client.completions.create(model="a", prompt="one two", max_tokens=5)
        assert len(whole.choices[0].text.split()) == whole.usage.completion_tokens == 5
        pieces = client.completions.create(model="b", prompt="one two", max_tokens=5, stream=True)
        assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == whole.choices[0].text
        messages = [{"role": "user", "content": "one two"}]
        chat = client.chat.completions.create(model="a", messages=messages, max_tokens=5)
        assert len(chat.choices[0].message.content.split()) == 5
        pieces = client.chat.completions.create(model="a", messages=messages, max_tokens=5, stream=True)
        said = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
        assert "".join(said) == chat.choices[0].message.content
        with pytest.raises(openai.NotFoundError, match="no model 'd'"):
            client.completions.create(model="d", prompt="")


def test_models_of_ones_own_stand_in_for_emulated_ones(serve, placement_of, recorded):
    class Shape:
        # what is defined within a function cannot be imported by the process of a group
        def __init__(self, config, shape):
            self.answer = {"config": list(config), "shape": list(shape)}

        async def handle_request(self, request):
            return self.answer

    deployed, _ = serve(placement_of((2, [0, 1])), model_defs={"a": Shape})
    assert post(deployed.url, model="a").json() == {"config": [1, 1, 2], "shape": [1, 2]}
    assert post(deployed.url, model="b").json()["model"] == "b"


def test_what_cannot_be_served_is_refused_before_anything_runs(local_ray, serve, placement_of, profile_of):
    with pytest.raises(InvalidPlacementError):
        serve(placement_of((2, [0])), cluster=ClusterEnv(1, 100.0))
    with pytest.raises(InvalidConfigError, match="unknown model 'd'; models: a, b, c"):
        serve(placement_of((1, [0])), model_defs={"d": BrokenModel})
    with pytest.raises(InvalidPlacementError, match="got 5"):
        serve(5)
    profile = profile_of({(1, 1, 1): {1: [0.02]}})
    with pytest.raises(InvalidConfigError, match="names must differ"):
        deploy(placement_of((1, [0])), [ModelData("a", 1.0, 1.0, 1.0, profile)] * 2, ClusterEnv(1, 100.0))
    assert not local_ray.util.list_named_actors(all_namespaces=True)


def test_a_deployment_whose_model_cannot_be_made_leaves_nothing(serve, placement_of):
    with pytest.raises(InvalidConfigError, match="model 'b' cannot be made in group 1: OSError: no such weights"):
        serve(placement_of((1, [0]), (1, [1])), model_defs={"b": BrokenModel})


def test_a_model_that_cannot_be_made_leaves_the_others_as_they_are(start, recorded):
    models = {"good": (RecordingModel, [recorded.path]), "broken": (BrokenModel,), "no model": (object,)}
    service = start(models, {0: ["good"]})
    with pytest.raises(InvalidConfigError, match="model 'broken' cannot be made in group 0: OSError: no such weights"):
        service.call("create_replica", "broken", 0)
    with pytest.raises(InvalidConfigError, match="makes a object, which has no handle_request"):
        service.call("create_replica", "no model", 0)
    assert service.info["groups"] == {0: ["good"]}
    assert post(service.url, model="good").status_code == 200
    assert post(service.url, model="broken").status_code == 503


def test_a_port_or_a_name_that_is_taken_is_refused(local_ray, start):
    service = start(name="one")
    port = service.info["port"]
    with pytest.raises(InvalidConfigError, match=str(port)):
        run_controller("127.0.0.1", port, name="other")
    with pytest.raises(InvalidConfigError, match="'one' runs already"):
        run_controller("127.0.0.1", name="one")
    assert requests.get(f"{service.url}healthz", timeout=30).json()["status"] == "ok"

    class Stranger:
        pass

    stranger = local_ray.remote(Stranger).options(name="stranger", num_cpus=0).remote()
    with pytest.raises(InvalidConfigError, match="'stranger'"):
        run_controller("127.0.0.1", name="stranger")
    local_ray.kill(stranger)


def test_two_controllers_serve_side_by_side(start, recorded):
    models = {"a": (RecordingModel, [recorded.path])}
    one, other = start(models, {0: ["a"]}), start(models, {0: ["a"]})
    pids = [post(service.url, model="a").json()["pid"] for service in (one, other)]
    assert pids[0] != pids[1]
    one.call("shutdown")
    assert post(other.url, model="a").json()["pid"] == pids[1]


def test_a_controller_takes_the_name_and_the_port_of_one_that_was_shut_down(start):
    first = start(name="again")
    port = first.info["port"]
    first.call("shutdown")
    second = start(name="again", port=port)
    assert second.info["port"] == port
    assert requests.get(f"{second.url}healthz", timeout=30).status_code == 200


def test_all_routes_are_under_the_root_path(start, recorded):
    service = start({"a": (RecordingModel, [recorded.path])}, {0: ["a"]}, root_path="/api/serve")
    info = service.info
    assert info["url"] == f"http://127.0.0.1:{info['port']}/api/serve/"
    assert post(info["url"], model="a").status_code == 200
    assert requests.get(f"{info['url']}v1/models", timeout=30).json()["data"][0]["id"] == "a"
    assert post(f"http://127.0.0.1:{info['port']}/", model="a").status_code == 404


@pytest.fixture
def certificate(tmp_path):
    """Return the files of a key and of a certificate for 127.0.0.1."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = "-subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 {names}"
    try:
        subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl to make a certificate with")
    return str(key), str(certificate)


def test_tls_and_the_api_key_hold_for_the_whole_service(start, recorded, certificate):
    key, file = certificate
    service = start(
        {"a": (RecordingModel, [recorded.path])},
        {0: ["a"]},
        ssl_keyfile=key,
        ssl_certfile=file,
        settings=ServerSettings(api_key="secret"),
    )
    url = service.url
    assert url.startswith("https://127.0.0.1:")

    def ask(**headers):
        return requests.post(url, json={"model": "a"}, verify=file, headers=headers, timeout=30).status_code

    assert ask(Authorization="Bearer secret") == 200
    assert ask() == ask(Authorization="Bearer other") == 401
    with pytest.raises(requests.exceptions.SSLError):
        # signed by nobody whom the client trusts
        requests.get(f"{url}healthz", timeout=30)


def test_gpus_that_ray_does_not_have_are_not_waited_for_longer_than_said(serve, placement_of):
    with pytest.raises(InfeasiblePlacementError, match=r"no room for \[\{'GPU': 2.0\}\] within 0.5 s"):
        serve(placement_of((2, [0])), with_gpus=True, settings=ServerSettings(devices_timeout_s=0.5))


def test_after_the_shutdown_every_call_says_so_and_a_second_one_does_no_harm(start, recorded):
    service = start({"a": (RecordingModel, [recorded.path])}, {0: ["a"]})
    service.call("shutdown")
    service.call("shutdown")
    for method, *args in (
        ("register_model", "b", RecordingModel),
        ("create_mesh_group_manager", 1),
        ("create_replica", "a", 0),
        ("handle_request", {"model": "a"}),
        ("warmup",),
        ("ready",),
    ):
        with pytest.raises(ServingError, match="was shut down"):
            service.call(method, *args)
    info = service.info
    assert info["closed"]
    assert not info["models"]
    assert not info["groups"]
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{info['url']}healthz", timeout=30)


def test_a_deployment_is_shut_down_twice_without_harm(serve, placement_of):
    deployed, _ = serve(placement_of((1, [0])))
    deployed.shutdown()
    deployed.shutdown()
