import re
from functools import partial

import pytest

from alpa_serve.errors import InfeasiblePlacementError, InvalidConfigError, InvalidPlacementError
from alpa_serve.placement import ModelPlacement, ModelPlacementWithReplacement
from alpa_serve.placement_policy import (
    ClusterEnv,
    ModelData,
    ModelParallelismEqual,
    ModelParallelismGreedy,
    ModelParallelismILP,
    ModelParallelismRR,
    ModelParallelismSearch,
    PlacementEvaluator,
    SearchProgress,
    SelectiveReplicationGreedy,
    SelectiveReplicationILP,
    SelectiveReplicationReplacement,
    SelectiveReplicationSearch,
    SelectiveReplicationUniform,
)
from alpa_serve.placement_policy.base_policy import gen_train_workload
from alpa_serve.profiling import ParallelConfig, load_test_prof_result, load_test_prof_result_v2
from alpa_serve.simulator.controller import approximate_one_case
from alpa_serve.simulator.workload import GammaProcess, PoissonProcess, Workload
from alpa_serve.util import GB, ServingCase

ONE = ParallelConfig(1, 1, 1)

# name -> (policy, devices of its smallest group on four devices)
POLICIES = {
    "SelectiveReplicationILP": (SelectiveReplicationILP, 1),
    "SelectiveReplicationGreedy": (SelectiveReplicationGreedy, 1),
    "SelectiveReplicationGreedy-evo": (partial(SelectiveReplicationGreedy, use_evo_search=True), 1),
    "SelectiveReplicationUniform": (SelectiveReplicationUniform, 1),
    "SelectiveReplicationSearch": (SelectiveReplicationSearch, 1),
    "SelectiveReplicationReplacement": (partial(SelectiveReplicationReplacement, 300), 1),
    "ModelParallelismILP": (ModelParallelismILP, 4),
    "ModelParallelismRR": (ModelParallelismRR, 4),
    "ModelParallelismGreedy": (ModelParallelismGreedy, 2),
    "ModelParallelismGreedy-evo": (partial(ModelParallelismGreedy, 2, use_evo_search=True), 2),
    "ModelParallelismSearch": (ModelParallelismSearch, 4),
    "ModelParallelismSearch-evo": (partial(ModelParallelismSearch, use_evo_search=True), 4),
    "ModelParallelismSearch-separation": (partial(ModelParallelismSearch, use_separation=True), 4),
    "ModelParallelismEqual": (partial(ModelParallelismEqual, pp=2, op=1), 2),
}
WITH_CALLBACK = [name for name in POLICIES if not name.endswith(("ILP", "RR", "Uniform"))]


def model(number, profile="test-2GB-100ms", slo=0.4, rate=2.0, cv=3.0):
    return ModelData(f"m{number}", slo, rate, cv, load_test_prof_result(profile))


FOUR = [model(number, rate=2.0 + number / 10) for number in range(4)]


def solved(policy, datas, cluster, *workload):
    return policy.solve_placement(datas, cluster, *workload)[0]


def placements_in(solution):
    return solution.placements if isinstance(solution, ModelPlacementWithReplacement) else [solution]


@pytest.mark.parametrize("gib", [2.5, 4.5, 9.0])
@pytest.mark.parametrize("name", POLICIES)
def test_four_small_models_get_a_possible_placement_that_fills_the_memory(name, gib, random_state_untouched):
    cluster = ClusterEnv(4, gib * GB)
    solution = solved(POLICIES[name][0](), FOUR, cluster)
    solution.verify(FOUR, cluster)
    for placement in placements_in(solution):
        assert placement.placed_models() == {0, 1, 2, 3}
        for config, members in zip(placement.group_configs, placement.group_models, strict=True):
            in_memory = min(int(gib / (2 / config.pp)), 4)
            assert len(members) == in_memory


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_finds_the_same_placement_twice(name):
    cluster = ClusterEnv(4, 4.5 * GB)
    assert solved(POLICIES[name][0](), FOUR, cluster) == solved(POLICIES[name][0](), FOUR, cluster)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_places_models_through_the_controller_of_a_serving_case(name):
    cluster = ClusterEnv(4, 4.5 * GB)

    def register_models(controller):
        for data in FOUR:
            controller.register_model.remote(data.name, partial(object, data.profiling_result))

    def generate_workload():
        return Workload.merge(
            *(
                PoissonProcess(2).generate_workload(data.name, 0, 60, slo=0.6, seed=number)
                for number, data in enumerate(FOUR)
            )
        )

    def place(controller):
        return POLICIES[name][0]().place_models(controller, cluster, FOUR)

    stats, placement = approximate_one_case(ServingCase(register_models, generate_workload, place))
    assert placement == solved(POLICIES[name][0](), FOUR, cluster)
    assert stats.goodput > 0.8
    assert sorted(one.name for one in stats.per_model_stats) == ["m0", "m1", "m2", "m3"]


class RecordingController:
    """Takes the calls that a controller would get, in order."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, method):
        def record(*args):
            self.calls.append((method, *args))

        record.remote = record
        return record


def test_place_models_creates_groups_of_hosts_and_devices_then_replicas_then_waits():
    controller = RecordingController()
    placement = ModelPlacement([ONE, ParallelConfig(1, 1, 4)], [[1], [0, 1]])
    SelectiveReplicationGreedy().place_models_impl(controller, ClusterEnv(6, 9 * GB, 2), FOUR, placement)
    assert controller.calls == [
        ("create_mesh_group_manager", 0, (1, 1)),
        ("create_replica", "m1", 0, [ONE, (1, 1)]),
        ("create_mesh_group_manager", 1, (2, 2)),
        ("create_replica", "m0", 1, [ParallelConfig(1, 1, 4), (2, 2)]),
        ("create_replica", "m1", 1, [ParallelConfig(1, 1, 4), (2, 2)]),
        ("sync",),
    ]


@pytest.mark.parametrize("name", POLICIES)
def test_a_budget_in_which_nothing_fits_names_the_smallest_that_would_do(name):
    policy, largest_group = POLICIES[name]
    smallest = 2 * GB // largest_group
    # the beam search takes memory below the budget only
    enough = smallest + (1 if "ReplicationSearch" in name else 0)
    with pytest.raises(InfeasiblePlacementError, match=rf"smallest that would do is .* \({enough} bytes\)"):
        solved(policy(), FOUR, ClusterEnv(4, enough - 1))
    assert all(placement.num_replicas for placement in placements_in(solved(policy(), FOUR, ClusterEnv(4, enough))))


@pytest.mark.parametrize("name", POLICIES)
def test_models_without_a_profile_on_any_group_that_may_be_used_are_infeasible(name, profile_of):
    exotic = [ModelData("m0", 1.0, 1.0, 1.0, profile_of({(1, 3, 1): {1: [0.1]}}))]
    with pytest.raises(InfeasiblePlacementError, match="no model is profiled on any group config"):
        solved(POLICIES[name][0](), exotic, ClusterEnv(4, 9 * GB))


CHOOSE_SHAPES = [name for name in POLICIES if name.startswith(("ModelParallelismSearch", "ModelParallelismILP"))]


@pytest.mark.parametrize("name", CHOOSE_SHAPES)
def test_groups_lie_within_nodes_whose_size_is_no_power_of_two(name):
    # single devices are possible
    cluster = ClusterEnv(6, 2.1 * GB, num_devices_per_node=3)
    solved(POLICIES[name][0](), FOUR, cluster).verify(FOUR, cluster)


@pytest.mark.parametrize("name", POLICIES)
def test_without_models_there_is_nothing_to_place(name):
    with pytest.raises(InvalidConfigError):
        solved(POLICIES[name][0](), [], ClusterEnv(4, 9 * GB))


@pytest.mark.parametrize("name", POLICIES)
def test_a_model_without_load_does_not_disturb_the_search(name):
    datas = [model(0, rate=0.0), model(1), model(2)]
    cluster = ClusterEnv(4, 4.5 * GB)
    solution = solved(POLICIES[name][0](), datas, cluster)
    solution.verify(datas, cluster)
    assert all({1, 2} <= placement.placed_models() for placement in placements_in(solution))


@pytest.mark.parametrize("name", WITH_CALLBACK)
def test_the_callback_sees_the_search_and_stops_it_by_raising(name):
    class StopSearchError(Exception):
        pass

    seen = []

    def stop_at_the_second(progress):
        seen.append(progress)
        if len(seen) == 2:
            raise StopSearchError

    with pytest.raises(StopSearchError):
        solved(POLICIES[name][0](callback=stop_at_the_second), FOUR, ClusterEnv(4, 4.5 * GB))
    assert len(seen) == 2
    assert all(isinstance(progress, SearchProgress) and progress.stage for progress in seen)


def test_verbose_logs_the_search_and_the_default_is_silent(caplog, capsys):
    cluster = ClusterEnv(2, 4.5 * GB)
    with caplog.at_level("INFO"):
        solved(ModelParallelismSearch(), FOUR, cluster)
        assert not caplog.records
        solved(ModelParallelismSearch(verbose=1), FOUR, cluster)
    assert any("best score" in record.getMessage() for record in caplog.records)
    assert capsys.readouterr().out == ""


def test_evolutionary_search_never_makes_a_placement_worse(model_datas_of, workload_of):
    models = [
        {"profile": profile, "rate": rate, "cv": 5.0, "slo": 0.35}
        for profile, rate in [("test-2GB-100ms", 6.0), ("test-4GB-150ms", 2.0), ("alpa/bert-1.3b", 4.0)] * 2
    ]
    datas, workload, cluster = model_datas_of(models), workload_of(models, 40), ClusterEnv(4, 6 * GB)
    evaluator = PlacementEvaluator(datas, cluster, workload)
    for policy in (SelectiveReplicationGreedy, partial(ModelParallelismGreedy, 2), ModelParallelismSearch):
        plain, evolved = (solved(policy(use_evo_search=evolve), datas, cluster, workload) for evolve in (False, True))
        before, after = evaluator.get_scores([plain, evolved])
        assert after >= before
        evolved.verify(datas, cluster)


def test_uniform_counts_by_model_0_and_verify_refuses_what_does_not_fit():
    mixed = [model(0), model(1, "test-4GB-150ms")]
    cluster = ClusterEnv(2, 4.5 * GB)
    placement = solved(SelectiveReplicationUniform(), mixed, cluster)
    assert placement == ModelPlacement([ONE, ONE], [[0, 1], [1, 0]])
    with pytest.raises(InvalidPlacementError, match=r"need 6\.00 GiB a device"):
        placement.verify(mixed, cluster)
    with pytest.raises(InvalidPlacementError, match=r"need 6\.00 GiB a device"):
        SelectiveReplicationUniform().place_models(RecordingController(), cluster, mixed)


def test_uniform_names_model_0_where_it_is_what_does_not_fit():
    with pytest.raises(InfeasiblePlacementError, match=r"'m0'.*needs 4\.000 GiB"):
        solved(SelectiveReplicationUniform(), [model(0, "test-4GB-150ms"), model(1)], ClusterEnv(2, 3 * GB))


def test_search_can_require_every_model_at_the_cost_of_goodput():
    # the rare model is as large as two of the busy one's replicas
    datas = [model(0, rate=20.0, slo=0.15), model(1, "test-4GB-150ms", rate=0.001, slo=0.2)]
    cluster = ClusterEnv(2, 4 * GB)
    workload = gen_train_workload(datas, simulation_min_samples=500)
    greedy = solved(ModelParallelismSearch(max_pp=1), datas, cluster, workload)
    required = solved(ModelParallelismSearch(max_pp=1, require_all_models=True), datas, cluster, workload)
    assert greedy.placed_models() == {0}
    assert required.placed_models() == {0, 1}
    required.verify(datas, cluster)


@pytest.mark.parametrize("datas", [[model(0), model(1, "test-4GB-150ms")], FOUR], ids=["one too large", "too many"])
@pytest.mark.parametrize("num_groups", [None, 1, 2])
def test_requiring_every_model_names_a_budget_that_holds_them(datas, num_groups):
    policy = ModelParallelismSearch(require_all_models=True, num_groups=num_groups)
    with pytest.raises(InfeasiblePlacementError, match=r"require_all_models: .* GiB a device would do") as caught:
        solved(policy, datas, ClusterEnv(2, 1 * GB))
    (enough,) = re.findall(r"([\d.]+) GiB a device would do", str(caught.value))
    placement = solved(policy, datas, ClusterEnv(2, float(enough) * GB))
    assert placement.placed_models() == set(range(len(datas)))


def test_requiring_models_that_share_no_group_config_says_so():
    datas = [model(0), ModelData("m1", 1.0, 1.0, 1.0, load_test_prof_result_v2("llama-2-70b"))]
    policy = ModelParallelismSearch(max_pp=1, max_op=1, require_all_models=True)
    with pytest.raises(InfeasiblePlacementError, match=r"no shape of groups .* has a profiled config for every model"):
        solved(policy, datas, ClusterEnv(1, 1000 * GB))


def test_round_robin_whose_first_group_takes_nothing_is_infeasible():
    datas = [model(i, "alpa/bert-2.6b") for i in range(2)]
    with pytest.raises(InfeasiblePlacementError, match="round robin places nothing"):
        solved(ModelParallelismRR(), datas, ClusterEnv(6, 24 * GB))


@pytest.mark.parametrize(("num_devices", "per_node"), [(8, 5), (11, 3), (7, 8)])
def test_groups_built_one_by_one_lie_within_nodes(num_devices, per_node):
    cluster = ClusterEnv(num_devices, 4.5 * GB, per_node)
    policy = ModelParallelismSearch(max_pp=4, max_op=1)
    workload = gen_train_workload(FOUR, simulation_min_samples=500)
    placement = policy.greedy_group_configs(FOUR, cluster, workload)
    placement.verify(FOUR, cluster)
    assert sum(config.num_devices for config in placement.group_configs) == num_devices


@pytest.mark.parametrize("num_groups", [1, 2, 4])
def test_search_can_be_held_to_a_number_of_groups(num_groups):
    placement = solved(ModelParallelismSearch(num_groups=num_groups), FOUR, ClusterEnv(4, 4.5 * GB))
    assert len(placement.group_configs) == num_groups


def test_a_number_of_groups_that_no_shape_has_is_infeasible():
    with pytest.raises(InfeasiblePlacementError, match="cannot form exactly 3 group"):
        solved(ModelParallelismSearch(num_groups=3), FOUR, ClusterEnv(4, 4.5 * GB))


def test_separation_cannot_keep_a_number_of_groups():
    with pytest.raises(InvalidConfigError, match="use_separation"):
        ModelParallelismSearch(use_separation=True, num_groups=2)


def test_building_groups_one_by_one_uses_every_device():
    cluster = ClusterEnv(5, 4.5 * GB)
    placement = ModelParallelismSearch().greedy_group_configs(FOUR, cluster, gen_train_workload(FOUR, 0, 20, 100))
    placement.verify(FOUR, cluster)
    assert sum(config.num_devices for config in placement.group_configs) == 5
    assert placement.num_replicas


def test_training_workload_lasts_until_enough_requests_are_expected():
    workload = gen_train_workload(FOUR, simulation_min_duration=10, simulation_min_samples=2000)
    assert len(workload) == pytest.approx(2000, rel=0.2)
    shortest = gen_train_workload(FOUR, simulation_min_duration=10, simulation_min_samples=0)
    assert 5 < shortest.arrivals[-1] < 10
    assert gen_train_workload(FOUR, 0, 10, 0).arrivals.tolist() == shortest.arrivals.tolist()
    assert gen_train_workload(FOUR, 1, 10, 0).arrivals.tolist() != shortest.arrivals.tolist()
    with pytest.raises(InvalidConfigError, match="no model has a rate"):
        gen_train_workload([model(0, rate=0.0)])


def test_training_workload_draws_each_model_with_a_seed_of_its_own():
    workload = gen_train_workload(FOUR, 5, 10, 0)
    for number, data in enumerate(FOUR):
        alone = GammaProcess(data.rate, data.cv).generate_arrivals(0, 10, seed=5 + number)
        assert workload.select_models([data.name]).arrivals.tolist() == alone.tolist()


def test_replacement_starts_each_placement_with_the_first_request_of_its_interval():
    workload = Workload.merge(*(PoissonProcess(3).generate_workload(data.name, 5, 50, slo=0.3) for data in FOUR))
    solution = solved(SelectiveReplicationReplacement(20), FOUR, ClusterEnv(2, 2.5 * GB), workload)
    segments = workload.split_time_interval(20)
    assert solution.start_times == [segment.arrivals[0] for segment in segments]
    assert solution.placements == [
        solved(SelectiveReplicationGreedy(), FOUR, ClusterEnv(2, 2.5 * GB), segment) for segment in segments
    ]
    with pytest.raises(InfeasiblePlacementError, match="no request"):
        solved(SelectiveReplicationReplacement(20), FOUR, ClusterEnv(2, 2.5 * GB), Workload.empty())


NAN = float("nan")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slo": -1.0}, "slo of model 'm0'.*-1"),
        ({"slo": NAN}, "slo of model 'm0'.*nan"),
        ({"rate": -0.5}, "rate of model 'm0'.*-0.5"),
        ({"rate": NAN}, "rate of model 'm0'.*nan"),
        ({"rate": float("inf")}, "rate of model 'm0'.*inf"),
        ({"rate": "3"}, "rate of model 'm0'.*'3'"),
        ({"cv": -2}, "cv of model 'm0'.*-2"),
        ({"cv": NAN}, "cv of model 'm0'.*nan"),
    ],
)
def test_model_data_refuses_figures_out_of_range(arguments, message):
    with pytest.raises(InvalidConfigError, match=message):
        model(0, **arguments)


def test_model_data_needs_a_profile():
    with pytest.raises(InvalidConfigError, match=r"profiling_result of model 'm0'.*'llama'"):
        ModelData("m0", 1.0, 1.0, 1.0, "llama")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, GB), "num_devices.*0"),
        ((-8, GB), "num_devices.*-8"),
        ((2.5, GB), "num_devices.*2.5"),
        ((True, GB), "num_devices.*True"),
        ((8, 0), "mem_budget.*0"),
        ((8, -GB), "mem_budget"),
        ((8, NAN), "mem_budget.*nan"),
        ((8, float("inf")), "mem_budget.*inf"),
        ((8, GB, 0), "num_devices_per_node.*0"),
    ],
)
def test_cluster_refuses_figures_out_of_range(arguments, message):
    with pytest.raises(InvalidConfigError, match=message):
        ClusterEnv(*arguments)


@pytest.mark.parametrize(
    "make",
    [
        partial(ModelParallelismGreedy, 0),
        partial(ModelParallelismEqual, pp=0, op=1),
        partial(ModelParallelismEqual, pp=1, op=-1),
        partial(ModelParallelismSearch, max_pp=0),
        partial(ModelParallelismSearch, max_op=1.5),
        partial(ModelParallelismSearch, num_groups=0),
        partial(ModelParallelismRR, max_bs=0),
        partial(SelectiveReplicationReplacement, 0),
        partial(SelectiveReplicationReplacement, NAN),
        partial(SelectiveReplicationUniform, verbose=-1),
    ],
)
def test_policies_refuse_arguments_out_of_range(make):
    with pytest.raises(InvalidConfigError):
        make()
