import pytest

from alpa_serve.errors import InfeasiblePlacementError, InvalidConfigError, UnknownNameError
from alpa_serve.experiments.maveriq import (
    BASELINES,
    MODEL_SETS,
    PUBLISHED_CLUSTER,
    Experiment,
    model_datas,
    model_list,
    solve_baseline,
)
from alpa_serve.placement import ClusterEnv
from alpa_serve.profiling import load_test_prof_result_v2
from alpa_serve.simulator.workload import Workload
from alpa_serve.util import GB


@pytest.fixture(scope="module")
def workload():
    return Experiment("AlpaServe", "large", "code", 0.1, 5.0).workload()


@pytest.mark.parametrize(
    ("model_set", "count", "last", "steps"),
    [("large", 4, "falcon-40b", 5), ("regular", 8, "llama-2-13b", 3), ("twentyone", 21, "llama-2-70b", 1)],
)
def test_model_sets_are_those_of_the_published_experiments(model_set, count, last, steps):
    models = model_list(model_set)
    assert len(models) == count
    assert models[-1] == {"id": count, "name": last, "load_time": steps * (count - 1), "output_length": 20}
    assert [model["id"] for model in models] == list(range(1, count + 1))
    assert [model["load_time"] for model in models] == [steps * k for k in range(count)]


def test_a_model_list_can_be_changed_without_changing_the_next_one():
    model_list("large")[0]["name"] = "mine"
    assert model_list("large")[0]["name"] == "llama-2-70b"


def test_unknown_names_list_the_known_ones(workload):
    with pytest.raises(UnknownNameError, match="'huge'; known: large, regular, twentyone"):
        model_list("huge")
    with pytest.raises(UnknownNameError, match=r"'vLLM'; known: AlpaServe, AlpaServe\*"):
        solve_baseline("vLLM", model_datas(model_list("large"), 5, workload), PUBLISHED_CLUSTER, workload)
    with pytest.raises(UnknownNameError, match="Conversation, Coding"):
        Experiment("AlpaServe", "large", "Poetry", 0.1, 5.0).workload()


def test_models_are_named_like_their_requests_or_as_published(workload):
    models = model_list("large")
    aligned = model_datas(models, 5, workload)
    published = model_datas(models, 5, workload, published_naming=True)
    assert [data.name for data in aligned] == ["m1", "m2", "m3", "m4"]
    assert [data.name for data in published] == ["m0", "m1", "m2", "m3"]
    assert [data.rate for data in published] == [0.0, *(data.rate for data in aligned[:3])]
    for data, model in zip(aligned, models, strict=True):
        assert data.profiling_result == load_test_prof_result_v2(model["name"])
        own = workload.select_models([data.name])
        assert (data.rate, data.cv) == (own.rate, own.cv)
        assert own.slos == pytest.approx(data.slo)


def test_the_slo_factor_scales_requests_and_models_alike(workload):
    half = Experiment("AlpaServe", "large", "code", 0.1, 2.5).workload()
    assert half.arrivals.tolist() == workload.arrivals.tolist()
    assert half.slos == pytest.approx(workload.slos / 2)
    models = model_list("large")
    assert [data.slo for data in model_datas(models, 2.5, half)] == pytest.approx(
        [data.slo / 2 for data in model_datas(models, 5, workload)]
    )


@pytest.mark.parametrize("model_set", MODEL_SETS)
def test_the_second_baseline_places_every_model_in_one_group_or_nothing(model_set):
    experiment = Experiment("AlpaServe*", model_set, "code", 0.1, 5.0)
    requests = experiment.workload()
    datas = model_datas(model_list(model_set), 5.0, requests)
    if model_set == "twentyone":
        with pytest.raises(InfeasiblePlacementError, match="require_all_models"):
            solve_baseline("AlpaServe*", datas, PUBLISHED_CLUSTER, requests)
        return
    placement = solve_baseline("AlpaServe*", datas, PUBLISHED_CLUSTER, requests)
    assert [config.num_devices for config in placement.group_configs] == [8]
    assert placement.placed_models() == set(range(len(datas)))
    placement.verify(datas, PUBLISHED_CLUSTER)


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_works_on_other_clusters_and_reports_its_progress(baseline, workload):
    cluster, seen = ClusterEnv(4, 80 * GB, 4), []
    datas = model_datas(model_list("large"), 5, workload)
    placement = solve_baseline(baseline, datas, cluster, workload, callback=seen.append)
    placement.verify(datas, cluster)
    assert seen
    assert seen[-1].placement == placement


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_workload_without_requests_is_refused(baseline, workload):
    datas = model_datas(model_list("large"), 5, workload)
    with pytest.raises(InvalidConfigError, match="no request: scale_rate"):
        solve_baseline(baseline, datas, PUBLISHED_CLUSTER, Workload.empty())
