import ast
import gc
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import alpa_serve
from alpa_serve.scheduling import ALPASERVE

PACKAGE = Path(alpa_serve.__file__).parent

LAYERS = [
    {"util", "errors", "validation", "device_layout", "safe_pickle", "files", "ray_connection", "api_key"},
    {"profiles"},
    {"profiling"},
    {"placement"},
    {"placement_json"},
    {"scheduling"},
    {"simulator", "runtime"},
    {"placement_policy", "controller", "http_util"},
    {"trace", "export", "report", "run"},
    {"experiments", "replay"},
    {"cli"},
    {"__main__"},
]
# what serves must not depend on what searches and simulates
RUNTIME = {"runtime", "controller", "http_util", "run"}
UNKNOWN_TO_RUNTIME = {"simulator", "placement_policy"}
LAYER_OF = {room: layer for layer, rooms in enumerate(LAYERS) for room in rooms}
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def parsed(path):
    # Python 3.11 may take a garbage collection that runs meanwhile for an error in its own bookkeeping
    gc.disable()
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    finally:
        gc.enable()


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(tree):
    """The modules that are imported anywhere, TYPE_CHECKING blocks and functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports would pass this test by"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_from_its_own_room_and_from_layers_below(path):
    room = room_of(path)
    assert room in LAYER_OF, f"{room} has no place in the layers"
    for module in imported_modules(parsed(path)):
        if module.split(".")[0] == "alpa_serve":
            other = module.split(".")[1]
            allowed = other == room or LAYER_OF[other] < LAYER_OF[room] or LAYER_OF[other] == LAYER_OF[room] == 0
            allowed = allowed and not (room in RUNTIME and other in UNKNOWN_TO_RUNTIME)
            assert allowed, f"{room} must not import {module}"


@pytest.mark.parametrize(
    "path",
    [path for path in (PACKAGE / "runtime").glob("*.py") if path.name != "router_actor.py"],
    ids=lambda p: p.name,
)
def test_only_the_process_that_listens_knows_of_http(path):
    modules = imported_modules(parsed(path))
    assert not [module for module in modules if module.startswith("alpa_serve.runtime.http")]


def test_importing_the_policies_loads_no_heavy_package():
    heavy = ["ray", "pandas", "pyarrow", "datasets", "matplotlib", "starlette", "pydantic", "rich", "asyncio"]
    modules = "alpa_serve.placement_policy, alpa_serve.simulator.controller, alpa_serve.trace"
    code = f"import sys, {modules}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def called_names(path):
    """The dotted names that are called, in full: `np.random.seed` is `numpy.random.seed`."""
    tree = parsed(path)
    full = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full.update((alias.asname or alias.name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            full.update((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            root, *rest = ast.unparse(node.func).split(".")
            yield ".".join([full.get(root, root), *rest]), root in full


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_neither_prints_nor_draws_from_a_global_generator(path):
    private = ("random.Random", "numpy.random.RandomState", "numpy.random.default_rng", "numpy.random.Generator")
    for called, is_imported in called_names(path):
        assert called != "print" or room_of(path) in ("cli", "run")
        if is_imported and called.startswith(("random.", "numpy.random.")):
            assert called.startswith(private), called


EVALUATED = "init_sol, model_datas, cluster_env, workload, evaluator"
SOLVE = "self, model_datas, cluster_env, train_workload=None"
ARRIVALS = "self, start, duration, seed=0"

# api.md: module -> name -> arguments; None for a name that takes none of interest
PUBLIC = {
    "alpa_serve.util": {
        "GB": None,
        "eps": None,
        "inf": None,
        "batchsize_config": None,
        "ServingCase": "register_models, generate_workload, placement_policy",
        "build_logger": "name='alpa_serve'",
        "add_sync_method": "actor, method_names",
        "write_tsv": "heads, values, filename, print_line=True",
        "to_str_round": "x, decimal=6",
        "get_factors": "n",
        "get2tok": "n",
        "decompose2tok": "n",
        "get_partitions": "n, k",
    },
    "alpa_serve.profiling": {
        "ParallelConfig": "dp, op, pp",
        "LatencyMemData": "latency, act_mem, weight_mem, metadata=None",
        "LatencyMemData.add_result": "self, batch_size, latency, act_mem, weight_mem, metadata=None",
        "ProfilingResult": "model_name, para_dict, preprocess_cpu, postprocess_cpu",
        "ProfilingResult.add_result": (
            "self, parallel_config, batch_size, stage_latency, act_mem, weight_mem, metadata=None"
        ),
        "ProfilingDatabase": "database_filename, new_database=False",
        "ProfilingDatabase.get": "self, name",
        "ProfilingDatabase.update": "self, result",
        "ProfilingDatabase.update_from_csv": "self, file",
        "ProfilingDatabase.update_from_auto_csv": "self, file",
        "ProfilingDatabase.materialize": "self",
        "load_test_prof_result": "name",
        "load_test_prof_result_v2": "name",
    },
    "alpa_serve.simulator.workload": {
        "DEFAULT_WARMUP": None,
        "Request": "model_name, data, slo, idx, time_stamp, submit_time=None",
        "PerModelStatsResult": (
            "name, num_requests, goodput, throughput, latency_mean, latency_std, latency_p90, latency_p99, latency, "
            "request_starts, request_finishes"
        ),
        "PerDeviceStatsResult": "num_requests",
        "StatsResult": "per_model_stats, group_num_requests, goodput, latency_mean, num_requests, request_rate",
        "ArrivalProcess": None,
        "ArrivalProcess.rate": "self",
        "ArrivalProcess.cv": "self",
        "ArrivalProcess.params": "self",
        "ArrivalProcess.generate_arrivals": ARRIVALS,
        "ArrivalProcess.generate_workload": "self, model_name, start, duration, slo=None, seed=0",
        "DeterministicProcess": "arrival_rate",
        "GammaProcess": "arrival_rate, cv",
        "PoissonProcess": "arrival_rate",
        "UniformMMPP": "state_durations, state_request_rates",
        "ParetoProcess": "shape, scale, loc=0.0",
        "WorkloadFromTrace": "rate_scale, trace",
        "WorkloadFromTrace.generate_workload": "self, model_list, dataset=None, slo=5, seed=42",
        "Workload": "arrivals, requests",
        "Workload.rate": None,
        "Workload.cv": None,
        "Workload.requests": None,
        "Workload.empty": "",
        "Workload.merge": "*args",
        "Workload.split_round_robin": "self, number",
        "Workload.split_time_interval": "self, interval",
        "Workload.compute_stats": "self, start, finish, good, warmup",
        "Workload.print_stats": "stats",
    },
    "alpa_serve.simulator.util": {
        "install_remote_methods": "obj",
        "async_to_sync": "async_def",
        "MMPPSampler": "Q, lambda_",
        "MMPPSampler.sample": "self, num_requests, initial_state=0",
        "MMPPSampler.expected_request_rate": "self",
        "MMPPSampler.unifrom_mmpp": "durations, rates",
        "MMPPSampler.uniform_mmpp": "durations, rates",
    },
    "alpa_serve.simulator": {
        "simulate": "placement, model_datas, workload, rules=ALPASERVE",
        "SimulationResult.stats": "self, warmup=0",
        "SimulationResult.to_frame": "self",
    },
    "alpa_serve.scheduling": {
        "ServingRules": None,
        "ALPASERVE": None,
        "MAVERIQ": None,
    },
    "alpa_serve.profiles.maveriq": {"load": "model, dtype='float16', int8_kv_cache=False"},
    "alpa_serve.trace": {
        "Trace": "trace_name, trace_dir",
        "Trace.slice": "self, start_time='0.0.0', end_time='13.23.60'",
        "Trace.replay": (
            "self, models, model_mapping_strategy='stripe', start_time='0.0.0', end_time='13.23.60', "
            "arrival_distribution='exponential', interval_seconds=600, rate_scale_factor=1.0, cv_scale_factor=1.0, "
            "time_scale_factor=1.0, replication_factor=1, seed=0"
        ),
        "Trace.replay_vanilla": "self, models, model_mapping_strategy, start_time, end_time",
        "Trace.map_model": "self, models, function_names, strategy",
        "Trace.function_names": None,
        "Trace.timestr_to_dhm": None,
        "Trace.report_stats": "self",
        "TraceReplay.to_workload": "self, slo",
        "TraceReplay.rate": "self",
        "TraceReplay.cv": "self",
        "TraceReplay.report_stats": "self",
        "TraceReplay.visualize": "self, n_interval=100",
        "TraceReplay.duration": None,
        "TraceReplay.duration_seconds": None,
        "load_trace": "path",
        "preprocess_azure_v1_trace": "dir, n_day=14",
        "preprocess_azure_v2_trace": "dir",
        "report_group_stats": "replays",
    },
    "alpa_serve.simulator.event_loop": {
        "run_event_loop": "coroutine",
        "clock": "",
        "sleep": "s",
        "wait_stream": "name, s",
        "wait_multi_stream": "names, ss",
        "main_loop": "",
        "timed_coroutine": "function",
    },
    "alpa_serve.simulator.cluster": {
        "GPU": "",
        "Mesh": None,
        "MeshGroup": None,
        "VirtualMesh": "shape",
        "VirtualMesh.launch_mesh_group": "self, submesh_shapes",
    },
    "alpa_serve.simulator.executable": {
        "Executable": "profiling_result, parallel_config, virtual_mesh",
        "Executable.get_latency_dict": "self",
        "Executable.handle_request": "self, request",
    },
    "alpa_serve.simulator.controller": {
        "GroupManager": None,
        "Controller": None,
        "Controller.register_model": "self, name, model_def, init_args=None, init_kwargs=None, override=False",
        "Controller.create_mesh_group_manager": "self, group_id, virtual_mesh_shape=None, num_gpus=0",
        "Controller.create_replica": "self, name, group_id, append_init_args=None, append_init_kwargs=None",
        "Controller.handle_request": None,
        "Controller.get_info": "self",
        "Controller.sync": "self",
        "Client": "controller, debug=False",
        "run_workload": None,
        "simulate_one_case": "case, warmup=10, debug=False",
        "DummyController": "",
        "DummyController.register_model": "self, name, model_def, init_args=None, init_kwargs=None, override=False",
        "DummyController.create_mesh_group_manager": "self, group_id, virtual_mesh_shape=None, num_gpus=0",
        "DummyController.create_replica": ("self, name, group_id, append_init_args=None, append_init_kwargs=None"),
        "DummyController.sync": "self",
        "approximate_one_case": "case, seed=0, warmup=10, debug=False, fast_stats=False, enable_batching=False",
        "approximate_one_case_one_placement": (
            "placement, model_names, prof_ress, model_ids, slos, arrivals, mixed=True, enable_batching=False"
        ),
    },
    "alpa_serve.placement_policy.base_policy": {
        "ModelData": "name, slo, rate, cv, profiling_result",
        "ClusterEnv": "num_devices, mem_budget, num_devices_per_node=8",
        "ModelPlacement": "group_configs, group_models",
        "ModelPlacement.add_model": "self, group_id, model_id",
        "ModelPlacement.normalize": "self",
        "ModelPlacement.copy": "self",
        "ModelPlacement.verify": "self, model_datas, cluster_env",
        "ModelPlacementWithReplacement": "start_times, placements",
        "BasePlacementPolicy": "verbose=0",
        "BasePlacementPolicy.solve_placement": SOLVE,
        "BasePlacementPolicy.place_models": "self, controller, cluster_env, model_datas, train_workload=None",
        "BasePlacementPolicy.place_models_impl": "self, controller, cluster_env, model_datas, placement",
        "PlacementEvaluator": "model_datas, cluster_env, workload, method, parallel",
        "PlacementEvaluator.get_scores": "self, sols",
        "PlacementEvaluator.get_stats": "self, sols",
        "gen_train_workload": "model_datas, seed=0, simulation_min_duration=100, simulation_min_samples=30000",
        "replica_placement_round_robin": "init_sol, model_datas, cluster_env, workload, verbose",
        "replica_placement_fast_greedy": f"{EVALUATED}, verbose",
        "replica_placement_beam_search": f"{EVALUATED}, beam_size, verbose",
        "replica_placement_on_last_group": f"{EVALUATED}, beam_size, verbose",
        "evolutionary_search": "init_sols, model_datas, cluster_env, evaluator, num_iter, verbose",
    },
    "alpa_serve.placement_policy.selective_replication": {
        "SelectiveReplicationILP": "verbose=0",
        "SelectiveReplicationGreedy": "use_evo_search=False, verbose=0",
        "SelectiveReplicationUniform": "verbose=0",
        "SelectiveReplicationSearch": "verbose=0",
        "SelectiveReplicationReplacement": "replacement_interval, use_evo_search=False, verbose=0",
    },
    "alpa_serve.placement_policy.model_parallelism": {
        "ModelParallelismILP": "verbose=0",
        "ModelParallelismRR": "max_bs=1, max_pp=8, max_op=4, verbose=0",
        "ModelParallelismGreedy": "group_size=2, use_evo_search=False, verbose=0",
        "ModelParallelismSearch": (
            "max_bs=1, max_pp=8, max_op=4, use_evo_search=False, use_separation=False, verbose=0"
        ),
        "ModelParallelismSearch.enumerate_group_configs_uneven": "self, cluster_env",
        "ModelParallelismSearch.enumerate_group_configs": "self, cluster_env",
        "ModelParallelismSearch.greedy_group_configs": None,
        "ModelParallelismSearch.enumerate_separations": None,
        "ModelParallelismSearch.solve_placement_one_eco": None,
        "ModelParallelismEqual": "pp, op, verbose=0",
    },
}

# what api.md lists under the package itself, for scripts that import from there
POLICIES = "alpa_serve.placement_policy"
PUBLIC[POLICIES] = {
    name: arguments
    for module in ("base_policy", "selective_replication", "model_parallelism")
    for name, arguments in PUBLIC[f"{POLICIES}.{module}"].items()
    if name[0].isupper()
}
PLAN = "model_datas, workload, target=0.99, cluster_env=None, rules=ALPASERVE"
PUBLIC[POLICIES] |= {"plan_capacity": PLAN, "highest_rate_scale": PLAN, "tightest_slo_scale": PLAN}

NAMES = [
    pytest.param(module, name, arguments, id=f"{module}.{name}")
    for module, names in PUBLIC.items()
    for name, arguments in names.items()
]


@pytest.mark.parametrize(("module", "name", "arguments"), NAMES)
def test_public_name_takes_the_arguments_that_alpaserve_scripts_pass(module, name, arguments):
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if arguments is None:
        return
    expected = list(inspect.signature(eval(f"lambda {arguments}: None", {"ALPASERVE": ALPASERVE})).parameters.values())
    actual = list(inspect.signature(found).parameters.values())
    positional = [parameter for parameter in actual if parameter.kind is not parameter.KEYWORD_ONLY]
    assert [(p.name, p.kind) for p in positional] == [(p.name, p.kind) for p in expected]
    for ours, theirs in zip(positional, expected, strict=True):
        if theirs.default is not theirs.empty:
            assert ours.default == theirs.default, ours.name
    for extra in actual:
        if extra.kind is extra.KEYWORD_ONLY:
            assert extra.default is not extra.empty, f"{extra.name} is new and needs a default"


def test_constants_have_alpaserves_values():
    util = importlib.import_module("alpa_serve.util")
    assert (util.GB, util.eps, util.inf, util.batchsize_config) == (2**30, 1e-6, 1e100, [1, 2, 4, 8, 16])
    assert importlib.import_module("alpa_serve.simulator.workload").DEFAULT_WARMUP == 10
