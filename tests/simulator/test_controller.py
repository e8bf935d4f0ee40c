import logging
from functools import partial

import numpy as np
import pytest

from alpa_serve.errors import (
    InvalidConfigError,
    InvalidPlacementError,
    InvalidProfileError,
    InvalidWorkloadError,
)
from alpa_serve.placement import ModelData, ModelPlacement, ModelPlacementWithReplacement
from alpa_serve.profiling import ParallelConfig, ProfilingResult, load_test_prof_result
from alpa_serve.simulator.controller import (
    DummyController,
    approximate_one_case,
    approximate_one_case_one_placement,
)
from alpa_serve.simulator.workload import GammaProcess, Workload
from alpa_serve.util import batchsize_config

PROFILE = load_test_prof_result("test-2GB-100ms")
SINGLE, PIPELINE = ParallelConfig(1, 1, 1), ParallelConfig(1, 1, 4)
MODELS = [ModelData(f"m{i}", 1.0, 5.0, 2.0, PROFILE) for i in range(3)]
PLACEMENT = ModelPlacement([SINGLE, PIPELINE], [[0, 1], [1, 2]])


def gamma_workload(*names, duration=100):
    parts = [GammaProcess(5, 2).generate_workload(name, 0, duration, slo=0.5, seed=i) for i, name in enumerate(names)]
    return Workload.merge(*parts)


@pytest.fixture
def run_case(serving_case_of):
    """Return a function that runs MODELS, or others, under a workload and a placement."""

    def run(workload, placement=PLACEMENT, models=MODELS, **options):
        stats, returned = approximate_one_case(serving_case_of(models, workload, placement), **options)
        assert returned is placement
        return stats

    return run


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


class Model:
    pass


def test_a_model_is_registered_with_the_profile_among_its_arguments():
    controller = DummyController()
    controller.register_model("a", partial(Model, PROFILE))
    controller.register_model.remote("b", partial(Model, "first", 2, PROFILE, None, key="word"))
    assert controller.profiles == {"a": PROFILE, "b": PROFILE}
    assert list(controller.profiles) == ["a", "b"]


@pytest.mark.parametrize("model_def", [partial(Model), partial(Model, "m", profile=PROFILE), Model, None, PROFILE])
def test_a_model_without_profile_among_its_positional_arguments_is_refused(model_def):
    controller = DummyController()
    with pytest.raises(InvalidConfigError, match=r"model 'a': model_def must be a functools\.partial"):
        controller.register_model("a", model_def)
    assert controller.profiles == {}


def test_a_name_is_registered_twice_only_with_override():
    controller, other = DummyController(), ProfilingResult("other")
    controller.register_model("a", partial(Model, PROFILE))
    with pytest.raises(InvalidConfigError, match="registered already"):
        controller.register_model("a", partial(Model, other))
    assert controller.profiles["a"] is PROFILE
    controller.register_model("a", partial(Model, other), override=True)
    assert controller.profiles["a"] is other


def test_every_method_has_a_remote_form():
    controller = DummyController()
    controller.register_model.remote("a", partial(Model, PROFILE))
    controller.create_mesh_group_manager.remote(0, [1, 4])
    controller.create_mesh_group_manager.remote(1, num_gpus=4)
    controller.create_replica.remote("a", 0, [SINGLE])
    controller.create_replica.remote("a", 1, append_init_kwargs={"key": 1})
    assert controller.sync() is None
    assert controller.sync.remote() is None


def test_replicas_need_their_model_and_their_group():
    controller = DummyController()
    controller.register_model("a", partial(Model, PROFILE))
    with pytest.raises(InvalidPlacementError, match="replica of 'a': no group 0"):
        controller.create_replica("a", 0)
    controller.create_mesh_group_manager(0)
    with pytest.raises(InvalidPlacementError, match="replica of 'b': not registered; registered: a"):
        controller.create_replica("b", 0)
    with pytest.raises(InvalidPlacementError, match="group 0 exists already"):
        controller.create_mesh_group_manager(0)


def arguments_of(workload, models=MODELS):
    position = {model.name: i for i, model in enumerate(models)}
    model_ids = np.array([position.get(request.model_name, -1) for request in workload.requests])
    return list(position), [model.profiling_result for model in models], model_ids, workload.slos, workload.arrivals


def test_one_placement_gives_seven_arrays():
    workload = gamma_workload("m0", "m1", "m2")
    run = approximate_one_case_one_placement(PLACEMENT, *arguments_of(workload))
    start, finish, good, requests, good_requests, group_requests, good_group_requests = run
    np.testing.assert_array_equal(start, workload.arrivals)
    assert finish.shape == good.shape == start.shape
    assert requests.tolist() == [workload.num_model_requests(name) for name in ("m0", "m1", "m2")]
    assert good_requests.sum() == good_group_requests.sum() == good.sum() > 0
    assert group_requests.sum() == len(workload)


def test_full_statistics_are_those_of_the_run_after_warmup(run_case):
    workload = gamma_workload("m0", "m1", "m2")
    run = approximate_one_case_one_placement(PLACEMENT, *arguments_of(workload))
    expected = workload.compute_stats(run.start, run.finish, run.good, 7)
    stats = run_case(workload, warmup=7)
    assert (stats.goodput, stats.latency_mean, stats.num_requests, stats.request_rate) == (
        expected.goodput,
        expected.latency_mean,
        expected.num_requests,
        expected.request_rate,
    )
    assert stats.num_requests < len(workload)
    # the groups are counted uncut
    assert stats.group_num_requests == run.group_num_requests.tolist()
    assert [m.latency_p99 for m in stats.per_model_stats] == [m.latency_p99 for m in expected.per_model_stats]


def test_fast_statistics_cut_nothing_and_list_the_models_as_registered(run_case):
    workload = gamma_workload("m2", "m0")
    run = approximate_one_case_one_placement(PLACEMENT, *arguments_of(workload))
    stats = run_case(workload, fast_stats=True)
    assert stats.num_requests == len(workload)
    assert stats.goodput == pytest.approx(run.good.mean())
    assert stats.latency_mean == pytest.approx((run.finish - run.start).mean())
    assert stats.group_num_requests == run.group_num_requests.tolist()
    assert [model.name for model in stats.per_model_stats] == ["m0", "m1", "m2"]
    for model, requests, good in zip(
        stats.per_model_stats, run.model_num_requests, run.model_num_good_requests, strict=True
    ):
        assert (model.num_requests, model.goodput) == (requests, pytest.approx(good / (requests + 1e-6)))
        assert (model.latency_mean, model.latency_std, model.latency_p90, model.latency_p99) == (0, 0, 0, 0)


@pytest.mark.parametrize("fast_stats", [False, True])
def test_an_empty_workload_gives_zeros(run_case, fast_stats):
    stats = run_case(Workload.empty(), fast_stats=fast_stats)
    assert (stats.num_requests, stats.goodput, stats.latency_mean, stats.request_rate) == (0, 0, 0, 0)
    assert stats.group_num_requests == [0, 0]


@pytest.mark.parametrize("options", [{}, {"fast_stats": True}, {"seed": 1}])
def test_nothing_random_is_drawn(run_case, random_state_untouched, options):
    workload = gamma_workload("m0", "m1")
    assert run_case(workload, **options).goodput == run_case(workload, **{**options, "seed": 5}).goodput


def test_a_model_in_no_group_is_not_served(run_case):
    stats = run_case(gamma_workload("m0", "m1"), ModelPlacement([SINGLE], [[0]]), fast_stats=True)
    assert [model.goodput > 0 for model in stats.per_model_stats] == [True, False, False]


@pytest.mark.parametrize("fast_stats", [False, True])
def test_requests_for_unregistered_models_are_bad_and_counted_in_one_warning(run_case, warnings, fast_stats):
    workload = gamma_workload("m0", "x", "m1", "y")
    num_x, num_y = workload.num_model_requests("x"), workload.num_model_requests("y")
    stats = run_case(workload, fast_stats=fast_stats, warmup=0)
    (message,) = warnings()
    assert message.startswith(f"{num_x + num_y} of {len(workload)} requests name a model that is not registered")
    assert f"'x': {num_x}, 'y': {num_y}" in message
    registered = [model for model in stats.per_model_stats if model.name.startswith("m")]
    num_good = sum(model.goodput * model.num_requests for model in registered)
    assert stats.num_requests == len(workload)
    assert stats.goodput == pytest.approx(num_good / len(workload), abs=1e-6)


def test_registered_models_give_no_warning(run_case, warnings):
    run_case(gamma_workload("m0", "m1", "m2"))
    assert warnings() == []


def test_replicas_on_a_config_that_the_profile_lacks_serve_nothing_and_are_warned_of(run_case, warnings):
    stats = run_case(gamma_workload("m0"), ModelPlacement([(1, 8, 1), (1, 1, 1)], [[0], [0]]), fast_stats=True)
    assert stats.group_num_requests[0] == 0 < stats.group_num_requests[1]
    assert [message.startswith("1 replicas are on a config") for message in warnings()] == [True]


def test_each_segment_runs_under_its_own_placement_with_fresh_clocks(run_case):
    arrivals = [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]
    workload = Workload.from_columns(arrivals, [0, 1] * 3, ["m0", "m1"], slos=10.0)
    only_m0, both = ModelPlacement([SINGLE], [[0]]), ModelPlacement([SINGLE, PIPELINE], [[0], [1]])
    placement = ModelPlacementWithReplacement([0.0, 1.0, 2.0], [only_m0, both, only_m0])
    stats = run_case(workload, placement, fast_stats=True)
    assert [model.num_requests for model in stats.per_model_stats] == [3, 3, 0]
    assert [model.goodput for model in stats.per_model_stats] == pytest.approx([1, 1 / 3, 0], abs=1e-5)
    # the counts of the groups add up, those of the second group come from the second segment alone
    assert stats.group_num_requests == [3, 1]


def test_a_clock_does_not_outlast_its_segment(run_case):
    workload = Workload.from_columns([0.0, 0.01], [0, 0], ["m0"], slos=0.15)
    one = ModelPlacement([SINGLE], [[0]])
    assert run_case(workload, one, fast_stats=True).goodput == 0.5
    split = ModelPlacementWithReplacement([0.0, 0.01], [one, one])
    assert run_case(workload, split, fast_stats=True).goodput == 1


def test_replacement_by_the_same_placement_long_apart_changes_nothing(run_case):
    early, late = gamma_workload("m0", "m1", duration=20), gamma_workload("m1", "m2", duration=20)
    late = Workload.from_columns(late.arrivals + 1000, late.model_ids, late.model_names, late.slos)
    split = ModelPlacementWithReplacement([0.0, 1000.0], [PLACEMENT, PLACEMENT])
    one, other = (run_case(early + late, placement, warmup=0) for placement in (PLACEMENT, split))
    assert (one.goodput, one.latency_mean, one.group_num_requests) == (
        other.goodput,
        other.latency_mean,
        other.group_num_requests,
    )


def test_batching_needs_every_batch_size_in_the_profile(run_case):
    with pytest.raises(InvalidProfileError, match=r"'test-2GB-100ms', config \(1, 1, 1\): no batch size 2; .*\[1\]"):
        run_case(gamma_workload("m0"), enable_batching=True)


def test_unbatched_runs_need_only_batch_size_1(run_case, profile_of):
    models = [ModelData("m0", 1, 1, 1, profile_of({SINGLE: {2: [0.1]}}))]
    with pytest.raises(InvalidProfileError, match=r"no batch size 1; profiled: \[2\]"):
        run_case(gamma_workload("m0"), ModelPlacement([SINGLE], [[0]]), models)


def test_batching_serves_more_where_batches_cost_nothing(run_case, profile_of):
    models = [ModelData("m0", 1, 1, 1, profile_of({SINGLE: {size: [0.3] for size in batchsize_config}}))]
    workload, placement = gamma_workload("m0"), ModelPlacement([SINGLE], [[0]])
    alone, batched = (run_case(workload, placement, models, enable_batching=batch) for batch in (False, True))
    assert batched.goodput > alone.goodput
    assert batched.num_requests == alone.num_requests


@pytest.mark.parametrize("enable_batching", [False, True])
def test_a_placement_of_a_model_that_is_not_there_is_refused(run_case, profile_of, enable_batching):
    models = [ModelData("m0", 1, 1, 1, profile_of({SINGLE: {size: [0.3] for size in batchsize_config}}))]
    with pytest.raises(InvalidPlacementError, match="group 0: no model 1"):
        run_case(gamma_workload("m0"), ModelPlacement([SINGLE], [[1]]), models, enable_batching=enable_batching)


@pytest.mark.parametrize(
    ("column", "bad"),
    [
        ("model_ids", [0]),
        ("model_ids", [0, 3]),
        ("slos", [1.0, np.nan]),
        ("slos", [1.0]),
        ("arrivals", [1.0, 0.5]),
        ("arrivals", [0.0, np.nan]),
        ("arrivals", [0.0, np.inf]),
    ],
)
def test_columns_that_do_not_fit_are_refused(column, bad):
    columns = {"model_ids": [0, 1], "slos": [1.0, 1.0], "arrivals": [0.0, 0.5], column: bad}
    columns = {name: np.array(values) for name, values in columns.items()}
    with pytest.raises(InvalidWorkloadError):
        approximate_one_case_one_placement(PLACEMENT, ["m0", "m1", "m2"], [PROFILE] * 3, **columns)


def test_a_cached_workload_sees_changed_slos(run_case):
    workload = gamma_workload("m0")
    workload.enable_simulator_cache = True
    before = run_case(workload, fast_stats=True).goodput
    assert workload.cached_data is not None
    assert run_case(workload, fast_stats=True).goodput == before > 0
    for request in workload.requests:
        request.slo = 0.0
    assert run_case(workload, fast_stats=True).goodput == 0


def test_a_cached_workload_is_not_taken_for_other_models(run_case):
    workload = gamma_workload("m0", "m1")
    workload.enable_simulator_cache = True
    names = [
        [model.name for model in run_case(workload, models=order, fast_stats=True).per_model_stats if model.goodput]
        for order in (MODELS, MODELS[::-1])
    ]
    assert names == [["m0", "m1"], ["m1", "m0"]]


def test_requests_without_a_model_are_warned_of_once_for_a_workload_and_its_parts(run_case, warnings):
    workload = gamma_workload("m0", "stranger")
    for _ in range(2):
        run_case(workload)
    for part in workload.split_time_interval(20):
        run_case(part, warmup=0)
    assert len(warnings()) == 1
    run_case(gamma_workload("m0", "stranger"))
    assert len(warnings()) == 2


def test_a_controller_takes_what_the_runtime_takes():
    controller = DummyController()
    controller.register_model.remote("a", partial(Model, PROFILE), None, None, True)
    controller.register_model.remote("a", partial(Model, PROFILE), override=True)
    assert list(controller.profiles) == ["a"]
