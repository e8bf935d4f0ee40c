import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from alpa_serve.errors import InvalidConfigError
from alpa_serve.placement import ClusterEnv, ModelData
from alpa_serve.placement_policy import ModelParallelismSearch, PlacementEvaluator
from alpa_serve.placement_policy.separation import MAX_PARTITIONS, cluster_by_latency, separations
from alpa_serve.profiling import ProfilingResult
from alpa_serve.util import GB, get_partitions


@pytest.fixture(scope="module")
def model_of(profile_of):
    def build(latency, rate=1.0):
        return ModelData("m", 1.0, rate, 1.0, profile_of({(1, 1, 1): {1: [latency]}}))

    return build


def test_models_are_clustered_with_the_first_cluster_whose_first_model_is_within_38_percent(model_of):
    latencies = [1.0, 1.37, 1.39, 0.63, 0.61, 1.5, 2.0]
    # 1.39 is too far from 1.0, 1.5 too; 2.0 is within 38 % of neither 1.0 nor 1.39
    assert cluster_by_latency(list(map(model_of, latencies))) == [[0, 1, 3], [2, 5], [4], [6]]


@given(latencies=st.lists(st.floats(0.01, 10), min_size=1, max_size=12))
def test_every_model_is_in_exactly_one_cluster(model_of, latencies):
    clusters = cluster_by_latency(list(map(model_of, latencies)))
    assert sorted(model_id for cluster in clusters for model_id in cluster) == list(range(len(latencies)))


def test_latency_counts_on_the_fewest_devices_that_the_model_is_profiled_on(profile_of, model_of):
    # 0.2 s on two devices is nearer to the first model than 1 s on eight is
    split = ModelData("split", 1.0, 1.0, 1.0, profile_of({(1, 1, 8): {1: [0.125] * 8}, (1, 1, 2): {1: [0.1, 0.1]}}))
    assert cluster_by_latency([model_of(0.2), model_of(1.0), split]) == [[0, 2], [1]]


@given(num_devices=st.integers(1, 32), num_clusters=st.integers(1, 4), rates=st.lists(st.floats(0, 9), min_size=4))
@example(num_devices=31, num_clusters=4, rates=[4.0, 0.0, 0.0, 0.0625])
def test_separations_deal_all_devices_and_are_fewer_than_a_hundred(model_of, num_devices, num_clusters, rates):
    datas = [model_of(10.0**k, rates[k]) for k in range(num_clusters)]
    found = separations(datas, ClusterEnv(num_devices, 3.0, 4))
    every_deal = get_partitions(num_devices, num_clusters)
    assert len(found) == len(every_deal) or 0 < len(found) < MAX_PARTITIONS
    for separation in found:
        assert [ids for ids, _ in separation] == [[k] for k in range(num_clusters)]
        assert [env.num_devices for _, env in separation] in every_deal
        assert {(env.mem_budget, env.num_devices_per_node) for _, env in separation} == {(3.0, 4)}


def test_thinning_keeps_the_deal_that_matches_rates_to_throughput(model_of):
    # equal work: rate times latency is the same for all four
    datas = [model_of(latency, 1 / latency) for latency in (1.0, 2.0, 4.0, 8.0)]
    found = [[env.num_devices for _, env in separation] for separation in separations(datas, ClusterEnv(16, 3.0))]
    assert len(get_partitions(16, 4)) >= MAX_PARTITIONS > len(found)
    assert [4, 4, 4, 4] in found
    assert [13, 1, 1, 1] not in found


def test_a_model_with_an_empty_profile_is_refused():
    with pytest.raises(InvalidConfigError, match="'m' has an empty profile"):
        cluster_by_latency([ModelData("m", 1.0, 1.0, 1.0, ProfilingResult("empty"))])


def test_models_of_different_speed_score_better_with_devices_of_their_own(model_datas_of, workload_of):
    models = [
        {"profile": profile, "rate": rate, "cv": 4.0, "slo": slo}
        for profile, rate, slo in [("llama-2-7b", 4.0, 0.5), ("llama-2-70b", 1.5, 6.0), ("gptj-6b", 4.0, 0.4)]
    ]
    datas, workload, cluster = model_datas_of(models), workload_of(models, 100), ClusterEnv(8, 48 * GB)
    shared, _ = ModelParallelismSearch().solve_placement(datas, cluster, workload)
    separated, _ = ModelParallelismSearch(use_separation=True).solve_placement(datas, cluster, workload)
    separated.verify(datas, cluster)
    evaluator = PlacementEvaluator(datas, cluster, workload)
    assert evaluator.get_scores([separated])[0] > evaluator.get_scores([shared])[0]


def test_many_clusters_on_many_devices_are_dealt_near_the_wanted_shares(profile_of):
    # each 1.5 times as slow as the one before: a cluster of its own
    datas = [ModelData(f"m{i}", 9.0, 1.0, 1.0, profile_of({(1, 1, 1): {1: [0.1 * 1.5**i]}})) for i in range(6)]
    found = separations(datas, ClusterEnv(64, GB))
    assert found
    latencies = np.array([1.5**i for i in range(6)])
    ideal = 64 * latencies / latencies.sum()
    for separation in found:
        sizes = [cluster.num_devices for _, cluster in separation]
        assert sum(sizes) == 64
        assert min(sizes) >= 1
        assert np.abs(np.array(sizes) - ideal).max() < 4
