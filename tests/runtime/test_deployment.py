"""A deployment against a controller without Ray: what it does when the controller dies, and what it says it serves."""

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from alpa_serve.errors import GroupLostError, InvalidPlacementError, ServingError
from alpa_serve.placement import ClusterEnv, ModelData, ModelPlacement
from alpa_serve.profiling import ParallelConfig
from alpa_serve.runtime import deploy as deploy_module
from alpa_serve.runtime.deploy import MAX_ATTEMPTS, Deployment

UNAVAILABLE = ActorUnavailableError("being restarted", None)


class Controller:
    """Answers calls in order with what it is given: `answers` of apply_placement, and of ready."""

    def __init__(self):
        self.answers = {"apply_placement": [], "ready": []}
        self.info = {"url": "http://127.0.0.1:1/", "groups": {}, "group_configs": {}}
        self.calls = []

    def __getattr__(self, name):
        return Method(self, name)


class Method:
    def __init__(self, controller, name):
        self.controller, self.name = controller, name

    def remote(self, *args):
        if self.name == "get_info":
            return self.controller.info
        self.controller.calls.append(self.name)
        answers = self.controller.answers[self.name]
        return answers.pop(0) if answers else None


def get(answer):
    if isinstance(answer, BaseException):
        raise answer
    return answer


@pytest.fixture
def controller(monkeypatch):
    monkeypatch.setattr(deploy_module.ray, "get", get)
    return Controller()


@pytest.fixture
def deployed(controller, profile_of):
    datas = [ModelData(name, 1.0, 1.0, 1.0, profile_of({(1, 1, 1): {1: [0.02]}})) for name in "ab"]
    found = Deployment(controller, datas, ClusterEnv(4, 100.0))
    found.apply_placement(placement([0]))
    controller.calls.clear()
    return found


def placement(*groups):
    return ModelPlacement([ParallelConfig(1, 1, 1)] * len(groups), list(groups))


@pytest.mark.parametrize("error", [UNAVAILABLE, ActorDiedError()])
def test_a_change_is_given_to_the_successor_of_a_controller_that_dies(deployed, controller, error):
    controller.answers["apply_placement"] = [error, error]
    deployed.apply_placement(placement([0], [1]))
    assert controller.calls == ["apply_placement", "ready"] * 2 + ["apply_placement"]
    assert deployed.placement == placement([0], [1])


def test_a_controller_that_is_gone_is_not_asked_again(deployed, controller):
    controller.answers = {"apply_placement": [ActorDiedError()], "ready": [ActorDiedError()]}
    controller.info = ActorDiedError()
    with pytest.raises(ServingError, match="the service has ended"):
        deployed.apply_placement(placement([1]))
    assert controller.calls == ["apply_placement", "ready"]
    assert deployed.placement is None


def test_a_change_that_kills_every_controller_is_given_up(deployed, controller):
    controller.answers["apply_placement"] = [UNAVAILABLE] * 100
    with pytest.raises(ServingError, match=f"died {MAX_ATTEMPTS} times"):
        deployed.apply_placement(placement([1]))
    assert controller.calls.count("apply_placement") == MAX_ATTEMPTS


def test_ray_does_not_try_a_change_again_by_itself():
    # it could come after a later one
    from alpa_serve.runtime.controller_actor import Controller as Actor

    assert getattr(Actor.apply_placement, "__ray_max_task_retries__", 0) in (0, None)
    assert Actor.shutdown.__ray_max_task_retries__ == -1


def test_after_a_change_that_failed_half_way_the_placement_is_what_is_served(deployed, controller):
    controller.answers["apply_placement"] = [GroupLostError("group 1 died")]
    controller.info["groups"] = {0: ["b", "a"], 2: ["b", "of another program"], 3: ["a"]}
    controller.info["group_configs"] = {0: (1, 1, 1), 2: (1, 1, 1), 3: None}
    with pytest.raises(GroupLostError):
        deployed.apply_placement(placement([0, 1], [0], [1]))
    assert deployed.placement == placement([0, 1], [1])


def test_after_a_change_that_was_given_up_the_placement_is_not_known(deployed, controller):
    controller.answers["apply_placement"] = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        deployed.apply_placement(placement([1]))
    assert deployed.placement is None


def test_a_placement_that_is_refused_before_leaves_what_is_known(deployed, controller):
    with pytest.raises(InvalidPlacementError):
        deployed.apply_placement(placement([5]))
    assert controller.calls == []
    assert deployed.placement == placement([0])
