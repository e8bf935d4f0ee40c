from functools import partial

import numpy as np
import pytest

from alpa_serve.errors import InvalidConfigError, InvalidPlacementError, InvalidProfileError, InvalidWorkloadError
from alpa_serve.profiles import maveriq
from alpa_serve.profiling import ParallelConfig
from alpa_serve.scheduling import ALPASERVE, ServingRules
from alpa_serve.simulator.controller import Controller
from alpa_serve.simulator.delays import draw_delays
from alpa_serve.simulator.event_loop import clock, current_loop, run_event_loop, sleep
from alpa_serve.simulator.executable import Executable
from alpa_serve.simulator.workload import Request

EXACT = ServingRules(fixed_overhead_s=0.0, stage_penalty=0.0)
ONE, PIPELINE = ParallelConfig(1, 1, 1), ParallelConfig(1, 1, 2)


class Echo:
    async def handle_request(self, request):
        return request.data


class Adder:
    def __init__(self, amount, *, nap=0.0):
        self.amount, self.nap = amount, nap

    def get_latency_dict(self):
        return {1: [self.nap]}

    async def handle_request(self, request):
        await sleep(self.nap)
        return request.data + self.amount


def request_for(model, data=None, slo=None):
    return Request(model, data, slo, 0, {})


def ask(controller, *requests):
    """Send all requests at once; (answer, time of response) of each."""

    async def one(request):
        outcome = await controller.serve(request)
        return outcome.answer, outcome.finish

    async def main():
        tasks = [current_loop().spawn(one(request)) for request in requests]
        return [await task for task in tasks]

    return run_event_loop(main())


@pytest.fixture
def profile(profile_of):
    return profile_of({(1, 1, 1): {1: [1.0]}, (1, 1, 2): {1: [1.0, 2.0]}})


def test_plain_models_answer_what_they_are_asked():
    controller = Controller(EXACT)
    controller.register_model.remote("echo", Echo)
    controller.register_model.remote("add one", Adder, [1])
    controller.register_model.remote("add", Adder, init_kwargs={"nap": 2.0})
    for group_id in (0, 1):
        controller.create_mesh_group_manager.remote(group_id)
    controller.create_replica.remote("echo", 0)
    controller.create_replica.remote("add one", 0)
    controller.create_replica.remote("add", 1, [10])
    controller.sync()
    answers = ask(controller, request_for("echo", "hello"), request_for("add one", 41), request_for("add", 32))
    assert answers == [("hello", 0.0), (42, 0.0), (42, 2.0)]


def test_requests_go_to_the_replica_that_is_free_first():
    controller = Controller(EXACT)
    controller.register_model("slow", partial(Adder, 0, nap=1.0))
    for group_id in range(3):
        controller.create_mesh_group_manager(group_id)
        controller.create_replica("slow", group_id)

    async def groups():
        outcomes = [controller.serve(request_for("slow", 0)) for _ in range(6)]
        tasks = [current_loop().spawn(outcome) for outcome in outcomes]
        return [(await task).group_id for task in tasks]

    assert run_event_loop(groups()) == [0, 1, 2, 0, 1, 2]


def test_a_request_that_would_be_late_is_dropped_and_one_for_an_unknown_model_too(profile):
    controller = Controller(EXACT)
    controller.register_model("m", partial(Executable, profile))
    controller.create_mesh_group_manager(0, (1, 1))
    controller.create_replica("m", 0, [ONE, (1, 1)])

    async def outcomes():
        wanted = [request_for("m", slo=slo) for slo in (1.5, 1.5, 2.0)] + [request_for("nobody")]
        tasks = [current_loop().spawn(controller.serve(request)) for request in wanted]
        return [(await task)[:3] for task in tasks]

    assert run_event_loop(outcomes()) == [(True, 1.0, 0), (False, 0.0, 0), (True, 2.0, 0), (False, 0.0, -1)]


def test_the_answer_of_a_request_that_is_not_served_says_so(profile):
    controller = Controller(EXACT)
    controller.register_model("m", partial(Executable, profile))
    controller.register_model("echo", Echo)
    controller.create_mesh_group_manager(0, (1, 1))
    controller.create_replica("m", 0, [ONE, (1, 1)])
    controller.create_replica("echo", 0)

    async def answers():
        requests = [request_for("echo", 7), request_for("m", slo=0.5), request_for("nobody")]
        return [await controller.handle_request.remote(request) for request in requests]

    assert run_event_loop(answers()) == [7, {"rejected": True}, {"rejected": True}]


def test_tokens_that_are_needed_but_absent_are_named():
    controller = Controller(ServingRules(service="tokens"))
    controller.register_model("falcon-40b", partial(Executable, maveriq.load("falcon-40b")))
    controller.create_mesh_group_manager(0, (1, 8))
    controller.create_replica("falcon-40b", 0, [ParallelConfig(1, 4, 2), (1, 8)])
    with pytest.raises(InvalidWorkloadError, match=r"request 0 for model 'falcon-40b' has input_tokens=None"):
        run_event_loop(controller.handle_request(request_for("falcon-40b")))


def test_replicas_of_a_group_share_its_devices_and_those_of_others_do_not(profile):
    controller = Controller(EXACT)
    for name in ("a", "b"):
        controller.register_model(name, partial(Executable, profile))
    for group_id in (0, 1):
        controller.create_mesh_group_manager(group_id, (1, 2))
    controller.create_replica("a", 0, [PIPELINE, (1, 2)])
    controller.create_replica("b", 0, [PIPELINE, (1, 2)])
    assert [finish for _, finish in ask(controller, request_for("a"), request_for("b"))] == [3.0, 5.0]
    apart = Controller(EXACT)
    for group_id, name in enumerate(("a", "b")):
        apart.register_model(name, partial(Executable, profile))
        apart.create_mesh_group_manager(group_id, (1, 2))
        apart.create_replica(name, group_id, [PIPELINE, (1, 2)])
    assert [finish for _, finish in ask(apart, request_for("a"), request_for("b"))] == [3.0, 3.0]


def test_models_of_one_group_may_be_split_differently(profile):
    controller = Controller(EXACT)
    for name in ("split", "whole"):
        controller.register_model(name, partial(Executable, profile))
    controller.create_mesh_group_manager(0, (1, 2))
    controller.create_replica("split", 0, [PIPELINE, (1, 2)])
    controller.create_replica("whole", 0, [ONE, (1, 2)])
    # "whole" works on the device of the first stage only, between the two requests that are split
    answers = ask(controller, *map(request_for, ("split", "whole", "split")))
    assert [finish for _, finish in answers] == [3.0, 2.0, 5.0]


def test_a_model_without_latencies_shares_a_group_with_one_that_has_them(profile):
    controller = Controller(EXACT)
    controller.register_model("m", partial(Executable, profile))
    controller.register_model("echo", Echo)
    controller.create_mesh_group_manager(0, (1, 2))
    controller.create_replica("echo", 0)
    controller.create_replica("m", 0, [PIPELINE, (1, 2)])
    answers = ask(controller, request_for("m"), request_for("echo", 7), request_for("m"))
    assert answers == [(None, 3.0), (7, 0.0), (None, 5.0)]


def test_information_names_models_and_groups():
    controller = Controller()
    controller.register_model("echo", Echo)
    controller.register_model("idle", Echo)
    for group_id in (3, 1):
        controller.create_mesh_group_manager(group_id)
        controller.create_replica("echo", group_id)
    assert controller.get_info() == {"models": {"echo": [1, 3], "idle": []}, "groups": {3: ["echo"], 1: ["echo"]}}


def test_a_latency_dictionary_needs_batch_size_1():
    class Batched(Echo):
        def get_latency_dict(self):
            return {2: [0.1], 4: [0.2]}

    controller = Controller()
    controller.register_model("batched", Batched)
    controller.create_mesh_group_manager(0)
    with pytest.raises(InvalidConfigError, match=r"model 'batched'.*no batch size 1.*\[2, 4\]"):
        controller.create_replica("batched", 0)
    assert controller.get_info()["groups"] == {0: []}


def test_registrations_that_make_no_sense_are_refused(profile):
    controller = Controller()
    controller.register_model("m", partial(Executable, profile))
    with pytest.raises(InvalidConfigError, match="model 'm' is registered already; pass override"):
        controller.register_model("m", Echo)
    controller.register_model("m", Echo, override=True)
    with pytest.raises(InvalidConfigError, match="model 'x': model_def must be callable, got 3"):
        controller.register_model("x", 3)
    controller.create_mesh_group_manager(0, (1, 2))
    with pytest.raises(InvalidPlacementError, match="group 0 exists"):
        controller.create_mesh_group_manager(0)
    with pytest.raises(InvalidPlacementError, match="'nobody': not registered; registered: m"):
        controller.create_replica("nobody", 0)
    with pytest.raises(InvalidPlacementError, match="replica of 'm': no group 5"):
        controller.create_replica("m", 5)
    controller.create_replica("m", 0)
    with pytest.raises(InvalidPlacementError, match="group 0 has a replica of 'm' already"):
        controller.create_replica("m", 0)
    controller.register_model("no handler", partial(dict, a=1))
    with pytest.raises(InvalidConfigError, match="makes a dict, which has no handle_request"):
        controller.create_replica("no handler", 0)
    controller.register_model("unprofiled", partial(Executable, profile))
    with pytest.raises(InvalidProfileError, match="not profiled"):
        controller.create_replica("unprofiled", 0, [ParallelConfig(1, 4, 1), (1, 4)])
    controller.register_model("too large", partial(Executable, profile))
    controller.create_mesh_group_manager(1, (1, 1))
    with pytest.raises(InvalidPlacementError, match="need 2 devices"):
        controller.create_replica("too large", 1, [PIPELINE, (1, 2)])


def test_a_replica_that_was_refused_leaves_nothing_behind(profile):
    controller = Controller()
    controller.register_model("m", partial(Executable, profile))
    controller.create_mesh_group_manager(0, (1, 1))
    with pytest.raises(InvalidPlacementError):
        controller.create_replica("m", 0, [PIPELINE, (1, 2)])
    assert controller.get_info() == {"models": {"m": []}, "groups": {0: []}}
    controller.create_replica("m", 0, [ONE, (1, 1)])


def test_an_error_of_a_model_reaches_the_caller():
    class Broken:
        async def handle_request(self, request):
            raise ValueError(f"no answer to {request.data}")

    controller = Controller()
    controller.register_model("broken", Broken)
    controller.create_mesh_group_manager(0)
    controller.create_replica("broken", 0)

    async def main():
        await sleep(1)
        await controller.handle_request(request_for("broken", 7))

    with pytest.raises(ValueError, match="no answer to 7"):
        run_event_loop(main())


def test_delays_have_alpaserves_means_and_deviation():
    source = draw_delays(ALPASERVE)
    drawn = np.array([next(source) for _ in range(50_000)])
    assert drawn.mean(axis=0) == pytest.approx([0.0025, 0.0025, 0.005], rel=0.01)
    assert drawn.std(axis=0) == pytest.approx([0.0005] * 3, rel=0.02)
    assert drawn.min() >= 0


def test_delays_follow_the_seed_and_vanish_with_the_overhead_or_the_jitter():
    def first(**options):
        source = draw_delays(ServingRules(**options))
        return [next(source) for _ in range(5)]

    assert first(seed=1) == first(seed=1) != first(seed=2)
    # however large the jitter, nothing arrives before it was sent
    assert min(min(delays) for delays in first(overhead_jitter=3.0)) >= 0
    assert first(fixed_overhead_s=0.0) == [(0.0, 0.0, 0.0)] * 5
    assert first(fixed_overhead_s=0.022, overhead_jitter=0.0) == [pytest.approx((0.005, 0.005, 0.01))] * 5


def test_delays_go_on_where_an_earlier_controller_left_off():
    whole = draw_delays(ALPASERVE)
    drawn = [next(whole) for _ in range(5000)]
    rest = draw_delays(ALPASERVE, num_earlier=4990)
    assert [next(rest) for _ in range(10)] == drawn[4990:]


def test_a_single_request_takes_its_latency_and_the_overhead(profile):
    controller = Controller(ServingRules(overhead_jitter=0.0))
    controller.register_model("m", partial(Executable, profile))
    controller.create_mesh_group_manager(0, (1, 2))
    controller.create_replica("m", 0, [PIPELINE, (1, 2)])
    ((_, finish),) = ask(controller, request_for("m"))
    assert finish == pytest.approx(3.0 * 1.018 + 0.011, abs=1e-12)


def test_the_clock_of_a_run_is_simulated_time():
    async def main():
        await sleep(3600)
        return clock()

    assert run_event_loop(main()) == 3600
